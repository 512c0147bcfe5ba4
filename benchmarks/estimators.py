"""Estimators at equal fidelity, and the variational fixed point against descent, on real images and weights; one core.

Two tasks on digits, EfficientNet-Lite0 at 48 pixels: with their labels (a confident head), and with half of the labels
shuffled (an uncertain one). Run with `make bench`, or `python benchmarks/estimators.py` (12 minutes; `fidelity`: the
first part alone, 6 minutes); docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from t2v_core.config import EmbeddingSpec
from t2v_core.distances import symmetric_distance
from t2v_core.embedding import trivial_embedding
from t2v_core.features import extract_features
from t2v_core.fisher import estimate_fisher
from t2v_core.fisher.accumulate import FisherInput
from t2v_core.fisher.sgvb import descend, objective
from t2v_core.fisher.variational import prior_precision
from t2v_core.heads import fit_head
from t2v_core.probes import load_probe

PER_CLASS = 64
REPEATS = 3
"""Seeds of each estimator; the median distance and the mean time are told."""
STEPS = 312
"""The reference implementation's: two epochs of 10,000 images in batches of 64."""


def main() -> None:
    """Print a table for each task."""
    torch.set_num_threads(1)
    probe = load_probe("efficientnet_lite0", image_size=48)
    digits = load_digits()
    rows = np.sort(np.concatenate([np.flatnonzero(digits.target == c)[:PER_CLASS] for c in range(10)]))
    pixels = [Image.fromarray((d * (255 / 16)).astype(np.uint8)).convert("RGB") for d in digits.images[rows]]
    images = np.stack([probe.transform.to_uint8(p) for p in pixels])
    x, z = probe.transform.to_tensor(images), extract_features(probe, images)
    rng = np.random.default_rng(0)
    shuffled = digits.target[rows].copy()
    half = rng.random(len(rows)) < 0.5
    shuffled[half] = rng.permutation(shuffled[half])
    for name, labels in (("uncertain", shuffled), ("confident", digits.target[rows])):
        fit = fit_head(z, labels)
        head = (torch.tensor(fit.weight), torch.tensor(fit.bias))
        print(f"\n{name}: {len(rows)} images, ten classes, cross entropy {fit.loss:.3f}\n")
        compare(probe, head, x, labels, z)
        if "fidelity" not in sys.argv:
            converge(probe, head, x, labels)


def compare(probe, head, x, labels, z) -> None:  # type: ignore[no-untyped-def]
    """Time and distance to the exact embedding. The samplers are told the features that the head was trained on, as in
    the pipeline; the reference draws by labels, and has no use for them."""
    t0 = trivial_embedding(probe, 1e-9)
    began = time.perf_counter()
    exact = estimate_fisher(probe, head, x, "exact").filters.numpy()
    print("| estimator | seconds | cosine to exact | d_sym to exact |\n|---|---:|---:|---:|")
    print(f"| `exact` | {time.perf_counter() - began:.2f} | 1 | 0 |")
    found: list[tuple[str, float, float]] = []
    runs = [("reference", {"reference": {"epoch_size": n}}) for n in (2560, 10_000)]
    runs += [("montecarlo", {"draws": m}) for m in (64, 128, 256, 512, 640, 1024, 1536, 1600, 1792, 2048)]
    for estimator, settings in runs:
        began = time.perf_counter()
        got = [
            estimate_fisher(probe, head, x, estimator, labels=labels, features=z, seed=s, **settings).filters.numpy()
            for s in range(REPEATS)
        ]
        seconds = (time.perf_counter() - began) / REPEATS
        cosine = np.median([g @ exact / np.linalg.norm(g) / np.linalg.norm(exact) for g in got])
        distance = float(np.median([symmetric_distance(g + t0, exact + t0) for g in got]))
        what = f"{settings.get('draws') or settings['reference']['epoch_size']:,}"
        found.append((f"`{estimator}`, {what}", seconds, distance))
        print(f"| `{estimator}`, {what} images drawn | {seconds:.2f} | {cosine:.4f} | {distance:.4f} |")
    print()
    for reference in found[:2]:
        as_good = [f for f in found[2:] if f[2] <= reference[2]]
        if as_good:
            best = min(as_good, key=lambda f: f[1])
            print(f"{reference[0]}: matched by {best[0]} in {reference[1] / best[1]:.0f} times less time")


def converge(probe, head, x, labels, beta: float = 1e-7) -> None:  # type: ignore[no-untyped-def]
    """Objective over time: the fixed point, and the reference's descent."""
    spec = EmbeddingSpec(estimator="variational", beta=beta)
    task = FisherInput(probe, tuple(h.float() for h in head), x, torch.as_tensor(labels), spec)
    print(f"\n| variational, beta {beta:g} | seconds | objective, nats |\n|---|---:|---:|")
    began = time.perf_counter()
    ended = descend(task, steps=STEPS)
    slow = time.perf_counter() - began
    target = objective(task, ended)
    print(f"| descent, {STEPS} steps of the reference | {slow:.0f} | {target:.2f} |")
    for passes in (2, 3, 12):
        settings = spec.model_copy(update={"variational": spec.variational.model_copy(update={"max_passes": passes})})
        began = time.perf_counter()
        got = estimate_fisher(probe, head, x, labels=labels, spec=settings)
        seconds = time.perf_counter() - began
        value = objective(task, 1 / (prior_precision(probe) + got.filters / (2 * beta)))
        times = f", {slow / seconds:.0f} times less" if value <= target else ""
        print(f"| fixed point, {len(got.objective)} passes | {seconds:.1f}{times} | {value:.2f} |")


if __name__ == "__main__":
    main()
