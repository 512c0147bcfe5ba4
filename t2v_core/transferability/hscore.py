"""H-score: how much of the features' variance lies between the classes, with a covariance that few images can bear.

Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer Learning", ICIP 2019:
``tr(cov(f)^-1 cov(E[f | y]))``. Ibrahim, Ponomareva, Mazumder, "Newer is not always better: Rethinking Transferability
Metrics, Their Peculiarities, Stability and Performance", ECML 2022: with fewer images than features it is only noise,
and Ledoit-Wolf shrinkage mends that: ``(1 - a) tr(cov_a(f)^-1 cov(E[f | y]))``.
"""

from __future__ import annotations

import numpy as np

from t2v_core.config import ScoringSpec
from t2v_core.transferability.base import Labelled

__all__ = ["hscore"]


def _shrinkage(centred: np.ndarray, gram: np.ndarray) -> float:
    """Ledoit and Wolf's weight of the identity; scikit-learn's answer, from N x N products where it makes D x D ones.

    ``b = (sum_n |x_n|^4 / N - |S|^2) / (N D)`` over ``|S - m I|^2 / D``, with ``S = X'X / N``, whose norm is that of
    ``XX' / N``, and m the mean of its eigenvalues.
    """
    n, d = centred.shape
    lengths = np.diag(gram)
    size, mean = float(np.square(gram).sum()) / n**2, float(lengths.sum()) / n / d
    spread = (size - d * mean**2) / d
    noise = (float(np.square(lengths).sum()) / n - size) / (n * d)
    return min(noise, spread) / spread if spread > 0 else 0.0


def hscore(data: Labelled, spec: ScoringSpec) -> float:
    """The shrunk H-score, between 0 and C - 1.

    ``cov_a = (1 - a) F'F / N + a m I`` with m the mean variance of a feature; class means lie in the span of the rows
    of F, where it is diagonal in the basis of F's singular vectors. No matrix of D x D is made.
    """
    n = len(data.labels)
    centred = data.features - data.features.mean(0)
    mean_variance = float(np.square(centred).mean())
    if mean_variance <= 1e-14 * float(np.square(data.features).mean()):
        return 0.0  # equal features say nothing
    gram = centred @ centred.T
    a = _shrinkage(centred, gram)
    squared, left = np.linalg.eigh(gram)
    keep = squared > 1e-12 * squared[-1]
    squared, left = squared[keep], left[:, keep]
    counts = np.bincount(data.labels)
    means = np.sqrt(squared)[:, None] * (left.T @ np.eye(data.n_classes)[data.labels]) / counts  # [R, C]
    between = (np.square(means) * counts / n).sum(1)  # the diagonal of cov(E[f | y]), [R]
    return float((1 - a) * (between / ((1 - a) * squared / n + a * mean_variance)).sum())
