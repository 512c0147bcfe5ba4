r"""d_sym of many pairs: one compiled loop over blocks of rows that stay in the cache.

For a pair, with D filters that are not zero in both, let ``u = a / (a + b)``, ``v = 1 - u``, h a constant near the mean
of u, and S1, S2 the sums of ``t = u - h`` and of its square. Sums of ``u u``, ``v v``, ``u v`` have no negative term,
so far pairs are ``1 - u'v / r``. For others, ``D S2 - S1^2``, the numerator of d_sym, does not depend on h: the centre
keeps S1 small, so that little cancels.

a is the embedding of the smaller geometric mean, for d_sym is symmetric: where a is 10^4 times b, v is about 10^-4, and
subtraction from 1 costs it four digits. Zeros may mislead the choice, for the mean leaves them out. So all arithmetic
is in float64, which has digits to lose; in float32 such pairs are off by 2%. Embeddings are read as they are stored.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from t2v_core.compiled import compiled

__all__ = ["pair_matrix"]

ROWS = 16
"""Rows of a block: twice as many rows of 8,512 filters in float32 are about a MiB, the L2 cache of a core."""


def _block(a: Any, b: Any, ga: Any, gb: Any, upper: bool, first: int, start: int, out: Any) -> None:
    """d_sym of every row of ``a`` and every row of ``b`` into ``out``; NaN for a pair with no filter above zero.

    With ``upper``, only pairs whose index in the whole, ``first + i < start + j``, are computed.
    """
    for i in range(len(a)):
        for j in range(len(b)):
            if upper and first + i >= start + j:
                continue
            h = min(ga[i], gb[j]) / (ga[i] + gb[j])
            small, large = (a[i], b[j]) if ga[i] <= gb[j] else (b[j], a[i])
            s1, s2, uu, vv, uv, live = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for f in range(len(small)):
                x, y = np.float64(small[f]), np.float64(large[f])
                total = x + y
                alive = 1.0 if total > 0.0 else 0.0
                u = x / (total if total > 0.0 else 1.0)
                v = alive - u
                t = u - h * alive
                s1 += t
                s2 += t * t
                uu += u * u
                vv += v * v
                uv += u * v
                live += alive
            r = np.sqrt(uu * vv)
            if live == 0:
                out[i, j] = np.nan
            elif r == 0 or uv < 0.9 * r:
                out[i, j] = 1.0 - uv / r if r > 0 else 1.0
            else:
                out[i, j] = max(live * s2 - s1 * s1, 0.0) / (r * (r + uv))


def _centre(row: np.ndarray) -> float:
    """Geometric mean of the values above zero; 1 for a row of zeros."""
    positive = row[row > 0].astype(np.float64)
    return float(np.exp(np.log(positive).mean())) if len(positive) else 1.0


def pair_matrix(a: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """d_sym of every row of ``a`` ``[A, P]`` and of ``b`` ``[B, P]``: ``[A, B]`` float64; NaN where all is zero.

    Blocks go to as many threads as torch uses. Beside the result, little memory: float32 is not copied.

    Args:
        a: not negative, finite.
        b: likewise; None for ``a`` itself, at half the cost.
    """
    same = b is None
    right = a if b is None else b
    kind = np.float32 if a.dtype == right.dtype == np.float32 else np.float64
    x = np.ascontiguousarray(a, kind)
    y = x if same else np.ascontiguousarray(right, kind)
    gx = np.array([_centre(row) for row in x])
    gy = gx if same else np.array([_centre(row) for row in y])
    out, block = np.zeros((len(x), len(y))), compiled(_block)

    def rows(first: int) -> None:
        part = slice(first, first + ROWS)
        for start in range(first if same else 0, len(y), ROWS):
            to = slice(start, start + ROWS)
            block(x[part], y[to], gx[part], gy[to], same, first, start, out[part, to])

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        list(pool.map(rows, range(0, len(x), ROWS)))
    if same:
        out += np.triu(out, 1).T
        # As everywhere, an embedding of zeros has no distance, not even to itself.
        out[np.diag_indices_from(out)] = np.where(x.any(1), 0.0, np.nan)
    return out
