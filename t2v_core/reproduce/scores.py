"""Distances of experts to tasks without any learning: what Fig. 3 marks, and Table 2 compares probes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from t2v_core.distances import symmetric_matrix
from t2v_core.matrix import expert_vectors
from t2v_core.records import EmbeddingTable

__all__ = ["expert_scores"]


def expert_scores(
    table: EmbeddingTable, trained_on: Mapping[str, Sequence[str]], alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """d_sym and d_asym of each expert's tasks to each task, ``[T, E]`` both.

    An expert of which no task is known has NaN: there is no distance to it.
    """
    vectors = table.vectors.astype(np.float64)
    base = expert_vectors(table.vectors, table.task_ids, trained_on)
    known = (base > 0).any(axis=1)
    symmetric = np.full((len(vectors), len(base)), np.nan)
    complexity = np.full(len(base), np.nan)
    if known.any():
        symmetric[:, known] = symmetric_matrix(vectors, base[known])
        complexity[known] = symmetric_matrix(base[known], table.trivial[None].astype(np.float64))[:, 0]
    return symmetric, symmetric - alpha * complexity
