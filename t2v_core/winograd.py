r"""3 x 3 convolutions with stride 1 on a CPU, by minimal filtering.

Cut into tiles of 4 x 4 output positions and patches of 6 x 6 pixels, a 3 x 3 convolution F(4 x 4, 3 x 3) costs 36
multiplications for a tile, a channel and a filter in place of 144, and so does the gradient of its filters, the
convolution F(3 x 3, 4 x 4) of the same patches with tiles of the output's gradient (Winograd, *Arithmetic Complexity of
Computations*, 1980; Lavin and Gray, CVPR 2016):

.. math:: Y = A_4^T \big[ (G_3 w G_3^T) \odot (B^T X B) \big] A_4, \qquad
          dW = A_3^T \Big[ \sum_{tiles} (G_4\, dY\, G_4^T) \odot (B^T X B) \Big] A_3

Sums over channels or tiles are 36 matrix products. Rows of A, B and G are polynomials at the points 0, +-sqrt(1/2),
+-sqrt(2) and infinity: in float32 they lose half of what the usual 0, +-1, +-2 lose, and a convolution has up to four
times the rounding of a direct one. Inversion maps these points onto themselves, and rows are scaled so that a flipped
filter has the transform of the filter with its rows in another order (`_FLIPPED`): the gradient at the input, a
convolution with the flipped filters, needs no transform of its own.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from t2v_core.compiled import compiled, on_threads

__all__ = ["TILE", "convolution", "is_faster", "winograd_norms"]

TILE = 4
"""Side of a tile, in output positions."""

_ROOT = 0.5**0.5
_PLAIN, _FLIPPED = (np.array(rows) for rows in ((0, 1, 2, 3, 4, 5), (5, 3, 4, 1, 2, 0)))
_FILTERS = torch.tensor(
    [
        [1, 0, 0],
        [2 / 3, _ROOT * 2 / 3, 1 / 3],
        [2 / 3, -_ROOT * 2 / 3, 1 / 3],
        [1 / 3, _ROOT * 2 / 3, 2 / 3],
        [1 / 3, -_ROOT * 2 / 3, 2 / 3],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
"""G of a filter of three weights."""
_WIDE, _ROWS = 1 << 19, 64
"""What one thread transforms at once: numbers of patches that stay in its cache (2 MiB in float32), unless the products
would then have fewer rows than are worth reading the filters for."""


# A number that stands in a loop would be of double precision, and the loop with it: they come as arguments.


def _transform_input(x: Any, out: Any, order: Any, root: Any, half: Any) -> None:
    """``B' X B`` of each 6 x 6 patch: x ``[4 h + 2, 4 w + 2, C]`` to out ``[36, h w, C]``, its rows in ``order``."""
    _, tiles, channels = out.shape
    wide, quarter, two = (x.shape[1] - 2) // 4, half * half, half + half + half + half
    more = two + half
    q0, q1, q2, q3, q4, q5 = order[0], order[1], order[2], order[3], order[4], order[5]
    t = np.empty((6, 6, channels), x.dtype)
    for tile in range(tiles):
        top, left = 4 * (tile // wide), 4 * (tile % wide)
        for j in range(6):
            for c in range(channels):
                a0, a1, a2 = x[top, left + j, c], x[top + 1, left + j, c], x[top + 2, left + j, c]
                a3, a4, a5 = x[top + 3, left + j, c], x[top + 4, left + j, c], x[top + 5, left + j, c]
                t[0, j, c] = a0 - more * a2 + a4
                even, odd = two * a2 - a4, root * (two * a1 - a3)
                t[1, j, c] = even + odd
                t[2, j, c] = even - odd
                even, odd = half * a4 - quarter * a2, root * (a3 - half * a1)
                t[3, j, c] = even + odd
                t[4, j, c] = even - odd
                t[5, j, c] = a1 - more * a3 + a5
        for i in range(6):
            row = 6 * order[i]
            r0, r1, r2, r3, r4, r5 = row + q0, row + q1, row + q2, row + q3, row + q4, row + q5
            for c in range(channels):
                a0, a1, a2, a3, a4, a5 = t[i, 0, c], t[i, 1, c], t[i, 2, c], t[i, 3, c], t[i, 4, c], t[i, 5, c]
                out[r0, tile, c] = a0 - more * a2 + a4
                even, odd = two * a2 - a4, root * (two * a1 - a3)
                out[r1, tile, c] = even + odd
                out[r2, tile, c] = even - odd
                even, odd = half * a4 - quarter * a2, root * (a3 - half * a1)
                out[r3, tile, c] = even + odd
                out[r4, tile, c] = even - odd
                out[r5, tile, c] = a1 - more * a3 + a5


def _transform_output(m: Any, bias: Any, out: Any, order: Any, root: Any, half: Any) -> None:
    """``A_4' M A_4 + bias`` of each tile: m ``[36, h w, O]``, its rows in ``order``, to out ``[H, W, O]``."""
    _, tiles, filters = m.shape
    height, width, two = out.shape[0], out.shape[1], half + half + half + half
    wide, four = (width + 3) // 4, two + two
    t, y = np.empty((4, 6, filters), m.dtype), np.empty((4, filters), m.dtype)
    for tile in range(tiles):
        top, left = 4 * (tile // wide), 4 * (tile % wide)
        for j in range(6):
            at = order[j]
            r0, r1, r2 = 6 * order[0] + at, 6 * order[1] + at, 6 * order[2] + at
            r3, r4, r5 = 6 * order[3] + at, 6 * order[4] + at, 6 * order[5] + at
            for o in range(filters):
                sum_a, sum_b = m[r1, tile, o] + m[r2, tile, o], m[r3, tile, o] + m[r4, tile, o]
                less_a, less_b = m[r1, tile, o] - m[r2, tile, o], m[r3, tile, o] - m[r4, tile, o]
                t[0, j, o] = m[r0, tile, o] + sum_a + sum_b
                t[1, j, o] = root * (less_a + two * less_b)
                t[2, j, o] = half * sum_a + two * sum_b
                t[3, j, o] = root * (half * less_a + four * less_b) + m[r5, tile, o]
        for i in range(min(4, height - top)):
            for o in range(filters):
                sum_a, sum_b = t[i, 1, o] + t[i, 2, o], t[i, 3, o] + t[i, 4, o]
                less_a, less_b = t[i, 1, o] - t[i, 2, o], t[i, 3, o] - t[i, 4, o]
                y[0, o] = t[i, 0, o] + sum_a + sum_b + bias[o]
                y[1, o] = root * (less_a + two * less_b) + bias[o]
                y[2, o] = half * sum_a + two * sum_b + bias[o]
                y[3, o] = root * (half * less_a + four * less_b) + t[i, 5, o] + bias[o]
            for j in range(min(4, width - left)):
                for o in range(filters):
                    out[top + i, left + j, o] = y[j, o]


def _transform_gradient(d: Any, out: Any, root: Any, half: Any, third: Any) -> None:
    """``G_4 dY G_4'`` of each 4 x 4 tile: d ``[4 h, 4 w, O]`` to out ``[36, h w, O]``."""
    _, tiles, filters = out.shape
    wide, two = d.shape[1] // 4, half + half + half + half
    thirds = third + third
    other = root * thirds
    t = np.empty((6, 4, filters), d.dtype)
    for tile in range(tiles):
        top, left = 4 * (tile // wide), 4 * (tile % wide)
        for j in range(4):
            for o in range(filters):
                a0, a1 = d[top, left + j, o], d[top + 1, left + j, o]
                a2, a3 = d[top + 2, left + j, o], d[top + 3, left + j, o]
                t[0, j, o] = a0
                even, odd = thirds * (a0 + half * a2), other * (a1 + half * a3)
                t[1, j, o] = even + odd
                t[2, j, o] = even - odd
                even, odd = third * (a0 + two * a2), other * (a1 + two * a3)
                t[3, j, o] = even + odd
                t[4, j, o] = even - odd
                t[5, j, o] = a3
        for i in range(6):
            for o in range(filters):
                a0, a1, a2, a3 = t[i, 0, o], t[i, 1, o], t[i, 2, o], t[i, 3, o]
                out[6 * i, tile, o] = a0
                even, odd = thirds * (a0 + half * a2), other * (a1 + half * a3)
                out[6 * i + 1, tile, o] = even + odd
                out[6 * i + 2, tile, o] = even - odd
                even, odd = third * (a0 + two * a2), other * (a1 + two * a3)
                out[6 * i + 3, tile, o] = even + odd
                out[6 * i + 4, tile, o] = even - odd
                out[6 * i + 5, tile, o] = a3


def _sum_squares(m: Any, total: Any, root: Any, half: Any) -> None:
    """``total[o] = sum_c || A_3' M A_3 ||^2`` of m ``[36, O, C]``."""
    _, filters, channels = m.shape
    two = half + half + half + half
    t = np.empty((3, 6, channels), m.dtype)
    for o in range(filters):
        found = 0.0
        for j in range(6):
            for c in range(channels):
                sum_a, sum_b = m[6 + j, o, c] + m[12 + j, o, c], m[18 + j, o, c] + m[24 + j, o, c]
                less_a, less_b = m[6 + j, o, c] - m[12 + j, o, c], m[18 + j, o, c] - m[24 + j, o, c]
                t[0, j, c] = m[j, o, c] + sum_a + sum_b
                t[1, j, c] = root * (less_a + two * less_b)
                t[2, j, c] = half * sum_a + two * sum_b + m[30 + j, o, c]
        for i in range(3):
            for c in range(channels):
                sum_a, sum_b = t[i, 1, c] + t[i, 2, c], t[i, 3, c] + t[i, 4, c]
                less_a, less_b = t[i, 1, c] - t[i, 2, c], t[i, 3, c] - t[i, 4, c]
                y0 = t[i, 0, c] + sum_a + sum_b
                y1 = root * (less_a + two * less_b)
                y2 = half * sum_a + two * sum_b + t[i, 5, c]
                found += y0 * y0 + y1 * y1 + y2 * y2
        total[o] = found


def _constants(dtype: torch.dtype) -> tuple[Any, Any]:
    """sqrt(1/2) and 1/2."""
    kind = np.float32 if dtype == torch.float32 else np.float64
    return kind(_ROOT), kind(0.5)


def _tiles(height: int, width: int) -> tuple[int, int]:
    return -(-height // TILE), -(-width // TILE)


def winograd_norms(x: torch.Tensor, dy: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """Squared gradient norms ``q[n, o]`` of a 3 x 3 convolution with stride 1, dilation 1 and one group, on a CPU.

    Args:
        x: input, ``[N, C, H, W]``, float32 or float64.
        dy: gradient at its output, ``[N, O, Ho, Wo]``, likewise.
        padding: zeros above and below, left and right.

    Returns:
        ``[N, O]``.
    """
    to_input, to_gradient, sum_squares = map(compiled, (_transform_input, _transform_gradient, _sum_squares))
    (n, channels, h, w), (filters, height, width) = x.shape, dy.shape[1:]
    high, wide = _tiles(height, width)
    inputs, gradients = x.permute(0, 2, 3, 1), dy.permute(0, 2, 3, 1)
    patch = torch.zeros(TILE * high + 2, TILE * wide + 2, channels, dtype=x.dtype)
    tiles = torch.zeros(TILE * high, TILE * wide, filters, dtype=x.dtype)
    u, v = (torch.empty(36, high * wide, k, dtype=x.dtype) for k in (channels, filters))
    products, out = torch.empty(36, filters, channels, dtype=x.dtype), torch.empty(n, filters, dtype=x.dtype)
    (top, left), (root, half) = padding, _constants(x.dtype)
    for i in range(n):
        patch[top : top + h, left : left + w] = inputs[i]
        tiles[:height, :width] = gradients[i]
        to_input(patch.numpy(), u.numpy(), _PLAIN, root, half)
        to_gradient(tiles.numpy(), v.numpy(), root, half, type(half)(1 / 3))
        torch.bmm(v.transpose(1, 2), u, out=products)
        sum_squares(products.numpy(), out[i].numpy(), root, half)
    return out


_transformed: MutableMapping[torch.Tensor, tuple[tuple[int, torch.dtype, int], torch.Tensor]]
_transformed = WeakTensorKeyDictionary()


def _transform_filters(weight: torch.Tensor) -> torch.Tensor:
    """``G_3 w G_3'`` of each filter and channel: w ``[O, C, 3, 3]`` to ``[36, C, O]``, by double precision."""
    o, c = weight.shape[:2]
    both = torch.kron(_FILTERS, _FILTERS)
    return (both @ weight.permute(2, 3, 1, 0).reshape(9, c * o).double()).view(36, c, o).to(weight.dtype)


def _filters(weight: torch.Tensor) -> torch.Tensor:
    """The transform of a network's own weight: made once, and anew when the weight was changed, moved or cast in place
    (but not when numbers were changed behind PyTorch's back, through ``.data``)."""
    if not isinstance(weight, torch.nn.Parameter) or weight.is_inference():
        return _transform_filters(weight)
    state, kept = (weight._version, weight.dtype, weight.data_ptr()), _transformed.get(weight)
    if kept is None or kept[0] != state:
        kept = _transformed[weight] = (state, _transform_filters(weight))
    return kept[1]


def _convolve(
    x: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int], order: np.ndarray
) -> torch.Tensor:
    """x ``[N, C, H, W]`` with filters ``[36, C, O]``, whose rows lie in ``order``: ``[N, O, Ho, Wo]``."""
    to_input, to_output = compiled(_transform_input), compiled(_transform_output)
    (n, channels, h, w), o = x.shape, filters.shape[2]
    height, width = h + 2 * padding[0] - 2, w + 2 * padding[1] - 2
    high, wide = _tiles(height, width)
    tiles = high * wide
    few = max(1, _WIDE // (36 * tiles * max(channels, o)), _ROWS // tiles)
    threads = torch.get_num_threads()
    if threads > 1:  # they start late: PyTorch's own go on spinning for a while after each product
        few *= 4 * threads
    few = -(-n // -(-n // few))  # parts of one size
    # By numpy, which knows nothing of inference mode: that is of one thread.
    inputs, (top, left), (root, half) = x.permute(0, 2, 3, 1).numpy(), padding, _constants(x.dtype)
    kind = inputs.dtype
    add = np.zeros(o, kind) if bias is None else bias.detach().contiguous().numpy()
    patches = np.zeros((few, TILE * high + 2, TILE * wide + 2, channels), kind)
    u, m = (torch.empty(36, few, tiles, k, dtype=x.dtype) for k in (channels, o))
    # Not a view, or what follows could not work in place on it.
    out = torch.empty(n, o, height, width, dtype=x.dtype, memory_format=torch.channels_last)
    entered, products, outputs = u.numpy(), m.numpy(), out.permute(0, 2, 3, 1).numpy()
    for start in range(0, n, few):
        some = min(few, n - start)

        def enter(its: slice, start: int = start) -> None:
            for i in range(its.start, its.stop):
                patches[i, top : top + h, left : left + w] = inputs[start + i]
                to_input(patches[i], entered[:, i], order, root, half)

        def leave(its: slice, start: int = start) -> None:
            for i in range(its.start, its.stop):
                to_output(products[:, i], add, outputs[start + i], order, root, half)

        on_threads(some, enter)
        torch.bmm(u.view(36, few * tiles, channels), filters, out=m.view(36, few * tiles, o))
        on_threads(some, leave)
    return out


class _Convolution(torch.autograd.Function):
    """Differentiable in its input."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        padding: tuple[int, int],
    ) -> torch.Tensor:
        ctx.filters, ctx.padding = _filters(weight), padding  # type: ignore[attr-defined]
        return _convolve(x.detach(), ctx.filters, bias, padding, _PLAIN)  # type: ignore[attr-defined]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        around = (2 - ctx.padding[0], 2 - ctx.padding[1])
        return _convolve(dy, ctx.filters.transpose(1, 2), None, around, _FLIPPED), None, None, None


def convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int]
) -> torch.Tensor:
    """``conv2d(x, weight, bias, padding=padding)`` of 3 x 3 filters, where `is_faster` allows it.

    Args:
        x: input, ``[N, C, H, W]``; gradients flow to it.
        weight: ``[O, C, 3, 3]``, frozen. Of a parameter, what is made of it is kept as long as it lives; changes of its
            numbers through ``.data`` are not seen.
        bias: ``[O]``, frozen, or none.
        padding: zeros above and below, left and right, at most 2.

    Returns:
        ``[N, O, Ho, Wo]``, channels last.
    """
    made: torch.Tensor = _Convolution.apply(x, weight, bias, padding)
    return made


def is_faster(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int]) -> bool:
    """Whether `convolution` can do a convolution with stride 1 and dilation 1, and is faster than the framework's.

    Args:
        x: input, ``[N, C, H, W]``.
        weight: ``[O, C / groups, k, k]``.
        bias: ``[O]``, or none.
        padding: zeros above and below, left and right.
    """
    if x.dim() != 4 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    c, o, height, width = x.shape[1], len(weight), x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2
    trained = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
    return (
        x.dtype in (torch.float32, torch.float64)
        and x.dtype == weight.dtype
        and weight.shape[1:] == (c, 3, 3)
        and (bias is None or (bias.dtype == x.dtype and bias.shape == (o,)))
        and max(padding) <= 2
        and min(len(x), height, width) > 0
        and not trained
        and _saves(len(x), c, o, height, width)
    )


def _saves(n: int, c: int, o: int, height: int, width: int) -> bool:
    """Whether it takes less time. Times are nanoseconds of a number in float32 on one core with AVX-512
    (benchmarks/convolutions.py); only their ratios matter."""
    tiles, threads = math.prod(_tiles(height, width)), torch.get_num_threads()
    transforms = 0.5 if threads == 1 else 0.8 * threads  # more threads are of little help there
    products = 36 * (0.025 * c * o + transforms * (c + o)) * n * tiles
    return products + 36 * 0.3 * c * o + 30_000 < 9 * 0.0175 * c * o * n * height * width
