"""The filter-wise Fisher information of a probe with a head: one interface over the estimators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from t2v_core.errors import ComputeError, ConfigError, DataError
from t2v_core.fisher.cotangents import Head, exact_cotangents, importance, probabilities, sampled_cotangents
from t2v_core.fisher.draws import Draws, importance_draws, model_draws
from t2v_core.fisher.recorder import sample_filter_norms
from t2v_core.probes import Probe
from t2v_core.registry import Registry

__all__ = ["ESTIMATORS", "FisherEstimate", "estimate_fisher", "fisher_filters"]

N_GROUPS = 8
"""Groups of images that are summed apart: what the embedding's own noise is estimated from."""


@dataclass(frozen=True, eq=False)
class FisherEstimate:
    """A filter-wise Fisher information, per sample, mean over images, per weight (mean over a filter's weights)."""

    filters: torch.Tensor
    """``[P]`` float64."""
    groups: torch.Tensor
    """``[G, P]`` float64: the same quantity from each of G disjoint groups of images; their mean, weighted by the
    groups' sizes, is `filters`."""
    n_images: int
    n_passes: int
    """Backward passes, in images."""
    exact: bool
    """Whether the sum over classes is exact."""


class _Accumulator:
    """Sums ``weight_m q[m, o]`` per group of images and filter, in float64."""

    def __init__(self, probe: Probe, n_images: int) -> None:
        self.probe = probe
        self.n_groups = min(N_GROUPS, n_images)
        self.sums = torch.zeros(self.n_groups, probe.n_filters, dtype=torch.float64, device=probe.device)
        sizes = torch.bincount(torch.arange(n_images) % self.n_groups, minlength=self.n_groups)
        self.shares = (sizes.double() / n_images).to(probe.device)
        self._factor = [(s.double() ** 2 / unit.filter_size) for s, unit in zip(probe.scales, probe.units, strict=True)]

    def sink(self, images: torch.Tensor, weights: torch.Tensor) -> Callable[[int, torch.Tensor], None]:
        group = (images % self.n_groups).to(self.probe.device)
        select = torch.zeros(self.n_groups, len(images), dtype=torch.float64, device=self.probe.device)
        select[group, torch.arange(len(images), device=self.probe.device)] = weights.to(self.probe.device)

        def add(unit_index: int, norms: torch.Tensor) -> None:
            unit = self.probe.units[unit_index]
            self.sums[:, unit.start : unit.stop] += (select @ norms.double()) * self._factor[unit_index]

        return add

    def result(self, n_images: int, n_passes: int, exact: bool) -> FisherEstimate:
        filters = self.sums.sum(0)
        if not torch.isfinite(filters).all():
            raise ComputeError(
                f"the Fisher information is not finite in {int((~torch.isfinite(filters)).sum())} of {len(filters)} "
                "filters; look for huge pixel values or a diverged head"
            )
        groups = self.sums / self.shares[:, None]
        return FisherEstimate(filters.cpu(), groups.cpu(), n_images, n_passes, exact)


def _check(probe: Probe, head: Head, images: torch.Tensor) -> Head:
    weight, bias = head
    if weight.dim() != 2 or weight.shape[1] != probe.n_features or bias.shape != weight.shape[:1]:
        raise DataError(
            f"got a head of shapes {tuple(weight.shape)} and {tuple(bias.shape)}; "
            f"wanted [C, {probe.n_features}] and [C] for probe {probe.name!r}"
        )
    if images.dim() != 4 or images.shape[1] != 3 or len(images) == 0:
        raise DataError(f"got images of shape {tuple(images.shape)}; wanted [N, 3, H, W] with N > 0")
    return weight.detach().to(probe.device, probe.dtype), bias.detach().to(probe.device, probe.dtype)


def _batch(probe: Probe, images: torch.Tensor, index: slice | torch.Tensor) -> torch.Tensor:
    return images[index].to(probe.device, probe.dtype).contiguous(memory_format=torch.channels_last)


def _weights(probe: Probe) -> Sequence[torch.Tensor]:
    return [probe.weight_of(unit) for unit in probe.units]


def _exact(probe: Probe, head: Head, images: torch.Tensor, draws: int, seed: int, batch_size: int) -> FisherEstimate:
    """The exact sum over y, mean over images: one pass a class, one pass in all for two classes."""
    accumulate = _Accumulator(probe, len(images))
    passes = 1 if head[0].shape[0] == 2 else head[0].shape[0]
    weights = _weights(probe)
    per_image = torch.full((len(images),), 1.0 / len(images), dtype=torch.float64)
    for start in range(0, len(images), batch_size):
        rows = torch.arange(start, min(start + batch_size, len(images)))
        batch = _batch(probe, images, rows)
        for r in range(passes):
            sample_filter_norms(
                probe.network,
                weights,
                batch,
                lambda z, r=r: exact_cotangents(head, z)[r],  # type: ignore[misc]
                accumulate.sink(rows, per_image[rows]),
            )
    return accumulate.result(len(images), passes * len(images), exact=True)


