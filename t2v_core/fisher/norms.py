"""Per-sample squared gradient norms of the filters of one layer, from its input and its output's gradient.

With U_n the unfolded input of sample n (``K x L``: filter size x output positions) and ``dY_n`` (``O x L``),
the gradient of filter o is ``dY_n[o] U_n'`` and ``q[n, o] = || dY_n[o] U_n' ||^2``. Four ways to the same number:

- direct: form ``dY_n U_n'`` (O K L multiplications, and O K numbers written), by the framework's own weight gradient
  of one image at a time, or for 1 x 1 convolutions by a batched product;
- Gram: ``M = U_n' U_n`` (``L x L``), then ``q = sum_l (dY_n M) * dY_n``: L^2 (K + O), less where L is small, as it
  is in late layers. M does not depend on the gradient, and serves every cotangent of the image;
- pixel Gram (stride 1): contract channels only, ``C = X_n' X_n`` over pixels, and add the k^2 diagonally shifted
  copies of C: ``M[l, l'] = sum_d C[l + d, l' + d]``. On rows flattened with their padding, the shift by an offset d
  is one shift of the flattened matrix, so that each copy is one contiguous addition: L^2 (K / k^2 + O).
- Winograd (3 x 3, stride 1, on a CPU): ``dY_n U_n'`` in a basis where it takes a quarter of the multiplications.

`_cheapest` chooses by their costs, which were measured (benchmarks/fisher.py).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

from t2v_core.fisher.depthwise import add_depthwise_norms
from t2v_core.fisher.gemm import product_transposed
from t2v_core.fisher.recorder import LayerCall
from t2v_core.winograd import TILE, winograd_norms

__all__ = ["filter_norms", "position_norms"]

_CACHED = 1 << 20
"""Numbers of weight gradients that are formed at once: 4 MiB in float32."""


def _compiles(x: torch.Tensor) -> bool:
    """Whether compiled loops take it."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _matrix_norms(d: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """``|| d[b, o] u[b]' ||^2`` for d ``[B, O, L]`` and u ``[B, K, L]`` -> ``[B, O]``, by the cheaper way."""
    o, length = d.shape[1:]
    k = u.shape[1]
    if length * length * (k + o) < o * k * length:
        rows = u.transpose(1, 2)
        return _gram_norms(d, product_transposed(rows, rows))
    return product_transposed(d, u).square_().sum(-1)


