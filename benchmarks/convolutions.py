"""3 x 3 convolutions by minimal filtering beside the framework's: time, rounding, and whether `is_faster` tells which.

Layers of ResNets on 224, 96 and 64 pixels, 8 images and 1; the best of ten interleaved runs, milliseconds for an image.
Rounding is the relative L2 error against float64. Run with `python benchmarks/convolutions.py [THREADS]`; one without.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from engine import interleaved

from t2v_core.memory import keep_freed_memory
from t2v_core.winograd import convolution, is_faster

SIZES = (
    (64, 56),
    (128, 28),
    (256, 14),
    (512, 7),
    (64, 24),
    (128, 12),
    (256, 6),
    (512, 3),
    (64, 16),
    (256, 4),
    (512, 2),
)


def main() -> None:
    """Print a table."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    keep_freed_memory()
    print("| channels | side | images | framework ms | minimal ms | ratio | taken | framework's rounding | minimal's |")
    print("|---:|---:|---:|---:|---:|---:|---|---:|---:|")
    for channels, side in SIZES:
        for n in (8, 1):
            measure(channels, side, n)


def measure(channels: int, side: int, n: int) -> None:
    """Print a line."""
    x = torch.randn(n, channels, side, side).relu().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)
    weight = torch.nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    bias = torch.randn(channels)

    def framework() -> torch.Tensor:
        return F.conv2d(x, weight, bias, padding=1)

    def minimal() -> torch.Tensor:
        return convolution(x, weight, bias, (1, 1))

    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    errors = [float((f().double() - exact).norm() / exact.norm()) for f in (framework, minimal)]
    t = interleaved({"framework": framework, "minimal": minimal}, repeats=9)
    taken = is_faster(x, weight, bias, (1, 1))
    print(
        f"| {channels} | {side} | {n} | {1e3 * t['framework'] / n:.2f} | {1e3 * t['minimal'] / n:.2f} "
        f"| {t['minimal'] / t['framework']:.2f} | {'yes' if taken else 'no'} | {errors[0]:.1e} | {errors[1]:.1e} |"
    )


if __name__ == "__main__":
    main()
