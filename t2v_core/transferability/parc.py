"""PARC: do images of different classes have different features?

Bolya, Mittapalli, Hoffman, "Scalable Diverse Model Selection for Accessible Transfer Learning", NeurIPS 2021:
Spearman's correlation over pairs of images, of one minus the correlation of their features and one minus that of their
labels (one hot). Their cut to 32 principal components is left out; it was made for extractors of very different width.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from t2v_core.config import ScoringSpec
from t2v_core.transferability.base import Labelled

__all__ = ["parc"]


def parc(data: Labelled, spec: ScoringSpec) -> float:
    """Spearman's correlation over pairs, -1 to 1; 0 where all features, or all pairs, are alike."""
    x = data.features - data.features.mean(1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.where(length > 0, length, 1.0)
    first, second = np.triu_indices(len(x), 1)
    apart = np.round(1 - (x @ x.T)[first, second], 12)  # rounding errors must not put an order on equal pairs
    # Of one-hot labels there are two distances only, and of those the order alone counts.
    other = data.labels[first] != data.labels[second]
    if other.all() or not other.any() or np.ptp(apart) <= 1e-12:
        return 0.0
    return float(spearmanr(apart, other).statistic)
