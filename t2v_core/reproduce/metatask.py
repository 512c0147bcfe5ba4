"""Meta-tasks of a profile: which tasks and experts, and their part of the error matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t2v_core.config import MetaTaskRule
from t2v_core.errors import DataError
from t2v_core.matrix import ErrorMatrix, wanted_cells
from t2v_core.reproduce.evidence import Evidence

__all__ = ["ChosenMetaTask", "choose_meta_task"]


@dataclass(frozen=True, eq=False)
class ChosenMetaTask:
    """A meta-task, with its cells."""

    name: str
    rows: np.ndarray
    """Its tasks, among the evidence's."""
    trained_on: dict[str, tuple[str, ...]]
    """Its experts, the generic one first."""
    matrix: ErrorMatrix
    """All of the evidence's tasks; NaN in the rows of those that are not in the meta-task."""


def choose_meta_task(evidence: Evidence, rule: MetaTaskRule) -> ChosenMetaTask:
    """Tasks and experts by a rule, a sample by their names; tasks that no expert was tried on do not count.

    Raises:
        ConfigError: no task or expert matches.
        DataError: none of the tasks was tried.
    """
    tried = np.isfinite(evidence.errors).any(1)
    ids = [t for t, known in zip(evidence.task_ids, tried, strict=True) if known]
    cells = wanted_cells([rule], evidence.experts, ids)
    wanted = set(cells[evidence.experts[0]])
    names = [e for e, its in cells.items() if its]
    columns = np.array([evidence.experts.index(e) for e in names])
    rows = np.array([i for i, t in enumerate(evidence.task_ids) if t in wanted], int)
    errors = np.full((len(evidence.task_ids), len(names)), np.nan)
    errors[rows] = evidence.errors[np.ix_(rows, columns)]
    matrix = ErrorMatrix(evidence.task_ids, tuple(names), errors, evidence.own[:, columns])
    if not matrix.judged().any():
        raise DataError(f"meta-task {rule.name!r}: no task has two experts that were tried on it")
    return ChosenMetaTask(rule.name, rows, {e: evidence.trained_on[e] for e in names}, matrix)
