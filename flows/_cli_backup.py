"""`t2v store backup` and `t2v store restore`, beside the other commands of `t2v store`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer
from rich.markup import escape

from flows._cli_store import counted, err, opened, out, size, store_app
from flows._settings import expanded, prefect_home, run_folder
from t2v_core.errors import ConfigError, StoreError

__all__ = ["store_app"]

_URL = "sqlite:///FILE or postgresql://...; '$NAME' takes it from the environment."
MlflowOption = Annotated[str, typer.Option("--mlflow", metavar="URL", help=f"MLflow's database: {_URL}")]
PrefectOption = Annotated[str, typer.Option("--prefect", metavar="URL", help=f"Prefect's database: {_URL}")]
ArtifactsOption = Annotated[
    str, typer.Option("--artifacts", metavar="URL", help="MLflow's artifacts, a folder or s3://bucket/prefix.")
]
BesideOption = Annotated[
    bool, typer.Option("--beside", help="The databases and artifacts that `t2v run` keeps beside the run, too.")
]


def _parts(name: str, mlflow: str, prefect: str, artifacts: str, beside: bool) -> tuple[dict[str, str], str]:
    """Database URLs by name, and where artifacts are; what is not given is empty."""
    if beside:
        folder = run_folder(name).resolve()
        mlflow = mlflow or f"sqlite:///{folder / 'mlflow.db'}"
        prefect = prefect or f"sqlite:///{prefect_home(name) / 'prefect.db'}"
        artifacts = artifacts or str(folder / "mlartifacts")
    given = {"mlflow": expanded(mlflow), "prefect": expanded(prefect)}
    return {k: v for k, v in given.items() if v}, expanded(artifacts)


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
    databases, folder = _parts(context.obj[1], mlflow, prefect, artifacts, beside)
    dumps: dict[str, Callable[[], bytes]] = {name: partial(dump_database, url) for name, url in databases.items()}
    with counted("copying") as told:
        made = _backup.backup(
            store,
            there,
            databases=dumps,
            folders={"mlartifacts": Store(folder)} if folder else {},
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
    databases, folder = _parts(context.obj[1], mlflow, prefect, artifacts, beside)
    wanted = [f"database:{name}" for name in databases] + (["folder:mlartifacts"] if folder else [])
    absent = [part for part in wanted if part not in snapshot.parts]
    if absent:
        raise ConfigError(
            f"snapshot {snapshot.stamp} holds no {', '.join(absent)}; it holds {', '.join(snapshot.parts)}. Nothing "
            "was written"
        )
    store = opened(context)
    with counted("restoring") as told_:
        done = restore_store(there, snapshot, store, overwrite=overwrite, progress=told_)
    out.print(f"{escape(store.url)}: {done.written:,} objects written, {done.there:,} were there", soft_wrap=True)
    if folder:
        with counted("restoring artifacts") as told_:
            done = restore_folder(
                there, snapshot, "folder:mlartifacts", Store(folder), overwrite=overwrite, progress=told_
            )
        out.print(f"{escape(folder)}: {done.written:,} files written, {done.there:,} were there", soft_wrap=True)
    for name, url in databases.items():
        sha256 = snapshot.part(f"database:{name}")["dump"]
        restore_database(url, read_object(there, sha256, name), overwrite=overwrite)
        out.print(f"{name}: database restored")
    if folder and "://" not in folder and "mlflow" in databases:
        out.print("MLflow's database names its artifacts by whole paths: they must lie where they lay.")
