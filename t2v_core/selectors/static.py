"""The expert that is best on average over the other tasks."""

from __future__ import annotations

import numpy as np

from t2v_core.leave_out import other_groups_mean
from t2v_core.selectors.method import Method
from t2v_core.selectors.problem import Problem

__all__ = ["METHOD", "prior"]


def prior(problem: Problem) -> np.ndarray:
    """Mean centred error of each expert over the tasks of other groups, ``[T, E]``; NaN where nobody else tried it.

    Centred by the task's mean, so that a missing cell does not favour an expert that was tried on easy tasks only.
    Cells that are no candidates in this reading do not count, nor do those of an expert's own tasks.
    """
    return other_groups_mean(problem.centred, problem.groups)


METHOD = Method(
    "static",
    prior,
    "lowest mean error on the other tasks",
    "the paper has no such row; it uses the error matrix, as MODEL2VEC does",
)
