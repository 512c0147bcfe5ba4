"""Watching the filters of a network: their inputs in the forward pass, their output gradients in the backward pass.

The recorder looks at the function calls (``conv2d``, ``linear``) and not at modules, so that a layer which pads its
input itself ("same" convolutions) or is called functionally is seen with its true geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from t2v_core.errors import ProbeError

__all__ = ["LayerCall", "record_units", "sample_filter_norms"]


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its input and geometry."""

    x: torch.Tensor
    """Input, already padded: ``[N, C, H, W]`` for a convolution, ``[N, ..., C]`` for a linear layer."""
    kernel: tuple[int, int]
    """Kernel height and width; (0, 0) for a linear layer."""
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _convolution_call(x: torch.Tensor, weight: torch.Tensor, args: dict[str, Any]) -> LayerCall:
    kernel = (weight.shape[2], weight.shape[3])
    dilation = _pair(args["dilation"])
    padding = args["padding"]
    if isinstance(padding, str):  # "same" puts the odd pixel right and below
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        pads = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    else:
        vertical, horizontal = _pair(padding)
        pads = [horizontal, horizontal, vertical, vertical]
    if any(pads):
        x = F.pad(x, pads)
    return LayerCall(x, kernel, _pair(args["stride"]), dilation, int(args["groups"]))


_CONV_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}

OnCall = Callable[[int, LayerCall, torch.Tensor], torch.Tensor]


class _Recorder(TorchFunctionMode):
    """Calls ``on_call(unit, call, output) -> output`` for every layer whose weight is among ``weights``."""

    def __init__(self, weights: Sequence[torch.Tensor], on_call: OnCall) -> None:
        super().__init__()
        self._index = {id(w): i for i, w in enumerate(weights)}
        self._on_call = on_call

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d or func is F.conv2d:
            named = {**_CONV_DEFAULTS, **dict(zip(_CONV_NAMES, args, strict=False)), **kwargs}
            unit = self._index.get(id(named["weight"]))
            if unit is not None:
                call = _convolution_call(named["input"].detach(), named["weight"], named)
                return self._on_call(unit, call, func(*args, **kwargs))
        elif func is F.linear:
            named = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
            unit = self._index.get(id(named["weight"]))
            if unit is not None:
                call = LayerCall(named["input"].detach(), (0, 0), (1, 1), (1, 1), 1)
                return self._on_call(unit, call, func(*args, **kwargs))
        return func(*args, **kwargs)


def record_units(network: nn.Module, example: torch.Tensor) -> list[str]:
    """Names of the convolutions and linear layers that a forward pass calls, in its order.

    Raises:
        ProbeError: a layer is called twice (its per-sample gradient is then a sum over calls), or does not see one row
            an image.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    names = list(layers)
    seen: list[str] = []

    def on_call(unit: int, call: LayerCall, output: torch.Tensor) -> torch.Tensor:
        if len(call.x) != len(example):
            raise ProbeError(
                f"layer {names[unit]!r} sees {len(call.x)} rows for {len(example)} images (windows or patches as "
                "rows); a probe's layers must see one row an image"
            )
        if names[unit] in seen:
            raise ProbeError(
                f"layer {names[unit]!r} is used twice in one forward pass; a probe's layers must be used once"
            )
        seen.append(names[unit])
        return output

    with torch.no_grad(), _Recorder([m.weight for m in layers.values()], on_call):
        network(example)
    return seen


def sample_filter_norms(
    network: nn.Module,
    weights: Sequence[torch.Tensor],
    images: torch.Tensor,
    cotangents: torch.Tensor | Callable[[torch.Tensor], torch.Tensor],
    sink: Callable[[int, torch.Tensor], None],
) -> torch.Tensor:
    """Per-sample squared gradient norms of every filter, by one forward and one backward pass.

    For image n and unit l with weight ``w_l`` (rows = filters o), with ``z_n`` the features and ``v_n`` the
    cotangent, ``q[n, o] = || d(v_n . z_n) / d w_l[o] ||^2``. Only activations get gradients; weights stay frozen.

    Args:
        network: images to features, frozen, in eval mode.
        weights: weight tensor of each unit.
        images: ``[N, 3, H, W]``.
        cotangents: ``[N, D]``, or a function that gets the features ``[N, D]`` and returns the cotangents.
        sink: gets ``(unit, q [N, n_filters])`` as each layer's gradient arrives.

    Returns:
        Features ``[N, D]``, detached.
    """
    from t2v_core.fisher.norms import filter_norms

    def on_call(unit: int, call: LayerCall, output: torch.Tensor) -> torch.Tensor:
        if not output.requires_grad:
            # Not a leaf, nor a view of one: what follows may work in place on it.
            output = output.detach().requires_grad_().clone()

        def on_gradient(gradient: torch.Tensor) -> None:
            with torch.no_grad():
                sink(unit, filter_norms(call, gradient))

        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        return output

    with torch.enable_grad(), _Recorder(weights, on_call):
        features: torch.Tensor = network(images)
        detached = features.detach()
        cotangent = cotangents(detached) if callable(cotangents) else cotangents
    torch.autograd.backward(features, cotangent.to(features))
    return detached
