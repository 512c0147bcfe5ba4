"""Selectors on the meta-tasks (Table 1), and by probe (Table 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from t2v_core.config import Model2VecSpec, SelectionSpec
from t2v_core.errors import DataError
from t2v_core.evaluation import ALL, LEFT_OUT, evaluate_selectors
from t2v_core.matrix import ErrorMatrix, expert_vectors
from t2v_core.model2vec import leave_one_task_out
from t2v_core.records import EmbeddingTable
from t2v_core.reproduce.bootstrap import mean_interval
from t2v_core.reproduce.evidence import Evidence
from t2v_core.reproduce.metatask import ChosenMetaTask, choose_meta_task

__all__ = ["BY_PROBE", "Judged", "judge_meta_tasks", "judge_probes"]

BY_PROBE = ("chance", "generic", "TASK2VEC", "asymmetric TASK2VEC", "MODEL2VEC")
"""What Table 2 compares probes by; the first two are the same for all."""
LARGEST = 10


@dataclass(frozen=True, eq=False)
class Judged:
    """Table 1."""

    table: pd.DataFrame
    """One row a meta-task, reading and selector."""
    choices: pd.DataFrame
    """One row a meta-task, reading, selector and task: expert, error, ratio."""
    conclusions: tuple[str, ...]


def _model2vec(
    meta: ChosenMetaTask, table: EmbeddingTable, spec: Model2VecSpec, readings: Sequence[str]
) -> dict[str, np.ndarray]:
    """d_asym(m_i -> t) of the judged tasks, leaving each task out, by reading."""
    keep = meta.matrix.judged()
    base = expert_vectors(table.vectors, table.task_ids, meta.trained_on)
    tasks, errors = table.vectors[keep].astype(np.float64), meta.matrix.errors[keep]
    out = {}
    for reading in readings:
        candidates = np.isfinite(errors) & ~(meta.matrix.own[keep] if reading == LEFT_OUT else False)
        trivial = table.trivial.astype(np.float64)
        out[reading] = leave_one_task_out(tasks, errors, base, trivial, spec, candidates=candidates)
    return out


def judge_meta_tasks(evidence: Evidence, selection: SelectionSpec, model2vec: Model2VecSpec) -> Judged:
    """Every selector on every meta-task of the profile, in each reading.

    Raises:
        DataError: the profile names no meta-task.
    """
    if not evidence.profile.meta_tasks:
        raise DataError(f"the profile {evidence.profile.name!r} names no meta-task; wanted `meta_tasks`")
    tables, choices, words = [], [], []
    for rule in evidence.profile.meta_tasks:
        meta = choose_meta_task(evidence, rule)
        distances = _model2vec(meta, evidence.embeddings, model2vec, (LEFT_OUT, ALL))
        found = evaluate_selectors(
            meta.matrix, evidence.embeddings, meta.trained_on, distances, selection, alpha=model2vec.alpha
        )
        tables.append(found.table.assign(meta_task=rule.name))
        choices.append(found.choices.assign(meta_task=rule.name))
        words += [f"{rule.name}: {sentence}" for sentence in found.conclusions]
    return Judged(pd.concat(tables, ignore_index=True), pd.concat(choices, ignore_index=True), tuple(words))


def _among(meta: ChosenMetaTask, table: EmbeddingTable) -> ErrorMatrix:
    """The meta-task's cells, in the rows of a probe's embeddings.

    Raises:
        DataError: the probe did not embed all of its tasks.
    """
    place = {t: i for i, t in enumerate(meta.matrix.task_ids)}
    missing = [meta.matrix.task_ids[i] for i in meta.rows if meta.matrix.task_ids[i] not in set(table.task_ids)]
    if missing:
        raise DataError(f"{len(missing)} tasks of {meta.name!r} were not embedded by this probe, e.g. {missing[0]}")
    rows = np.array([place[t] for t in table.task_ids])
    return ErrorMatrix(table.task_ids, meta.matrix.experts, meta.matrix.errors[rows], meta.matrix.own[rows])


def judge_probes(evidence: Evidence, first: str, selection: SelectionSpec, model2vec: Model2VecSpec) -> pd.DataFrame:
    """Relative error increase by probe on the first meta-task: all tasks, and those with most train images.

    Args:
        evidence: its own embeddings are those of the first probe.
        first: name of that probe.
        selection: floor, bootstrap.
        model2vec: settings.

    Returns:
        Columns probe, tasks, method, relative_increase, low, high, n_tasks. Own experts are left out.
    """
    if not evidence.profile.meta_tasks:
        return pd.DataFrame(columns=["probe", "tasks", "method", "relative_increase", "low", "high", "n_tasks"])
    meta = choose_meta_task(evidence, evidence.profile.meta_tasks[0])
    probes: Mapping[str, EmbeddingTable] = {first: evidence.embeddings, **evidence.probes}
    size = dict(zip(evidence.task_ids, evidence.tasks["n_train"], strict=True))
    group = dict(zip(evidence.task_ids, evidence.groups, strict=True))
    rows = []
    for probe, table in probes.items():
        placed = ChosenMetaTask(meta.name, meta.rows, meta.trained_on, _among(meta, table))
        distances = _model2vec(placed, table, model2vec, (LEFT_OUT, ALL))
        found = evaluate_selectors(
            placed.matrix, table, meta.trained_on, distances, selection, alpha=model2vec.alpha
        ).choices
        own = found[found["reading"] == LEFT_OUT]
        largest = sorted(own["task_id"].unique(), key=lambda t: (-size[t], t))[:LARGEST]
        for name, part in (("all tasks", own), (f"{LARGEST} largest", own[own["task_id"].isin(largest)])):
            for method in BY_PROBE:
                its = part[part["method"] == method]
                groups = np.array([group[t] for t in its["task_id"]])
                value, low, high = mean_interval(its["ratio"].to_numpy(), groups, selection)
                rows.append(
                    {
                        "probe": probe,
                        "tasks": name,
                        "method": method,
                        "relative_increase": value,
                        "low": low,
                        "high": high,
                        "n_tasks": len(its),
                    }
                )
    return pd.DataFrame(rows)
