"""How well anyone could choose from a noisy error matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t2v_core.errors import DataError

__all__ = ["Ceiling", "split_half", "twin_scores"]


@dataclass(frozen=True)
class Ceiling:
    """Picking on one half of the test images, and judging on the other."""

    picked: float
    """Mean error, on the other half, of the expert that is best on one half."""
    oracle: float
    """Mean error, on a half, of the expert that is best on that very half: what luck adds."""


def split_half(
    errors: np.ndarray, n_test: np.ndarray, candidates: np.ndarray, *, seed: int = 0, draws: int = 10
) -> Ceiling:
    """Split each cell's test images in two at random.

    A cell has ``round(error n)`` wrong answers among ``n``; how many fall into the first half is hypergeometric.
    Experts are split independently, though they answer the same images: in truth differences between experts are
    less noisy, so that ``picked`` is an upper bound of what a choice by half of the images would get. A balanced error
    is taken for a plain one.

    Args:
        errors: ``[T, E]`` in [0, 1].
        n_test: ``[T]``, test images; at least 2.
        candidates: ``[T, E]`` bool.
        seed: of the splits.
        draws: splits.

    Raises:
        DataError: a task with fewer than two test images or without a candidate.
    """
    known = candidates & np.isfinite(errors)
    n = np.asarray(n_test, np.int64)
    if (n < 2).any() or not known.any(1).all():
        raise DataError("splitting in half wants two test images and a candidate of each task")
    wrong = np.rint(np.where(known, errors, 0.0) * n[:, None]).astype(np.int64)
    first = np.broadcast_to((n // 2)[:, None], wrong.shape)
    rng, rows = np.random.default_rng(seed), np.arange(len(errors))
    picked, oracle = [], []
    for _ in range(draws):
        one = rng.hypergeometric(wrong, n[:, None] - wrong, first)
        halves = (one / first, (wrong - one) / (n[:, None] - first))
        for a, b in (halves, halves[::-1]):
            chosen = np.where(known, a + 1e-9 * rng.random(a.shape), np.inf).argmin(1)  # ties at random
            picked.append(b[rows, chosen].mean())
            oracle.append(a[rows, chosen].mean())
    return Ceiling(float(np.mean(picked)), float(np.mean(oracle)))


def twin_scores(errors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean error of each expert on the *other* tasks of a task's group, ``[T, E]``; NaN where there is none.

    No selector: it looks up the same labels in another domain, which a new task does not have.
    """
    _, group = np.unique(groups, return_inverse=True)
    known = np.isfinite(errors)
    total, count = np.zeros((group.max() + 1, errors.shape[1])), np.zeros((group.max() + 1, errors.shape[1]))
    np.add.at(total, group, np.where(known, errors, 0.0))
    np.add.at(count, group, known)
    rest = count[group] - known
    return np.asarray(np.where(rest > 0, (total[group] - np.where(known, errors, 0.0)) / np.maximum(rest, 1), np.nan))
