"""The unit of `score-experts`: one expert's features of one source, looked at by every method; runs on Dask workers."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load

from flows._data import Extractor, annotations, weights_of
from flows._features import read_features
from flows._store import Store
from t2v_core.config import EvaluationSpec, ScoringSpec
from t2v_core.library import TaskSpec, resolve_task
from t2v_core.transferability.block import score_block, train_sample
from t2v_core.transferability.original_head import heads_of_state, original_head

__all__ = ["expert_heads", "heads_key", "score_unit"]

_WEIGHTS = "/weights.safetensors"


def heads_key(store: Store, extractor: Extractor) -> str:
    """Where the heads are that an expert of ours was trained with; empty for all others."""
    folder = extractor.weights.removeprefix("store:").removesuffix(_WEIGHTS)
    ours = extractor.weights.startswith("store:") and extractor.weights.endswith(_WEIGHTS)
    key = f"{folder}/heads.safetensors"
    return key if ours and store.exists(key) else ""


@lru_cache(maxsize=4)
def _heads(store_url: str, extractor: Extractor, key: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The expert's original heads; none for a program or for random weights."""
    if key:
        return heads_of_state(load(Store(store_url).read(key)))
    if extractor.program:
        return []
    weights = weights_of(store_url, extractor.weights)
    return original_head(extractor.architecture, weights, extractor.image_size, extractor.seed)


def expert_heads(store: Store, extractor: Extractor) -> list[tuple[np.ndarray, np.ndarray]]:
    """The heads that an expert was trained with, weight ``[C, D]`` and bias ``[C]``; none where they are not known."""
    return _heads(store.url, extractor, heads_key(store, extractor))


def score_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Scores of one expert for all wanted tasks of one source, on train images only; the features are in the store."""
    store, key = Store(store_url), payload["key"]
    if store.exists(key):
        return {"key": key, "wrote": False, "records": []}
    spec, evaluation = (
        ScoringSpec.model_validate(payload["scoring"]),
        EvaluationSpec.model_validate(payload["evaluation"]),
    )
    extractor, prefix = Extractor.model_validate(payload["extractor"]), payload["prefix"]
    table = annotations(store_url, prefix)
    tasks = [(str(t["task_id"]), resolve_task(TaskSpec.model_validate(t), table)) for t in payload["tasks"]]
    used = np.unique(np.concatenate([train_sample(rows, spec)[0] for _, rows in tasks]))
    of = (payload["digest"], prefix, used, evaluation.batch_size, evaluation.precision)
    values, _ = read_features(store_url, extractor, *of)
    # Rows that no sample holds are numbered too; they are never looked at.
    placed = [(i, replace(rows, rows=np.searchsorted(used, rows.rows))) for i, rows in tasks]
    block = score_block(payload["expert"], values, _heads(store_url, extractor, payload["heads"]), placed, spec)
    fingerprints = dict(zip((i for i, _ in tasks), payload["task_fingerprints"], strict=True))
    extra = {
        "source": [table.source] * len(block),
        "expert_digest": [payload["digest"]] * len(block),
        "task_fingerprint": [fingerprints[i] for i in block["task_id"].to_pylist()],
    }
    for name, column in extra.items():
        block = block.append_column(name, pa.array(column, pa.string()))
    wrote = store.put_table(key, block)
    seconds = sum(block["seconds"].to_pylist())
    said = f"{payload['expert']} on {table.source}: {len(block)} scores of {len(tasks)} tasks in {seconds:.1f} s"
    return {"key": key, "wrote": wrote, "records": [(logging.INFO, said)]}
