"""What an estimator is given, what it returns, and the sums in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from t2v_core.config import EmbeddingSpec
from t2v_core.errors import ComputeError
from t2v_core.fisher.cotangents import Head
from t2v_core.fisher.recorder import fast_convolutions
from t2v_core.probes import Probe

__all__ = ["Accumulator", "FisherEstimate", "FisherInput", "batch_of", "clean_features", "prior_weight"]

N_GROUPS = 8
"""Groups of images that are summed apart: what the embedding's own noise is estimated from."""

_PIXELS = 2**19
"""Most pixels in one pass, ten images of 224 x 224: about a gigabyte of activations in the probes here."""


@dataclass(frozen=True, eq=False)
class FisherInput:
    """A task as an estimator sees it."""

    probe: Probe
    head: Head
    images: torch.Tensor
    """``[N, 3, H, W]``, normalised."""
    labels: torch.Tensor | None
    """``[N]`` int64, where they are known."""
    spec: EmbeddingSpec
    features: torch.Tensor | None = None
    """``[N, D]``, where they are at hand: they say which images and classes are drawn, and what that saves is a forward
    pass of all images. Rounding in them changes what is drawn, and no expectation."""

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        """The weight of each unit."""
        return [self.probe.weight_of(unit) for unit in self.probe.units]

    @property
    def batch_size(self) -> int:
        """Images in one pass: the spec's, or fewer where they are large, since all activations of a pass are kept."""
        pixels = self.images.shape[-2] * self.images.shape[-1]
        return min(self.spec.batch_size, max(1, _PIXELS // pixels))

    @property
    def n_classes(self) -> int:
        """C"""
        return int(self.head[0].shape[0])


@dataclass(frozen=True, eq=False)
class FisherEstimate:
    """A filter-wise Fisher information, per sample, mean over images, per weight (mean over a filter's weights)."""

    filters: torch.Tensor
    """``[P]`` float64."""
    groups: torch.Tensor
    """``[G, P]`` float64: the same quantity from each of G disjoint groups of images; their mean, weighted by the
    groups' sizes, is `filters`."""
    n_images: int
    """Unique images."""
    n_passes: int
    """Backward passes, in images."""
    exact: bool
    """Whether the sum over classes is exact, and no noise was added."""
    objective: tuple[float, ...] = ()
    """variational: the objective before each pass, nats a sample."""
    converged: bool = True
    """variational: whether the objective had stopped falling."""


def prior_weight(spec: EmbeddingSpec, n_images: int) -> float:
    """kappa, the weight of KL against the mean loss: ``mean loss + kappa KL`` has its optimum at
    ``kappa Lambda = F + kappa lambda^2``.

    2 beta in the reference implementation's form; beta / (2 N) in that of Sect. 3.1.
    """
    return 2.0 * spec.beta if spec.beta_scale == "sample" else spec.beta / (2.0 * n_images)


def batch_of(probe: Probe, images: torch.Tensor, index: slice | torch.Tensor) -> torch.Tensor:
    """Some images, where and as the probe wants them."""
    return images[index].to(probe.device, probe.dtype).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def clean_features(task: FisherInput) -> torch.Tensor:
    """Features ``[N, D]`` of all images, without noise: those at hand, else by a pass."""
    if task.features is not None:
        return task.features.to(task.probe.device, task.probe.dtype)
    size = task.batch_size
    starts = range(0, len(task.images), size)
    with fast_convolutions(task.probe.network):
        parts = [task.probe.network(batch_of(task.probe, task.images, slice(s, s + size))) for s in starts]
    return torch.cat(parts)


class Accumulator:
    """Sums ``weight_m q[m, o]`` per group of images and filter, in float64."""

    def __init__(self, probe: Probe, n_images: int) -> None:
        self.probe = probe
        self.n_groups = min(N_GROUPS, n_images)
        self.sums = torch.zeros(self.n_groups, probe.n_filters, dtype=torch.float64, device=probe.device)
        sizes = torch.bincount(torch.arange(n_images) % self.n_groups, minlength=self.n_groups)
        self.shares = (sizes.double() / n_images).to(probe.device)
        self._factor = [(s.double() ** 2 / unit.filter_size) for s, unit in zip(probe.scales, probe.units, strict=True)]

    def sink(
        self, images: torch.Tensor, weights: torch.Tensor, early: torch.Tensor | None = None, n_early: int = 0
    ) -> Callable[[int, torch.Tensor, int], None]:
        """What `sample_filter_norms` hands its norms to.

        Args:
            images: ``[B]``, which image each row is.
            weights: ``[R, B]``, of each row in each round.
            early: ``[R, B]``, the weights for the first ``n_early`` units, where they differ.
            n_early: how many units they are for.
        """
        device, rows = self.probe.device, torch.arange(len(images))

        def spread(values: torch.Tensor) -> torch.Tensor:
            select = torch.zeros(len(values), self.n_groups, len(images), dtype=torch.float64)
            select[:, images.cpu() % self.n_groups, rows] = values.double().cpu()
            return select.to(device)

        late = spread(weights)
        first = late if early is None else spread(early)

        def add(unit_index: int, norms: torch.Tensor, turn: int) -> None:
            unit = self.probe.units[unit_index]
            select = (first if unit_index < n_early else late)[turn]
            self.sums[:, unit.start : unit.stop] += (select @ norms.double()) * self._factor[unit_index]

        return add

    def result(self, n_images: int, n_passes: int, exact: bool, scale: float = 1.0) -> FisherEstimate:
        """The estimate: the sums times ``scale``.

        Raises:
            ComputeError: values that are not finite.
        """
        filters = self.sums.sum(0) * scale
        if not torch.isfinite(filters).all():
            raise ComputeError(
                f"the Fisher information is not finite in {int((~torch.isfinite(filters)).sum())} of {len(filters)} "
                "filters; look for huge pixel values or a diverged head"
            )
        groups = self.sums * scale / self.shares[:, None]
        return FisherEstimate(filters.cpu(), groups.cpu(), n_images, n_passes, exact)
