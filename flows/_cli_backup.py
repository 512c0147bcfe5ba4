"""`t2v store backup` and `t2v store restore`, beside the other commands of `t2v store`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows._cli_store import counted, err, opened, out, size, store_app
from flows._settings import expanded, prefect_home, run_folder
from t2v_core.errors import ConfigError, StoreError

__all__ = ["store_app"]

ARTIFACTS = "folder:mlartifacts"
_FILE = "sqlite:///"
_URL = "sqlite:///FILE or postgresql://...; '$NAME' takes it from the environment."
MlflowOption = Annotated[str, typer.Option("--mlflow", metavar="URL", help=f"MLflow's database: {_URL}")]
PrefectOption = Annotated[str, typer.Option("--prefect", metavar="URL", help=f"Prefect's database: {_URL}")]
ArtifactsOption = Annotated[
    str, typer.Option("--artifacts", metavar="URL", help="MLflow's artifacts, a folder or s3://bucket/prefix.")
]
BesideOption = Annotated[
    bool, typer.Option("--beside", help="The databases and artifacts that `t2v run` keeps beside the run, too.")
]


def _given(mlflow: str, prefect: str, artifacts: str) -> dict[str, str]:
    """Part of a snapshot to the URL that an option gives."""
    urls = {"database:mlflow": mlflow, "database:prefect": prefect, ARTIFACTS: artifacts}
    return {part: expanded(url) for part, url in urls.items() if url}


def _beside(name: str) -> dict[str, str]:
    """Where `t2v run` without servers keeps them."""
    folder = run_folder(name).resolve()
    return {
        "database:mlflow": f"sqlite:///{folder / 'mlflow.db'}",
        "database:prefect": f"sqlite:///{prefect_home(name) / 'prefect.db'}",
        ARTIFACTS: str(folder / "mlartifacts"),
    }


@store_app.command()
def backup(
    context: typer.Context,
    place: Annotated[str, typer.Argument(metavar="PLACE", help="Folder or URL; the same each time.")],
    mlflow: MlflowOption = "",
    prefect: PrefectOption = "",
    artifacts: ArtifactsOption = "",
    beside: BesideOption = False,
    features: Annotated[bool, typer.Option(help="Features too: large, and made again where they are missing.")] = True,
    keep: Annotated[int, typer.Option(min=0, help="Then drop all snapshots but so many; 0: keep all.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Then read the whole snapshot again.")] = False,
) -> None:
    """Copy what is new to PLACE, and write a snapshot. Flows may run meanwhile."""
    from flows import _backup
    from flows._databases import dump_database
    from flows._store import Store

    store, there = opened(context), Store(place)
    parts = _given(mlflow, prefect, artifacts)
    if beside:
        found = {part: url for part, url in _beside(context.obj[1]).items() if Path(url.removeprefix(_FILE)).exists()}
        parts = found | parts
    folder = parts.pop(ARTIFACTS, "")
    dumps: dict[str, Callable[[], bytes]] = {part: partial(dump_database, url) for part, url in parts.items()}
    with counted("copying") as told:
        made = _backup.backup(
            store,
            there,
            dumps=dumps,
            folders={ARTIFACTS: Store(folder)} if folder else {},
            skip=() if features else ("features",),
            progress=told,
        )
    for note in made.notes:
        err.print(f"[yellow]{escape(note)}[/yellow]", soft_wrap=True)
    for left in made.unfinished:
        out.print(f"left out, as it is not complete: {escape(left)}", soft_wrap=True)
    out.print(
        f"snapshot {made.stamp} of {escape(store.url)}: {made.objects:,} objects, {size(made.bytes)}; "
        f"{made.copied:,} were new, {size(made.copied_bytes)}.",
        soft_wrap=True,
    )
    if keep:
        dropped, objects = _backup.prune(there, keep)
        out.print(f"{dropped} older snapshots dropped, with {objects:,} objects that no other holds")
    if verify:
        with counted("verifying") as told:
            bad = _backup.verify(there, _backup.newest(there), told)
        for name in bad:
            out.print(f"[red]damaged[/red] {escape(name)}", soft_wrap=True)
        if bad:
            raise StoreError(f"{len(bad)} objects of the snapshot are missing or damaged in {there.url}")
        out.print("all digests are right")


@store_app.command()
def restore(
    context: typer.Context,
    place: Annotated[str, typer.Argument(metavar="PLACE", help="Of the backup.")],
    at: Annotated[str, typer.Option("--at", metavar="STAMP", help="A snapshot; the newest by default.")] = "",
    mlflow: MlflowOption = "",
    prefect: PrefectOption = "",
    artifacts: ArtifactsOption = "",
    beside: BesideOption = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Take the place of what is there and differs.")
    ] = False,
    snapshots: Annotated[bool, typer.Option("--list", help="List the snapshots, and do nothing.")] = False,
) -> None:
    """Write a snapshot's store, and the databases and artifacts that are named. Stop their servers first."""
    from flows import _backup
    from flows._databases import restore_database
    from flows._restore import read_object, restore_folder, restore_store
    from flows._store import Store

    there = Store(place)
    if snapshots:
        for stamp in _backup.snapshots(there):
            snapshot = _backup.newest(there, stamp)
            total = size(sum(int(str(r["size"])) for r in snapshot.rows))
            told = (
                f"{stamp}  {len(snapshot.rows):,} objects, {total}, of {snapshot.source}: {', '.join(snapshot.parts)}"
            )
            out.print(escape(told), soft_wrap=True)
        return
    snapshot = _backup.newest(there, at)
    parts = _given(mlflow, prefect, artifacts)
    if beside:
        parts = {part: url for part, url in _beside(context.obj[1]).items() if part in snapshot.parts} | parts
    absent = [part for part in parts if part not in snapshot.parts]
    if absent:
        raise ConfigError(
            f"snapshot {snapshot.stamp} holds no {', '.join(absent)}; it holds {', '.join(snapshot.parts)}. Nothing "
            "was written"
        )
    folder = parts.pop(ARTIFACTS, "")
    store = opened(context)
    with counted("restoring") as told_:
        done = restore_store(there, snapshot, store, overwrite=overwrite, progress=told_)
    out.print(f"{escape(store.url)}: {done.written:,} objects written, {done.there:,} were there", soft_wrap=True)
    if folder:
        with counted("restoring artifacts") as told_:
            done = restore_folder(there, snapshot, ARTIFACTS, Store(folder), overwrite=overwrite, progress=told_)
        out.print(f"{escape(folder)}: {done.written:,} files written, {done.there:,} were there", soft_wrap=True)
    for part, url in parts.items():
        restore_database(url, read_object(there, snapshot.part(part)["dump"], part), overwrite=overwrite)
        out.print(f"{part}: restored")
    if folder and "://" not in folder and "database:mlflow" in parts:
        out.print("MLflow's database names its artifacts by whole paths: they must lie where they lay.")
