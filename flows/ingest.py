"""ingest: sources to packed Parquet shards and annotation tables, then the task library as a manifest."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow

from flows._data import annotations
from flows._keys import library_key, source_prefix
from flows._stage import Run, StageParams, StageResult, Unit, open_run, run_units, threads
from flows._units import pack_unit
from t2v_core.errors import ConfigError, MissingPackageError, SourceError
from t2v_core.fingerprints import fingerprint
from t2v_core.library import TaskLibrary, build_library
from t2v_core.sources import open_source

__all__ = ["ingest", "library_of"]


def _find(run: Run) -> tuple[list[Unit], list[tuple[str, str]]]:
    """Units of the sources that are there; (name, reason) of the optional ones that are not."""
    units, absent = [], []
    for spec in run.config.sources:
        try:
            revision = open_source(spec.loader, **spec.options).info.revision
        except (SourceError, MissingPackageError) as error:
            if not spec.optional:
                raise
            absent.append((spec.name, str(error)))
            continue
        prefix = source_prefix(spec, revision)
        units.append(
            Unit(spec.name, f"{prefix}/source.json", {"source": spec.model_dump(mode="json"), "prefix": prefix})
        )
    return units, absent


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


def library_of(run: Run) -> TaskLibrary:
    """The config's newest task library."""
    return TaskLibrary.from_table(run.store.read_table(run.pointed("library")["manifest"]))


@flow(name="ingest", flow_run_name="ingest[{params.config}]", task_runner=threads(), persist_result=False)
def ingest(params: StageParams) -> StageResult:
    """Pack sources into the store and cut the task library from them.

    A source is packed once; one whose data changed is packed again under another key. One bad image is counted and
    left out.
    """
    began = time.perf_counter()
    with open_run(params) as run:
        run.check()
        units, absent = _find(run)
        result = run_units(run, "ingest", pack_unit, units, folder="sources")
        failed = {unit for unit, _ in result.failures}
        sources = {u.label: u.payload["prefix"] for u in units if u.label not in failed}
        run.point("sources", {"sources": sources, "absent": absent})
        library = _manifest(run, sources)
        run.point("library", library)
        result.notes = [f"source {name} left out: {reason}" for name, reason in absent]
        result.seconds = time.perf_counter() - began
        return result
