"""The whole distance matrix: 1,460 embeddings of 8,512 filters, float32, against plain float64 rows.

Run with `make bench`, or `python benchmarks/distances.py`; docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import resource
import time

import numpy as np
import torch

from t2v_core.distances import _plain, distance_matrix

T, P, ROWS = 1460, 8512, 8


def peak() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def embeddings() -> np.ndarray:
    """Log-normal, ``[T, P]`` float32; made row by row, for what is freed before would hide the peak measured after."""
    rng = np.random.default_rng(0)
    filters, x = rng.normal(0, 2, P), np.empty((T, P), np.float32)
    for row in x:
        row[:] = 1e-6 * np.exp(filters + rng.normal(0, 1, P))
    x[1] = x[0] * (1 + 1e-4 * rng.random(P))  # near pairs are the hard ones
    x[3] = x[2] * (1 + 1e-2 * rng.random(P))
    return x


def main() -> None:
    """Print a table."""
    x = embeddings()
    distance_matrix(x[:80])  # compiles
    before, times = peak(), []
    for _ in range(3):
        began = time.perf_counter()
        d = distance_matrix(x)
        times.append(time.perf_counter() - began)
    memory = peak() - before
    began = time.perf_counter()
    _plain(x[:ROWS], x)
    plain = (time.perf_counter() - began) * T / ROWS
    drawn = np.random.default_rng(1).integers(0, T, (200, 2))
    pairs = [(0, 1), (2, 3), *((i, j) for i, j in drawn if i != j)]
    worst = max(abs(d[i, j] / _plain(x[i : i + 1], x[j : j + 1])[0, 0] - 1) for i, j in pairs)
    print(f"| {T:,} x {T:,} x {P:,}, {torch.get_num_threads()} threads | |\n|---|---:|")
    print(f"| rows in float64 ({ROWS} of them measured, scaled to {T:,}) | {plain:.0f} s |")
    print(f"| t2v, best of 3 | {min(times):.2f} s |")
    print(f"| largest relative error of {len(pairs)} pairs, near ones among them | {worst:.1e} |")
    print(f"| peak memory above the input | {memory:.0f} MB |")


if __name__ == "__main__":
    main()
