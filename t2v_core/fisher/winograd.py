r"""Per-sample squared gradient norms of 3 x 3 convolutions by minimal filtering, F(3 x 3, 4 x 4).

The gradient of a 3 x 3 filter is itself a convolution, of the padded input with the gradient. Cut into tiles of
4 x 4 output positions and patches of 6 x 6 pixels, each tile costs 36 multiplications for a channel and a filter in
place of 144 (Winograd, *Arithmetic Complexity of Computations*, 1980; Lavin and Gray, CVPR 2016):

.. math:: dW = A^T \Big[ \sum_{tiles} (G\, dY\, G^T) \odot (B^T X B) \Big] A

The sum over tiles is 36 matrix products. Points 0, +-1, +-2 and infinity; in float32 the norms agree with the direct
sum to about 1e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from t2v_core.compiled import compiled

__all__ = ["TILE", "winograd_norms"]

TILE = 4
"""Side of a tile, in output positions."""


def _transform_input(x: Any, out: Any) -> None:
    """``B' X B`` of each 6 x 6 patch: x ``[4 h + 2, 4 w + 2, C]`` to out ``[36, h w, C]``."""
    _, tiles, channels = out.shape
    wide = (x.shape[1] - 2) // 4
    t = np.empty((6, 6, channels), x.dtype)
    for tile in range(tiles):
        top, left = 4 * (tile // wide), 4 * (tile % wide)
        for j in range(6):
            for c in range(channels):
                a0, a1, a2 = x[top, left + j, c], x[top + 1, left + j, c], x[top + 2, left + j, c]
                a3, a4, a5 = x[top + 3, left + j, c], x[top + 4, left + j, c], x[top + 5, left + j, c]
                even, odd = a4 - 4 * a2, a3 - 4 * a1
                t[0, j, c] = 4 * a0 - 5 * a2 + a4
                t[1, j, c] = even + odd
                t[2, j, c] = even - odd
                even, odd = a4 - a2, 2 * (a3 - a1)
                t[3, j, c] = even + odd
                t[4, j, c] = even - odd
                t[5, j, c] = 4 * a1 - 5 * a3 + a5
        for i in range(6):
            for c in range(channels):
                a0, a1, a2, a3, a4, a5 = t[i, 0, c], t[i, 1, c], t[i, 2, c], t[i, 3, c], t[i, 4, c], t[i, 5, c]
                even, odd = a4 - 4 * a2, a3 - 4 * a1
                out[6 * i, tile, c] = 4 * a0 - 5 * a2 + a4
                out[6 * i + 1, tile, c] = even + odd
                out[6 * i + 2, tile, c] = even - odd
                even, odd = a4 - a2, 2 * (a3 - a1)
                out[6 * i + 3, tile, c] = even + odd
                out[6 * i + 4, tile, c] = even - odd
                out[6 * i + 5, tile, c] = 4 * a1 - 5 * a3 + a5


def _transform_gradient(d: Any, out: Any, quarter: Any) -> None:
    """``G dY G'`` of each 4 x 4 tile: d ``[4 h, 4 w, O]`` to out ``[36, h w, O]``; ``quarter`` is 1/4 of d's type."""
    _, tiles, filters = out.shape
    wide = d.shape[1] // 4
    sixth, fine = quarter * 2 / 3, quarter / 6
    t = np.empty((6, 4, filters), d.dtype)
    for tile in range(tiles):
        top, left = 4 * (tile // wide), 4 * (tile % wide)
        for j in range(4):
            for o in range(filters):
                a0, a1 = d[top, left + j, o], d[top + 1, left + j, o]
                a2, a3 = d[top + 2, left + j, o], d[top + 3, left + j, o]
                even, odd = -sixth * (a0 + a2), -sixth * (a1 + a3)
                t[0, j, o] = quarter * a0
                t[1, j, o] = even + odd
                t[2, j, o] = even - odd
                even, odd = fine * (a0 + 4 * a2), fine * (2 * a1 + 8 * a3)
                t[3, j, o] = even + odd
                t[4, j, o] = even - odd
                t[5, j, o] = a3
        for i in range(6):
            for o in range(filters):
                a0, a1, a2, a3 = t[i, 0, o], t[i, 1, o], t[i, 2, o], t[i, 3, o]
                even, odd = -sixth * (a0 + a2), -sixth * (a1 + a3)
                out[6 * i, tile, o] = quarter * a0
                out[6 * i + 1, tile, o] = even + odd
                out[6 * i + 2, tile, o] = even - odd
                even, odd = fine * (a0 + 4 * a2), fine * (2 * a1 + 8 * a3)
                out[6 * i + 3, tile, o] = even + odd
                out[6 * i + 4, tile, o] = even - odd
                out[6 * i + 5, tile, o] = a3


def _sum_squares(m: Any, total: Any) -> None:
    """``total[o] = sum_c || A' M A ||^2`` of m ``[36, O, C]``."""
    _, filters, channels = m.shape
    t = np.empty((3, 6, channels), m.dtype)
    for o in range(filters):
        found = 0.0
        for j in range(6):
            for c in range(channels):
                a0, a1, a2 = m[j, o, c], m[6 + j, o, c], m[12 + j, o, c]
                a3, a4, a5 = m[18 + j, o, c], m[24 + j, o, c], m[30 + j, o, c]
                t[0, j, c] = a0 + a1 + a2 + a3 + a4
                t[1, j, c] = a1 - a2 + 2 * (a3 - a4)
                t[2, j, c] = a1 + a2 + 4 * (a3 + a4) + a5
        for i in range(3):
            for c in range(channels):
                a0, a1, a2, a3, a4, a5 = t[i, 0, c], t[i, 1, c], t[i, 2, c], t[i, 3, c], t[i, 4, c], t[i, 5, c]
                y0 = a0 + a1 + a2 + a3 + a4
                y1 = a1 - a2 + 2 * (a3 - a4)
                y2 = a1 + a2 + 4 * (a3 + a4) + a5
                found += y0 * y0 + y1 * y1 + y2 * y2
        total[o] = found


def winograd_norms(x: torch.Tensor, dy: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """``q[n, o]`` of a 3 x 3 convolution with stride 1, dilation 1 and one group, on a CPU.

    Args:
        x: input, ``[N, C, H, W]``, float32 or float64.
        dy: gradient at its output, ``[N, O, Ho, Wo]``, likewise.
        padding: zeros above and below, left and right.

    Returns:
        ``[N, O]``.
    """
    steps = (_transform_input, _transform_gradient, _sum_squares)
    to_input, to_gradient, sum_squares = map(compiled, steps)
    (n, channels, h, w), (filters, height, width) = x.shape, dy.shape[1:]
    high, wide = -(-height // TILE), -(-width // TILE)
    inputs, gradients = x.permute(0, 2, 3, 1), dy.permute(0, 2, 3, 1)
    patch = torch.zeros(TILE * high + 2, TILE * wide + 2, channels, dtype=x.dtype)
    tiles = torch.zeros(TILE * high, TILE * wide, filters, dtype=x.dtype)
    u, v = (torch.empty(36, high * wide, k, dtype=x.dtype) for k in (channels, filters))
    products, out = torch.empty(36, filters, channels, dtype=x.dtype), torch.empty(n, filters, dtype=x.dtype)
    (top, left), quarter = padding, tiles.numpy().dtype.type(0.25)
    for i in range(n):
        patch[top : top + h, left : left + w] = inputs[i]
        tiles[:height, :width] = gradients[i]
        to_input(patch.numpy(), u.numpy())
        to_gradient(tiles.numpy(), v.numpy(), quarter)
        torch.bmm(v.transpose(1, 2), u, out=products)
        sum_squares(products.numpy(), out[i].numpy())
    return out
