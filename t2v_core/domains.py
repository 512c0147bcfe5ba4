"""Domain embeddings: moments of the inputs or of the features, which do not look at labels (Sect. 3.2).

C0 = E[x x'] of the inputs and C1 = E[z z'] of the features are what the Fisher information of a two-layer network
depends on beside the predictions; the mean of the features is the usual, smaller choice.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from t2v_core.errors import ComputeError, ConfigError

__all__ = ["domain_embedding"]

FULL_AT_MOST = 2048
"""Dimensions up to which the whole matrix is given: its upper triangle has 2 million numbers then."""


def domain_embedding(
    rows: np.ndarray,
    kind: Literal["mean", "diagonal", "full", "sketch"] = "mean",
    *,
    size: int = 1024,
    seed: int = 0,
) -> np.ndarray:
    """A domain embedding of features ``[N, D]`` (C1) or of flattened inputs (C0); compare by `cosine_matrix`.

    Args:
        rows: ``[N, D]``; a few hundred at a time are held in double precision.
        kind: ``mean``: E[z] ``[D]``. ``diagonal``: E[z^2] ``[D]``. ``full``: the upper triangle of E[zz'], off-diagonal
            entries times the root of two, so that inner products are those of the matrices. ``sketch``: E[(Rz)(Sz)]
            ``[size]`` for random signs R and S, over the root of ``size``: its inner products estimate those of the
            whole matrices, with a relative error of about ``1 / sqrt(size)``.
        size: of the sketch.
        seed: of the sketch; only sketches of one seed, size and D compare.

    Raises:
        ComputeError: no rows, or values that are not finite.
        ConfigError: the full matrix of too many dimensions; take ``sketch``.
    """
    x = np.asarray(rows)
    if x.ndim != 2 or len(x) == 0 or not np.isfinite(x).all():
        raise ComputeError(f"got rows of shape {x.shape}, some perhaps not finite; wanted finite [N, D] with N > 0")
    n, d = x.shape
    if kind == "full" and d > FULL_AT_MOST:
        raise ConfigError(f"the matrix of {d} dimensions has {d * (d + 1) // 2} entries; take kind='sketch'")
    if kind not in ("mean", "diagonal", "full", "sketch"):
        raise ConfigError(f"got kind {kind!r}; wanted mean, diagonal, full or sketch")
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 2, (2, d, size if kind == "sketch" else 0)) * 2.0 - 1.0
    total: np.ndarray | float = 0.0
    for start in range(0, n, 512):
        part = x[start : start + 512].astype(np.float64)
        if kind == "mean":
            total = total + part.sum(0)
        elif kind == "diagonal":
            total = total + np.square(part).sum(0)
        elif kind == "full":
            total = total + part.T @ part
        else:
            total = total + ((part @ left) * (part @ right)).sum(0)
    moment = np.asarray(total) / n
    if kind == "full":
        upper = np.triu_indices(d)
        return np.asarray(moment[upper] * np.where(upper[0] == upper[1], 1.0, np.sqrt(2.0)))
    return np.asarray(moment / np.sqrt(size) if kind == "sketch" else moment)
