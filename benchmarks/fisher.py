"""Time and accuracy of the Fisher estimators on real data, against a per-sample loop.

    .venv/bin/python benchmarks/fisher.py

One thread. The probe is EfficientNet-Lite0 at 48 pixels with its ImageNet weights, the task is the ten digits of
scikit-learn with a head trained on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from t2v_core import load_probe, symmetric_distance
from t2v_core.embedding import trivial_embedding
from t2v_core.features import extract_features
from t2v_core.fisher import fisher_filters
from t2v_core.heads import fit_head
from t2v_core.probes import build_network


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Median of a few repeats, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def per_sample_loop(
    network: nn.Module, names: list[str], head: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """The exact sum over y by plain autograd, one image and one class at a time, on the network as it was built."""
    weights = [network.get_submodule(n).weight for n in names]
    total = [torch.zeros(len(w)) for w in weights]
    for image in x:
        log_p = torch.log_softmax(network(image[None]) @ head[0].T + head[1], 1)[0]
        for y in range(len(log_p)):
            gradients = torch.autograd.grad(log_p[y], weights, retain_graph=True)
            for t, g in zip(total, gradients, strict=True):
                t += log_p[y].exp().detach() * g.flatten(1).square().mean(1) / len(x)
    return torch.cat(total)


def main() -> None:
    """Print two tables."""
    torch.set_num_threads(1)
    probe = load_probe("efficientnet_lite0", image_size=48)
    digits = load_digits()
    pixels = [Image.fromarray((d * (255 / 16)).astype(np.uint8)).convert("RGB") for d in digits.images[:256]]
    images = np.stack([probe.transform.to_uint8(p) for p in pixels])
    labels = digits.target[:256]
    x = probe.transform.to_tensor(images)
    fit = fit_head(extract_features(probe, images), labels)
    head = (torch.tensor(fit.weight, dtype=torch.float32), torch.tensor(fit.bias, dtype=torch.float32))

    network = build_network("efficientnet_lite0")
    network.classifier = nn.Identity()
    names = [u.name for u in probe.units]
    few = x[:8]
    loop = seconds(lambda: per_sample_loop(network, names, head, few), 1) / (8 * 10)
    ours = seconds(lambda: fisher_filters(probe, head, x[:64], "exact")) / (64 * 10)
    slow, fast = per_sample_loop(network, names, head, few).double(), fisher_filters(probe, head, few, "exact")
    known = slow > 0
    print("| exact sum over y, ten classes | ms for one image and class |\n|---|---|")
    print(f"| per-sample loop | {1e3 * loop:.2f} |\n| t2v | {1e3 * ours:.2f} |")
    print(f"\nmedian relative difference {((fast - slow).abs() / slow)[known].median():.1e} (float32)\n")

    exact = fisher_filters(probe, head, x, "exact").numpy()
    t0 = trivial_embedding(probe, 1e-9)
    print("| estimator | draws | cosine | d_sym to exact | seconds |\n|---|---|---|---|---|")
    for name in ("montecarlo_plain", "montecarlo"):
        for draws in (256, 1024):
            began = time.perf_counter()
            runs = [fisher_filters(probe, head, x, name, draws=draws, seed=s).numpy() for s in range(3)]
            took = (time.perf_counter() - began) / 3
            cosine = np.median([r @ exact / np.linalg.norm(r) / np.linalg.norm(exact) for r in runs])
            distance = np.median([symmetric_distance(r + t0, exact + t0) for r in runs])
            print(f"| {name} | {draws} | {cosine:.4f} | {distance:.4f} | {took:.2f} |")
    began = time.perf_counter()
    fisher_filters(probe, head, x, "exact")
    print(f"| exact | 2560 | 1 | 0 | {time.perf_counter() - began:.2f} |")


if __name__ == "__main__":
    main()
