"""Selectors that are not TASK2VEC: what a choice is compared with.

Each gives scores ``[T, E]``, lower is better; NaN where a selector has no opinion of an expert.
"""

from __future__ import annotations

import numpy as np

__all__ = ["generic_scores", "oracle_scores", "static_scores"]


def oracle_scores(errors: np.ndarray) -> np.ndarray:
    """The errors themselves: the best there is."""
    return errors


def generic_scores(errors: np.ndarray, generic: int = 0) -> np.ndarray:
    """Always the generic expert."""
    out = np.full(errors.shape, np.nan)
    out[:, generic] = 0.0
    return out


def static_scores(errors: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The expert with the lowest error on the *other* tasks, never seeing this one.

    Mean over the other tasks of the error minus the task's mean error (so that a missing cell does not favour an
    expert that was tried on easy tasks only); cells of a task's own expert do not count.
    """
    value = np.where(own, np.nan, errors)
    known = np.isfinite(value)
    mean = np.where(known, value, 0.0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    centred = value - mean
    total = np.nansum(centred, axis=0)[None] - np.where(np.isnan(centred), 0.0, centred)
    count = np.isfinite(centred).sum(0)[None] - np.isfinite(centred)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
