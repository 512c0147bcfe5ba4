"""The interface of a selector: a problem in, scores and their cost out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from t2v_core.selectors.problem import Problem

__all__ = ["Cost", "Method"]


@dataclass(frozen=True)
class Cost:
    """What one new task costs before an expert is chosen, once the library is there."""

    probe_passes: int = 0
    """Passes of the task's images through the probe: 1 for features; an embedding takes one more, with gradients."""
    experts_tried: int = 0
    """Experts whose features of the task's images are made, and a head trained; -1: all of them."""

    def seconds(
        self, n_images: int, n_experts: int, per_pass: float, per_expert_image: float, per_head: float
    ) -> float:
        """Seconds for a task of so many images, from measured costs of an image and of a head."""
        tried = n_experts if self.experts_tried < 0 else self.experts_tried
        return self.probe_passes * n_images * per_pass + tried * (n_images * per_expert_image + per_head)


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
