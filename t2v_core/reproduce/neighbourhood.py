"""How taxonomic distance grows with the neighbourhood in the embedding (centre of Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t2v_core.errors import DataError

__all__ = ["Neighbourhoods", "neighbourhoods"]


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Mean taxonomic distance of a task's k nearest tasks, k = 1, 2, ..., as means over tasks."""

    sizes: np.ndarray
    """``[K]`` k."""
    ours: np.ndarray
    """``[K]``, neighbours by distance of embeddings; tied ones in the order that their mean takes."""
    ideal: np.ndarray
    """``[K]``, neighbours by taxonomic distance itself: no ordering gives less."""
    chance: float
    """Mean over all pairs: what an order without information gives at every size."""

    @property
    def captured(self) -> float:
        """1 minus the area between ours and the ideal over that between chance and the ideal: 1 ideal, 0 chance."""
        room = float((self.chance - self.ideal).sum())
        return 1.0 - float((self.ours - self.ideal).sum()) / room if room > 0 else float("nan")


def neighbourhoods(distances: np.ndarray, taxonomic: np.ndarray) -> Neighbourhoods:
    """Curves of Fig. 2.

    Args:
        distances: ``[n, n]`` between embeddings.
        taxonomic: ``[n, n]`` D_tax, known for all pairs.

    Raises:
        DataError: shapes differ, or fewer than three tasks.
    """
    n = len(distances)
    if distances.shape != taxonomic.shape or n < 3:
        raise DataError(f"got {distances.shape} and {taxonomic.shape}; wanted two [n, n] of three tasks or more")
    off = ~np.eye(n, dtype=bool)
    near, tax = distances[off].reshape(n, n - 1), taxonomic[off].reshape(n, n - 1)
    # A stable order of equal distances would follow the order of the tasks, which is that of the taxonomy.
    shuffled = np.random.default_rng(0).permuted(np.tile(np.arange(n - 1), (n, 1)), axis=1)
    order = np.take_along_axis(
        shuffled, np.argsort(np.take_along_axis(near, shuffled, 1), axis=1, kind="stable"), axis=1
    )
    sizes = np.arange(1, n)
    ours = np.cumsum(np.take_along_axis(tax, order, 1), axis=1) / sizes
    ideal = np.cumsum(np.sort(tax, axis=1), axis=1) / sizes
    return Neighbourhoods(sizes, ours.mean(0), ideal.mean(0), float(tax.mean()))
