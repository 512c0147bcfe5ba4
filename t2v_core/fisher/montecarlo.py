"""Monte Carlo over (image, class) pairs: importance-sampled, or with labels drawn from the model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from t2v_core.fisher.accumulate import Accumulator, FisherEstimate, FisherInput, batch_of, clean_features
from t2v_core.fisher.cotangents import probabilities, sampled_cotangents, sampling_importance
from t2v_core.fisher.draws import Draws, importance_draws, model_draws
from t2v_core.fisher.exact import exact, exact_rounds
from t2v_core.fisher.passes import entries, sample_filter_norms
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


def _batches(draws: Draws, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Draws by image, ``[B, R]`` indices, and how many of the R go on to the early layers: they come first.

    Images with equally many pairs of either kind share their passes, so that an image's forward pass, and what depends
    on its input alone, is paid once for all its pairs.
    """
    deep = draws.early_weights > 0
    order = np.lexsort((~deep, draws.images))  # an image's pairs together, those that go on first
    _, start, counts = np.unique(draws.images[order], return_index=True, return_counts=True)
    n_deep = np.add.reduceat(deep[order].astype(np.int64), start) if len(start) else counts
    for r, d in np.unique(np.stack([counts, n_deep], 1), axis=0).tolist():
        alike = start[(counts == r) & (n_deep == d)]
        for i in range(0, len(alike), size):
            yield order[alike[i : i + size, None] + np.arange(r)], d


def _sampled(task: FisherInput, draws: Draws) -> FisherEstimate:
    probe, head, weights = task.probe, task.head, task.weights
    accumulate, n_early = Accumulator(probe, len(task.images)), early_units(probe)
    late = entries(probe.network, weights, batch_of(probe, task.images, slice(0, 1)), n_early) if n_early else []
    for index, n_deep in _batches(draws, task.batch_size):
        rows, rounds = torch.as_tensor(draws.images[index[:, 0]]), index.shape[1]
        classes = torch.as_tensor(draws.classes[index].T.copy()).to(probe.device)  # [R, B]
        sample_filter_norms(
            probe.network,
            weights,
            batch_of(probe, task.images, rows),
            lambda z, r, c=classes: sampled_cotangents(head, z, c[r]),  # type: ignore[misc]
            accumulate.sink(
                rows, torch.as_tensor(draws.weights[index].T), torch.as_tensor(draws.early_weights[index].T), n_early
            ),
            rounds=rounds,
            first=0 if n_deep else n_early,
            stops=[[]] * n_deep + [late] * (rounds - n_deep) if n_deep else (),
        )
    return accumulate.result(len(task.images), len(draws.images), exact=False)


def montecarlo(task: FisherInput) -> FisherEstimate:
    """Unbiased, importance-sampled pairs; exact where that costs no more passes than the budget.

    A share of the draws, taken systematically among them, goes on to the early layers, with its inverse as weight.
    """
    spec = task.spec
    if exact_rounds(task.n_classes) * len(task.images) <= spec.draws:
        return exact(task)
    values = sampling_importance(task.head, clean_features(task)).cpu().numpy()
    return _sampled(task, importance_draws(values, spec.draws, spec.seed, early_share=spec.early_share))


def montecarlo_plain(task: FisherInput) -> FisherEstimate:
    """Labels drawn from the model, y ~ p_w(y|x), one squared gradient a draw: unbiased, noisier than `montecarlo`."""
    p = probabilities(task.head, clean_features(task)).double().cpu().numpy()
    return _sampled(task, model_draws(p, task.spec.draws, task.spec.seed))
