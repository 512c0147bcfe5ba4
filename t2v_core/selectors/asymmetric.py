"""The nearest expert's task by d_asym: complex tasks come nearer, by a fixed weight or one that other tasks choose."""

from __future__ import annotations

import numpy as np

from t2v_core.leave_out import other_groups_mean
from t2v_core.selectors.method import Cost, Method
from t2v_core.selectors.problem import Problem

__all__ = ["FIXED", "LEARNED"]

ALPHAS = (-0.5, -0.3, -0.15, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Weights to choose from. Below zero, simple tasks come nearer."""


def _fixed(problem: Problem) -> np.ndarray:
    return problem.symmetric - problem.model2vec.alpha * problem.complexity


def _learned(problem: Problem) -> np.ndarray:
    """Each task takes the weight whose choices have the lowest mean error on the tasks of other groups."""
    every = problem.symmetric[None] - np.array(ALPHAS)[:, None, None] * problem.complexity
    got = np.full((len(every), len(problem.errors)), np.nan)
    # A choice is judged on cells that say something in this reading; a task's own expert says nothing of others.
    allowed = problem.usable & np.isfinite(problem.symmetric)
    rows = np.flatnonzero(allowed.any(1))
    for k, scores in enumerate(every):
        picked = np.where(allowed[rows], scores[rows], np.inf).argmin(1)
        got[k, rows] = problem.errors[rows, picked]
    mean = other_groups_mean(got.T, problem.groups)
    fallback = ALPHAS.index(0.15)
    best = np.where(np.isfinite(mean).all(1), np.where(np.isfinite(mean), mean, np.inf).argmin(1), fallback)
    return np.asarray(every[best, np.arange(len(best))])


FIXED = Method(
    "asymmetric TASK2VEC",
    _fixed,
    "nearest by d_asym",
    "Achille et al. 2019, Sect. 3.3; alpha = 0.15 is theirs for ResNet-34",
    Cost(probe_passes=2),
)
LEARNED = Method(
    "asymmetric TASK2VEC, alpha learned",
    _learned,
    "nearest by d_asym; alpha by the other tasks' errors",
    'Achille et al. 2019, Sect. 3.3: "alpha ... can be selected based on the meta-task"',
    Cost(probe_passes=2),
)
