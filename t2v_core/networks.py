"""What is done to any network before it gives features: the head cut off, BatchNorm folded, the weights hashed."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import torch
from torch import nn

from t2v_core.errors import ProbeError

__all__ = ["channels_last", "features_without_head", "fold_batchnorm", "weights_digest"]


def channels_last(*networks: nn.Module) -> None:
    """Lay the weights of convolutions out with channels last, in place."""
    for parameter in {p for network in networks for p in network.parameters()}:
        if parameter.dim() == 4:  # Module.to(memory_format=...) fails on five axes
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all tensors of a network, its first 16 hex digits."""
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


def features_without_head(
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
def fold_batchnorm(
    network: nn.Module, example: torch.Tensor, before: torch.Tensor
) -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, str]]:
    """A copy with each BatchNorm folded into the convolution before it; the network itself where that changes it.

    Args:
        network: images to features, in eval mode.
        example: images.
        before: their features.

    Returns:
        The network, and s (see `Probe.scales`) and the BatchNorm of each folded convolution.
    """
    folded = copy.deepcopy(network)
    scales, norms = _fold_in_place(folded, example)
    # A convolution whose output is also used elsewhere must not be folded; the functions then differ.
    if scales and torch.allclose(before, folded(example), rtol=1e-3, atol=1e-4 * float(before.abs().max())):
        return folded, scales, norms
    return network, {}, {}


def _fold_in_place(network: nn.Module, example: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
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
