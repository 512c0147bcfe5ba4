"""LEEP: how well the expert's own labels predict the task's.

Nguyen, Hassner, Seeger, Archambeau, "LEEP: A New Measure to Evaluate Transferability of Learned Representations",
ICML 2020. The expert's head gives each image probabilities ``theta(x)`` over source labels z; with
``P(y, z) = mean over images of class y of theta(x)_z`` the predictor is ``sum_z P(y | z) theta(x)_z``, and the score
its mean log likelihood on the same images.
"""

from __future__ import annotations

import numpy as np

from t2v_core.config import ScoringSpec
from t2v_core.errors import DataError
from t2v_core.transferability.base import Labelled

__all__ = ["leep", "log_expected_prediction", "source_probabilities"]


def source_probabilities(features: np.ndarray, heads: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """What an expert's original heads say of each image, ``[N, S]``, rows sum to one.

    An expert of several tasks has a head for each. A source label is then (head, class) with the head picked at
    random, so that LEEP's predictor is the mean of those by each head.

    Args:
        features: ``[N, D]``.
        heads: weight ``[C, D]`` and bias ``[C]`` of each.
    """
    parts = []
    for weight, bias in heads:
        logits = features @ weight.T + bias
        e = np.exp(logits - logits.max(1, keepdims=True))
        parts.append(e / e.sum(1, keepdims=True) / len(heads))
    return np.concatenate(parts, axis=1)


def log_expected_prediction(theta: np.ndarray, labels: np.ndarray) -> float:
    """LEEP of source probabilities ``[N, S]`` and labels ``[N]``; at most 0."""
    joint = np.eye(int(labels.max()) + 1)[labels].T @ theta / len(labels)  # P(y, z), [C, S]
    marginal = joint.sum(0)
    conditional = joint / np.where(marginal > 0, marginal, 1.0)  # P(y | z)
    expected = (theta * conditional[labels]).sum(1)
    return float(np.log(np.maximum(expected, 1e-300)).mean())


def leep(data: Labelled, spec: ScoringSpec) -> float:
    """LEEP by the expert's original heads.

    Raises:
        DataError: it has none.
    """
    if data.source_probabilities is None:
        raise DataError("the expert's original head is not known; LEEP has nothing to look at")
    return log_expected_prediction(data.source_probabilities, data.labels)
