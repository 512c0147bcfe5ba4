r"""d_sym of many pairs: one compiled loop over blocks of rows that stay in the cache.

For a pair, with D filters that are not zero in both, let ``u = a / (a + b)``, ``v = 1 - u``, h a constant near the mean
of u, and S1, S2 the sums of ``t = u - h`` and of its square. Sums of ``u u``, ``v v``, ``u v`` have no negative term,
so far pairs are ``1 - u'v / r``. For others, ``D S2 - S1^2``, the numerator of d_sym, does not depend on h: the centre
keeps S1 small, so that little cancels even in float32: a few filters far apart move h off the mean of u, but they also
spread u, and ``D S2`` stays below 40 numerators. Sums over `CHUNK` filters are added up in float64.

a is the embedding of the smaller geometric mean, for d_sym is symmetric. It has to be: where a is 10^4 times b, v is
about 10^-4, and by subtraction from 1 float32 leaves three digits of it. Pairs nearer than `NEAR` are computed in
float64: their t is a small difference.
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
"""Rows of a block: twice as many rows of 8,512 filters in float32 are about a MiB, the L2 cache of a core."""


def _block(a: Any, b: Any, ga: Any, gb: Any, upper: bool, first: int, start: int, out: Any) -> None:
    """d_sym of every row of ``a`` and every row of ``b`` into ``out``; NaN for a pair with no filter above zero.

    With ``upper``, only pairs whose index in the whole, ``first + i < start + j``, are computed.
    """
    zero, one = a.dtype.type(0), a.dtype.type(1)
    for i in range(len(a)):
        for j in range(len(b)):
            if upper and first + i >= start + j:
                continue
            # u of the smaller embedding: of a small v = 1 - u only the absolute precision would be left.
            if ga[i] <= gb[j]:
                small, large, h = a[i], b[j], ga[i] / (ga[i] + gb[j])
            else:
                small, large, h = b[j], a[i], gb[j] / (ga[i] + gb[j])
            s1, s2, uu, vv, uv, live = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for k in range(0, a.shape[1], CHUNK):
                p1, p2, puu, pvv, puv, n = zero, zero, zero, zero, zero, zero
                left, right = small[k : k + CHUNK], large[k : k + CHUNK]
                for f in range(len(left)):
                    x, y = left[f], right[f]
                    total = x + y
                    alive = one if total > zero else zero
                    u = x / (total if total > zero else one)
                    v = alive - u
                    t = u - h * alive
                    p1 += t
                    p2 += t * t
                    puu += u * u
                    pvv += v * v
                    puv += u * v
                    n += alive
                s1 += p1
                s2 += p2
                uu += puu
                vv += pvv
                uv += puv
                live += n
            r = np.sqrt(uu * vv)
            numerator = max(live * s2 - s1 * s1, 0.0)
            if live == 0:
                out[i, j] = np.nan
            elif r == 0 or uv < 0.9 * r:
                out[i, j] = 1.0 - uv / r if r > 0 else 1.0
            else:
                out[i, j] = numerator / (r * (r + uv))


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
        # As everywhere, an embedding of zeros has no distance, not even to itself.
        out[np.diag_indices_from(out)] = np.where(x.any(1), 0.0, np.nan)
    return out
