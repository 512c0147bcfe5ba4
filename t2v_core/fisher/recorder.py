"""Watching the filters of a network: their inputs in the forward pass, their output gradients in the backward pass.

The recorder looks at the function calls (``conv2d``, ``linear``) and not at modules, so that a layer which pads its
input itself ("same" convolutions) or is called functionally is seen with its true geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from t2v_core import winograd
from t2v_core.errors import ProbeError

__all__ = ["LayerCall", "Recorder", "fast_convolutions", "record_units"]


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer: its input and geometry."""

    x: torch.Tensor
    """Input: ``[N, C, H, W]`` for a convolution, ``[N, ..., C]`` for a linear layer."""
    kernel: tuple[int, int]
    """Kernel height and width; (0, 0) for a linear layer."""
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding: tuple[int, int] = (0, 0)
    """Zeros above and below, left and right, that the convolution adds to ``x``."""
    keep: bool = False
    """Whether what `cached` makes is kept, for the gradients that follow."""
    _made: dict[str, torch.Tensor] = field(default_factory=dict)

    def padded(self) -> torch.Tensor:
        """The input with its zeros around it."""
        vertical, horizontal = self.padding
        return F.pad(self.x, (horizontal, horizontal, vertical, vertical)) if any(self.padding) else self.x

    def cached(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What depends on the input alone: made once where several gradients will ask for it."""
        if name in self._made:
            return self._made[name]
        value = make()
        if self.keep:
            self._made[name] = value
        return value

    def power(self) -> torch.Tensor:
        """``S[l] = || U[:, l] ||^2``, squared inputs summed over each window: ``[N, groups, Ho, Wo]``, or
        ``[N, ..., 1]`` for a linear layer."""
        return self.cached("power", self._power)

    def _power(self) -> torch.Tensor:
        if self.kernel == (0, 0):
            return self.x.square().sum(-1, keepdim=True)
        x, groups = self.x.square(), self.groups
        if groups < x.shape[1]:
            x = x.reshape(len(x), groups, -1, *x.shape[2:]).sum(2)
        ones = torch.ones(groups, 1, *self.kernel, dtype=x.dtype, device=x.device)
        return F.conv2d(x, ones, None, self.stride, self.padding, self.dilation, groups)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _convolution_call(x: torch.Tensor, weight: torch.Tensor, args: dict[str, Any]) -> LayerCall:
    kernel = (weight.shape[2], weight.shape[3])
    dilation = _pair(args["dilation"])
    padding = args["padding"]
    geometry = LayerCall(x, kernel, _pair(args["stride"]), dilation, int(args["groups"]))
    if not isinstance(padding, str):
        return replace(geometry, padding=_pair(padding))
    # "same" puts the odd pixel right and below
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    pads = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    return replace(geometry, x=F.pad(x, pads) if any(pads) else x)


def _output(func: Any, call: LayerCall, named: dict[str, Any]) -> torch.Tensor:
    """What the layer gives, by the faster way."""
    weight, bias = named["weight"], named.get("bias")
    plain = call.kernel == (3, 3) and call.stride == call.dilation == (1, 1) and call.groups == 1
    if plain and winograd.is_faster(call.x, weight, bias, call.padding):
        return winograd.convolution(call.x, weight, bias, call.padding)
    output: torch.Tensor = func(**named)
    return output


_CONV_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_LINEAR_NAMES = ("input", "weight", "bias")
_CONV_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}

OnCall = Callable[[int, LayerCall, torch.Tensor], torch.Tensor]
Substitute = Callable[[int, torch.Tensor], torch.Tensor]


class Recorder(TorchFunctionMode):
    """Calls ``on_call(unit, call, output) -> output`` for every layer whose weight is among ``weights``.

    With ``substitute``, the layer works with ``substitute(unit, weight)`` in place of its weight.

    A linear layer that sees several rows an image (windows of attention) is shown as one row an image: ``[N W, L, C]``
    as ``[N, W L, C]``, and its output likewise. `record_units` has seen to it that such rows lie image by image.
    """

    def __init__(self, weights: Sequence[torch.Tensor], on_call: OnCall, substitute: Substitute | None = None) -> None:
        super().__init__()
        self._index = {id(w): i for i, w in enumerate(weights)}
        self._on_call = on_call
        self._substitute = substitute
        self._n_images = 0  # of the pass: rows of the first layer, which `record_units` has seen to be images

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        convolution = func is torch.conv2d or func is F.conv2d
        if not convolution and func is not F.linear:
            return func(*args, **kwargs)
        names = _CONV_NAMES if convolution else _LINEAR_NAMES
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        unit = self._index.get(id(named["weight"]))
        if unit is None:
            return func(*args, **kwargs)
        if self._substitute is not None:
            named["weight"] = self._substitute(unit, named["weight"])
        if convolution:
            call = _convolution_call(named["input"], named["weight"], {**_CONV_DEFAULTS, **named})
        else:
            call = LayerCall(named["input"], (0, 0))
        self._n_images = self._n_images or len(call.x)
        output = _output(func, call, named)
        if output._is_view():
            # As of a linear layer with a bias on [N, L, C]. What follows may work in place on it, and a hook on a view
            # would then see no gradient at all.
            output = output.clone()
        if convolution:
            return self._on_call(unit, call, output)
        windows, rest = divmod(len(call.x), self._n_images)
        if rest or windows == 1:
            return self._on_call(unit, call, output)
        by_image = replace(call, x=call.x.reshape(self._n_images, -1, call.x.shape[-1]))
        seen = self._on_call(unit, by_image, output.reshape(self._n_images, -1, output.shape[-1]))
        return seen.reshape(output.shape).clone()  # not a view, for the same reason


def fast_convolutions(network: nn.Module) -> AbstractContextManager[object]:
    """Within it, the network's 3 x 3 convolutions run by minimal filtering where that is faster: on a CPU, with one
    thread in about half of their time. The result is the same but for rounding. Weights must be frozen or gradients
    off, else the framework's own convolution runs; changes of their numbers through ``.data`` are not seen."""
    layers = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    weights = [m.weight for m in layers if m.kernel_size == (3, 3) and m.stride == (1, 1)]
    return Recorder(weights, lambda unit, call, output: output) if weights else nullcontext()


_WEIGHTED = {
    f
    for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
    for f in (getattr(torch, name), getattr(F, name))
} | {F.linear}


class _Surveyor(Recorder):
    """A recorder that refuses convolutions and linear layers which it cannot show."""

    def __init__(self, network: nn.Module, layers: Mapping[str, nn.Module], on_call: OnCall) -> None:
        super().__init__([m.weight for m in layers.values()], on_call)  # type: ignore[misc]
        self._fixed = {b.untyped_storage().data_ptr() for b in network.buffers()}
        self._running: list[str] = []
        self._hooks: list[RemovableHandle] = []
        for name, module in network.named_modules():
            self._hooks.append(module.register_forward_pre_hook(partial(self._enter, name)))
            self._hooks.append(module.register_forward_hook(self._leave))

    def _enter(self, name: str, *_: Any) -> None:
        self._running.append(name)

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _WEIGHTED:
            weight = kwargs["weight"] if kwargs and "weight" in kwargs else args[1]
            # Fixed filters, such as those of an anti-aliased pooling, are buffers; nothing of them is trained.
            if id(weight) not in self._index and weight.untyped_storage().data_ptr() not in self._fixed:
                where = f"layer {self._running[-1]!r}" if self._running[-1] else "the network"
                raise ProbeError(
                    f"{where} runs {func.__name__} with a weight that is not, as it stands, that of a torch.nn.Conv2d "
                    "or torch.nn.Linear (weight standardisation, mixed kernels, a convolution in one dimension or "
                    "transposed); its filters cannot be addressed"
                )
        return super().__torch_function__(func, types, args, kwargs)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a and b are one value, computed in batches of one size; unknown, and passed, where it is not finite."""
    if not a.isfinite().all():
        return True
    return bool((a - b).abs().max() <= torch.finfo(a.dtype).eps ** 0.5 * a.abs().max())


def record_units(network: nn.Module, example: torch.Tensor) -> list[str]:
    """Names of the convolutions and linear layers that a forward pass calls, in its order.

    A second pass has the first image twice. What each layer sees of the first image must stay, and what it sees of the
    second must become the same: only then are its rows one image's, and lie image by image.

    Args:
        network: images to features, in eval mode.
        example: two different images, ``[2, 3, H, W]``.

    Raises:
        ProbeError: a layer is called twice (its per-sample gradient is then a sum over calls), mixes the images, does
            not see them one after the other, or has filters that cannot be addressed.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    names = list(layers)
    first: dict[str, torch.Tensor] = {}

    def on_call(unit: int, call: LayerCall, output: torch.Tensor) -> torch.Tensor:
        if len(call.x) != len(example):
            raise ProbeError(
                f"layer {names[unit]!r} sees {len(call.x)} rows for {len(example)} images (windows or patches as "
                "rows, or a table of positions); a probe's layers must see one row an image"
            )
        if names[unit] in first:
            raise ProbeError(
                f"layer {names[unit]!r} is used twice in one forward pass; a probe's layers must be used once"
            )
        first[names[unit]] = call.x[0].clone()
        return output

    def on_second_call(unit: int, call: LayerCall, output: torch.Tensor) -> torch.Tensor:
        if not all(_same(first[names[unit]], row) for row in call.x):
            raise ProbeError(
                f"what layer {names[unit]!r} sees of an image depends on the others of its batch, or on chance, or its "
                "rows do not lie image by image; a probe's layers must see each image by itself"
            )
        return output

    with torch.no_grad():
        with _Surveyor(network, layers, on_call):
            features = network(example)
        with _Surveyor(network, layers, on_second_call):
            again = network(example[[0, 0]])
    if not all(_same(features[0], row) for row in again):
        raise ProbeError("the features of an image depend on the others of its batch, or on chance; wanted on it alone")
    return list(first)
