"""`t2v experts`: the shelf of experts for people."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from t2v_core.errors import ConfigError, T2VError

if TYPE_CHECKING:
    from flows._store import Store
    from t2v_core.config import PipelineConfig

__all__ = ["experts_app"]

experts_app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="markdown",
    help="""List the experts of a pipeline; `add`, `check` and `remove` ones of your own.

**t2v experts** lists the shelf of the last run with the mean error of each. **t2v experts add NAME --architecture
torchvision/mobilenet_v3_small --weights my.safetensors** puts one from outside on it.
""",
)
out = Console(highlight=False)


def _opened(context: typer.Context) -> tuple[PipelineConfig, Store]:
    from flows._registered import configured

    return configured(*context.obj)


def _mean_errors(store: Store) -> dict[str, tuple[float, int]]:
    """Expert to its mean balanced error and the number of tasks that it was tried on."""
    from flows._keys import ERROR_MATRIX

    if not store.exists(ERROR_MATRIX):
        return {}
    cells = store.read_table(ERROR_MATRIX).select(["expert_digest", "balanced_error"]).to_pandas().dropna()
    grouped = cells.groupby("expert_digest")["balanced_error"]
    return {str(k): (float(v), int(n)) for k, v, n in zip(grouped.groups, grouped.mean(), grouped.size(), strict=True)}


def _made_of(extractor: dict[str, Any]) -> str:
    return str(extractor["program"] or extractor["architecture"])


@experts_app.callback()
def experts(
    context: typer.Context,
    config: Annotated[str, typer.Option(metavar="CONFIG", help="YAML file of the pipeline.")] = "examples/demo.yaml",
    store: Annotated[str, typer.Option(metavar="URL", help="Default: T2V_STORE, else runs/NAME/store.")] = "",
) -> None:
    """List the experts."""
    context.obj = (config, store)
    if context.invoked_subcommand:
        return
    from flows._pointers import find_pointer
    from flows._registered import added_experts

    loaded, place = _opened(context)
    pointer = find_pointer(place, loaded.name, "experts")
    outside = {e.name: e for e in loaded.experts.external}
    added = {e.name for e in added_experts(place, loaded.name)}
    errors = _mean_errors(place)
    table = Table(title=f"experts of {loaded.name}, {place.url}", title_justify="left")
    shelf = pointer["experts"] if pointer else []
    columns = ["expert", "network", "trained on", "error", "tasks", "digest"]
    licences = any(e["name"] in outside and outside[e["name"]].licence for e in shelf)
    for column in [*columns, "licence"] if licences else columns:
        table.add_column(
            column,
            justify="right" if column in ("error", "tasks") else "left",
            overflow="fold",
            no_wrap=column in ("digest", "error", "tasks"),
        )
    for e in shelf:
        error, n = errors.get(e["digest"], (float("nan"), 0))
        x = e["extractor"]
        table.add_row(
            escape(e["name"]),
            escape(f"{_made_of(x)}, {x['image_size']} px"),
            escape(_trained_on(e["tasks"])),
            f"{error:.3f}" if n else "",
            str(n) if n else "",
            x["digest"] or e["digest"],
            *([escape(outside[e["name"]].licence) if e["name"] in outside else ""] if licences else []),
        )
    if shelf:
        out.print(table)
        out.print("error: mean balanced error over the tasks that it was tried on")
    there = {e["name"] for e in shelf}
    for name in [n for n in outside if n not in there]:
        out.print(f"{escape(name)}: {'added' if name in added else 'in the config'}, not tried yet: run the pipeline")
    rules, collections = loaded.experts.rules, loaded.experts.collections
    if not shelf:
        out.print(
            f"no run yet: the config names {len(rules)} experts, and {sum(c.largest for c in collections)} at most by "
            f"{len(collections)} collections; `t2v run {escape(context.obj[0])}` trains them",
            soft_wrap=True,
        )


def _trained_on(tasks: list[str]) -> str:
    return f"{tasks[0]}, {len(tasks) - 1} more" if len(tasks) > 1 else "".join(tasks)


def _three(text: str, what: str) -> tuple[float, float, float] | None:
    if not text:
        return None
    try:
        one, two, three = (float(v) for v in text.split(","))
    except ValueError:
        raise ConfigError(f"--{what} is {text!r}; wanted three numbers, e.g. 0.485,0.456,0.406") from None
    return one, two, three


@experts_app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the expert.")],
    architecture: Annotated[str, typer.Option(help="One of `t2v probes`, timm/NAME or torchvision/NAME.")] = "",
    weights: Annotated[str, typer.Option(help="imagenet, random, a .safetensors or .pt file.")] = "imagenet",
    program: Annotated[str, typer.Option(help="Instead: a .pt2 file of torch.export, images to features.")] = "",
    image_size: Annotated[int, typer.Option(min=0, max=1024, help="Side of its input in pixels; 0: the probe's.")] = 0,
    mean: Annotated[str, typer.Option(help="Subtracted per channel, e.g. 0.485,0.456,0.406; default: its own.")] = "",
    std: Annotated[str, typer.Option(help="Divided by per channel; default: its own.")] = "",
    trained_on: Annotated[
        list[str] | None, typer.Option(help="Task id or pattern of the library that it was trained on; several times.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of its weights, for the record.")] = "",
) -> None:
    """Put an expert on the shelf: the next nightly run, or `t2v run`, tries it on every task.

    Loads and checks it now, copies its file to the store, and pins its weights by their digest.
    """
    from pydantic import ValidationError

    from flows._activity import active
    from flows._data import load_outside
    from flows._registered import register_expert
    from flows._shelf import outside_extractor
    from t2v_core.config import ExternalExpert, explain_validation_error, load_config
    from t2v_core.fingerprints import digest_bytes

    config = load_config(context.obj[0])
    _, place = _opened(context)
    for value, what in ((weights, "weights"), (program, "program")):
        if value not in ("", "imagenet", "random") and not value.startswith("store:") and not Path(value).is_file():
            raise ConfigError(f"no file at {value!r} for --{what}; wanted a file of weights, `imagenet` or `random`")
    pinned = digest_bytes(Path(program).read_bytes()) if Path(program).is_file() else ""
    try:
        new = ExternalExpert(
            name=name,
            architecture=architecture,
            weights=weights,
            program=program,
            image_size=image_size or None,
            mean=_three(mean, "mean"),
            std=_three(std, "std"),
            trained_on=trained_on or [],
            licence=licence,
            digest=pinned,
        )
    except ValidationError as error:
        raise explain_validation_error(error, ExternalExpert, "t2v experts add") from error
    with active(place, "t2v experts add"):  # no collection between the file and what refers to it
        extractor = outside_extractor(place, new, config.probe.image_size)
        loaded = load_outside(place.url, extractor)
        kept = {"weights": extractor.weights, "program": extractor.program, "digest": loaded.digest}
        new = new.model_copy(update=kept)
        changed = register_expert(place, config, new)
    out.print(
        f"{escape(name)} {'added' if changed else 'was there already, unchanged'}: {loaded.n_features} features at "
        f"{loaded.transform.size} pixels, digest {loaded.digest}. The next nightly run tries it on every task; "
        f"`t2v run {escape(context.obj[0])}` does it now.",
        soft_wrap=True,
    )


@experts_app.command()
def check(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the expert; empty: all from outside.")] = "",
) -> None:
    """Load the experts from outside and say of each whether it can be used, and how fast it is on this machine."""
    from flows._data import load_outside
    from flows._shelf import outside_extractor

    config, place = _opened(context)
    known = {e.name: e for e in config.experts.external}
    if name and name not in known:
        raise ConfigError(
            f"no expert {name!r} from outside in {config.name!r}; there are: {', '.join(known) or 'none'}"
        )
    bad = 0
    for expert in [known[name]] if name else known.values():
        try:
            loaded = load_outside(place.url, outside_extractor(place, expert, config.probe.image_size))
        except T2VError as error:
            bad += 1
            out.print(f"[red]{escape(expert.name)}[/red]: {escape(str(error))}", soft_wrap=True)
            continue
        out.print(
            f"[green]{escape(expert.name)}[/green]: {loaded.n_features} features at {loaded.transform.size} pixels, "
            f"{_rate(loaded):,.0f} images/s, digest {loaded.digest}",
            soft_wrap=True,
        )
    if not known:
        out.print(f"no experts from outside in {escape(config.name)}")
    if bad:
        raise typer.Exit(1)


def _rate(loaded: Any) -> float:
    import numpy as np

    from t2v_core.features import extract_features

    images = np.zeros((64, loaded.transform.size, loaded.transform.size, 3), np.uint8)
    extract_features(loaded, images)
    began = time.perf_counter()
    extract_features(loaded, images)
    return len(images) / (time.perf_counter() - began)


@experts_app.command()
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the expert.")],
) -> None:
    """Take an expert that was added off the shelf again. What is known of it stays in the store."""
    from flows._registered import unregister_expert
    from t2v_core.config import load_config

    config = load_config(context.obj[0])
    _, place = _opened(context)
    unregister_expert(place, config, name)
    out.print(f"{escape(name)} removed from {escape(config.name)}")
