"""The interface of a selector: a problem in, scores and their cost out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from t2v_core.selectors.problem import Problem
from t2v_core.selectors.rates import QueryRates

__all__ = ["BY_FEATURES", "Cost", "Method"]


def _sum(parts: list[tuple[int, float]]) -> float:
    """Of counts and what each costs; what is not known counts only where it is needed."""
    return float(sum(count * each for count, each in parts if count))


@dataclass(frozen=True)
class Cost:
    """What one new task costs before an expert is chosen, once the library is there."""

    probe_passes: int = 0
    """Passes of the task's images through the probe: 1 for features; an embedding takes one more, with gradients."""
    experts_tried: int = 0
    """Experts whose features of the task's images are made, and a head trained; -1: all of them."""
    experts_seen: int = 0
    """Experts whose features are made, and no head trained; -1: all of them."""

    def tried(self, n_experts: int) -> int:
        """Experts tried, of so many."""
        return n_experts if self.experts_tried < 0 else self.experts_tried

    def seen(self, n_experts: int) -> int:
        """Experts whose features are made, of so many; those tried among them."""
        return self.tried(n_experts) + (n_experts if self.experts_seen < 0 else self.experts_seen)

    def images(self, rates: QueryRates, n_experts: int) -> float:
        """Passes of an image through some network."""
        parts = [(self.probe_passes > 0, rates.n_images), (self.probe_passes > 1, rates.embedding_passes)]
        return _sum([*parts, (self.seen(n_experts), rates.n_images)])

    def seconds(self, rates: QueryRates, n_experts: int) -> float:
        """Seconds of one worker."""
        features = rates.n_images * rates.probe_image
        parts = [(self.probe_passes > 0, features), (self.probe_passes > 1, rates.embedding)]
        image = rates.n_images * rates.expert_image
        return _sum([*parts, (self.seen(n_experts), image), (self.tried(n_experts), rates.head)])


@dataclass(frozen=True)
class Method:
    """One selector."""

    name: str
    score: Callable[[Problem], np.ndarray | None]
    """Scores ``[T, E]``, lower is better; NaN: no opinion of an expert. None: the problem lacks what it needs."""
    note: str
    """A few words for tables."""
    source: str
    """Where it is from."""
    cost: Cost = Cost()
    slow: bool = False
    """Only where it is asked for by name."""
    sees_own_errors: bool = False
    """It reads errors of the very task: all of them (the oracle), or those of the experts that it tries."""


BY_FEATURES = Cost(experts_seen=-1)
"""Of a method that looks at every expert's features of the task."""
