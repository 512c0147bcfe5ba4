"""Second moments of tasks' features (C1), which the domain distance can go by: a unit a source, on cached features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from flows._data import Extractor, annotations
from flows._features import read_features
from flows._keys import moments_key
from flows._stage import Run, Unit
from flows._store import Store
from flows.ingest import library_of
from t2v_core.domains import domain_embedding
from t2v_core.library import TaskSpec, resolve_task

__all__ = ["moments_unit", "moments_units", "read_moments"]


def moments_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The diagonal of C1 over each task's train images; the probe's features are in the store since the embeddings."""
    store, key = Store(store_url), payload["key"]
    if store.exists(key):
        return {"key": key, "wrote": False, "records": []}
    extractor, prefix = Extractor.model_validate(payload["extractor"]), payload["prefix"]
    table = annotations(store_url, prefix)
    rows = {t["task_id"]: resolve_task(TaskSpec.model_validate(t), table).part(test=False)[0] for t in payload["tasks"]}
    used = np.unique(np.concatenate(list(rows.values())))
    values, _ = read_features(store_url, extractor, payload["digest"], prefix, used)
    moments = {
        task_id: domain_embedding(values[np.searchsorted(used, own)], "diagonal").astype(np.float32)
        for task_id, own in rows.items()
    }
    return {"key": key, "wrote": store.put(key, save(moments)), "records": []}


def moments_units(run: Run, embedded: set[str]) -> list[Unit]:
    """A unit for each source with embedded tasks."""
    sources, units = run.pointed("sources")["sources"], []
    for source, tasks in library_of(run).by_source().items():
        if own := [t for t in tasks if t.task_id in embedded]:
            key = moments_key(run.probe.digest, run.generic.image_size, sources[source], own)
            payload = {
                "key": key,
                "extractor": run.generic.model_dump(),
                "digest": run.probe.digest,
                "prefix": sources[source],
                "tasks": [t.spec.model_dump(mode="json") for t in own],
            }
            units.append(Unit(f"second moments of {source}", key, payload))
    return units


def read_moments(store: Store, keys: Sequence[str], task_ids: Sequence[str]) -> np.ndarray | None:
    """Second moments ``[T, D]`` of some tasks; None where one of the units has failed, or there is none."""
    if not keys or not all(map(store.exists, keys)):
        return None
    found: dict[str, np.ndarray] = {}
    for key in keys:
        found |= load(store.read(key))
    return np.stack([found[t] for t in task_ids])
