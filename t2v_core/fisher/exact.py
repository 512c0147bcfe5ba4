"""The exact sum over classes: the oracle, and the choice for small tasks."""

from __future__ import annotations

import torch

from t2v_core.fisher.accumulate import Accumulator, FisherEstimate, FisherInput, batch_of
from t2v_core.fisher.cotangents import exact_cotangent
from t2v_core.fisher.passes import sample_filter_norms

__all__ = ["exact", "exact_rounds"]


def exact_rounds(n_classes: int) -> int:
    """Backward passes that an image needs: one for two classes, else C."""
    return 1 if n_classes == 2 else n_classes


def exact(task: FisherInput) -> FisherEstimate:
    """The exact sum over y, mean over images: one forward pass an image, one backward pass a class."""
    probe, head, n, size = task.probe, task.head, len(task.images), task.batch_size
    accumulate, weights, rounds = Accumulator(probe, n), task.weights, exact_rounds(task.n_classes)
    for start in range(0, n, size):
        rows = torch.arange(start, min(start + size, n))
        sample_filter_norms(
            probe.network,
            weights,
            batch_of(probe, task.images, rows),
            lambda z, r: exact_cotangent(head, z, r),
            accumulate.sink(rows, torch.full((rounds, len(rows)), 1.0 / n, dtype=torch.float64)),
            rounds=rounds,
        )
    return accumulate.result(n, rounds * n, exact=True)
