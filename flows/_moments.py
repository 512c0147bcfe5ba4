"""Second moments of tasks' features (C1), which the domain distance can go by: a unit a source, on cached features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from flows._data import Extractor, annotations
from flows._features import read_features
from flows._store import Store
from t2v_core.domains import domain_embedding
from t2v_core.library import TaskSpec, resolve_task

__all__ = ["moments_unit", "read_moments"]


def moments_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The diagonal of C1 over each task's train images, by the task's fingerprint.

    The probe's features are in the store since the embeddings; those of one task are held at a time.
    """
    store, key = Store(store_url), payload["key"]
    if store.exists(key):
        return {"key": key, "wrote": False, "records": []}
    extractor, prefix = Extractor.model_validate(payload["extractor"]), payload["prefix"]
    table, moments = annotations(store_url, prefix), {}
    for task, fingerprint in zip(payload["tasks"], payload["task_fingerprints"], strict=True):
        rows = np.sort(resolve_task(TaskSpec.model_validate(task), table).part(test=False)[0])
        values, _ = read_features(store_url, extractor, payload["digest"], prefix, rows)
        moments[fingerprint] = domain_embedding(values, "diagonal").astype(np.float32)
    return {"key": key, "wrote": store.put(key, save(moments)), "records": []}


def read_moments(store: Store, keys: Sequence[str], fingerprints: Sequence[str]) -> np.ndarray | None:
    """Second moments ``[T, D]`` of the tasks with these fingerprints; None where those of one are not there."""
    found: dict[str, np.ndarray] = {}
    for key in keys:
        if store.exists(key):
            found |= load(store.read(key))
    return np.stack([found[f] for f in fingerprints]) if found.keys() >= set(fingerprints) else None
