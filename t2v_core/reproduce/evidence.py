"""What tables, figures and claims are made from: one record of a run's results, from a store or from compact files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from t2v_core.distances import taxonomic_matrix
from t2v_core.errors import DataError
from t2v_core.matrix import ClassLineages
from t2v_core.records import EmbeddingTable
from t2v_core.reproduce.profile import Profile

__all__ = ["TASK_COLUMNS", "TRANSFER_COLUMNS", "Evidence"]

TASK_COLUMNS = ("task_id", "source", "label", "n_train", "complexity", "head_error")
"""What must be known of each task."""
TRANSFER_COLUMNS = ("expert", "task_id", "size", "seed", "n_train", "balanced_error", "frozen_balanced_error")
"""What must be known of each fine-tuning run."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Results of T tasks and E experts. Rows of all arrays are the rows of ``tasks``.

    Raises:
        DataError: a column is missing, or shapes do not fit.
    """

    profile: Profile
    tasks: pd.DataFrame
    """One row a task: `TASK_COLUMNS`, perhaps more. ``source`` is what the name begins with."""
    class_lineages: tuple[ClassLineages, ...]
    """``[T]``; empty where a task is not of the taxonomy."""
    symmetric: np.ndarray
    """``[T, T]`` d_sym."""
    domain: np.ndarray
    """``[T, T]`` cosine distance of domain embeddings."""
    embeddings: EmbeddingTable
    """Of the T tasks; compact results hold a sample of the filters."""
    trained_on: Mapping[str, tuple[str, ...]]
    """Expert to the tasks it was trained on; the generic one first."""
    errors: np.ndarray
    """``[T, E]`` balanced test error; NaN where a cell was not tried."""
    transfer: pd.DataFrame | None = None
    """Fine-tuning runs, `TRANSFER_COLUMNS`."""
    moments: np.ndarray | None = None
    """``[T, D]``, second moments of features; None where they were not kept."""
    probes: Mapping[str, EmbeddingTable] = field(default_factory=dict)
    """Embeddings of some of the tasks by other probes."""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Method that looks at every expert's features to its scores ``[T, E]``, lower is better; NaN where a cell was not
    scored."""
    notes: tuple[str, ...] = ()
    """Where it came from, and what is approximate."""

    def __post_init__(self) -> None:
        n, e = len(self.tasks), len(self.trained_on)
        missing = [c for c in TASK_COLUMNS if c not in self.tasks]
        if missing:
            raise DataError(f"the tasks lack columns {', '.join(missing)}; wanted {', '.join(TASK_COLUMNS)}")
        shapes = {
            "symmetric": (self.symmetric.shape, (n, n)),
            "domain": (self.domain.shape, (n, n)),
            "errors": (self.errors.shape, (n, e)),
            "class_lineages": ((len(self.class_lineages),), (n,)),
            "embeddings": ((len(self.embeddings.task_ids),), (n,)),
        }
        shapes |= {f"scores of {name}": (value.shape, (n, e)) for name, value in self.scores.items()}
        for name, (got, wanted) in shapes.items():
            if got != wanted:
                raise DataError(f"{name} has shape {got}, wanted {wanted} for {n} tasks and {e} experts")
        if self.transfer is not None and (lacking := [c for c in TRANSFER_COLUMNS if c not in self.transfer]):
            raise DataError(f"the transfer runs lack columns {', '.join(lacking)}")

    @cached_property
    def task_ids(self) -> tuple[str, ...]:
        """Names."""
        return tuple(str(t) for t in self.tasks["task_id"])

    @property
    def experts(self) -> tuple[str, ...]:
        """Names, the generic one first."""
        return tuple(self.trained_on)

    @cached_property
    def own(self) -> np.ndarray:
        """``[T, E]`` bool: the expert was trained on that very task, alone or in a collection."""
        place = {t: i for i, t in enumerate(self.task_ids)}
        out = np.zeros(self.errors.shape, bool)
        for e, on in enumerate(self.trained_on.values()):
            out[[place[t] for t in on if t in place], e] = True
        return out

    @cached_property
    def best_error(self) -> np.ndarray:
        """``[T]``: error of the best expert, a task's own ones among them (Fig. 1); NaN where none was tried."""
        known = np.isfinite(self.errors).any(1)
        out = np.full(len(self.errors), np.nan)
        out[known] = np.nanmin(self.errors[known], 1)
        return out

    @cached_property
    def short_names(self) -> np.ndarray:
        """``[T]``: the name without its source."""
        return np.array([t.partition("/")[2] for t in self.task_ids], object)

    @cached_property
    def groups(self) -> np.ndarray:
        """``[T]`` int: what is resampled as one. Twins show the same things, so they are no two observations."""
        twins = set(self.profile.twins)
        names = [
            f"*/{short}" if source in twins else task
            for task, source, short in zip(self.task_ids, self.tasks["source"], self.short_names, strict=True)
        ]
        return np.asarray(np.unique(np.array(names, object), return_inverse=True)[1])

    @cached_property
    def taxonomic(self) -> np.ndarray:
        """``[T]`` bool: tasks that have a place in the taxonomy and whose label is one of its levels."""
        levels = set(self.profile.taxonomy)
        placed = np.array([any(lineages) for lineages in self.class_lineages], bool)
        return np.asarray(placed & self.tasks["label"].isin(levels).to_numpy(bool))

    @cached_property
    def taxonomy_distances(self) -> np.ndarray:
        """D_tax between the taxonomic tasks, ``[n, n]``."""
        picked = [self.class_lineages[i] for i in np.flatnonzero(self.taxonomic)]
        return taxonomic_matrix(picked) if picked else np.zeros((0, 0))

    @cached_property
    def questions(self) -> np.ndarray:
        """``[T]``: what an attribute task asks (an attribute, or one of its values); empty for other tasks."""
        out = []
        for task, label, places in zip(self.task_ids, self.tasks["label"], self.class_lineages, strict=True):
            tops = {place[0] for place in places if place}
            asked = {
                "column": str(label),
                "value": task.rsplit("/", 1)[-1],
                "parent": tops.pop() if len(tops) == 1 else "",
            }
            out.append(asked.get(self.profile.attributes.get(str(label), ""), ""))
        return np.array(out, object)
