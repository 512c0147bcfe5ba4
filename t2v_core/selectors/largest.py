"""The expert with the most training images."""

from __future__ import annotations

import numpy as np

from t2v_core.selectors.method import Method
from t2v_core.selectors.problem import Problem

__all__ = ["METHOD"]


def _score(problem: Problem) -> np.ndarray | None:
    if problem.sizes is None or not np.isfinite(problem.sizes).any():
        return None
    return np.asarray(np.broadcast_to(-problem.sizes, problem.errors.shape), np.float64)


METHOD = Method(
    "largest source task",
    _score,
    "trained on the most images",
    "the dataset size baseline of Vu et al. 2020, Exploring and Predicting Transferability across NLP Tasks, Sect. 4",
)
