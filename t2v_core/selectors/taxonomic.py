"""The nearest expert's task in a taxonomy of classes; equals by the fixed d_asym."""

from __future__ import annotations

import numpy as np

from t2v_core.selectors.method import Cost, Method
from t2v_core.selectors.problem import Problem

__all__ = ["METHOD"]


def _score(problem: Problem) -> np.ndarray | None:
    if problem.taxonomy is None or not np.isfinite(problem.taxonomy).any():
        return None
    # d_asym lies within [-1, 1] for |alpha| below 1; a level of the tree is worth more than any of it.
    tie = problem.symmetric - problem.model2vec.alpha * problem.complexity
    return np.asarray(problem.taxonomy + 0.01 * np.where(np.isfinite(tie), tie, 1.0))


METHOD = Method(
    "taxonomic distance",
    _score,
    "nearest in the taxonomy, then by d_asym",
    "Achille et al. 2019, Sect. 2 (D_tax)",
    Cost(probe_passes=2),
)
