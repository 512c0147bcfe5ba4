"""The model x task error matrix, a block (one expert, one source) at a time: features once, then all heads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from t2v_core.config import HeadSpec
from t2v_core.errors import TaskError
from t2v_core.heads import balanced_error, predict
from t2v_core.library import TaskRows
from t2v_core.many_heads import HeadResult, HeadTask, fit_heads

__all__ = ["CELLS", "ErrorCell", "cells_table", "evaluate_block", "evaluate_cell"]


@dataclass(frozen=True)
class ErrorCell:
    """Test error of one expert on one task: a head on the expert's fixed features."""

    expert: str
    task_id: str
    error: float
    """Share of wrong test images; NaN where the cell failed."""
    balanced_error: float
    """Mean over classes of the class's error."""
    n_train: int
    n_test: int
    l2: float
    head_loss: float
    converged: bool
    seconds: float
    reason: str = ""
    """Why the cell failed; empty where it did not."""


CELLS = pa.schema(
    [
        ("expert", pa.string()),
        ("task_id", pa.string()),
        ("error", pa.float64()),
        ("balanced_error", pa.float64()),
        ("n_train", pa.int64()),
        ("n_test", pa.int64()),
        ("l2", pa.float64()),
        ("head_loss", pa.float64()),
        ("converged", pa.bool_()),
        ("seconds", pa.float64()),
        ("reason", pa.string()),
    ]
)


def cells_table(cells: Sequence[ErrorCell]) -> pa.Table:
    """Cells as rows."""
    return pa.Table.from_pylist([vars(c) for c in cells], schema=CELLS)


def evaluate_cell(expert: str, task_id: str, features: np.ndarray, task: TaskRows, spec: HeadSpec) -> ErrorCell:
    """Train a head on the train split and count its errors on the test split.

    Args:
        expert: name, for the record.
        task_id: for the record.
        features: ``[N, D]`` of the whole source.
        task: rows, labels, split.
        spec: how the head is trained.

    Raises:
        TaskError: no test rows, or fewer than two classes to train on.
    """
    (cell,) = evaluate_block(expert, features, [(task_id, task)], spec)
    if cell.reason:
        raise TaskError(cell.reason)
    return cell


def _judge(expert: str, task_id: str, features: np.ndarray, task: TaskRows, head: HeadResult) -> ErrorCell:
    """Errors of a trained head on the test split; a cell with its reason where there is no head or no test split."""
    began = time.perf_counter()
    rows, labels, _ = task.part(test=True)
    n_train = int((~task.test).sum())
    reason = f"{task_id}: the test split is empty" if len(rows) == 0 else str(head.error or "")
    if head.fit is None or reason:
        nan = float("nan")
        return ErrorCell(expert, task_id, nan, nan, 0, 0, nan, nan, False, 0.0, reason)
    predicted = predict(features[rows].astype(np.float64), head.fit.weight, head.fit.bias)
    return ErrorCell(
        expert=expert,
        task_id=task_id,
        error=float((predicted != labels).mean()),
        balanced_error=balanced_error(labels, predicted, int(task.labels.max()) + 1),
        n_train=n_train,
        n_test=len(rows),
        l2=head.fit.l2,
        head_loss=head.fit.loss,
        converged=head.fit.converged,
        seconds=head.seconds + time.perf_counter() - began,
    )


def evaluate_block(
    expert: str,
    features: np.ndarray,
    tasks: Sequence[tuple[str, TaskRows]],
    spec: HeadSpec,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[ErrorCell]:
    """All cells of one expert and one source, heads of binary tasks together where that is faster (see `fit_heads`).

    A cell that fails is a row with its reason; the others go on.
    """
    wanted = []
    for _, task in tasks:
        # Without a test split there is nothing to judge a head by: do not train one.
        rows, labels, groups = (part if task.test.any() else part[:0] for part in task.part(test=False))
        wanted.append(HeadTask(rows, labels, groups, int(task.labels.max(initial=0)) + 1))
    heads = fit_heads(features, wanted, spec, progress=progress)
    return [_judge(expert, i, features, task, head) for (i, task), head in zip(tasks, heads, strict=True)]
