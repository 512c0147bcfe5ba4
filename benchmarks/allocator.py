"""What Dask's own allocator settings cost a worker: steps of fine-tuning and features, with them and with ours.

    python benchmarks/allocator.py

Each row is a process of its own with one thread: 12 steps of 32 images of 48 pixels (EfficientNet-Lite0), and the
features of 1,024 images. Dask starts workers with MALLOC_TRIM_THRESHOLD_=65536, which gives memory back to the system
after nearly every layer; `flows/_cluster.py` keeps it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

SETTINGS = {
    "Dask's": {"MALLOC_TRIM_THRESHOLD_": "65536"},
    "ours": {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_ARENA_MAX": "1"},
}


def measure() -> None:
    """One row, in the process whose allocator is judged; the work is done in a thread, as Dask's workers do."""
    import threading

    import numpy as np
    import torch

    from t2v_core.config import HeadSpec, TrainingSpec
    from t2v_core.features import extract_features
    from t2v_core.finetune import TrainingData, train_expert
    from t2v_core.probes import load_probe

    torch.set_num_threads(1)
    probe = load_probe("efficientnet_lite0", image_size=48)
    images = np.random.default_rng(0).integers(0, 256, (1024, 48, 48, 3), dtype=np.uint8)
    labels = np.arange(len(images)) % 2
    told = []

    def work() -> None:
        features = extract_features(probe, images)
        began = time.perf_counter()
        extract_features(probe, images)
        told.append(len(images) / (time.perf_counter() - began))
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_stime, time.perf_counter()
        spec = TrainingSpec(steps=12, batch_size=32, optimiser="adamw")
        train_expert(probe, [TrainingData("t", images, labels, features)], spec, head=HeadSpec(l2=(1.0,)))
        told.append((time.perf_counter() - began) / 12)
        told.append((resource.getrusage(resource.RUSAGE_SELF).ru_stime - before) / 12)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    print(f"{1e3 * told[1]:.0f} | {1e3 * told[2]:.0f} | {told[0]:.0f} |")


def main() -> None:
    """Print a table."""
    print("| allocator | ms a step | of them in the system | images/s, features |\n|---|---:|---:|---:|")
    for name, settings in SETTINGS.items():
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC")} | settings
        print(f"| {name} | ", end="", flush=True)
        subprocess.run([sys.executable, __file__, "measure"], env=environment | {"OMP_NUM_THREADS": "1"}, check=True)


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["measure"] else main()
