"""What a selector is given: tasks, experts, and the errors that are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from t2v_core.config import Model2VecSpec
from t2v_core.distances import cosine_matrix, symmetric_matrix
from t2v_core.embedding import Layer
from t2v_core.errors import DataError
from t2v_core.selectors.rates import QueryRates

__all__ = ["Problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Which expert for each of T tasks.

    A selector scores row t without looking at the errors of t or of any task of its group: those are what it is judged
    by. A task that nobody tried an expert on is a row of NaN in ``errors``.
    """

    errors: np.ndarray
    """``[T, E]``; NaN where a cell is not known."""
    candidates: np.ndarray
    """``[T, E]`` bool: experts to choose among."""
    own: np.ndarray
    """``[T, E]`` bool: the expert was trained on that very task."""
    tasks: np.ndarray
    """``[T, P]``, task embeddings."""
    experts: np.ndarray
    """``[E, P]``, F_i; zeros where no task is known."""
    trivial: np.ndarray
    """``[P]``, t0."""
    groups: np.ndarray
    """``[T]`` int: tasks of a group share images or labels, and are left out together."""
    domains: np.ndarray | None = None
    """``[T, D]``, domain embeddings."""
    expert_domains: np.ndarray | None = None
    """``[E, D]``, of the experts' tasks."""
    moments: np.ndarray | None = None
    """``[T, D]``, second moments of the features (the diagonal of C1)."""
    expert_moments: np.ndarray | None = None
    """``[E, D]``, of the experts' tasks."""
    layers: tuple[Layer, ...] = ()
    """Where each layer's filters are in an embedding."""
    sizes: np.ndarray | None = None
    """``[E]``, train images of the expert's tasks; NaN where unknown."""
    taxonomy: np.ndarray | None = None
    """``[T, E]``, taxonomic distance; NaN where there is no lineage."""
    model2vec: Model2VecSpec = field(default_factory=Model2VecSpec)
    given: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Distances that are at hand already: ``symmetric``, ``domain`` and ``moments`` ``[T, E]``, ``complexity`` ``[E]``,
    ``tasks`` and ``task_domains`` ``[T, T]``."""
    rates: QueryRates | None = None
    """Measured costs of a new task, where they are known."""
    generic: int = 0
    """The expert that was never fine-tuned."""
    seed: int = 0

    def __post_init__(self) -> None:
        t, e = self.errors.shape
        wanted = {
            "candidates": (t, e),
            "own": (t, e),
            "tasks": (t, self.tasks.shape[-1]),
            "experts": (e, self.tasks.shape[-1]),
            "trivial": (self.tasks.shape[-1],),
            "groups": (t,),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise DataError(f"got {name} of shape {getattr(self, name).shape}; wanted {shape} beside errors {t, e}")

    @cached_property
    def known(self) -> np.ndarray:
        """``[E]`` bool: experts whose task is known."""
        return np.asarray(np.isfinite(self.experts).all(1) & (self.experts > 0).any(1))

    @cached_property
    def usable(self) -> np.ndarray:
        """``[T, E]`` bool: cells that say how good an expert is on a task it was not trained on, in this reading."""
        return np.asarray(self.candidates & np.isfinite(self.errors) & ~self.own)

    @cached_property
    def centred(self) -> np.ndarray:
        """``[T, E]``: errors less the task's mean over its usable cells; NaN for the rest."""
        value = np.where(self.usable, self.errors, np.nan)
        count = np.maximum(self.usable.sum(1, keepdims=True), 1)
        return np.asarray(value - np.where(self.usable, value, 0.0).sum(1, keepdims=True) / count)

    @cached_property
    def symmetric(self) -> np.ndarray:
        """``[T, E]``, d_sym of a task and an expert's; NaN where that is not known."""
        if "symmetric" in self.given:
            return self.given["symmetric"]
        return self._to_known(symmetric_matrix(self.tasks, self.experts[self.known]))

    @cached_property
    def complexity(self) -> np.ndarray:
        """``[E]``, d_sym of an expert's task and t0; NaN where unknown."""
        if "complexity" in self.given:
            return self.given["complexity"]
        return np.asarray(self._to_known(symmetric_matrix(self.trivial[None], self.experts[self.known]))[0])

    @cached_property
    def domain(self) -> np.ndarray | None:
        """``[T, E]``, cosine distance of domain embeddings; NaN where unknown, None where there are none."""
        return self._cosine("domain", self.domains, self.expert_domains)

    @cached_property
    def moment_distance(self) -> np.ndarray | None:
        """``[T, E]``, cosine distance of second moments; NaN where unknown, None where there are none."""
        return self._cosine("moments", self.moments, self.expert_moments)

    @cached_property
    def between_tasks(self) -> np.ndarray:
        """``[T, T]``, d_sym."""
        if "tasks" in self.given:
            return self.given["tasks"]
        d = symmetric_matrix(self.tasks, self.tasks)
        return np.asarray((d + d.T) / 2)

    @cached_property
    def between_domains(self) -> np.ndarray | None:
        """``[T, T]``, cosine distance of domain embeddings; None where there are none."""
        if "task_domains" in self.given:
            return self.given["task_domains"]
        return None if self.domains is None else cosine_matrix(self.domains, self.domains)

    def reading(self, candidates: np.ndarray) -> Problem:
        """The same tasks with other candidates; distances that were made are kept."""
        made = {"symmetric": self.symmetric, "complexity": self.complexity, "tasks": self.between_tasks}
        if self.domain is not None and self.between_domains is not None:
            made |= {"domain": self.domain, "task_domains": self.between_domains}
        if self.moment_distance is not None:
            made["moments"] = self.moment_distance
        return replace(self, candidates=candidates, given={**self.given, **made})

    def part(self, rows: np.ndarray, columns: np.ndarray) -> Problem:
        """Some tasks and some experts; ``columns`` begins with the generic one."""
        cells = np.ix_(rows, columns)
        by_cell = {k: self.given[k][cells] for k in ("symmetric", "domain", "moments") if k in self.given}
        by_task = {k: self.given[k][np.ix_(rows, rows)] for k in ("tasks", "task_domains") if k in self.given}
        other = {"complexity": self.given["complexity"][columns]} if "complexity" in self.given else {}
        return replace(
            self,
            errors=self.errors[cells],
            candidates=self.candidates[cells],
            own=self.own[cells],
            tasks=self.tasks[rows],
            experts=self.experts[columns],
            groups=self.groups[rows],
            domains=None if self.domains is None else self.domains[rows],
            expert_domains=None if self.expert_domains is None else self.expert_domains[columns],
            moments=None if self.moments is None else self.moments[rows],
            expert_moments=None if self.expert_moments is None else self.expert_moments[columns],
            sizes=None if self.sizes is None else self.sizes[columns],
            taxonomy=None if self.taxonomy is None else self.taxonomy[cells],
            given={**by_cell, **by_task, **other},
            generic=0,
        )

    def _cosine(self, name: str, tasks: np.ndarray | None, experts: np.ndarray | None) -> np.ndarray | None:
        if name in self.given:
            return self.given[name]
        if tasks is None or experts is None:
            return None
        return self._to_known(cosine_matrix(tasks, experts[self.known]))

    def _to_known(self, values: np.ndarray) -> np.ndarray:
        out = np.full((len(values), len(self.experts)), np.nan)
        out[:, self.known] = values
        return out
