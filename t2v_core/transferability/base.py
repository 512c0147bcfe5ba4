"""What a method that looks at an expert's features is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from t2v_core.config import ScoringSpec
from t2v_core.errors import ComputeError, DataError, TaskError

__all__ = ["Labelled", "Method", "Score"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """A task's images as one expert sees them. Make one with `Labelled.of`, which checks it."""

    features: np.ndarray
    """``[N, D]`` float64."""
    labels: np.ndarray
    """``[N]`` integers, all of 0 to C - 1."""
    groups: np.ndarray
    """``[N]`` integers; images of a group show the same thing."""
    source_probabilities: np.ndarray | None = None
    """``[N, S]`` float64, rows sum to one: the expert's original heads; None where it has none."""

    @property
    def n_classes(self) -> int:
        """C."""
        return int(self.labels.max()) + 1

    @classmethod
    def of(
        cls,
        features: np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray | None = None,
        source_probabilities: np.ndarray | None = None,
    ) -> Labelled:
        """Check, and number labels and groups from zero.

        Args:
            features: ``[N, D]``.
            labels: ``[N]``, of any type.
            groups: ``[N]``, of any type; default: each image alone.
            source_probabilities: ``[N, S]``, rows sum to one.

        Raises:
            DataError: shapes do not fit, or probabilities are none.
            TaskError: fewer than two classes.
            ComputeError: features that are not finite.
        """
        features = np.asarray(features, np.float64)
        n = len(features)
        groups = np.arange(n) if groups is None else np.asarray(groups)
        if features.ndim != 2 or np.shape(labels) != (n,) or groups.shape != (n,):
            raise DataError(
                f"got features {features.shape}, labels {np.shape(labels)}, groups {groups.shape}; wanted [N, D] and "
                "twice [N]"
            )
        if not np.isfinite(features).all():
            raise ComputeError(f"{int((~np.isfinite(features)).any(1).sum())} of {n} feature rows are not finite")
        names, numbered = np.unique(np.asarray(labels), return_inverse=True)
        if len(names) < 2:
            raise TaskError(f"a score needs at least two classes, got {len(names)} in {n} images")
        if source_probabilities is not None:
            source_probabilities = np.asarray(source_probabilities, np.float64)
            fits = source_probabilities.ndim == 2 and len(source_probabilities) == n
            if not fits or not np.allclose(source_probabilities.sum(1), 1, atol=1e-6):
                raise DataError(
                    f"got source probabilities of shape {source_probabilities.shape}; wanted [{n}, S] with rows that "
                    "sum to one"
                )
        return cls(features, numbered, np.unique(groups, return_inverse=True)[1], source_probabilities)


@dataclass(frozen=True)
class Score:
    """What a method says of an expert for a task."""

    value: float
    """Higher is better, and comparable between experts on one task only. NaN where there is none."""
    seconds: float
    """That it took, with the features at hand."""
    reason: str = ""
    """Why there is no value; empty where there is one."""


@dataclass(frozen=True)
class Method:
    """One method."""

    title: str
    """Its name, for people."""
    source: str
    """Where it was published."""
    run: Callable[[Labelled, ScoringSpec], float]
    needs_head: bool = False
    """It wants the expert's original head."""
