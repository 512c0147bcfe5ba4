"""The `t2v` command: the flows' verbs for people. Heavy imports happen inside the commands, after the environment."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows._cli_backup import store_app
from flows._cli_experts import experts_app
from flows._cli_options import NameOption, StoreOption
from flows._cli_reproduce import reproduce_command
from flows._cli_select import progress_bar, say_rejected, select
from flows._cli_tasks import fetch_data, tasks_app
from flows._settings import embedded_services, mlflow_uri, prefect_home, store_url
from t2v_core.errors import ConfigError, T2VError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Task embeddings and expert selection.

A library of labelled image datasets (*tasks*) and a shelf of pretrained feature extractors (*experts*): which expert
will do best on a new dataset? t2v embeds the dataset once and answers from distances.

Begin with **t2v run examples/demo.yaml**, then **t2v select FOLDER**.
""",
)
app.add_typer(tasks_app, name="tasks")
app.add_typer(experts_app, name="experts")
app.add_typer(store_app, name="store")
app.command("fetch")(fetch_data)
app.command("reproduce")(reproduce_command)
app.command("select")(select)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DaskOption = Annotated[
    str,
    typer.Option(
        "--dask", metavar="ADDRESS", help="Use this Dask scheduler (tcp://host:8786); default: a local cluster."
    ),
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=0, help="Processes of the local cluster; 0: one per core.")
]
ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, e.g. examples/demo.yaml.")]


def _percent(value: float) -> str:
    return f"{100 * value:+.1f}%"


def _selection_table(summary: dict[str, Any], reading: str) -> Table:
    table = Table(title=f"{summary['n_tasks']} tasks, {summary['n_experts']} experts, {reading}", title_justify="left")
    table.add_column("selector")
    for name in ("error increase [95%]", "median", "points", "best"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["table"]:
        if row["reading"] == reading:
            interval = f"[{100 * row['relative_low']:.1f}, {100 * row['relative_high']:.1f}]"
            table.add_row(
                escape(row["method"]),
                escape(f"{_percent(row['relative_increase'])} {interval}"),
                _percent(row["median_increase"]),
                f"{100 * row['absolute_difference']:+.2f}",
                f"{row['top1']:.0%}",
            )
    return table


def _show(summary: dict[str, Any]) -> None:
    for reading in dict.fromkeys(row["reading"] for row in summary["table"]):
        out.print(_selection_table(summary, reading))
    out.print(
        "Error increase: over the best candidate's error, mean of ratios (errors below "
        f"{summary['floor']:g} count as it); points: difference in percentage points of error; best: share of tasks "
        "for which the best candidate was picked.",
        soft_wrap=True,
    )
    for sentence in summary["conclusions"]:
        out.print(f"  {escape(sentence)}", soft_wrap=True)
    store, name = summary["store"], summary["name"]
    out.print("\n[bold]Where to look next[/bold]")
    lines = [
        ("report page", summary["report"]),
        ("embeddings", f"{store}/embeddings"),
        ("error matrix", f"{store}/error_matrix"),
        ("MLflow", f"t2v ui mlflow --name {name}    (run {summary['mlflow_run']}, model {summary['model']})"),
        ("Prefect", f"t2v ui prefect --name {name}"),
        ("rank experts", f"t2v select FOLDER --store {store}    (a folder with a subfolder of images per class)"),
    ]
    for what, where in lines:
        out.print(f"  {what:<13} {escape(str(where))}", soft_wrap=True)


def _finished(config_path: str, store: str) -> dict[str, Any] | None:
    """The result of exactly this config on exactly these data, where it is complete in the store."""
    from flows._keys import result_key
    from flows._pointers import find_pointer
    from flows._registered import configured

    config, place = configured(config_path, store)
    key = result_key(config)
    if not place.exists(key):
        return None
    summary: dict[str, Any] = place.read_json(key)
    complete = all(place.exists(k) for k in summary["keys"]) and not any(s["failed"] for s in summary["stages"])
    # Units of an older result may have been collected as garbage; only the newest one's are all there.
    newest = (find_pointer(place, config.name, "selection") or {}).get("prefix") == summary["prefix"]
    return summary if complete and newest else None


@app.command()
def run(
    config: ConfigArgument,
    store: StoreOption = "",
    dask: DaskOption = "",
    workers: WorkersOption = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Go through all stages even if the result is complete.")
    ] = False,
) -> None:
    """Run the main job: sources, tasks, embeddings, experts, error matrix, MODEL2VEC, report.

    Needs no server: Prefect's and MLflow's databases are files beside the run. What is in the store already is not
    done again; after a crash, the same command goes on where it was.
    """
    from t2v_core.config import load_config

    loaded = load_config(config)
    if not force:
        began = time.perf_counter()
        summary = _finished(config, store)
        if summary:
            _show(summary)
            units = sum(s["done"] + s["reused"] for s in summary["stages"])
            out.print(
                f"\nNothing to do: all {units} units of this config on these data are in {escape(summary['store'])} "
                f"(looked for {time.perf_counter() - began:.1f} s; --force goes through all stages).",
                soft_wrap=True,
            )
            return
    embedded_services(loaded.name)
    from flows._guard import guard_server

    guard_server()
    out.print(
        f"t2v run: {escape(config)}, store {escape(store_url(store, loaded.name))}; starting Prefect and Dask ..."
    )
    began = time.perf_counter()
    from flows._progress import listen, terminal_listener
    from flows.pipeline import STAGES, PipelineParams, pipeline

    stop = listen(terminal_listener(STAGES))
    try:
        summary = pipeline(PipelineParams(config=config, store=store, dask=dask, workers=workers))
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on where it was")
        raise typer.Exit(130) from None
    finally:
        stop()
    out.print(f"\nDone in {(time.perf_counter() - began) / 60:.1f} min.")
    _show(summary)
    done = sum(s["done"] for s in summary["stages"])
    if done == 0:
        out.print("\nNothing to do: every unit was in the store already.")
    failed = sum(s["failed"] for s in summary["stages"])
    if failed:
        err.print(f"[yellow]{failed} units failed; the report lists them with their reasons.[/yellow]")


