"""`t2v select`: which expert for this folder of images? And what `t2v embed` shares with it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows._cli_options import NameOption, StoreOption

if TYPE_CHECKING:
    from flows._query import Answer

__all__ = ["progress_bar", "say_rejected", "select"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def progress_bar() -> Any:
    """A progress bar for reading, features and Fisher: the bar, and what to call with (what, done, in all)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=err
    )
    tasks: dict[str, Any] = {}

    def told(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done)

    return progress, told


def say_rejected(rejects: tuple[tuple[str, str], ...]) -> None:
    """Which images were left out, the first of them by name."""
    if rejects:
        err.print(f"[yellow]{len(rejects)} images left out:[/yellow]")
        for image, reason in rejects[:5]:
            err.print(f"  {escape(image)}: {escape(reason)}", soft_wrap=True)
        if len(rejects) > 5:
            err.print(f"  and {len(rejects) - 5} more")


def _percent(value: float) -> str:
    return f"{value:.1%}" if value == value else "-"


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f}" if low == low else "-"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value == value else "-"


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], named: int) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        last = i == len(columns) - 1 and column == "because"
        table.add_column(column, justify="left" if i <= named or last else "right", no_wrap=i == named)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _ranking(path: str, answer: Answer, top: int) -> Table:
    rows = []
    for row in answer.ranking.head(top).itertuples():
        because = f"{row.nearest}, {row.nearest_distance:.3f} away" if row.nearest else "its task is not known"
        rows.append(
            (
                f"{row.rank} tied" if row.tied else str(row.rank),
                row.expert,
                _percent(row.predicted_error),
                _interval(row.low, row.high),
                f"{row.probability:.0%}",
                _seconds(row.seconds),
                because,
            )
        )
    columns = ("", "expert", "predicted", "90%", "P(best)", "to try it", "because")
    f = answer.folder
    return _table(f"{path}: {len(f.classes)} classes, {f.n_images} images", columns, rows, 1)


def _tried(answer: Answer) -> Table:
    by = answer.ranking.set_index("expert")
    rows = [
        (
            v.expert,
            _percent(v.error),
            _interval(v.low, v.high),
            _percent(by["predicted_error"][v.expert]),
            _interval(by["low"][v.expert], by["high"][v.expert]),
            _seconds(v.features_seconds + v.head_seconds),
        )
        for v in answer.verified
    ]
    counts = answer.verified[0]
    title = f"tried: {counts.n_train} images to train the head, {counts.n_test} held out"
    return _table(title, ("expert", "error", "90%", "predicted", "90%", "took"), rows, 0)


def _as_json(answer: Answer, top: int) -> str:
    told = {
        "verdict": answer.verdict(),
        "seconds": answer.seconds,
        "parts": answer.parts,
        "nearest_tasks": [asdict(n) for n in answer.near],
        "calibration": answer.calibration(),
        "verified": [asdict(v) for v in answer.verified],
        "refused": [list(r) for r in answer.refused],
        "experts": json.loads(answer.ranking.head(top).to_json(orient="records")),
    }
    # Strict JSON has no NaN: what is not known is null.
    plain = json.loads(json.dumps(told), parse_constant=lambda _: None)
    return json.dumps(plain, indent=2, allow_nan=False)


def select(
    path: Annotated[str, typer.Argument(help="Folder with a subfolder of images for each class.")],
    store: StoreOption = "",
    name: NameOption = "",
    top: Annotated[int, typer.Option(min=1, help="How many experts to show.")] = 10,
    verify: Annotated[
        int, typer.Option("--verify", metavar="K", min=0, help="Try the first K: a head on their features.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Rank the experts for a folder of images: embeds it once with the probe, answers from distances.

    Works without Prefect and without a server; needs a store in which a pipeline has run. Says what error each expert
    is expected to have, which tasks of the library are near, and when the first experts cannot be told apart.
    """
    from flows._query import SelectExpertParams, answer_query

    progress, told = progress_bar()
    with progress:
        params = SelectExpertParams(path=path, store=store, name=name, top_k=top, verify=verify)
        answer = answer_query(params, told)
    say_rejected(answer.folder.rejects)
    if as_json:
        print(_as_json(answer, top))
        return
    out.print(_ranking(path, answer, top))
    out.print(escape(answer.verdict()), soft_wrap=True)
    if answer.verified:
        out.print(_tried(answer))
    for expert, reason in answer.refused:
        err.print(f"[yellow]{escape(expert)} could not be tried:[/yellow] {escape(reason)}", soft_wrap=True)
    out.print("Nearest tasks of the library:")
    for reason in answer.reasons():
        out.print(f"  {escape(reason)}", soft_wrap=True)
    if answer.calibration():
        out.print(escape(answer.calibration()), soft_wrap=True)
    e = answer.folder.embedding
    where = ", ".join(f"{what} {seconds:.1f}" for what, seconds in answer.parts.items())
    out.print(
        f"This took {answer.seconds:.1f} s ({where}; {e.n_passes} backward passes on {e.device}). Trying all "
        f"{len(answer.ranking)} experts: about {answer.cost_of_all:.0f} s for features and heads by this store's "
        "measurements, with all their weights at hand.",
        soft_wrap=True,
    )