def _gram_norms(d: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """``sum_l (d M) * d`` for d ``[B, O, L]`` and M ``[B, L, L]`` -> ``[B, O]``."""
    return product_transposed(d, gram).mul_(d).sum(-1).clamp_min_(0.0)  # M is symmetric


def _linear_norms(x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """A linear layer: rank one per position, so ``dy^2 ||x||^2`` where there is one position."""
    if x.dim() == 2:
        return dy.square() * x.square().sum(1, keepdim=True)
    n = x.shape[0]
    return _matrix_norms(dy.reshape(n, -1, dy.shape[-1]).transpose(1, 2), x.reshape(n, -1, x.shape[-1]).transpose(1, 2))


def _windows(call: LayerCall, height: int, width: int) -> torch.Tensor:
    """The input unfolded, ``[N, C, kh, kw, Ho, Wo]``: a view that copies nothing."""
    x = call.padded().contiguous()
    n, c, h, w = x.shape
    (kh, kw), (sh, sw), (dh, dw) = call.kernel, call.stride, call.dilation
    return x.as_strided((n, c, kh, kw, height, width), (c * h * w, h * w, dh * w, dw, sh * w, sw), x.storage_offset())


def _depthwise_norms(call: LayerCall, dy: torch.Tensor) -> torch.Tensor:
    """One input channel per filter: for each offset of the kernel, a sum over positions of products, squared.

    Channels are innermost in memory, so that each pass is contiguous over them whatever the stride. On a CPU a compiled
    loop never writes the products down; elsewhere they are formed (benchmarks/depthwise.py).
    """
    x = call.padded().permute(0, 2, 3, 1).contiguous()
    d = dy.permute(0, 2, 3, 1).contiguous()
    if d.shape[-1] != x.shape[-1]:  # a channel multiplier: filters of a channel lie side by side
        x = x.repeat_interleave(d.shape[-1] // x.shape[-1], dim=-1)
    if not _compiles(d):
        return _formed_depthwise_norms(call, x, d)
    total = torch.zeros(d.shape[0], d.shape[-1], dtype=d.dtype)
    add_depthwise_norms(x.numpy(), d.numpy(), total.numpy(), call.kernel, call.stride, call.dilation)
    return total


def _formed_depthwise_norms(call: LayerCall, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The same, with the products of an offset in memory; ``x`` padded, both with channels last."""
    n, height, width, o = d.shape
    (kh, kw), (sh, sw), (dh, dw) = call.kernel, call.stride, call.dilation
    total, product = torch.zeros(n, o, dtype=d.dtype, device=d.device), torch.empty_like(d)
    for top in range(0, kh * dh, dh):
        for left in range(0, kw * dw, dw):
            window = x[:, top : top + (height - 1) * sh + 1 : sh, left : left + (width - 1) * sw + 1 : sw]
            torch.mul(d, window, out=product)
            total += product.sum((1, 2)).square_()
    return total


def _direct_norms(call: LayerCall, dy: torch.Tensor) -> torch.Tensor:
    """The weight gradient of one image after the other, each squared and summed while it is in the cache; of a 1 x 1
    convolution, where nothing is unfolded, of a few images at once."""
    n, o = dy.shape[:2]
    channels = call.x.shape[1] // call.groups
    out = torch.empty(n, o, dtype=dy.dtype, device=dy.device)
    if call.kernel == (1, 1):
        step = max(1, _CACHED // (o * channels))
        for i in range(0, n, step):
            few = slice(i, i + step)
            out[few] = _batched_norms(replace(call, x=call.x[few]), dy[few])
        return out
    size = (o, channels, *call.kernel)
    for i in range(n):
        gradient = conv2d_weight(  # type: ignore[no-untyped-call]
            call.x[i : i + 1],
            size,
            dy[i : i + 1],
            stride=call.stride,
            padding=call.padding,
            dilation=call.dilation,
            groups=call.groups,
        )
        torch.sum(gradient.square_(), dim=(1, 2, 3), out=out[i])
    return out


def _batched_norms(call: LayerCall, dy: torch.Tensor) -> torch.Tensor:
    """The same by one batched product on the unfolded input, all images at once: for 1 x 1 convolutions, and for a GPU,
    where calls are dear."""
    n, o, height, width = dy.shape
    d = dy.reshape(n * call.groups, o // call.groups, -1)
    return torch.bmm(d, _unfolded(call, height, width).transpose(1, 2)).square_().sum(-1).view(n, o)


def _pixel_gram(call: LayerCall) -> torch.Tensor:
    """M over output positions on rows of the padded width, ``[N, Ho Wp, Ho Wp]``; columns past Wo mean nothing.

    Stride 1. With the padded input flattened, pixel l of height ``l // Wp`` has its window's offsets at
    ``l + dh i Wp + dw j``; in the flattened ``[L, L]`` matrix both indices shift together, by ``(L + 1)`` times that.
    The sum over offsets is separable: first along the row, then along the column.
    """
    x = call.padded()
    n, channels, hp, wp = x.shape
    length = hp * wp
    pixels = x.permute(0, 2, 3, 1).reshape(n, length, channels)
    gram = product_transposed(pixels, pixels).view(n, length * length)
    for taps, step in ((call.kernel[1], call.dilation[1]), (call.kernel[0], call.dilation[0] * wp)):
        shift = step * (length + 1)
        rest = gram.shape[1] - (taps - 1) * shift
        total = gram[:, :rest].clone() if taps > 1 else gram
        for i in range(1, taps):
            total += gram[:, i * shift : i * shift + rest]
        gram = total
    # Rows of the last window's reach were cut from the end: they are never output positions.
    rows = hp - (call.kernel[0] - 1) * call.dilation[0]
    used = rows * wp
    whole = gram.new_zeros(n, used * length)
    keep = min(gram.shape[1], used * length)
    whole[:, :keep] = gram[:, :keep]
    return whole.view(n, used, length)[:, :, :used]


def _unfolded_gram(call: LayerCall, height: int, width: int) -> torch.Tensor:
    """M over output positions, ``[N groups, L, L]``."""
    rows = _unfolded(call, height, width).transpose(1, 2)
    return product_transposed(rows, rows)


def _unfolded(call: LayerCall, height: int, width: int) -> torch.Tensor:
    """U ``[N groups, K, L]``; a channel's offsets lie together, so groups are contiguous."""
    n = call.x.shape[0]
    if call.kernel == (1, 1) and not any(call.padding):
        sh, sw = call.stride
        u = call.x[:, :, : (height - 1) * sh + 1 : sh, : (width - 1) * sw + 1 : sw]
    else:
        u = _windows(call, height, width)
    return u.reshape(n * call.groups, -1, height * width)


def _cheapest(call: LayerCall, o: int, height: int, width: int) -> str:
    """direct, gram, pixel or winograd: the least estimated time of one image.

    The times are nanoseconds, fitted to 151 layers of six networks on one core with AVX-512, float32; only their ratios
    matter. They choose the fastest way, or one within 1% of it in sum. On a GPU the direct way is one batched product.
    """
    (kh, kw), (ph, pw), groups = call.kernel, call.padding, call.groups
    channels, o, length = call.x.shape[1] // groups, o // groups, height * width
    k = channels * kh * kw
    pixels = (call.x.shape[2] + 2 * ph) * (call.x.shape[3] + 2 * pw)
    unfold = 2.5 * k * length * (kh * kw > 1)
    costs = {"gram": 7500 + groups * (length * length * (0.012 * k + 0.019 * o) + unfold)}
    moved = 0.13 * (channels * call.x.shape[2] * call.x.shape[3] + o * length)
    if call.x.device.type == "cpu":
        costs["direct"] = (2_000 if kh * kw == 1 else 15_000) + groups * (0.015 * o * k * length + 0.25 * o * k + moved)
    else:
        costs["direct"] = 7500 + groups * (0.012 * o * k * length + unfold)
    if call.stride == (1, 1) and groups == 1 and call.dilation == (1, 1) and (kh, kw) == (3, 3) and _compiles(call.x):
        tiles = -(-height // TILE) * -(-width // TILE)
        costs["winograd"] = 15_000 + moved + 36 * (0.018 * o * channels + 0.44 * (o + channels)) * tiles
        costs["winograd"] += 36 * 0.1 * o * channels
    if call.stride == (1, 1) and groups == 1:
        costs["pixel"] = 9000 + pixels * pixels * (0.012 * channels + 0.019 * o + 0.19 * (kh + kw - 2) + 0.08)
    return min(costs, key=costs.__getitem__)


def filter_norms(call: LayerCall, dy: torch.Tensor) -> torch.Tensor:
    """``q[n, o]``, the squared norm of sample n's gradient of filter o, summed over the filter's weights.

    Args:
        call: the layer's input and geometry.
        dy: gradient at its output, ``[N, O, Ho, Wo]`` or ``[N, ..., O]``.

    Returns:
        ``[N, O]``, not divided by anything.
    """
    if call.kernel == (0, 0):
        return _linear_norms(call.x, dy)
    n, o, height, width = dy.shape
    if call.groups == call.x.shape[1] and call.groups > 1:
        return _depthwise_norms(call, dy)
    way = _cheapest(call, o, height, width)
    if way == "winograd":
        return winograd_norms(call.x, dy, call.padding)
    if way == "pixel":
        gram = call.cached("pixel", lambda: _pixel_gram(call))
        rows = F.pad(dy, (0, gram.shape[1] // height - width)).reshape(n, o, -1)
        return _gram_norms(rows, gram)
    if way == "gram":
        gram = call.cached("gram", lambda: _unfolded_gram(call, height, width))
        return _gram_norms(dy.reshape(n * call.groups, o // call.groups, -1), gram).view(n, o)
    return _direct_norms(call, dy) if call.x.device.type == "cpu" else _batched_norms(call, dy)


def position_norms(call: LayerCall, dy: torch.Tensor) -> torch.Tensor:
    """``sum_l dY[n, o, l]^2 S[n, l]`` with ``S[l] = || U_n[:, l] ||^2``: the diagonal that noise drawn anew at each
    position sees (local reparametrisation), where `filter_norms` is the one of noise on the weights.

    Args:
        call: the layer's input and geometry.
        dy: gradient at its output, ``[N, O, Ho, Wo]`` or ``[N, ..., O]``.

    Returns:
        ``[N, O]``.
    """
    power = call.power()
    if call.kernel == (0, 0):
        return (dy.square() * power).flatten(1, -2).sum(1) if dy.dim() > 2 else dy.square() * power
    groups, (n, o, height, width) = power.shape[1], dy.shape
    d = dy.square().reshape(n, groups, o // groups, height * width)
    return torch.matmul(d, power.reshape(n, groups, height * width, 1)).reshape(n, o)
