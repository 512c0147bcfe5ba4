"""How well an embedding repeats: each task from two disjoint halves of its images, by several estimators; one core.

OpenMoji drawings, EfficientNet-Lite0 at 48 pixels with its ImageNet weights; category, skin tone and gender, and the
last two inside three subcategories. *Within* is the median d_sym between the halves of one task, *between* that of
different tasks. Run with `python benchmarks/diagonal.py` (about eight minutes);
docs/adr/0006-variational-diagonal.md has the figures.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from t2v_core.config import EmbeddingSpec
from t2v_core.distances import symmetric_matrix
from t2v_core.embedding import embed_features
from t2v_core.features import extract_features
from t2v_core.images import decode_image
from t2v_core.probes import load_probe
from t2v_core.sources import each_image, open_source

PER_CLASS, FEWEST = 160, 12
ESTIMATORS: dict[str, dict[str, Any]] = {
    "`montecarlo`, 1,024 draws": {"estimator": "montecarlo"},
    "`variational`, `weights`": {"variational": {"diagonal": "weights"}},
    "`variational`, `weights`, four images a draw": {"variational": {"diagonal": "weights", "batch_size": 4}},
    "`variational`, `positions`": {"variational": {"diagonal": "positions"}},
}


def tasks_of(labels: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Task name to (rows, labels): at most `PER_CLASS` rows of each class, classes of fewer than `FEWEST` left out."""
    rng = np.random.default_rng(0)
    wanted = {name: (np.ones(len(values), bool), values) for name, values in labels.items() if name != "subcategory"}
    for inside in ("person-role", "person-activity", "person-sport"):
        for name in ("skin_tone", "gender"):
            wanted[f"{name} in {inside}"] = (labels["subcategory"] == inside, labels[name])
    tasks = {}
    for name, (mask, values) in wanted.items():
        rows = np.flatnonzero(mask & ~np.isin(values, ["None", "nan", ""]))
        classes, counts = np.unique(values[rows], return_counts=True)
        kept = classes[counts >= FEWEST]
        picked = np.concatenate([rng.permutation(rows[values[rows] == c])[:PER_CLASS] for c in kept])
        tasks[name] = (picked, np.searchsorted(kept, values[picked]))
    return tasks


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    probe = load_probe("efficientnet_lite0", image_size=48)
    raws = list(each_image(open_source("openmoji", pixels=72)))
    images = np.stack([probe.transform.to_uint8(decode_image(r.read())) for r in raws])
    names = ("category", "subcategory", "skin_tone", "gender")
    tasks = tasks_of({name: np.array([str(r.labels.get(name)) for r in raws]) for name in names})
    features = extract_features(probe, images)
    print(f"{len(tasks)} tasks\n\n| estimator | beta | within | between | between / within | s a task |")
    print("|---|---|---:|---:|---:|---:|")
    for beta in (1e-9, 1e-7):
        for what, settings in ESTIMATORS.items():
            halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
            began = time.perf_counter()
            for rows, labels in tasks.values():
                order = np.random.default_rng(1).permutation(len(rows))
                for side, embedded in enumerate(halves):
                    part, spec = order[side::2], EmbeddingSpec(beta=beta, seed=side, **settings)
                    at = rows[part]
                    e = embed_features(probe, features[at], labels[part], lambda i, at=at: images[at[i]], spec)
                    embedded.append(e.vector)
            seconds = (time.perf_counter() - began) / (2 * len(tasks))
            d = symmetric_matrix(np.stack(halves[0]), np.stack(halves[1]))
            within, between = np.median(np.diag(d)), np.median(d[~np.eye(len(d), dtype=bool)])
            found = f"{within:.3f} | {between:.3f} | {between / within:.1f} | {seconds:.1f}"
            print(f"| {what} | {beta:g} | {found} |", flush=True)


if __name__ == "__main__":
    main()
