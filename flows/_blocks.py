"""Blocks of experts and sources: which tasks each expert is tried on, and what every unit of a block is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flows._data import Extractor
from flows._stage import Run
from flows.ingest import library_of
from t2v_core.library import Task
from t2v_core.matrix import wanted_cells

__all__ = ["block_payload", "wanted_blocks"]


def wanted_blocks(run: Run) -> Iterator[tuple[dict[str, Any], str, str, list[Task]]]:
    """(expert, source, its prefix in the store, tasks) of the cells that the config wants, source by source.

    Raises:
        ConfigError: an earlier stage has not run, or a meta-task matches nothing.
    """
    sources, experts = run.pointed("sources")["sources"], run.pointed("experts")["experts"]
    library = library_of(run)
    rules, names = run.config.evaluation.meta_tasks, [e["name"] for e in experts]
    wanted = {e: set(t) for e, t in wanted_cells(rules, names, [t.task_id for t in library.tasks]).items()}
    for source, tasks in library.by_source().items():
        for expert in experts:
            if own := [t for t in tasks if t.task_id in wanted[expert["name"]]]:
                yield expert, source, sources[source], own


def block_payload(run: Run, key: str, expert: dict[str, Any], prefix: str, tasks: list[Task]) -> dict[str, Any]:
    """What a unit of a block is told, whatever it makes of the features."""
    return {
        "key": key,
        "expert": expert["name"],
        "digest": expert["digest"],
        "extractor": Extractor.model_validate(expert["extractor"]).model_dump(),
        "prefix": prefix,
        "tasks": [t.spec.model_dump(mode="json") for t in tasks],
        "task_fingerprints": [t.fingerprint for t in tasks],
        "evaluation": run.config.evaluation.model_dump(mode="json"),
    }
