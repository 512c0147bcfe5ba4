r"""Errors of a new task from those of the tasks near it: kernel ridge regression of the rows of the error matrix.

With the kernel ``K(t, t') = exp(-d(t, t') / h) + 1`` on distances between tasks (the constant lets an expert be good
everywhere) and rows C of centred errors, the prediction is ``K_t (K + lambda I)^{-1} C``. Leaving a group g out costs a
small solve: with ``M = (K + lambda I)^{-1}`` and ``A = M C``, the coefficients without g are
``A - M_{:g} M_{gg}^{-1} A_g``, exactly zero on g.

An expert needs no known task. The distance between tasks is d_sym of their embeddings; a second selector adds the
cosine distance of their domains, each divided by its median.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from t2v_core.leave_out import folds_of_groups
from t2v_core.selectors.method import Cost, Method
from t2v_core.selectors.problem import Problem

__all__ = ["METHODS", "choose_setting", "neighbour_errors", "task_distance"]

SETTINGS = tuple((width, ridge) for width in (0.5, 1.0, 2.0) for ridge in (0.1, 0.3, 1.0))
"""Kernel width, in medians of the distance, and ridge, to choose from by the other tasks."""
FOLDS = 5
DENSE = 0.95
"""Experts with this share of known cells are predicted from all tasks at once; a missing cell then counts as average.
Others are predicted from the tasks that they were tried on, those with the same cells together."""


def task_distance(problem: Problem, *, domains: bool) -> np.ndarray:
    """``[T, T]``, a distance of tasks with median 1; ``domains``: half of it that of domains, where there are any."""

    def unit(d: np.ndarray) -> np.ndarray:
        middle = float(np.median(d[np.triu_indices(len(d), 1)])) if len(d) > 1 else 1.0
        return d / (middle or 1.0)

    task = unit(problem.between_tasks)
    return (task + unit(problem.between_domains)) / 2 if domains and problem.between_domains is not None else task


def _without_group(
    kernel: np.ndarray, rows: np.ndarray, ridge: float, values: np.ndarray, groups: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Predictions for the ``wanted`` rows ``[W, E]``, each from ``rows`` without those of its own group."""
    inverse = cho_solve(
        cho_factor(kernel[np.ix_(rows, rows)] + ridge * np.eye(len(rows)), lower=True), np.eye(len(rows))
    )
    coefficients = inverse @ values
    out = kernel[np.ix_(wanted, rows)] @ coefficients
    for g in np.unique(groups[wanted]):
        inside = np.flatnonzero(groups[rows] == g)
        if len(inside):
            at = np.flatnonzero(groups[wanted] == g)
            shift = kernel[np.ix_(wanted[at], rows)] @ inverse[:, inside]
            out[at] -= shift @ np.linalg.solve(inverse[np.ix_(inside, inside)], coefficients[inside])
    return np.asarray(out)


def neighbour_errors(
    problem: Problem, distance: np.ndarray, setting: tuple[float, float], train: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Predicted centred errors ``[W, E]`` of tasks ``wanted`` from tasks ``train``; never from a task of its own group.

    Args:
        problem: errors, groups.
        distance: `task_distance`.
        setting: width and ridge.
        train: indices of tasks whose errors may be read.
        wanted: indices of tasks.
    """
    width, ridge = setting
    kernel = np.exp(-distance / width) + 1.0
    train = train[problem.usable[train].any(1)]
    known = problem.usable[train]
    values = np.where(known, problem.centred[train], 0.0)
    out = np.full((len(wanted), problem.errors.shape[1]), np.nan)
    dense = known.mean(0) >= DENSE
    patterns = [(dense, np.ones(len(train), bool))]
    sparse = np.flatnonzero(~dense & known.any(0))
    if len(sparse):
        masks, which = np.unique(known[:, sparse].T, axis=0, return_inverse=True)
        for k, mask in enumerate(masks):
            columns = np.zeros(len(dense), bool)
            columns[sparse[which.reshape(-1) == k]] = True
            patterns.append((columns, mask))
    for columns, mask in patterns:
        if columns.any():
            rows = np.flatnonzero(mask)
            out[:, columns] = _without_group(
                kernel, train[rows], ridge, values[np.ix_(rows, columns)], problem.groups, wanted
            )
    return out


def choose_setting(problem: Problem, distance: np.ndarray, train: np.ndarray) -> tuple[float, float]:
    """The setting whose choices have the lowest mean error on the tasks ``train``, each predicted without its group."""
    # A setting is chosen by experts that nearly all tasks were tried on where there are such: one solve a setting.
    best, lowest = SETTINGS[0], np.inf
    allowed = problem.usable[train]
    rows = np.flatnonzero(allowed.any(1))
    values = np.where(allowed, problem.centred[train], 0.0)
    for setting in SETTINGS:
        kernel = np.exp(-distance / setting[0]) + 1.0
        predicted = _without_group(kernel, train[rows], setting[1], values[rows], problem.groups, train[rows])
        picked = np.where(allowed[rows], predicted, np.inf).argmin(1)
        error = float(problem.errors[train[rows], picked].mean())
        if error < lowest:
            best, lowest = setting, error
    return best


def _score(problem: Problem, domains: bool) -> np.ndarray:
    distance = task_distance(problem, domains=domains)
    folds = folds_of_groups(problem.groups, FOLDS, problem.seed)
    out = np.full(problem.errors.shape, np.nan)
    for fold in np.unique(folds):
        train, wanted = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        setting = choose_setting(problem, distance, train)
        out[wanted] = neighbour_errors(problem, distance, setting, np.arange(len(folds)), wanted)
    return out


_SOURCE = (
    "ours; kernel ridge regression as in Saunders et al. 1998, leaving out by the block inverse as in Rasmussen and "
    "Williams 2006, Sect. 5.4.2"
)
METHODS = (
    Method(
        "task neighbours",
        lambda problem: _score(problem, False),
        "errors of tasks that are near by d_sym, by kernel ridge regression",
        _SOURCE,
        Cost(probe_passes=2),
    ),
    Method(
        "task and domain neighbours",
        lambda problem: _score(problem, True),
        "the same, near by d_sym and by domain",
        _SOURCE,
        Cost(probe_passes=2),
    ),
)
