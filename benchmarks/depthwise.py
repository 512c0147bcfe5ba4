"""Squared gradient norms of depthwise filters: ours against unfolding and against PyTorch's grouped backward.

    .venv/bin/python benchmarks/depthwise.py

32 images, one thread, the best of five, at the layer sizes of EfficientNet-Lite0 on 64 pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from t2v_core.fisher.norms import filter_norms
from t2v_core.fisher.recorder import LayerCall

N = 32


def unfold(call: LayerCall, dy: torch.Tensor) -> torch.Tensor:
    """A matrix-vector product per image and channel on the unfolded input."""
    n, o, height, width = dy.shape
    u = F.unfold(call.x.reshape(n * o, 1, *call.x.shape[2:]), call.kernel, call.dilation, 0, call.stride)
    return torch.bmm(u, dy.reshape(n * o, height * width, 1)).square().sum((1, 2)).view(n, o)


def grouped_backward(call: LayerCall, dy: torch.Tensor) -> torch.Tensor:
    """The weight gradient of one convolution with a group per image and channel."""
    n, o, height, width = dy.shape
    weight = torch.empty(n * o, 1, *call.kernel)
    gradient = torch.ops.aten.convolution_backward(
        dy.reshape(1, n * o, height, width),
        call.x.reshape(1, n * o, *call.x.shape[2:]),
        weight,
        [0],
        list(call.stride),
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        n * o,
        [False, True, False],
    )[1]
    return gradient.reshape(n, o, -1).square().sum(-1)


def milliseconds(run: Callable[[], torch.Tensor]) -> float:
    """The best of five, after one that warms up."""
    run()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def main() -> None:
    """Print the table, after checking that all three give the same numbers."""
    torch.set_num_threads(1)
    print("| channels, output side, kernel | unfold | grouped backward | t2v |\n|---|---:|---:|---:|")
    for channels, side, kernel in ((1152, 2, 5), (672, 4, 5), (240, 8, 5), (144, 16, 3), (32, 32, 3)):
        size = side + kernel - 1
        x = torch.randn(N, channels, size, size).contiguous(memory_format=torch.channels_last)
        dy = torch.randn(N, channels, side, side).contiguous(memory_format=torch.channels_last)
        call = LayerCall(x, (kernel, kernel), (1, 1), (1, 1), channels)
        ours = filter_norms(call, dy)
        ways = (unfold, grouped_backward, filter_norms)
        for way in ways:
            torch.testing.assert_close(way(call, dy), ours, rtol=1e-4, atol=1e-3)
        figures = " | ".join(f"{milliseconds(partial(way, call, dy)):.1f}" for way in ways)
        print(f"| {channels}, {side}, {kernel} | {figures} |")


if __name__ == "__main__":
    main()
