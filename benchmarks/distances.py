"""The whole distance matrix: 1,460 embeddings of 8,512 filters, float32, against plain float64 rows.

Run with `make bench`, or `python benchmarks/distances.py`; docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import resource
import time

import numpy as np
import torch

from t2v_core.distances import _plain, distance_matrix

T, P = 1460, 8512


def main() -> None:
    """Print a table."""
    rng = np.random.default_rng(0)
    x = (1e-6 * np.exp(rng.normal(0, 2, P) + rng.normal(0, 1, (T, P)))).astype(np.float32)
    x[1] = x[0] * (1 + 1e-4 * rng.random(P))  # near pairs are the hard ones
    x[3] = x[2] * (1 + 1e-2 * rng.random(P))
    distance_matrix(x[:80])  # compiles, or reads the compiled loop from its cache
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(3):
        began = time.perf_counter()
        d = distance_matrix(x)
        times.append(time.perf_counter() - began)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    began = time.perf_counter()
    _plain(x[:8], x)
    plain = (time.perf_counter() - began) * T / 8
    pairs = [(0, 1), (2, 3), *(tuple(p) for p in rng.integers(0, T, (200, 2)) if p[0] != p[1])]
    worst = max(abs(d[i, j] / _plain(x[i : i + 1], x[j : j + 1])[0, 0] - 1) for i, j in pairs)
    print(f"| {T:,} x {T:,} x {P:,}, {torch.get_num_threads()} threads | seconds |\n|---|---:|")
    print(f"| rows in float64 (8 of them, scaled) | {plain:.1f} |\n| t2v | {min(times):.2f} |")
    print(f"\nlargest relative error of {len(pairs)} pairs {worst:.1e}; peak memory above the input {memory:.0f} MB")


if __name__ == "__main__":
    main()
