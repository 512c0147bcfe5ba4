"""embed-tasks: every task of the library that has no embedding gets one, and nothing else is done."""

from __future__ import annotations

from prefect import flow
from pydantic import Field

from flows._keys import EMBEDDING_UNITS, embedding_fingerprint, embedding_key
from flows._stage import Run, StageParams, StageResult, Unit, features_units, open_run, run_units, threads
from flows._units import compact_unit, embed_unit, features_unit
from flows.ingest import ingest, library_of
from t2v_core.library import Task

__all__ = ["EmbedTasksParams", "embed_tasks"]


class EmbedTasksParams(StageParams):
    """Parameters of embed-tasks, the nightly flow."""

    refresh: bool = Field(True, description="First look for new and changed data (run ingest).")


def _features_units(run: Run, tasks: list[Task], sources: dict[str, str]) -> list[Unit]:
    units = []
    for name in dict.fromkeys(t.spec.source for t in tasks):
        digest, size = run.probe.digest, run.config.embedding.batch_size
        units += features_units(run, f"features of {name}", run.generic, digest, sources[name], size)
    return units


def _embed_unit(run: Run, task: Task, fingerprint: str, prefix: str) -> Unit:
    key = embedding_key(task.task_id, run.probe.name, fingerprint)
    payload = {
        "key": key,
        "task": task.spec.model_dump(mode="json"),
        "task_fingerprint": task.fingerprint,
        "fingerprint": fingerprint,
        "prefix": prefix,
        "extractor": run.generic.model_dump(),
        "digest": run.probe.digest,
        "embedding": run.config.embedding.model_dump(mode="json"),
    }
    return Unit(task.task_id, key, payload)


@flow(name="embed-tasks", flow_run_name="embed-tasks[{params.config}]", task_runner=threads(), persist_result=False)
def embed_tasks(params: EmbedTasksParams) -> StageResult:
    """Embed the tasks that have no embedding: head on cached probe features, then the filter-wise Fisher."""
    before = [ingest(StageParams(**params.model_dump(exclude={"refresh"})))] if params.refresh else []
    with open_run(params) as run:
        run.check()
        sources, library = run.pointed("sources")["sources"], library_of(run)
        wanted = {
            t.task_id: embedding_fingerprint(t, run.config.probe, run.probe.digest, run.config.embedding)
            for t in library.tasks
        }
        units = [_embed_unit(run, t, wanted[t.task_id], sources[t.spec.source]) for t in library.tasks]
        there = set(run.store.list(EMBEDDING_UNITS))
        missing = [t for t, u in zip(library.tasks, units, strict=True) if u.key not in there]
        # Features only of the sources that some task still needs, before its tasks ask for them all at once.
        prepared = _features_units(run, missing, sources)
        before.append(
            run_units(run, "probe features", features_unit, prepared, folder="features", gpu=True, preparing=True)
        )
        result = run_units(run, "embed tasks", embed_unit, units, folder=EMBEDDING_UNITS, gpu=True)
        result.before = before
        compact_unit(run.store.url, {"dataset": "embeddings"})
        failed = {unit for unit, _ in result.failures}
        run.point("embeddings", {"embeddings": {t: f for t, f in wanted.items() if t not in failed}})
        return result
