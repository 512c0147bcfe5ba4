"""TASK2VEC with each embedding on its own scale: what counts is where the information is, not how much there is."""

from __future__ import annotations

import numpy as np

from t2v_core.distances import symmetric_matrix
from t2v_core.selectors.method import Cost, Method
from t2v_core.selectors.problem import Problem

__all__ = ["METHOD", "scaled"]


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their geometric mean over filters above zero; rows of zeros as they are.

    d_sym compares filters by ratios, so that a geometric mean is its natural scale; a Euclidean norm is that of a few
    large filters.
    """
    value = np.asarray(vectors, np.float64)
    positive = value > 0
    log = np.where(positive, np.log(np.where(positive, value, 1.0)), 0.0)
    mean = log.sum(1, keepdims=True) / np.maximum(positive.sum(1, keepdims=True), 1)
    return np.asarray(value / np.exp(mean))


def _score(problem: Problem) -> np.ndarray:
    out = np.full(problem.errors.shape, np.nan)
    out[:, problem.known] = symmetric_matrix(scaled(problem.tasks), scaled(problem.experts[problem.known]))
    return out


METHOD = Method(
    "scaled TASK2VEC",
    _score,
    "d_sym of embeddings on their own scale",
    "ours; docs/adr/0005-prior-beta.md has the observation that led to it",
    Cost(probe_passes=2),
)
