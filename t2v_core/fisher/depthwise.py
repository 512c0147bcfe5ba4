"""Per-sample squared gradient norms of depthwise convolutions, by a compiled loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from t2v_core.compiled import compiled, on_threads

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
    add = compiled(_add)
    on_threads(len(d), lambda its: add(x[its], d[its], total[its], *kernel, *stride, *dilation))
