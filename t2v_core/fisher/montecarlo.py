"""Monte Carlo over (image, class) pairs: importance-sampled, or with labels drawn from the model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from t2v_core.fisher.accumulate import Accumulator, FisherEstimate, FisherInput, batch_of, clean_features
from t2v_core.fisher.cotangents import importance, probabilities, sampled_cotangents
from t2v_core.fisher.draws import Draws, importance_draws, model_draws
from t2v_core.fisher.exact import exact, exact_rounds
from t2v_core.fisher.passes import sample_filter_norms
from t2v_core.probes import Probe

__all__ = ["early_units", "montecarlo", "montecarlo_plain"]

LATE_SHARE = 0.8
"""Share of the filters that the late layers hold, which all draws reach."""


def early_units(probe: Probe) -> int:
    """How many units, from the first, are early: together they hold at most ``1 - LATE_SHARE`` of the filters.

    Late filters rule the distances, by their number; early ones cost the most, by their many positions. For ResNet-34
    the cut is before its layer3.
    """
    limit = (1 - LATE_SHARE) * probe.n_filters
    return sum(unit.stop <= limit for unit in probe.units)


def _batches(draws: Draws, size: int) -> Iterator[np.ndarray]:
    """Draws by image, ``[B, R]`` indices: images with equally many pairs share their passes, so that an image's
    forward pass, and what depends on its input alone, is paid once for all its pairs."""
    _, start, counts = np.unique(draws.images, return_index=True, return_counts=True)
    for r in np.unique(counts):
        of_count = start[counts == r]
        for i in range(0, len(of_count), size):
            yield of_count[i : i + size, None] + np.arange(r)


def _run(task: FisherInput, draws: Draws, accumulate: Accumulator, first: int, n_early: int) -> int:
    """Passes for the draws, down to unit ``first``; returns their number."""
    probe, head, weights = task.probe, task.head, task.weights
    for index in _batches(draws, task.batch_size):
        rows = torch.as_tensor(draws.images[index[:, 0]])
        classes = torch.as_tensor(draws.classes[index].T.copy()).to(probe.device)  # [R, B]
        sample_filter_norms(
            probe.network,
            weights,
            batch_of(probe, task.images, rows),
            lambda z, r, c=classes: sampled_cotangents(head, z, c[r]),  # type: ignore[misc]
            accumulate.sink(
                rows, torch.as_tensor(draws.weights[index].T), torch.as_tensor(draws.early_weights[index].T), n_early
            ),
            rounds=index.shape[1],
            first=first,
        )
    return len(draws.images)


def _sampled(task: FisherInput, draws: Draws) -> FisherEstimate:
    accumulate, n_early = Accumulator(task.probe, len(task.images)), early_units(task.probe)
    deep = draws.early_weights > 0
    passes = _run(task, draws.where(deep), accumulate, 0, n_early)
    passes += _run(task, draws.where(~deep), accumulate, n_early, n_early)
    return accumulate.result(len(task.images), passes, exact=False)


def montecarlo(task: FisherInput) -> FisherEstimate:
    """Unbiased, importance-sampled pairs; exact where that costs no more passes than the budget.

    A share of the draws, taken systematically among them, goes on to the early layers, with its inverse as weight.
    """
    spec = task.spec
    if exact_rounds(task.n_classes) * len(task.images) <= spec.draws:
        return exact(task)
    values = importance(task.head, clean_features(task)).double().cpu().numpy()
    return _sampled(task, importance_draws(values, spec.draws, spec.seed, early_share=spec.early_share))


def montecarlo_plain(task: FisherInput) -> FisherEstimate:
    """Labels drawn from the model, y ~ p_w(y|x), one squared gradient a draw: unbiased, noisier than `montecarlo`."""
    p = probabilities(task.head, clean_features(task)).double().cpu().numpy()
    return _sampled(task, model_draws(p, task.spec.draws, task.spec.seed))
