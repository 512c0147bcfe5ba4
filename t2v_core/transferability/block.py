"""All scores of one expert on the tasks of one source, from its features; a block as the error matrix has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from t2v_core.config import ScoringSpec
from t2v_core.errors import T2VError
from t2v_core.finetune import even_sample
from t2v_core.library import TaskRows
from t2v_core.transferability import METHODS, Labelled, score
from t2v_core.transferability.leep import source_probabilities

__all__ = ["SCORES", "score_block", "scores_matrix", "train_sample"]

SCORES = pa.schema(
    [
        ("expert", pa.string()),
        ("task_id", pa.string()),
        ("method", pa.string()),
        ("score", pa.float64()),
        ("seconds", pa.float64()),
        ("n_images", pa.int64()),
        ("reason", pa.string()),
    ]
)
"""One row an expert, task and method. A higher score is better; NaN with its reason where there is none."""


def train_sample(task: TaskRows, spec: ScoringSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, labels, groups) of the train images that the methods look at."""
    rows, labels, groups = task.part(test=False)
    picked = even_sample(labels, spec.max_images, spec.seed)
    return rows[picked], labels[picked], groups[picked]


def score_block(
    expert: str,
    features: np.ndarray,
    heads: list[tuple[np.ndarray, np.ndarray]],
    tasks: Sequence[tuple[str, TaskRows]],
    spec: ScoringSpec,
) -> pa.Table:
    """Scores of one expert on tasks of one source, by all methods of the spec, as rows of `SCORES`.

    Args:
        expert: name, for the record.
        features: ``[N, D]`` of the rows that the tasks name.
        heads: the expert's original ones, weight ``[C, D]`` and bias ``[C]``; none where they are not known.
        tasks: id, and rows, labels, split.
        spec: methods, size of the sample.
    """
    found = []
    for task_id, task in tasks:
        rows, labels, groups = train_sample(task, spec)
        values = features[rows].astype(np.float64)
        common = {"expert": expert, "task_id": task_id, "n_images": len(rows)}
        try:
            theta = source_probabilities(values, heads) if heads else None
            data = Labelled.of(values, labels, groups, theta)
        except T2VError as error:
            failed = {"score": float("nan"), "seconds": 0.0, "reason": str(error)}
            found += [{**common, "method": m, **failed} for m in spec.methods]
            continue
        for method in spec.methods:
            got = score(method, data, spec)
            found.append({**common, "method": method, "score": got.value, "seconds": got.seconds, "reason": got.reason})
    return pa.Table.from_pylist(found, schema=SCORES)


def scores_matrix(scores: pa.Table, task_ids: Sequence[str], experts: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Title of each method to its scores turned round, ``[T, E]``: lower is better, as selectors have it; NaN unknown.

    Args:
        scores: rows of `SCORES`, possibly more columns.
        task_ids: rows of the matrices.
        experts: their columns.
    """
    row, column = {t: i for i, t in enumerate(task_ids)}, {e: i for i, e in enumerate(experts)}
    out: dict[str, np.ndarray] = {}
    columns = [scores[name].to_pylist() for name in ("method", "task_id", "expert", "score")]
    for method, task, expert, value in zip(*columns, strict=True):
        values = out.setdefault(METHODS[method].title, np.full((len(task_ids), len(experts)), np.nan))
        if task in row and expert in column:
            values[row[task], column[expert]] = -value
    return {method.title: out[method.title] for method in map(METHODS.__getitem__, METHODS) if method.title in out}
