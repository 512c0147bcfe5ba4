"""Heads of 1,000 binary tasks on one source: together, one by one, and by the reference recipe.

Real features (EfficientNet-Lite0, 48 px) of 5,000 MNIST digits; a task asks if a digit is in a random half of the ten.
Run with `make bench`, or `python benchmarks/heads.py`; docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from t2v_core.config import HeadSpec
from t2v_core.features import extract_features
from t2v_core.heads import fit_head
from t2v_core.images import decode_image
from t2v_core.many_heads import HeadTask, fit_heads
from t2v_core.probes import load_probe
from t2v_core.reference_head import fit_reference_head
from t2v_core.sources import each_image, open_source

N_TASKS, SAMPLE = 1000, 6
SPEC = HeadSpec(l2=(5e-5,))
"""At which the loss is a little below that of the reference recipe."""


def balanced_loss(features: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> float:
    """Cross entropy with equal weight for the classes, nats."""
    logits = features @ weight.T + bias
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    own = -log_p[np.arange(len(labels)), labels]
    return float(np.mean([own[labels == c].mean() for c in np.unique(labels)]))


def main() -> None:
    """Print two tables."""
    probe = load_probe("efficientnet_lite0", image_size=48)
    raws = list(each_image(open_source("mnist_5k")))
    images = np.stack([probe.transform.to_uint8(decode_image(r.read())) for r in raws])
    digits = np.array([str(r.labels["digit"]) for r in raws])
    x = extract_features(probe, images)
    rng = np.random.default_rng(0)
    rows, names = np.arange(len(x)), np.unique(digits)
    tasks = [HeadTask(rows, np.isin(digits, rng.permutation(names)[:5]).astype(np.int64)) for _ in range(N_TASKS)]

    # All rows one group: none can be held out, and the head on all rows is all that is fitted, as by the recipe.
    bare = [replace(t, groups=np.zeros(len(rows), np.int64)) for t in tasks]
    seconds, heads = {}, {}
    for name, wanted in (("together", tasks), ("together, no rows held out", bare)):
        began = time.perf_counter()
        results = fit_heads(x, wanted, SPEC)
        seconds[name] = (time.perf_counter() - began) / N_TASKS
        heads[name] = [r.fit for r in results[:SAMPLE]]
    for name, fit in (
        ("one by one", lambda t: fit_head(x, t.labels, SPEC)),
        ("reference", lambda t: fit_reference_head(x, t.labels)),
    ):
        began = time.perf_counter()
        heads[name] = [fit(t) for t in tasks[:SAMPLE]]
        seconds[name] = (time.perf_counter() - began) / SAMPLE
    print(f"{N_TASKS} tasks, N = {len(x)}, D = {x.shape[1]}; {SAMPLE} of them where one by one\n")
    print("| heads | ms a task | times faster than the reference | cross entropy, nats |\n|---|---:|---:|---:|")
    for name, fits in heads.items():
        loss = np.mean([balanced_loss(x, t.labels, f.weight, f.bias) for t, f in zip(tasks, fits, strict=False)])
        print(f"| {name} | {1e3 * seconds[name]:.1f} | {seconds['reference'] / seconds[name]:.0f} | {loss:.4f} |")

    labels = np.arange(10_000) % 10
    z = (rng.normal(0, 1, (10, 512))[labels] * 0.15 + rng.normal(0, 1, (10_000, 512))).astype(np.float32)
    print("\n| one task, N = 10,000, D = 512, C = 10, Gaussian classes | s | cross entropy, nats |\n|---|---:|---:|")
    for name, fit in (("t2v", lambda: fit_head(z, labels, SPEC)), ("reference", lambda: fit_reference_head(z, labels))):
        began = time.perf_counter()
        head = fit()
        print(
            f"| {name} | {time.perf_counter() - began:.2f} | {balanced_loss(z, labels, head.weight, head.bias):.4f} |"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
