"""The model x task error matrix, assembled from cells, and which expert was trained on which task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from t2v_core.config import MetaTaskRule
from t2v_core.distances import taxonomic_matrix
from t2v_core.errors import ConfigError, DataError
from t2v_core.fingerprints import matching, name_rank

__all__ = ["ClassLineages", "ErrorMatrix", "expert_taxonomy", "expert_vectors", "sample_names", "wanted_cells"]

ClassLineages = tuple[tuple[str, ...], ...]
"""The place of each class of a task in a taxonomy, itself last; empty for a class that has none."""


@dataclass(frozen=True, eq=False)
class ErrorMatrix:
    """Test errors of E experts on T tasks."""

    task_ids: tuple[str, ...]
    experts: tuple[str, ...]
    errors: np.ndarray
    """``[T, E]`` float64; NaN where a cell failed or was not tried."""
    own: np.ndarray
    """``[T, E]`` bool: the expert was trained on that very task, alone or in a collection."""

    @classmethod
    def of(
        cls, cells: pa.Table, task_ids: Sequence[str], trained_on: Mapping[str, Sequence[str]], metric: str
    ) -> ErrorMatrix:
        """Assemble.

        Args:
            cells: rows with expert, task_id and the metric; of these experts and tasks only the wanted ones count.
            task_ids: rows of the matrix.
            trained_on: expert to the tasks it was trained on; its order is that of the columns.
            metric: column of ``cells``: ``error`` or ``balanced_error``.

        Raises:
            DataError: two different values for one cell.
        """
        experts = tuple(trained_on)
        row, column = {t: i for i, t in enumerate(task_ids)}, {e: i for i, e in enumerate(experts)}
        errors = np.full((len(task_ids), len(experts)), np.nan)
        columns = [cells[name].to_pylist() for name in ("expert", "task_id", metric)]
        for expert, task, value in zip(*columns, strict=True):
            if expert in column and task in row and np.isfinite(value):
                at = row[task], column[expert]
                if np.isfinite(errors[at]) and errors[at] != value:
                    raise DataError(f"two errors of expert {expert!r} on task {task!r}: {errors[at]} and {value}")
                errors[at] = value
        own = np.array([[t in set(trained_on[e]) for e in experts] for t in task_ids], bool)
        return cls(tuple(task_ids), experts, errors, own.reshape(errors.shape))

    def judged(self) -> np.ndarray:
        """Tasks ``[T]`` bool that have a known error of at least two experts that were not trained on them."""
        return np.asarray((np.isfinite(self.errors) & ~self.own).sum(1) >= 2)


def sample_names(names: Sequence[str], patterns: Sequence[str], n: int | None, seed: int = 0) -> list[str]:
    """Names that match, in their order; ``n`` of them, which are the same whatever else there is."""
    found = matching(names, patterns)
    kept = set(sorted(found, key=lambda name: name_rank(f"{seed}:{name}" if seed else name))[:n])
    return [name for name in found if name in kept]


def wanted_cells(
    rules: Sequence[MetaTaskRule], experts: Sequence[str], tasks: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Which tasks each expert is tried on, in the order of the tasks.

    Args:
        rules: meta-tasks; none: every expert on every task.
        experts: names, the generic expert first; it is tried on every task that any rule names.
        tasks: task ids.

    Raises:
        ConfigError: a rule that matches no task, or no expert.
    """
    if not rules:
        return dict.fromkeys(experts, tuple(tasks))
    found: dict[str, set[str]] = {expert: set() for expert in experts}
    for rule in rules:
        its_tasks = sample_names(tasks, rule.tasks, rule.n_tasks, rule.seed)
        its_experts = sample_names(experts[1:], rule.experts, rule.n_experts, rule.seed)
        for what, names, patterns in (("task", its_tasks, rule.tasks), ("expert", its_experts, rule.experts)):
            if not names:
                raise ConfigError(f"meta-task {rule.name!r}: no {what} matches {', '.join(patterns)}")
        for expert in (experts[0], *its_experts):
            found[expert].update(its_tasks)
    return {expert: tuple(t for t in tasks if t in own) for expert, own in found.items()}


def expert_vectors(vectors: np.ndarray, task_ids: Sequence[str], trained_on: Mapping[str, Sequence[str]]) -> np.ndarray:
    """F_i of each expert, ``[E, P]``: the mean of the embeddings of the tasks it was trained on.

    Training with joint heads minimises the mean of the tasks' losses, and the Fisher information of that is the mean of
    theirs. Zeros where no task is known, as the paper has it (Sect. 3.4). Works for any vectors of tasks.
    """
    position = {t: i for i, t in enumerate(task_ids)}
    out = np.zeros((len(trained_on), vectors.shape[1]))
    for i, tasks in enumerate(trained_on.values()):
        rows = [position[t] for t in tasks if t in position]
        if rows:
            out[i] = vectors[rows].astype(np.float64).mean(0)
    return out


def expert_taxonomy(
    task_ids: Sequence[str], lineages: Sequence[ClassLineages], trained_on: Mapping[str, Sequence[str]]
) -> np.ndarray | None:
    """Taxonomic distance of each task and the nearest of each expert's, ``[T, E]``; NaN where either has no lineage.

    Args:
        task_ids: T names.
        lineages: of each task, see `t2v_core.distances.taxonomic_matrix`.
        trained_on: expert to its tasks.

    Returns:
        None where no class is below another: names of classes alone are no taxonomy.
    """
    if not any(len(place) > 1 for places in lineages for place in places):
        return None
    between = taxonomic_matrix(lineages)
    place = {t: i for i, t in enumerate(task_ids)}
    out = np.full((len(task_ids), len(trained_on)), np.inf)
    for e, on in enumerate(trained_on.values()):
        for task in on:
            if task in place:
                out[:, e] = np.fmin(out[:, e], between[:, place[task]])
    return np.where(np.isfinite(out), out, np.nan)
