"""Probes: a pretrained network as a feature extractor with addressable filters.

A probe is the feature extractor of a network, its head cut off, in eval mode, with BatchNorm folded into the
convolutions before it (same function, fewer operations) and all weights frozen. The *filters* of a unit (a
convolution or linear layer) are the rows of its weight. Fisher values are those of the **original** weights: with
``w' = s w`` (``s = gamma / sqrt(var + eps)``) the chain rule gives ``F_w = s^2 F_w'`` per output filter.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

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


def _weights_digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(f"{key}:{tuple(value.shape)}:{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _cut_head(network: nn.Module, head: str) -> int:
    """Replace the head by the identity; returns D."""
    try:
        layer = network.get_submodule(head)
    except AttributeError:
        names = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
        raise ProbeError(
            f"the network has no layer {head!r} for a head; its linear layers: {', '.join(names)}"
        ) from None
    parent, _, child = head.rpartition(".")
    if isinstance(layer, nn.Linear):
        n_features = layer.in_features
    elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
        n_features = layer.in_channels  # a linear head on pooled features that were left as [N, D, 1, 1]
    else:
        raise ProbeError(f"the head {head!r} is a {type(layer).__name__}; wanted a torch.nn.Linear, or a 1x1 Conv2d")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return n_features


def _why_not(net: nn.Module, head: str, example: torch.Tensor, error: Exception) -> str:
    """Why the network does not run without its head: the image size, or what follows the head."""
    try:
        with torch.no_grad():
            copy.deepcopy(net).eval()(example)
    except Exception as with_head:  # noqa: BLE001 - any network, any error
        return (
            f"the network does not run on images of {example.shape[-1]} pixels: "
            f"{str(with_head) or type(with_head).__name__}; take another image size"
        )
    return f"{head!r} is not the last layer: without it the network does not run ({error})"


def _features_without_head(
    net: nn.Module, network: nn.Module, head: str, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the head off ``network``, in place; returns an example input and the features that it now gives.

    Args:
        net: the network as given.
        network: a copy of it, in eval mode.
        head: dotted name of the head.
        size: side of the example's images, pixels.

    Raises:
        ProbeError: no such head, nothing before it, something after it, or not for images of that size.
    """
    n_features = _cut_head(network, head)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    if not any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules()):
        raise ProbeError(f"no convolution or linear layer before the head {head!r}; there is nothing to embed with")
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, 3, size, size, generator=generator).to(parameter.device, parameter.dtype)
    seen: list[torch.Tensor] = []
    cut = network.get_submodule(head)
    hook = cut.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    try:
        with torch.no_grad():
            features: object = network(example)
    except Exception as error:
        raise ProbeError(_why_not(net, head, example, error)) from error
    finally:
        hook.remove()
    if not isinstance(features, torch.Tensor) or features.shape != (2, n_features):
        got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise ProbeError(
            f"without its head {head!r} the network gives {got}; wanted (2, {n_features}): the head must be the last "
            "layer"
        )
    if len(seen) != 1 or not torch.equal(seen[0].reshape(len(seen[0]), -1), features):
        raise ProbeError(f"something follows the head {head!r}; it must be the last layer, and give logits")
    return example, features


def _batchnorm_pairs(network: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """(convolution, BatchNorm) names where the BatchNorm's input *is* the convolution's output."""
    names = {m: n for n, m in network.named_modules()}
    outputs: list[tuple[torch.Tensor, nn.Module]] = []
    pairs: list[tuple[str, str]] = []

    def after_conv(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        outputs.append((output, module))

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        for output, conv in outputs:
            if output is inputs[0]:
                pairs.append((names[conv], names[module]))

    hooks = [m.register_forward_hook(after_conv) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before_norm) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


@torch.no_grad()
def _fold_batchnorm(network: nn.Module, example: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Fold each BatchNorm into the convolution before it, in place; s and the BatchNorm per folded convolution."""
    scales: dict[str, torch.Tensor] = {}
    norms: dict[str, str] = {}
    for conv_name, norm_name in _batchnorm_pairs(network, example):
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        if not isinstance(norm, nn.BatchNorm2d) or conv_name in scales:
            continue  # shared with a convolution that was folded before; the functions differ, and nothing is folded
        if norm.running_mean is None or norm.running_var is None:
            continue
        gamma = norm.weight if norm.affine else torch.ones_like(norm.running_var)
        shift = norm.bias if norm.affine else torch.zeros_like(norm.running_var)
        s = gamma / torch.sqrt(norm.running_var + norm.eps)
        bias = conv.bias if conv.bias is not None else torch.zeros_like(s)
        conv.bias = nn.Parameter((bias - norm.running_mean) * s + shift, requires_grad=False)
        conv.weight.mul_(s[:, None, None, None])
        scales[conv_name], norms[conv_name] = s.clone(), norm_name
        parent, _, child = norm_name.rpartition(".")
        # timm's BatchNormAct2d holds its activation; a plain BatchNorm2d has none.
        setattr(network.get_submodule(parent), child, getattr(norm, "act", None) or nn.Identity())
    return scales, norms


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
    example, before = _features_without_head(net, network, head, transform.size)
    digest, n_features = _weights_digest(network), before.shape[1]
    folded = copy.deepcopy(original)
    scales, norms = _fold_batchnorm(folded, example)
    with torch.no_grad():
        after = folded(example)
    # A convolution whose output is also used elsewhere must not be folded; the functions then differ.
    if scales and torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
        network = folded
    else:
        scales, norms = {}, {}
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
    for parameter in {*network.parameters(), *original.parameters()}:
        if parameter.dim() == 4:  # Module.to(memory_format=...) fails on five axes
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
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