def _sampled(probe: Probe, head: Head, images: torch.Tensor, drawn: Draws, batch_size: int) -> FisherEstimate:
    accumulate = _Accumulator(probe, len(images))
    weights = _weights(probe)
    for start in range(0, len(drawn.images), batch_size):
        part = slice(start, start + batch_size)
        rows = torch.as_tensor(drawn.images[part])
        classes = torch.as_tensor(drawn.classes[part]).to(probe.device)
        sample_filter_norms(
            probe.network,
            weights,
            _batch(probe, images, rows),
            lambda z, c=classes: sampled_cotangents(head, z, c),  # type: ignore[misc]
            accumulate.sink(rows, torch.as_tensor(drawn.weights[part])),
        )
    return accumulate.result(len(images), len(drawn.images), exact=False)


@torch.no_grad()
def _features(probe: Probe, images: torch.Tensor, batch_size: int) -> torch.Tensor:
    parts = [
        probe.network(_batch(probe, images, slice(start, start + batch_size)))
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts)


def _montecarlo(
    probe: Probe, head: Head, images: torch.Tensor, draws: int, seed: int, batch_size: int
) -> FisherEstimate:
    """Unbiased, importance-sampled pairs; exact where that costs no more passes than the budget."""
    n_classes = head[0].shape[0]
    if (1 if n_classes == 2 else n_classes) * len(images) <= draws:
        return _exact(probe, head, images, draws, seed, batch_size)
    values = importance(head, _features(probe, images, batch_size)).double().cpu().numpy()
    return _sampled(probe, head, images, importance_draws(values, draws, seed), batch_size)


def _plain(probe: Probe, head: Head, images: torch.Tensor, draws: int, seed: int, batch_size: int) -> FisherEstimate:
    """Labels drawn from the model, y ~ p_w(y|x), one squared gradient a draw: unbiased, noisier than montecarlo."""
    p = probabilities(head, _features(probe, images, batch_size)).double().cpu().numpy()
    return _sampled(probe, head, images, model_draws(p, draws, seed), batch_size)


Estimator = Callable[[Probe, Head, torch.Tensor, int, int, int], FisherEstimate]

ESTIMATORS: Registry[Estimator] = Registry("estimator")
ESTIMATORS.add("exact", _exact)
ESTIMATORS.add("montecarlo", _montecarlo)
ESTIMATORS.add("montecarlo_plain", _plain)


def estimate_fisher(
    probe: Probe,
    head: Head,
    images: torch.Tensor,
    estimator: str = "montecarlo",
    *,
    draws: int = 1024,
    seed: int = 0,
    batch_size: int = 64,
) -> FisherEstimate:
    r"""The filter-wise Fisher information of the probe's weights for a task (Sect. 3, 3.1).

    .. math:: F_o = \frac{1}{K_o N} \sum_{k, n} E_{y \sim p_w(y|x_n)} (\partial_{w_{ok}} \log p_w(y|x_n))^2

    Args:
        probe: the fixed network.
        head: the task's head, weight ``[C, D]`` and bias ``[C]``.
        images: ``[N, 3, H, W]``, normalised as the probe wants them.
        estimator: ``exact``, ``montecarlo`` (importance-sampled) or ``montecarlo_plain`` (y ~ p).
        draws: budget of (image, class) pairs; ignored by ``exact``.
        seed: of the draws.
        batch_size: images in a pass; does not change the result beyond rounding.

    Raises:
        UnknownNameError: no such estimator.
        DataError: shapes do not fit the probe.
        ComputeError: the result is not finite.
    """
    if draws < 1 or batch_size < 1:
        raise ConfigError(f"got draws={draws}, batch_size={batch_size}; both must be at least 1")
    method = ESTIMATORS[estimator]
    return method(probe, _check(probe, head, images), images, draws, seed, batch_size)


def fisher_filters(
    probe: Probe,
    head: Head,
    images: torch.Tensor,
    estimator: str = "montecarlo",
    *,
    draws: int = 1024,
    seed: int = 0,
    batch_size: int = 64,
) -> torch.Tensor:
    """`estimate_fisher`'s values alone: ``[P]`` float64, mean over images and over each filter's weights."""
    return estimate_fisher(probe, head, images, estimator, draws=draws, seed=seed, batch_size=batch_size).filters
