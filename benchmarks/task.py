"""One task of 10,000 images of 224 pixels, end to end: where the time goes, and the peak memory.

OpenMoji drawings at 224 pixels, each read several times to make up the number, category as label; EfficientNet-Lite0
with its ImageNet weights. Give another number of images to see that the memory does not grow with it.
Run with `python benchmarks/task.py 10000` (about ten minutes on two cores); docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

from t2v_core.config import EmbeddingSpec
from t2v_core.embedding import embed_task
from t2v_core.images import decode_image
from t2v_core.memory import keep_freed_memory
from t2v_core.probes import load_probe
from t2v_core.sources import each_image, open_source


class Drawings:
    """A map-style dataset that decodes when asked."""

    def __init__(self, n: int) -> None:
        self.raws = list(each_image(open_source("openmoji", pixels=224)))
        self.n, self.seconds = n, 0.0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Any, str]:
        began = time.perf_counter()
        raw = self.raws[i * 7919 % len(self.raws)]
        image = decode_image(raw.read())
        self.seconds += time.perf_counter() - began
        return image, str(raw.labels["category"])


def main() -> None:
    """Print a table."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    probe, data = load_probe("efficientnet_lite0"), Drawings(n)
    keep_freed_memory()
    ends: list[float] = []
    began = time.perf_counter()
    e = embed_task(
        probe, data, spec=EmbeddingSpec(estimator="montecarlo"), progress=lambda d, m: ends.append(time.perf_counter())
    )
    total = time.perf_counter() - began
    fisher = e.n_passes / e.images_per_second
    head = e.seconds - fisher
    print(f"{n:,} images, {e.n_classes} classes, {e.n_passes} backward passes\n\n| | seconds |\n|---|---:|")
    print(f"| draw and decode the images | {data.seconds:.0f} |")
    print(f"| features | {ends[-1] - began - data.seconds * n / (n + e.n_images):.0f} |")
    print(
        f"| head, with its choice of L2 | {head:.0f} |\n| Fisher, with reading its {e.n_images} images | {fisher:.0f} |"
    )
    print(f"| in all | {total:.0f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory {peak:.2f} GiB, of which features {e.domain.nbytes * n / 2**30:.2f}")


if __name__ == "__main__":
    main()
