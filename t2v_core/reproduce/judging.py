"""Selectors on the meta-tasks (Table 1), and by probe (Table 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from t2v_core.config import MetaTaskRule, Model2VecSpec, SelectionSpec
from t2v_core.errors import DataError
from t2v_core.evaluation import SelectionResult, build_problem, evaluate_meta_task
from t2v_core.matrix import ErrorMatrix, expert_taxonomy
from t2v_core.metatasks import LEFT_OUT, READINGS, MetaTask, make_meta_tasks
from t2v_core.records import EmbeddingTable
from t2v_core.reproduce.bootstrap import mean_interval
from t2v_core.reproduce.evidence import Evidence

__all__ = ["BY_PROBE", "Judged", "judge_by", "judge_meta_tasks", "judge_probes"]

BY_PROBE = ("chance", "generic", "TASK2VEC", "asymmetric TASK2VEC", "MODEL2VEC")
"""What Table 2 compares probes by; the first two are the same for all."""
COMPARED = ("TASK2VEC", "asymmetric TASK2VEC", "MODEL2VEC", "task neighbours", "domain distance")
"""Selectors that are compared in words with the yardsticks."""
YARDSTICKS = ("generic", "static", "asymmetric TASK2VEC")
LARGEST = 10


@dataclass(frozen=True, eq=False)
class Judged:
    """Table 1."""

    table: pd.DataFrame
    """One row a meta-task, reading and selector."""
    choices: pd.DataFrame
    """One row a meta-task, reading, selector and task: expert, error, ratio."""
    conclusions: tuple[str, ...]


def judge_by(
    evidence: Evidence,
    rule: MetaTaskRule,
    table: EmbeddingTable,
    selection: SelectionSpec,
    model2vec: Model2VecSpec,
    *,
    names: Sequence[str] | None = None,
    readings: Sequence[str] = READINGS,
) -> SelectionResult:
    """One meta-task: table, choices with names, and the comparisons in words.

    Args:
        evidence: the library.
        rule: the meta-task.
        table: embeddings of at least its tasks and its experts'.
        selection: floor, bootstrap.
        model2vec: settings.
        names: selectors; default: all, and what the evidence has of methods that look at features.
        readings: those in which nothing can be judged are left out.

    Raises:
        DataError: the table lacks a task, or nothing can be judged.
    """
    tried = np.isfinite(evidence.errors).any(1)
    ids = [t for t, known in zip(evidence.task_ids, tried, strict=True) if known]
    chosen = make_meta_tasks([rule], evidence.experts, ids, everything=False)[0]
    wanted = {ids[i] for i in chosen.rows}
    missing = wanted - set(table.task_ids)
    if missing:
        raise DataError(
            f"{len(missing)} tasks of {rule.name!r} were not embedded by this probe, e.g. {sorted(missing)[0]}"
        )
    place = {t: i for i, t in enumerate(evidence.task_ids)}
    rows = np.array([place[t] for t in table.task_ids])
    taxonomy = expert_taxonomy(evidence.task_ids, evidence.class_lineages, evidence.trained_on)
    matrix = ErrorMatrix(table.task_ids, evidence.experts, evidence.errors[rows], evidence.own[rows])
    images = dict(zip(evidence.task_ids, evidence.tasks["n_train"], strict=True))
    sizes = np.array([sum(images.get(t, 0) for t in on) or np.nan for on in evidence.trained_on.values()], np.float64)
    whole = build_problem(
        matrix,
        table,
        evidence.trained_on,
        model2vec,
        sizes=sizes,
        taxonomy=None if taxonomy is None else taxonomy[rows],
        moments=None if evidence.moments is None else evidence.moments[rows],
    )
    its = np.array([i for i, t in enumerate(table.task_ids) if t in wanted])
    return evaluate_meta_task(
        whole,
        matrix,
        evidence.trained_on,
        MetaTask(rule.name, its, chosen.columns),
        selection,
        extra=None if names else {name: values[rows] for name, values in evidence.scores.items()},
        names=names,
        readings=readings,
        compared=COMPARED,
        against=YARDSTICKS,
    )


def judge_meta_tasks(
    evidence: Evidence,
    selection: SelectionSpec,
    model2vec: Model2VecSpec,
    names: Sequence[str] | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Judged:
    """Every selector on every meta-task of the profile, in each reading.

    Args:
        evidence: the library.
        selection: floor, bootstrap.
        model2vec: settings.
        names: selectors; default: as for `judge_by`.
        told: called with the name of each meta-task.

    Raises:
        DataError: the profile names no meta-task.
    """
    if not evidence.profile.meta_tasks:
        raise DataError(f"the profile {evidence.profile.name!r} names no meta-task; wanted `meta_tasks`")
    tables, choices, words = [], [], []
    for rule in evidence.profile.meta_tasks:
        told(rule.name)
        found = judge_by(evidence, rule, evidence.embeddings, selection, model2vec, names=names)
        tables.append(found.table.assign(meta_task=rule.name))
        choices.append(found.choices.assign(meta_task=rule.name))
        words += [f"{rule.name}: {sentence}" for sentence in found.conclusions]
    return Judged(pd.concat(tables, ignore_index=True), pd.concat(choices, ignore_index=True), tuple(words))


def judge_probes(
    evidence: Evidence,
    first: str,
    selection: SelectionSpec,
    model2vec: Model2VecSpec,
    *,
    choices: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Relative error increase by probe on the first meta-task: all tasks, and those with most train images.

    Args:
        evidence: its own embeddings are those of the first probe.
        first: name of that probe.
        selection: floor, bootstrap.
        model2vec: settings.
        choices: of `judge_meta_tasks`, where they are made already: the first probe is in them.

    Returns:
        Columns probe, tasks, method, relative_increase, low, high, n_tasks. Own experts are left out.
    """
    size = dict(zip(evidence.task_ids, evidence.tasks["n_train"], strict=True))
    group = dict(zip(evidence.task_ids, evidence.groups, strict=True))
    rule, rows = evidence.profile.meta_tasks[0], []
    for probe, table in {first: evidence.embeddings, **evidence.probes}.items():
        if probe == first and choices is not None:
            own = choices[(choices["meta_task"] == rule.name) & (choices["reading"] == LEFT_OUT)]
        else:
            names = ["oracle", *BY_PROBE[1:]]
            own = judge_by(evidence, rule, table, selection, model2vec, names=names, readings=[LEFT_OUT]).choices
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