@app.command()
def plan(
    config: ConfigArgument,
    store: StoreOption = "",
    workers: Annotated[
        int, typer.Option(min=0, help="Workers, or GPUs, that the hours are for; 0: this machine's cores.")
    ] = 0,
    images_per_second: Annotated[
        float, typer.Option(min=0, help="Forward passes of one worker, to plan for another machine; 0: measure here.")
    ] = 0,
) -> None:
    """Say what a pipeline would do, before it does anything: units, cells, images, bytes, hours, and what is there.

    Measures this machine for a few seconds. Before the first ingest, tasks are counted from the annotation files.
    """
    from flows._plan import make_plan, measure_speed, probe_of
    from flows._registered import configured

    loaded, place = configured(config, store)
    with err.status("measuring this machine ..."):
        network = probe_of(loaded, place)
        speed = measure_speed(network)
    if images_per_second:
        speed = speed.faster(images_per_second / speed.images)
    workers = workers or os.cpu_count() or 1
    planned = make_plan(loaded, place, network, speed)
    table = Table(title=f"{config}, store {place.url}", title_justify="left")
    for column in ("stage", "units", "there", "image passes", "to read", "to write", f"time, {workers} workers"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for line in planned.lines:
        table.add_row(
            line.stage,
            str(line.units),
            str(line.there),
            f"{line.passes:,.0f}",
            _size(line.read),
            _size(line.written),
            _hours(line.seconds / min(workers, max(1, line.units - line.there))),
        )
    out.print(table)
    total = sum(line.seconds / min(workers, max(1, line.units - line.there)) for line in planned.lines)
    out.print(
        f"{planned.tasks} tasks x {planned.experts} experts = {planned.cells:,} cells on "
        f"{sum(planned.images.values()):,} images; about {_hours(total)} at {speed.images:,.0f} images and "
        f"{speed.binary_heads:,.0f} binary heads a second and worker. A backward pass counts as two forward passes.",
        soft_wrap=True,
    )
    if not planned.exact:
        out.print("Nothing was ingested yet: counted from annotation files, and no unit is taken to be there.")
    for name, reason in planned.absent:
        out.print(f"[yellow]missing[/yellow] {escape(name)}: {escape(reason)}", soft_wrap=True)


@app.command()
def transfer(
    config: ConfigArgument,
    store: StoreOption = "",
    dask: DaskOption = "",
    workers: WorkersOption = 0,
) -> None:
    """Fine-tune experts on chosen tasks, all layers, and compare with the generic start: D_ft, and Fig. 4's curves.

    What to run is in the config's `transfer:`. The pipeline must have run; runs that are in the store are not repeated.
    """
    from t2v_core.config import load_config

    embedded_services(load_config(config).name)
    from flows._guard import guard_server

    guard_server()
    from flows._progress import listen, terminal_listener
    from flows._registered import configured
    from flows._stage import StageParams
    from flows.transfer import newest_table
    from flows.transfer import transfer as run_transfer

    stop = listen(terminal_listener(["transfer"]))
    try:
        result = run_transfer(StageParams(config=config, store=store, dask=dask, workers=workers))
    finally:
        stop()
    loaded, place = configured(config, store)
    shown = newest_table(place, loaded.name)
    table = Table(title="balanced test error after fine-tuning all layers", title_justify="left")
    for column in ("task", "images", "start", "frozen", "fine-tuned", "spread", "D_ft"):
        table.add_column(column, justify="left" if column in ("task", "start") else "right", overflow="fold")
    for row in shown.itertuples():
        table.add_row(
            escape(str(row.task_id)), str(row.n_train), escape(str(row.expert)), f"{row.frozen_error:.3f}",
            f"{row.error:.3f}", f"{row.spread:.3f}", f"{row.d_ft:+.3f}",
        )  # fmt: skip
    out.print(table)
    out.print(f"{escape(result.line())}; all runs are in {escape(place.url)}/transfer", soft_wrap=True)


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@app.command()
def embed(
    path: Annotated[str, typer.Argument(help="Folder with a subfolder of images for each class.")],
    output: Annotated[str, typer.Option("--out", help="Write the embedding to this Parquet file.")] = "",
    probe: Annotated[
        str, typer.Option(help="Architecture; `t2v probes` lists them; or timm/NAME.")
    ] = "efficientnet_lite0",
    weights: Annotated[str, typer.Option(help="imagenet, random, or a file.")] = "imagenet",
    image_size: Annotated[
        int,
        typer.Option(min=16, max=1024, help="Side of the input; the demo's is 48, and only equal ones compare."),
    ] = 48,
    estimator: Annotated[
        str, typer.Option(help="variational, montecarlo, exact, montecarlo_plain or reference.")
    ] = "variational",
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
) -> None:
    """Embed a folder of images with a probe; needs no store."""
    from t2v_core.config import EmbeddingSpec
    from t2v_core.fingerprints import fingerprint
    from t2v_core.fisher import ESTIMATORS
    from t2v_core.probes import load_probe
    from t2v_core.query import embed_folder
    from t2v_core.records import embedding_row

    ESTIMATORS[estimator]
    network = load_probe(probe, weights, seed=seed, image_size=image_size)
    spec = EmbeddingSpec(estimator=estimator, seed=seed)
    progress, told = progress_bar()
    with progress:
        folder = embed_folder(path, network, spec, progress=told)
    say_rejected(folder.rejects)
    e = folder.embedding
    out.print(
        f"{path}: {len(folder.classes)} classes, {folder.n_images} images, {len(e.vector)} filters of {e.probe}, "
        f"complexity {e.complexity:.4g}, head error {e.head_error:.1%}, {e.seconds:.1f} s",
        soft_wrap=True,
    )
    if output:
        import pyarrow.parquet as pq

        task = Path(path).name
        pq.write_table(embedding_row(task, "", fingerprint("query", task, e.probe), e), output)
        out.print(f"written to {output}")


@app.command()
def report(
    config: ConfigArgument = "examples/demo.yaml",
    store: StoreOption = "",
    output: Annotated[str, typer.Option("--out", help="Copy the page to this file.")] = "",
) -> None:
    """Say where a pipeline's report page is, or copy it to a file."""
    from flows._pointers import read_pointer
    from flows._store import Store
    from t2v_core.config import load_config

    loaded = load_config(config)
    place = Store(store_url(store, loaded.name))
    page = read_pointer(place, loaded.name, "report")["report"]
    if output:
        Path(output).write_bytes(place.read(page))
        out.print(f"written to {escape(output)}")
    else:
        out.print(escape(place.path(page)), soft_wrap=True)


@app.command()
def probes() -> None:
    """List the architectures that can embed. Besides, `timm/NAME` and `torchvision/NAME` take any network that fits."""
    from t2v_core.probes import PROBES

    for name in PROBES:
        out.print(f"{name}  (head {PROBES[name].head}, {PROBES[name].image_size} px)")
    out.print("torchvision/NAME  (a classifier of torchvision whose head is its last linear layer)")
    out.print("timm/NAME  (a network of timm made of convolutions and linear layers, e.g. timm/vit_tiny_patch16_224)")


@app.command()
def ui(
    what: Annotated[str, typer.Argument(help="mlflow or prefect.")],
    name: NameOption = "demo",
    port: Annotated[int, typer.Option(help="Port on loopback; 0: the usual one, 5000 or 4200.")] = 0,
) -> None:
    """Open the MLflow or Prefect pages on the runs of a config that ran without servers. Ctrl-C stops."""
    embedded_services(name)
    tools = Path(sys.executable).parent
    if what == "mlflow":
        port = port or 5000
        command = [str(tools / "mlflow"), "server", "--backend-store-uri", mlflow_uri(name), "--host", "127.0.0.1"]
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    elif what == "prefect":
        port = port or 4200
        command = [str(tools / "prefect"), "server", "start", "--host", "127.0.0.1"]
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        if not prefect_home(name).is_dir():
            raise ConfigError(f"no Prefect database of {name!r} here; run its pipeline in this folder first")
    else:
        raise ConfigError(f"unknown page {what!r}; wanted mlflow or prefect")
    out.print(f"{what}: http://127.0.0.1:{port}   (Ctrl-C stops)")
    out.file.flush()
    os.execv(command[0], [*command, "--port", str(port)])  # one process, so that a signal reaches the server


@app.command()
def alerts(
    file: Annotated[str, typer.Argument(help="YAML file of automations.")] = "infra/automations/nightly.yaml",
) -> None:
    """Put automations on the Prefect server; by default those that tell of a nightly run that went wrong.

    Needs PREFECT_API_URL. T2V_ALERT_URL is the webhook that messages are sent to, where there are any; the server keeps
    it as a secret block. Run again after a change: automations of the same names are brought up to date.
    """
    from flows._alerts import apply_automations
    from flows._settings import alert_url

    for name, what in apply_automations(file, alert_url()):
        out.print(f"{what}: {escape(name)}")


def main() -> None:
    """Entry point: errors of ours are one line, not a traceback."""
    try:
        app()
    except T2VError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None
    except Exception as error:
        # A failed stage, or an error of ours inside a flow: the message says it all.
        if type(error).__name__ == "StageFailed":
            err.print(f"[red]failed:[/red] {escape(str(error))}", soft_wrap=True)
            raise SystemExit(1) from None
        raise


if __name__ == "__main__":
    main()
