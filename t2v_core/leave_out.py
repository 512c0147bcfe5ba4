"""Sums over all other groups of tasks, and folds of whole groups."""

from __future__ import annotations

import numpy as np

__all__ = ["folds_of_groups", "other_groups_mean", "other_groups_sum"]


def other_groups_sum(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each row, the sum over the rows of all other groups: ``[T, ...]``, without cancellation between them."""
    _, group = np.unique(groups, return_inverse=True)
    own = np.zeros((group.max() + 1, *values.shape[1:]))
    np.add.at(own, group, values)
    return np.asarray(own.sum(0)[None] - own[group])


def other_groups_mean(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each row, the mean over known values of the rows of all other groups; NaN where there are none."""
    known = np.isfinite(values)
    total = other_groups_sum(np.where(known, values, 0.0), groups)
    count = other_groups_sum(known.astype(np.float64), groups)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def folds_of_groups(groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """A fold for each row, ``[T]``; a group is in one fold, and folds differ by one group at most."""
    names, group = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(names)) % min(n_folds, len(names))
    return np.asarray(fold[group])
