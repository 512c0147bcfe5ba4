"""The model x task error matrix, a block (one expert, one source) at a time: features once, then all heads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from t2v_core.config import HeadSpec
from t2v_core.errors import T2VError, TaskError
from t2v_core.heads import balanced_error, fit_head, predict
from t2v_core.library import TaskRows

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
    began = time.perf_counter()
    rows, labels, groups = task.part(test=False)
    test_rows, test_labels, _ = task.part(test=True)
    if len(test_rows) == 0:
        raise TaskError(f"{task_id}: the test split is empty")
    n_classes = int(task.labels.max()) + 1
    fit = fit_head(features[rows], labels, spec, groups=groups, n_classes=n_classes)
    predicted = predict(features[test_rows].astype(np.float64), fit.weight, fit.bias)
    return ErrorCell(
        expert=expert,
        task_id=task_id,
        error=float((predicted != test_labels).mean()),
        balanced_error=balanced_error(test_labels, predicted, n_classes),
        n_train=len(rows),
        n_test=len(test_rows),
        l2=fit.l2,
        head_loss=fit.loss,
        converged=fit.converged,
        seconds=time.perf_counter() - began,
    )


def evaluate_block(
    expert: str,
    features: np.ndarray,
    tasks: Sequence[tuple[str, TaskRows]],
    spec: HeadSpec,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[ErrorCell]:
    """All cells of one expert and one source. A cell that fails is a row with its reason; the others go on."""
    cells: list[ErrorCell] = []
    for done, (task_id, task) in enumerate(tasks, start=1):
        try:
            cells.append(evaluate_cell(expert, task_id, features, task, spec))
        except T2VError as error:
            nan = float("nan")
            cells.append(ErrorCell(expert, task_id, nan, nan, 0, 0, nan, nan, False, 0.0, str(error)))
        if progress:
            progress(done, len(tasks))
    return cells
