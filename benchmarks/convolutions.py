"""3 x 3 convolutions by minimal filtering beside the framework's: time, rounding, and whether `is_faster` tells which.

Layers of ResNets on 224, 96 and 64 pixels, 8 images and 1; the best of ten interleaved runs, milliseconds for an image.
Rounding is the relative L2 error against float64. Run with `python benchmarks/convolutions.py [THREADS]`; one without.
`python benchmarks/convolutions.py fisher`: what it makes of the exact Fisher information in float32, over 24 random
ResNet-18s on eight random images of 64 pixels.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F
from engine import interleaved
from torchvision.models import resnet18

from t2v_core import winograd
from t2v_core.fisher import fisher_filters
from t2v_core.images import ImageTransform
from t2v_core.memory import keep_freed_memory
from t2v_core.probes import probe_from_module
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


def fisher() -> None:
    """Print the median relative error of filters against float64, in the middle of all networks."""
    never, by_cost = (lambda *_: False), winograd._saves
    transform = ImageTransform(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    medians: dict[str, list[float]] = {"framework": [], "minimal": []}
    for seed in range(24):
        torch.manual_seed(seed)
        network, x = resnet18().eval().double(), torch.randn(8, 3, 64, 64, dtype=torch.float64)
        exact = probe_from_module(network, head="fc", transform=transform)
        with torch.no_grad():
            z = exact.network(x)
        weight = torch.randn(3, 512, dtype=torch.float64) / (z - z.mean(0)).std() / 512**0.5
        head = (weight, -(z @ weight.T).mean(0))
        winograd._saves = never
        wanted = fisher_filters(exact, head, x, "exact")
        single = probe_from_module(network.float(), head="fc", transform=transform)
        for way, saves in (("framework", never), ("minimal", by_cost)):
            winograd._saves = saves
            got = fisher_filters(single, head, x.float(), "exact")
            live = wanted > 0
            medians[way].append(float(((got - wanted).abs()[live] / wanted[live]).median()))
    for way, found in medians.items():
        print(f"{way}: median {np.median(found):.2e}, nine tenths below {np.quantile(found, 0.9):.2e}")


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
    fisher() if "fisher" in sys.argv else main()
