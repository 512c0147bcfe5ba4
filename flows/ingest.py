"""ingest: sources to packed Parquet shards and annotation tables, then the task library as a manifest."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow, get_run_logger

from flows._data import annotations
from flows._keys import library_key, source_prefix
from flows._pack_units import close_unit, plan_key, plan_unit, shard_key, shard_unit, source_key
from flows._pages import show_markdown
from flows._stage import Run, StageParams, StageResult, Unit, open_run, run_units, threads
from t2v_core.config import SourceSpec
from t2v_core.errors import ConfigError, MissingPackageError, SourceError
from t2v_core.fingerprints import fingerprint
from t2v_core.library import TaskLibrary, compare_libraries
from t2v_core.rules import build_library
from t2v_core.sources import open_source

__all__ = ["ingest", "library_of"]


def _find(run: Run) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Prefix in the store of each source that is there; (name, reason) of the optional ones that are not."""
    found, absent = {}, []
    for spec in run.config.sources:
        try:
            revision = open_source(spec.loader, **spec.options).info.revision
        except (SourceError, MissingPackageError) as error:
            if not spec.optional:
                raise
            absent.append((spec.name, str(error)))
            continue
        found[spec.name] = source_prefix(spec, revision)
    return found, absent


def _pack(run: Run, prefixes: dict[str, str]) -> StageResult:
    """Plan, shards, close: three waves of units over the sources that are not packed yet."""
    specs = {s.name: s for s in run.config.sources if s.name in prefixes}
    missing = {n: s for n, s in specs.items() if not run.store.exists(source_key(prefixes[n]))}
    failed: dict[str, str] = {}
    before: list[StageResult] = []

    def wave(stage: str, function: Any, units: list[Unit]) -> None:
        result = run_units(run, stage, function, units, folder="sources", preparing=True)
        before.append(result)
        for label, reason in result.failures:
            failed.setdefault(label.split(" ")[0], reason)

    def payload(spec: SourceSpec, **more: Any) -> dict[str, Any]:
        return {"source": spec.model_dump(mode="json"), "prefix": prefixes[spec.name], **more}

    wave("annotations", plan_unit, [Unit(n, plan_key(prefixes[n]), payload(s)) for n, s in missing.items()])
    shards = [
        Unit(f"{name} shard {i}", shard_key(prefixes[name], i), payload(spec, index=i))
        for name, spec in missing.items()
        if name not in failed
        for i in range(run.store.read_json(plan_key(prefixes[name]))["n_shards"])
    ]
    wave("pack images", shard_unit, shards)
    closing = [Unit(n, source_key(prefixes[n]), payload(s, failed=failed.get(n, ""))) for n, s in specs.items()]
    result = run_units(run, "ingest", close_unit, closing, folder="sources")
    result.before = before
    return result


def _manifest(run: Run, sources: dict[str, str]) -> dict[str, Any]:
    """Build the library and write its manifest; the key is a hash of the tasks' fingerprints."""
    tables = {name: annotations(run.store.url, prefix) for name, prefix in sources.items()}
    library = build_library(run.config.library, tables)
    if not library.tasks:
        raise ConfigError(
            f"the rules make no task ({len(library.skipped)} skipped, e.g. "
            f"{library.skipped[0].reason if library.skipped else 'no rule fits a source'}); "
            "lower library.min_train and min_test, or add data"
        )
    key = library_key(run.config.name, fingerprint("library", [[t.task_id, t.fingerprint] for t in library.tasks]))
    if not run.store.exists(key):
        run.store.put_table(key, library.to_table())
    return {"manifest": key, "skipped": [[s.task_id, s.reason] for s in library.skipped]}


def _tell_changes(run: Run, before: str, after: str) -> list[str]:
    """What became of the library since the last ingest, in the log and as an artifact."""
    if not before or before == after:
        return []
    old, new = (TaskLibrary.from_table(run.store.read_table(key)) for key in (before, after))
    changes = compare_libraries(old, new)
    notes = [f"{len(names)} tasks {what}: {', '.join(names[:3])}" for what, names in changes.items() if names]
    for note in notes:
        get_run_logger().info(note)
    lines = [f"- {what}: `{name}`" for what, names in changes.items() for name in names]
    show_markdown(["# The library has changed", "", *lines], "library-changes", "Tasks that changed")
    return notes


def library_of(run: Run) -> TaskLibrary:
    """The config's newest task library."""
    return TaskLibrary.from_table(run.store.read_table(run.pointed("library")["manifest"]))


@flow(name="ingest", flow_run_name="ingest[{params.config}]", task_runner=threads(), persist_result=False)
def ingest(params: StageParams) -> StageResult:
    """Pack sources into the store and cut the task library from them.

    A source is packed once, shard by shard; one whose data changed is packed again under another key. One bad image is
    counted and left out.
    """
    began = time.perf_counter()
    with open_run(params) as run:
        run.check()
        prefixes, absent = _find(run)
        result = _pack(run, prefixes)
        failed = {unit for unit, _ in result.failures}
        sources = {name: prefix for name, prefix in prefixes.items() if name not in failed}
        run.point("sources", {"sources": sources, "absent": absent})
        before = run.last("library").get("manifest", "")
        library = _manifest(run, sources)
        run.point("library", library)
        result.notes = [f"source {name} left out: {reason}" for name, reason in absent]
        result.notes += _tell_changes(run, before, library["manifest"])
        result.seconds = time.perf_counter() - began
        return result
