"""All selectors on all judged tasks, in both readings: Table 1 for any library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from t2v_core.baselines import generic_scores, oracle_scores, static_scores
from t2v_core.config import SelectionSpec
from t2v_core.distances import cosine_matrix, symmetric_matrix
from t2v_core.errors import DataError
from t2v_core.matrix import ErrorMatrix, expert_vectors
from t2v_core.records import EmbeddingTable
from t2v_core.selection import compare_selectors, conclusions

__all__ = ["ALL", "LEFT_OUT", "OURS", "SelectionResult", "evaluate_selectors"]

LEFT_OUT = "own expert left out"
"""Reading in which an expert that was trained on the task is no candidate, for the oracle either."""
ALL = "all candidates"
"""Reading in which every expert is a candidate."""
OURS = ("TASK2VEC", "asymmetric TASK2VEC", "MODEL2VEC")

NOTES = {
    "oracle": "the best candidate, found by trying all",
    "chance": "mean over the candidates",
    "generic": "never fine-tuned",
    "static": "lowest mean error on the other tasks",
    "domain distance": "nearest mean features",
    "TASK2VEC": "nearest by d_sym to the expert's task",
    "asymmetric TASK2VEC": "nearest by d_asym",
    "MODEL2VEC": "learned, leaving the task out",
}


@dataclass(frozen=True, eq=False)
class SelectionResult:
    """What the comparison found."""

    table: pd.DataFrame
    """One row a reading and selector; see `compare_selectors`."""
    choices: pd.DataFrame
    """One row a reading, selector and task: the chosen expert (empty for chance), its error, ratio to the oracle."""
    conclusions: tuple[str, ...]
    """Paired comparisons in words, first reading."""


def _or_generic(scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Where a selector has no opinion of any candidate, it takes the generic expert (column 0)."""
    silent = ~(np.isfinite(scores) & candidates).any(1)
    out = scores.copy()
    out[silent, 0] = 0.0
    return out


def evaluate_selectors(
    matrix: ErrorMatrix,
    embeddings: EmbeddingTable,
    trained_on: Mapping[str, Sequence[str]],
    model2vec: Mapping[str, np.ndarray],
    spec: SelectionSpec,
    *,
    alpha: float,
    extra: Mapping[str, np.ndarray] | None = None,
) -> SelectionResult:
    """Compare the selectors of Sect. 4.2 and the baselines.

    Args:
        matrix: error matrix; its rows are the embeddings' tasks.
        embeddings: of the T tasks.
        trained_on: expert to the tasks it was trained on; ``generic`` first.
        model2vec: reading to d_asym(m_i -> t) ``[T', E]`` of the judged tasks, each from a model that was fitted
            without it.
        spec: floor, bootstrap.
        alpha: of the asymmetric distance.
        extra: further selectors by name, scores ``[T, E]`` of all of the matrix's rows, lower is better; NaN unknown.

    Raises:
        DataError: no task can be judged.
    """
    keep = matrix.judged()
    if not keep.any():
        raise DataError("no task has two experts that were tried on it and not trained on it; nothing can be judged")
    errors, own = matrix.errors[keep], matrix.own[keep]
    tasks = embeddings.vectors[keep].astype(np.float64)
    base = expert_vectors(embeddings.vectors, embeddings.task_ids, trained_on)
    domains = expert_vectors(embeddings.domains, embeddings.task_ids, trained_on)
    known: np.ndarray = np.asarray((base > 0).any(axis=1))
    symmetric = np.full(errors.shape, np.nan)
    symmetric[:, known] = symmetric_matrix(tasks, base[known])
    complexity = np.full(len(known), np.nan)
    complexity[known] = symmetric_matrix(base[known], embeddings.trivial[None].astype(np.float64))[:, 0]
    domain = np.full(errors.shape, np.nan)
    domain[:, known] = cosine_matrix(embeddings.domains[keep], domains[known])

    tables, details, words = [], [], []
    for reading in (LEFT_OUT, ALL):
        candidates = np.isfinite(errors) & ~(own if reading == LEFT_OUT else False)
        scores = {
            "oracle": oracle_scores(errors),
            "generic": generic_scores(errors),
            "static": static_scores(errors, own),
            "domain distance": domain,
            "TASK2VEC": symmetric,
            "asymmetric TASK2VEC": symmetric - alpha * complexity,
            "MODEL2VEC": model2vec[reading],
            **{name: values[keep] for name, values in (extra or {}).items()},
        }
        table, detail = compare_selectors(
            errors,
            own,
            {name: _or_generic(value, candidates) for name, value in scores.items()},
            spec,
            leave_own_out=reading == LEFT_OUT,
            notes=NOTES,
        )
        order = {name: i for i, name in enumerate(NOTES)}
        table = table.sort_values("method", key=lambda c: c.map(order), kind="stable", ignore_index=True)
        table.insert(0, "reading", reading)
        detail.insert(0, "reading", reading)
        tables.append(table)
        details.append(detail)
        if reading == LEFT_OUT:
            words = conclusions(detail, [*OURS, "domain distance"], ["generic", "static"], spec)
    choices = pd.concat(details, ignore_index=True)
    names = np.array(matrix.task_ids, object)[keep]
    experts = np.array([*matrix.experts, ""], object)
    choices["task_id"] = names[choices.pop("task").to_numpy()]
    choices["expert"] = experts[choices["expert"].to_numpy()]
    return SelectionResult(pd.concat(tables, ignore_index=True), choices, tuple(words))
