"""Probes: a pretrained network as a feature extractor with addressable filters.

A probe is the feature extractor of a network, its head cut off, in eval mode, with BatchNorm folded into the
convolutions before it (same function, fewer operations) and all weights frozen. The *filters* of a unit (a
convolution or linear layer) are the rows of its weight. Fisher values are those of the **original** weights: with
``w' = s w`` (``s = gamma / sqrt(var + eps)``) the chain rule gives ``F_w = s^2 F_w'`` per output filter.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from t2v_core.architectures import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PROBES,
    Architecture,
    architecture_of,
    build_network,
)
from t2v_core.errors import ProbeError
from t2v_core.images import ImageTransform
from t2v_core.networks import channels_last, features_without_head, fold_batchnorm, weights_digest

__all__ = ["PROBES", "Architecture", "Probe", "Unit", "build_network", "load_probe", "probe_from_module"]


@dataclass(frozen=True)
class Unit:
    """A layer whose filters the embedding has a value for."""

    name: str
    """Dotted name of the layer in the network."""
    start: int
    """Index of its first filter in the embedding."""
    n_filters: int
    """Number of filters, the rows of the weight."""
    filter_size: int
    """Weights in one filter; the Fisher is averaged over them."""
    mean_square: float
    """Mean squared weight of the layer as trained (not folded); sets the scale of the prior."""

    @property
    def stop(self) -> int:
        """Index after its last filter."""
        return self.start + self.n_filters


@dataclass(frozen=True, eq=False)
class Probe:
    """A frozen feature extractor with addressable filters. Build one with `load_probe` or `probe_from_module`."""

    name: str
    """Name of the architecture."""
    digest: str
    """Hash of the extractor's weights, the head not among them."""
    network: nn.Module
    """Images ``[N, 3, H, W]`` to features ``[N, D]``; eval mode, BatchNorm folded, weights frozen."""
    original: nn.Module
    """The same function with BatchNorm as it was trained, not folded; eval mode, weights frozen. `network` itself where
    nothing was folded. Copy it before you change it; it shares nothing with the network that the probe was made of."""
    n_features: int
    """D, the length of a feature vector."""
    units: tuple[Unit, ...]
    """The layers with filters, in the order of the forward pass."""
    scales: tuple[torch.Tensor, ...]
    """Per unit ``[n_filters]``: s of the folded BatchNorm (1 where none was folded)."""
    folded: tuple[tuple[str, str], ...]
    """(convolution, BatchNorm) names in `original` of what is one convolution in `network`."""
    transform: ImageTransform
    """What turns an image into the network's input."""

    @property
    def n_filters(self) -> int:
        """P, the length of an embedding."""
        return self.units[-1].stop

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        return next(self.network.parameters()).dtype

    def to(self, target: torch.device | torch.dtype | str) -> Probe:
        """A copy on another device or in another floating type; this probe stays as it is."""
        network, original = copy.deepcopy((self.network, self.original))  # at once: what is one module stays one
        network, original = network.to(target), original.to(target)
        return replace(self, network=network, original=original, scales=tuple(s.to(target) for s in self.scales))

    def weight_of(self, unit: Unit) -> torch.Tensor:
        """The (folded) weight of a unit, ``[n_filters, ...]``."""
        weight = self.network.get_submodule(unit.name).weight
        assert isinstance(weight, torch.Tensor)
        return weight


def load_probe(
    name: str,
    weights: str | Mapping[str, torch.Tensor] = "imagenet",
    *,
    seed: int = 0,
    image_size: int | None = None,
) -> Probe:
    """A probe by name.

    Args:
        name: one of `PROBES`, e.g. ``"resnet34"``, or ``timm/`` and the name of a network of timm.
        weights: ``"imagenet"``, ``"random"``, a path, or a state dict.
        seed: of random weights.
        image_size: side of the input in pixels; default: what the ImageNet weights were trained on.

    Raises:
        UnknownNameError: no such architecture.
        WeightsError: weights missing, unreadable, of another architecture, or not finite.
        ProbeError: the network cannot be a probe, or not with images of that size.
    """
    architecture = architecture_of(name, image_size)
    network = build_network(name, weights, seed, image_size=image_size)
    size = image_size or architecture.image_size
    transform = ImageTransform(size=size, mean=architecture.mean, std=architecture.std)
    return probe_from_module(network, head=architecture.head, name=name, transform=transform)


@torch.no_grad()
def _mean_square(weight: torch.Tensor) -> float:
    """In double, some rows at a time: a double of VGG's largest layer takes 0.8 GB."""
    total = 0.0
    for start in range(0, len(weight), 256):
        total += float(weight[start : start + 256].double().square().sum())
    return total / weight.numel()


def probe_from_module(
    net: nn.Module, head: str = "fc", *, name: str = "", transform: ImageTransform | None = None
) -> Probe:
    """Any network as a probe. The network given is copied, never changed.

    Args:
        net: images ``[N, 3, H, W]`` to logits; its head must be the last layer.
        head: dotted name of the head, a `torch.nn.Linear` (or a 1x1 convolution on pooled features).
        name: for records; default: the class's name.
        transform: what turns an image into the input; default: 224 pixels, ImageNet's mean and deviation.

    Raises:
        ProbeError: no such head, the head is not the last layer, no convolution or linear layer before it, or one
            whose filters cannot be addressed (see `record_units`).
    """
    from t2v_core.fisher.recorder import record_units

    transform = transform or ImageTransform(size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    network = original = copy.deepcopy(net).eval()
    for name_of, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ProbeError(
                f"{name_of!r} normalises by each batch's own statistics (track_running_stats=False), so that an "
                "embedding would depend on the batch; use a network with running statistics"
            )
        if isinstance(module, nn.MultiheadAttention):
            raise ProbeError(
                f"{name_of!r} is a torch.nn.MultiheadAttention, whose projections cannot be watched; supported are "
                "networks of convolutions and linear layers"
            )
        if hasattr(module, "inplace"):  # a hook on a convolution's output must see it unchanged
            module.inplace = False
    example, before = features_without_head(net, network, head, transform.size)
    digest, n_features = weights_digest(network), before.shape[1]
    network, scales, norms = fold_batchnorm(original, example, before)
    units: list[Unit] = []
    unit_scales: list[torch.Tensor] = []
    for unit_name in record_units(network, example):
        weight = network.get_submodule(unit_name).weight
        assert isinstance(weight, torch.Tensor)
        s = scales.get(unit_name, torch.ones(len(weight), dtype=weight.dtype, device=weight.device))
        trained = original.get_submodule(unit_name).weight
        assert isinstance(trained, torch.Tensor)
        start = units[-1].stop if units else 0
        units.append(Unit(unit_name, start, len(weight), weight[0].numel(), _mean_square(trained)))
        unit_scales.append(s)
    if not units:
        raise ProbeError(f"no convolution or linear layer is called before the head {head!r}; nothing to embed with")
    channels_last(network, original)
    return Probe(
        name=name or type(net).__name__,
        digest=digest,
        network=network.eval(),  # again: the identities put in are born in train mode
        original=original.eval(),
        n_features=n_features,
        units=tuple(units),
        scales=tuple(unit_scales),
        folded=tuple(norms.items()),
        transform=transform,
    )
