"""LogME: the evidence of Bayesian linear regression on the features.

You, Liu, Wang, Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021.

Each class is a regression on its indicator ``y``, with weights ``w ~ N(0, 1/alpha)`` and noise of variance ``1/beta``.
The score is the largest log evidence over alpha and beta, per image, averaged over the classes. With the decomposition
``F = U S V'`` and ``z = U'y`` all that MacKay's fixed point needs is a number for each singular value.
"""

from __future__ import annotations

import numpy as np

from t2v_core.config import ScoringSpec
from t2v_core.transferability.base import Labelled

__all__ = ["logme"]

_ROUNDS = 300
_TOLERANCE = 1e-5
"""Relative change of alpha / beta at which the fixed point has been found."""


def _spectrum(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values ``[R]`` and left singular vectors ``[N, R]``, by the smaller Gram matrix."""
    n, d = features.shape
    squared, basis = np.linalg.eigh(features @ features.T if n <= d else features.T @ features)
    keep = squared > 1e-12 * max(float(squared[-1]), 1e-300)
    squared, basis = squared[keep], basis[:, keep]
    return squared, basis if n <= d else features @ basis / np.sqrt(squared)


def logme(data: Labelled, spec: ScoringSpec) -> float:
    """Mean over classes of the largest log evidence, per image."""
    n = len(data.labels)
    squared, left = _spectrum(data.features)
    targets = np.eye(data.n_classes)[data.labels]  # [N, C]
    z2 = np.square(left.T @ targets)  # [R, C]
    outside = np.maximum(np.square(targets).sum(0) - z2.sum(0), 0.0)  # of y, what no weights reach
    s = squared[:, None]
    # Features are brought to a mean square of 1, where alpha = beta = 1 is a fair start; the evidence does not change.
    s = s / max(float(squared.sum()) / n, 1e-300)
    alpha, beta = np.ones(data.n_classes), np.ones(data.n_classes)
    for _ in range(_ROUNDS):
        shared = alpha + beta * s
        effective = (beta * s / shared).sum(0)  # gamma, the number of well-determined weights
        weights = (np.square(beta / shared) * s * z2).sum(0)  # |m|^2
        residual = (np.square(alpha / shared) * z2).sum(0) + outside
        before = alpha / beta
        alpha = effective / np.maximum(weights, 1e-300)
        beta = (n - effective) / np.maximum(residual, 1e-12 * n)
        if (np.abs(alpha / beta - before) <= _TOLERANCE * before).all():
            break
    variance = 1 / beta + s / alpha
    evidence = -0.5 * (
        n * np.log(2 * np.pi)
        + np.log(variance).sum(0)
        - (n - len(squared)) * np.log(beta)
        + (z2 / variance).sum(0)
        + beta * outside
    )
    return float(evidence.mean() / n)
