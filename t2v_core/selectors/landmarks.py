r"""Landmarking: try k experts on the task, and complete the rest of its row from the error matrix.

Rows of errors are taken for draws of a Gaussian with the mean and the covariance of the other tasks' rows (without the
task's group; the covariance is shrunk towards its diagonal). Given the errors e_S of the tried experts,

.. math:: \hat e = \mu + \Sigma_{:S} (\Sigma_{SS} + \sigma^2 I)^{-1} (e_S - \mu_S)

For the tried experts that is a compromise between what was measured and what the matrix says. The measured errors are
the very cells that a choice is judged by: a little of their luck is in the result, as in the oracle's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from t2v_core.leave_out import other_groups_sum
from t2v_core.selectors.method import Cost, Method
from t2v_core.selectors.problem import Problem
from t2v_core.selectors.static import prior

__all__ = ["METHODS", "complete_rows"]

SHRINK = 0.1
"""Share of the covariance that its diagonal replaces."""
NOISE = 0.1
"""Variance of a measured error's noise, as a share of the mean variance."""
KS = (1, 3, 5)


def complete_rows(problem: Problem, tried: np.ndarray) -> np.ndarray:
    """Predicted errors ``[T, E]`` from the cells ``tried`` ``[T, E]`` of a task's row and the rows of other groups.

    A cell of another task that is not known, or no candidate there, counts as the mean of its row.
    """
    rows = np.asarray(problem.usable.any(1), np.float64)
    value = np.where(problem.usable, problem.errors, 0.0)
    level = value.sum(1, keepdims=True) / np.maximum(problem.usable.sum(1, keepdims=True), 1)
    value = np.where(problem.usable, value, level) * rows[:, None]
    count = np.maximum(other_groups_sum(rows, problem.groups), 1)[:, None]
    mean = other_groups_sum(value, problem.groups) / count
    products, squares = value.T @ value, np.square(value)
    own_squares = other_groups_sum(squares, problem.groups)
    out = np.array(mean)
    members = {g: value[problem.groups == g] for g in np.unique(problem.groups)}
    for t, group in enumerate(problem.groups):
        s = np.flatnonzero(tried[t] & np.isfinite(problem.errors[t]))
        if not len(s):
            continue
        inside = members[group]
        columns = (products[:, s] - inside.T @ inside[:, s]) / count[t] - np.outer(mean[t], mean[t, s])
        variance = own_squares[t] / count[t] - np.square(mean[t])
        columns = columns * (1 - SHRINK)
        columns[s, np.arange(len(s))] = variance[s]
        noise = max(NOISE * float(variance.mean()), 1e-12)
        weights = np.linalg.solve(columns[s] + noise * np.eye(len(s)), problem.errors[t, s] - mean[t, s])
        out[t] = mean[t] + columns @ weights
    return out


def _first(scores: np.ndarray, problem: Problem, k: int) -> np.ndarray:
    """The k candidates with the lowest scores of each task, ``[T, E]`` bool."""
    value = np.where(problem.candidates & np.isfinite(scores), scores, np.inf)
    place = value.argsort(1, kind="stable").argsort(1, kind="stable")
    return np.asarray((place < k) & np.isfinite(value))


def _by_prior(k: int) -> Callable[[Problem], np.ndarray]:
    return lambda problem: complete_rows(problem, _first(prior(problem), problem, k))


def _by_distance(k: int) -> Callable[[Problem], np.ndarray]:
    def score(problem: Problem) -> np.ndarray:
        distance = problem.symmetric - problem.model2vec.alpha * problem.complexity
        return complete_rows(problem, _first(distance, problem, k))

    return score


_SOURCE = "Achille et al. 2019, Sect. 2, after Pfahringer et al. 2000 (landmarking); rows by a Gaussian, ours"


def _method(name: str, score: Callable[[Problem], np.ndarray], note: str, cost: Cost) -> Method:
    return Method(name, score, note, _SOURCE, cost, sees_own_errors=True)


METHODS = (
    *(_method(f"landmarks, {k} tried", _by_prior(k), f"tries {k}, the best of static", Cost(0, k)) for k in KS),
    *(
        _method(f"landmarks, {k} by TASK2VEC", _by_distance(k), f"tries {k}, the nearest by d_asym", Cost(2, k))
        for k in KS
    ),
)
