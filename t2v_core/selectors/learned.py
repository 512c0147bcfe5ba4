"""MODEL2VEC and its variants, each leaving the task's group out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from t2v_core.model2vec import leave_one_task_out
from t2v_core.selectors.method import Cost, Method
from t2v_core.selectors.problem import Problem

__all__ = ["METHODS", "learned"]


def learned(problem: Problem, **changes: Any) -> np.ndarray:
    """d_asym(m_i -> t) of a model that was fitted without the task's group, ``[T, E]``.

    Args:
        problem: with its `Model2VecSpec`.
        changes: fields of the spec to change.
    """
    spec = problem.model2vec.model_copy(update=changes)
    args = (problem.tasks, problem.errors, problem.experts, problem.trivial, spec)
    return leave_one_task_out(*args, candidates=problem.candidates, groups=problem.groups)


def _variant(**changes: Any) -> Callable[[Problem], np.ndarray]:
    return lambda problem: learned(problem, **changes)


_SOURCE = "Achille et al. 2019, Sect. 3.4"
_COST = Cost(probe_passes=2)
METHODS = (
    Method("MODEL2VEC", _variant(), "learned, leaving the task out", _SOURCE, _COST),
    Method("MODEL2VEC, hard labels", _variant(labels="hard"), "labels: the best expert", _SOURCE, _COST, slow=True),
    Method("MODEL2VEC, F = 0", _variant(known=False), "no expert's task is known", _SOURCE, _COST, slow=True),
    Method(
        "MODEL2VEC, expert prior",
        _variant(prior="all"),
        "and a learned level of each expert",
        "ours",
        _COST,
        slow=True,
    ),
    Method(
        "MODEL2VEC, first order",
        _variant(exact_tasks=0),
        "few directions and first-order distances, also where tasks are few",
        _SOURCE,
        _COST,
        slow=True,
    ),
    Method(
        "MODEL2VEC, cautious",
        _variant(rule="one_se"),
        "the strongest penalty within one standard error of the best",
        "the rule of Breiman et al. 1984 (one standard error)",
        _COST,
        slow=True,
    ),
)
