"""Predicted error as a weighted sum of several scores: expert prior, distances, errors of near tasks.

For each fold of groups, the weights minimise the expected error of a soft choice on the other folds; a score
that is itself learned comes for those tasks from models without the task's group. Scores are centred by task over its
candidates, for only differences between experts of one task matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize

from t2v_core.leave_out import folds_of_groups, other_groups_sum
from t2v_core.selectors.method import Cost, Method
from t2v_core.selectors.neighbours import choose_setting, neighbour_errors, task_distance
from t2v_core.selectors.problem import Problem

__all__ = ["METHODS", "Feature"]

FOLDS = 5
RIDGE = 1e-6
"""Penalty on the squared weights, so that they stay finite."""
NEAR = 0.02
"""Added to a distance before its logarithm: about d_sym of two estimates of one task."""

Feature = Callable[[Problem, np.ndarray], np.ndarray]
"""A score ``[T, E]`` by the errors of the tasks in a mask ``[T]``; for each task without its group."""


def _prior(problem: Problem, train: np.ndarray) -> np.ndarray:
    """Mean centred error over the training tasks of other groups, drawn to zero by one task's worth."""
    known = problem.usable & train[:, None]
    total = other_groups_sum(np.where(known, problem.centred, 0.0), problem.groups)
    return np.asarray(total / (other_groups_sum(known.astype(np.float64), problem.groups) + 1.0))


def _symmetric(problem: Problem, train: np.ndarray) -> np.ndarray:
    """In logarithms: among far experts, how far does not matter."""
    return np.asarray(np.log(problem.symmetric + NEAR))


def _complexity(problem: Problem, train: np.ndarray) -> np.ndarray:
    return np.asarray(np.broadcast_to(problem.complexity, problem.errors.shape))


def _domain(problem: Problem, train: np.ndarray) -> np.ndarray:
    return np.zeros(problem.errors.shape) if problem.domain is None else np.asarray(np.log(problem.domain + NEAR))


def _neighbours(problem: Problem, train: np.ndarray) -> np.ndarray:
    distance, rows = task_distance(problem, domains=True), np.flatnonzero(train)
    setting = choose_setting(problem, distance, rows)
    return neighbour_errors(problem, distance, setting, rows, np.arange(len(train)))


def _centred(values: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Less the task's mean over candidates with an opinion; no opinion is the mean."""
    known = candidates & np.isfinite(values)
    mean = np.where(known, values, 0.0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    return np.asarray(np.where(np.isfinite(values), values - mean, 0.0))


def _fit(made: np.ndarray, errors: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Weights ``[F]`` that minimise the expected error of a soft choice, p(expert) = softmax(-w . scores).

    Args:
        made: ``[F, T, E]``, scores of unit mean square.
        errors: ``[T, E]``.
        cells: ``[T, E]`` bool, those that count; a task without any does not.
    """
    rows = cells.any(1)
    made, errors, cells = made[:, rows], np.where(cells, errors, 0.0)[rows], cells[rows]

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        logits = np.where(cells, -np.tensordot(w, made, 1), -np.inf)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        mean = (p * errors).sum(1, keepdims=True)
        slope = -p * (errors - mean)
        gradient = np.array([(slope * x).sum() for x in made]) / len(errors) + 2 * RIDGE * w
        return float(mean.mean() + RIDGE * np.square(w).sum()), gradient

    # The objective is not convex: from each score alone, and from all of them together; the lowest counts.
    starts = [*(5.0 * np.eye(len(made))), np.full(len(made), 2.0)]
    found = [minimize(objective, w, jac=True, method="L-BFGS-B") for w in starts]
    return np.asarray(min(found, key=lambda f: f.fun).x)


def _stacked(features: Sequence[Feature]) -> Callable[[Problem], np.ndarray]:
    def score(problem: Problem) -> np.ndarray:
        folds = folds_of_groups(problem.groups, FOLDS, problem.seed)
        out = np.zeros(problem.errors.shape)
        for fold in np.unique(folds):
            train = folds != fold
            cells = problem.usable & train[:, None]
            made = np.stack([_centred(f(problem, train), problem.candidates) for f in features])
            scale = np.sqrt(np.square(made[:, cells]).mean(1)) if cells.any() else np.ones(len(features))
            made /= np.where(scale > 0, scale, 1.0)[:, None, None]
            weights = _fit(made, problem.errors, cells)
            out[~train] = np.tensordot(weights, made[:, ~train], 1)
        return out

    return score


_PRIOR_DISTANCE = (_prior, _symmetric, _complexity)
METHODS = (
    Method(
        "prior + distance",
        _stacked(_PRIOR_DISTANCE),
        "expert prior and d_asym, weights by the other tasks",
        "ours; stacking, Wolpert 1992",
        Cost(probe_passes=2),
    ),
    Method(
        "prior + distance + domain",
        _stacked((*_PRIOR_DISTANCE, _domain)),
        "the same, and the domain distance",
        "ours; stacking, Wolpert 1992",
        Cost(probe_passes=2),
    ),
    Method(
        "prior + distance + domain + neighbours",
        _stacked((*_PRIOR_DISTANCE, _domain, _neighbours)),
        "the same, and the errors of near tasks",
        "ours; stacking, Wolpert 1992",
        Cost(probe_passes=2),
    ),
)
