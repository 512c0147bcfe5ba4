r"""d_sym of many pairs: one compiled loop over blocks of rows that stay in the cache.

For a pair, with D filters that are not zero in both and a constant c near the mean of (a-b)/(2(a+b)), let
``t = (a - b) / (2 (a + b)) - c``, S1 and S2 its sum and sum of squares, ``h = 1/2 + c`` and ``e = 1/2 - c``. Then

.. math:: u'u = S_2 + 2 h S_1 + D h^2, \quad v'v = S_2 - 2 e S_1 + D e^2, \quad u'v = (e - h) S_1 - S_2 + D h e

and ``D S2 - S1^2``, the numerator of d_sym, does not depend on c. The centre keeps S1 small, so that nothing cancels
even in float32: ``a - b`` is exact for near numbers, and sums over `CHUNK` filters are added up in float64. Embeddings
that are near but for a factor have a c away from zero, and a small t by subtraction: they are computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

__all__ = ["pair_matrix"]

NEAR = 1e-3
"""Below this distance float32 is not enough: t is then a small difference, known to about 1e-7."""
CHUNK = 512
"""Filters that are summed in the precision of the input."""
ROWS = 16
"""Rows of a block: twice as many rows of 8,512 filters in float32 fit the L2 cache of a core."""


def _block(a: Any, b: Any, ga: Any, gb: Any, upper: bool, first: int, start: int, out: Any) -> None:
    """d_sym of every row of ``a`` and every row of ``b`` into ``out``; NaN for a pair with no filter above zero.

    With ``upper``, only pairs whose index in the whole, ``first + i < start + j``, are computed.
    """
    half, zero = a.dtype.type(0.5), a.dtype.type(0)
    one = a.dtype.type(1)
    for i in range(len(a)):
        for j in range(len(b)):
            if upper and first + i >= start + j:
                continue
            c = half * (ga[i] - gb[j]) / (ga[i] + gb[j])
            s1, s2, live = 0.0, 0.0, 0.0
            for k in range(0, a.shape[1], CHUNK):
                p1, p2, n = zero, zero, zero
                left, right = a[i, k : k + CHUNK], b[j, k : k + CHUNK]
                for f in range(len(left)):
                    x, y = left[f], right[f]
                    total = x + y
                    alive = one if total > zero else zero
                    t = (half * (x - y) / (total if total > zero else one) - c) * alive
                    p1 += t
                    p2 += t * t
                    n += alive
                s1 += p1
                s2 += p2
                live += n
            h, e = 0.5 + c, 0.5 - c
            uu, vv = s2 + 2 * h * s1 + live * h * h, s2 - 2 * e * s1 + live * e * e
            uv = (e - h) * s1 - s2 + live * h * e
            r = np.sqrt(max(uu * vv, 0.0))
            numerator = max(live * s2 - s1 * s1, 0.0)
            if live == 0:
                out[i, j] = np.nan
            else:
                out[i, j] = numerator / (r * (r + uv)) if r > 0 and r + uv > 0 else 1.0


@cache
def _compiled() -> Callable[..., None]:
    """`_block`, compiled once a process, in a second or two. The compiler is imported where it is needed only."""
    import numba

    # The numpy error model leaves out the check for division by zero, which would keep the loop from using vectors.
    compiled: Callable[..., None] = numba.njit(
        nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy"
    )(_block)
    return compiled


def _centres(x: np.ndarray) -> np.ndarray:
    """Geometric mean of the values above zero of every row; 1 for a row of zeros."""
    with np.errstate(divide="ignore"):
        logs = np.log(x.astype(np.float64))
    known = np.isfinite(logs)
    mean = np.where(known, logs, 0).sum(1) / np.maximum(known.sum(1), 1)
    return np.asarray(np.exp(mean))


def _fits_single(x: np.ndarray) -> bool:
    """Whether sums and quotients of these float32 numbers stay normal."""
    positive = x[x > 0]
    return len(positive) == 0 or bool(positive.min() > 1e-30 and positive.max() < 1e30)


def pair_matrix(a: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """d_sym of every row of ``a`` ``[A, P]`` and of ``b`` ``[B, P]``: ``[A, B]`` float64; NaN where all is zero.

    In float32 where both are, and near pairs again in float64, to within 1e-5 of each distance; else in float64. Blocks
    go to as many threads as torch uses.

    Args:
        a: not negative, finite.
        b: likewise; None for ``a`` itself, at half the cost.
    """
    same = b is None
    right = a if b is None else b
    single = a.dtype == right.dtype == np.float32 and _fits_single(a) and _fits_single(right)
    kind = np.float32 if single else np.float64
    x = np.ascontiguousarray(a, kind)
    y = x if same else np.ascontiguousarray(right, kind)
    gx = _centres(x).astype(kind)
    gy = gx if same else _centres(y).astype(kind)
    out, block = np.zeros((len(x), len(y))), _compiled()

    def rows(first: int) -> None:
        part = slice(first, first + ROWS)
        for start in range(first if same else 0, len(y), ROWS):
            to = slice(start, start + ROWS)
            block(x[part], y[to], gx[part], gy[to], same, first, start, out[part, to])

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        list(pool.map(rows, range(0, len(x), ROWS)))
    if single:
        near = np.argwhere(np.triu(out < NEAR, 1) if same else out < NEAR)
        if len(near) > 0.02 * out.size:
            return pair_matrix(x.astype(np.float64), None if same else y.astype(np.float64))
        for i, j in near:
            left, other = (z[k : k + 1].astype(np.float64) for z, k in ((x, i), (y, j)))
            block(left, other, _centres(left), _centres(other), False, 0, 0, out[i : i + 1, j : j + 1])
    if same:
        out += np.triu(out, 1).T
    return out
