"""Per-sample squared gradient norms of depthwise convolutions, by a compiled loop."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from t2v_core.compiled import compiled

__all__ = ["add_depthwise_norms"]


def _add(x: Any, d: Any, total: Any, kh: int, kw: int, sh: int, sw: int, dh: int, dw: int) -> None:
    n, height, width, channels = d.shape
    found = np.empty(channels, d.dtype)
    for b in range(n):
        for i in range(kh):
            for j in range(kw):
                found[:] = 0
                for h in range(height):
                    for w in range(width):
                        for c in range(channels):
                            found[c] += d[b, h, w, c] * x[b, h * sh + i * dh, w * sw + j * dw, c]
                for c in range(channels):
                    total[b, c] += found[c] * found[c]


def add_depthwise_norms(
    x: np.ndarray,
    d: np.ndarray,
    total: np.ndarray,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    """Add ``sum_{i, j} (sum_{h, w} d[n, h, w, c] x[n, h s + i, w s + j, c])^2`` to ``total [N, C]``.

    Args:
        x: the padded input, ``[N, H', W', C]``, contiguous.
        d: the output's gradient, ``[N, H, W, C]``, contiguous, of the same type.
        total: sums so far.
        kernel: height and width.
        stride: of the windows.
        dilation: of the kernel.
    """
    add, threads = compiled(_add), max(1, min(torch.get_num_threads(), len(d)))
    if threads == 1:
        add(x, d, total, *kernel, *stride, *dilation)
        return
    bounds = np.linspace(0, len(d), threads + 1).astype(int)

    def part(k: int) -> None:
        its = slice(bounds[k], bounds[k + 1])
        add(x[its], d[its], total[its], *kernel, *stride, *dilation)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))
