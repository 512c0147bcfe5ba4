"""Meta-tasks: some tasks, some experts, and the question which expert for which task, in three readings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from t2v_core.config import MetaTaskRule
from t2v_core.errors import ConfigError
from t2v_core.matrix import sample_names

__all__ = [
    "ALL",
    "DOMAIN_LEFT_OUT",
    "EVERYTHING",
    "LEFT_OUT",
    "READINGS",
    "MetaTask",
    "candidates_of",
    "concept_groups",
    "make_meta_tasks",
    "own_domain",
]

LEFT_OUT = "own expert left out"
"""Reading in which an expert that was trained on the task is no candidate, for the oracle either."""
ALL = "all candidates"
"""Reading in which every expert is a candidate."""
DOMAIN_LEFT_OUT = "own domain left out"
"""Reading in which no expert that was trained on the task's source is a candidate."""
READINGS = (LEFT_OUT, ALL, DOMAIN_LEFT_OUT)
EVERYTHING = "all"
"""Name of the meta-task of all tasks and all experts."""


@dataclass(frozen=True, eq=False)
class MetaTask:
    """A part of the error matrix."""

    name: str
    rows: np.ndarray
    """Indices of its tasks."""
    columns: np.ndarray
    """Indices of its experts; the generic one first."""


def make_meta_tasks(
    rules: Sequence[MetaTaskRule], experts: Sequence[str], task_ids: Sequence[str], *, everything: bool = True
) -> list[MetaTask]:
    """The parts of a matrix that rules name, after the whole of it.

    Args:
        rules: as those that say which cells to make; names and seeds decide a sample, not the order or what else
            there is.
        experts: columns, the generic one first; it is in every meta-task.
        task_ids: rows.
        everything: whether the whole matrix comes first, under the name ``all``.

    Raises:
        ConfigError: a name twice, or a rule that matches no task or no expert.
    """
    out = [MetaTask(EVERYTHING, np.arange(len(task_ids)), np.arange(len(experts)))] if everything else []
    row, column = {t: i for i, t in enumerate(task_ids)}, {e: i for i, e in enumerate(experts)}
    for rule in rules:
        if rule.name in {m.name for m in out}:
            raise ConfigError(f"two meta-tasks are named {rule.name!r}; choose another name ('all' is the whole)")
        tasks = sample_names(task_ids, rule.tasks, rule.n_tasks, rule.seed)
        chosen = sample_names(experts[1:], rule.experts, rule.n_experts, rule.seed)
        for what, names, patterns in (("task", tasks, rule.tasks), ("expert", chosen, rule.experts)):
            if not names:
                raise ConfigError(f"meta-task {rule.name!r}: no {what} matches {', '.join(patterns)}")
        out.append(MetaTask(rule.name, np.array([row[t] for t in tasks]), np.array([0, *(column[e] for e in chosen)])))
    return out


def _source(task_id: str) -> str:
    return task_id.split("/", 1)[0]


def own_domain(task_ids: Sequence[str], trained_on: Mapping[str, Sequence[str]]) -> np.ndarray:
    """``[T, E]`` bool: the expert was trained on a task of the task's source, the part of its id before the first /."""
    sources = [{_source(t) for t in tasks} for tasks in trained_on.values()]
    return np.array([[_source(t) in s for s in sources] for t in task_ids], bool).reshape(len(task_ids), len(sources))


def concept_groups(task_ids: Sequence[str]) -> np.ndarray:
    """``[T]`` int: tasks of one name in several sources are a group, as where several sets draw the same concepts.

    The name is the part of a task id after the source.
    """
    names = [t.split("/", 1)[-1] for t in task_ids]
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names])


def candidates_of(reading: str, known: np.ndarray, own: np.ndarray, same_domain: np.ndarray) -> np.ndarray:
    """``[T, E]`` bool: the experts to choose among in a reading.

    Args:
        reading: one of `READINGS`.
        known: ``[T, E]`` bool, cells that were made.
        own: ``[T, E]`` bool, experts that were trained on the task.
        same_domain: ``[T, E]`` bool, see `own_domain`.

    Raises:
        ConfigError: no such reading.
    """
    if reading not in READINGS:
        raise ConfigError(f"got reading {reading!r}; wanted one of {', '.join(READINGS)}")
    hidden = {ALL: np.zeros_like(known), LEFT_OUT: own, DOMAIN_LEFT_OUT: own | same_domain}[reading]
    return np.asarray(known & ~hidden)
