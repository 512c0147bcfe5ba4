"""Per-sample squared gradient norms of the filters of one layer, from its input and its output's gradient.

With U_n the unfolded input of sample n (``K x L``: filter size x output positions) and ``dY_n`` (``O x L``),
the gradient of filter o is ``dY_n[o] U_n'`` and ``q[n, o] = || dY_n[o] U_n' ||^2``. Two ways to the same number:

- direct: form ``dY_n U_n'`` (O K L multiplications);
- Gram: ``M = U_n' U_n`` (``L x L``), then ``q = sum_l (dY_n M) * dY_n``: L^2 (K + O), less where L is small, as it
  is in late layers.
"""

from __future__ import annotations

import torch

from t2v_core.fisher.recorder import LayerCall

__all__ = ["filter_norms"]


def _matrix_norms(d: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """``|| d[b, o] u[b]' ||^2`` for d ``[B, O, L]`` and u ``[B, K, L]`` -> ``[B, O]``, by the cheaper way."""
    o, length = d.shape[1:]
    k = u.shape[1]
    if length * length * (k + o) < o * k * length:
        gram = torch.bmm(u.transpose(1, 2), u)
        return (torch.bmm(d, gram) * d).sum(-1).clamp_min_(0.0)
    return torch.bmm(d, u.transpose(1, 2)).square_().sum(-1)


def _linear_norms(x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """A linear layer: rank one per position, so ``dy^2 ||x||^2`` where there is one position."""
    if x.dim() == 2:
        return dy.square() * x.square().sum(1, keepdim=True)
    n = x.shape[0]
    return _matrix_norms(dy.reshape(n, -1, dy.shape[-1]).transpose(1, 2), x.reshape(n, -1, x.shape[-1]).transpose(1, 2))


def _windows(call: LayerCall, height: int, width: int) -> torch.Tensor:
    """The input unfolded, ``[N, C, kh, kw, Ho, Wo]``: a view that copies nothing."""
    x = call.x.contiguous()
    n, c, h, w = x.shape
    (kh, kw), (sh, sw), (dh, dw) = call.kernel, call.stride, call.dilation
    return x.as_strided((n, c, kh, kw, height, width), (c * h * w, h * w, dh * w, dw, sh * w, sw), x.storage_offset())


def _depthwise_norms(call: LayerCall, dy: torch.Tensor) -> torch.Tensor:
    """One input channel per filter: one product and one sum per offset of the kernel.

    Channels are innermost in memory, so that each pass is contiguous over them whatever the stride: 20 times
    faster than unfolding, and faster than the grouped convolution backward (benchmarks/depthwise.py).
    """
    x = call.x.permute(0, 2, 3, 1).contiguous()
    d = dy.permute(0, 2, 3, 1).contiguous()
    n, height, width, o = d.shape
    if o != x.shape[-1]:  # a channel multiplier: filters of a channel lie side by side
        x = x.repeat_interleave(o // x.shape[-1], dim=-1)
    (kh, kw), (sh, sw), (dh, dw) = call.kernel, call.stride, call.dilation
    total = torch.zeros(n, o, dtype=d.dtype, device=d.device)
    product = torch.empty_like(d)
    for top in range(0, kh * dh, dh):
        for left in range(0, kw * dw, dw):
            window = x[:, top : top + (height - 1) * sh + 1 : sh, left : left + (width - 1) * sw + 1 : sw]
            torch.mul(d, window, out=product)
            total += product.sum((1, 2)).square_()
    return total


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
    x, n, o = call.x, dy.shape[0], dy.shape[1]
    groups, channels = call.groups, x.shape[1]
    if groups == channels and groups > 1:
        return _depthwise_norms(call, dy)
    height, width = dy.shape[2:]
    if call.kernel == (1, 1):
        sh, sw = call.stride
        u = x[:, :, : (height - 1) * sh + 1 : sh, : (width - 1) * sw + 1 : sw].reshape(n, channels, -1)
    else:
        u = _windows(call, height, width).reshape(n, -1, height * width)
    d = dy.reshape(n, o, -1)
    if groups > 1:  # a channel's offsets lie together, so groups are contiguous
        u = u.reshape(n * groups, -1, u.shape[-1])
        d = d.reshape(n * groups, o // groups, -1)
    return _matrix_norms(d, u).view(n, o)
