"""Intervals by resampling groups of tasks: tasks that show the same things stay together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from t2v_core.config import SelectionSpec
from t2v_core.selection import bootstrap_interval

__all__ = ["group_weights", "interval", "mean_interval", "pair_correlation", "rank_correlation"]


def group_weights(groups: np.ndarray, spec: SelectionSpec) -> np.ndarray:
    """``[n_bootstrap, T]``: how often each task is in each resample.

    Args:
        groups: ``[T]`` int, any numbers.
    """
    _, index = np.unique(groups, return_inverse=True)
    n = int(index.max()) + 1
    rng = np.random.default_rng(spec.seed)
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=spec.n_bootstrap)
    return np.asarray(counts[:, index], np.float64)


def interval(values: np.ndarray, spec: SelectionSpec) -> tuple[float, float]:
    """Percentile interval of resampled statistics; those that are not finite (a resample of one group) do not count."""
    tail = 50 * (1 - spec.confidence)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _resampled(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, spec: SelectionSpec
) -> tuple[float, float, float]:
    """(value, low, high) of a statistic of weights ``[T]``."""
    whole = statistic(np.ones(len(groups)))
    low, high = interval(np.array([statistic(w) for w in group_weights(groups, spec)]), spec)
    return float(whole), low, high


def mean_interval(values: np.ndarray, groups: np.ndarray, spec: SelectionSpec) -> tuple[float, float, float]:
    """(mean, low, high) of ``[T]`` values."""
    return float(values.mean()), *bootstrap_interval(values, spec, groups)


def _correlation(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """Pearson's, weighted."""
    total = w.sum()
    dx, dy = x - (w * x).sum() / total, y - (w * y).sum() / total
    scale = np.sqrt((w * dx * dx).sum() * (w * dy * dy).sum())
    return float((w * dx * dy).sum() / scale) if scale > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, ties share their mean."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values), np.float64)


def rank_correlation(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, spec: SelectionSpec
) -> tuple[float, float, float]:
    """Spearman's correlation of ``[T]`` and ``[T]``, with its interval."""
    rx, ry = _ranks(x), _ranks(y)
    return _resampled(lambda w: _correlation(rx, ry, w), groups, spec)


def pair_correlation(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, spec: SelectionSpec
) -> tuple[float, float, float]:
    """Spearman's correlation of two distances over all pairs of tasks; tasks are resampled, not pairs.

    Args:
        x: ``[T, T]``, symmetric.
        y: likewise; pairs with NaN in either do not count.
        groups: ``[T]``.

    A resample weighs pair (i, j) by w_i w_j, so that every sum over pairs is a quadratic form w' M w.
    """
    used = np.isfinite(x) & np.isfinite(y)
    np.fill_diagonal(used, False)
    rx, ry = np.zeros(x.shape), np.zeros(y.shape)
    rx[used], ry[used] = _ranks(x[used]), _ranks(y[used])
    n = max(int(used.sum()), 1)
    rx[used] -= rx.sum() / n  # centred, for accuracy
    ry[used] -= ry.sum() / n
    forms = (used.astype(np.float64), rx, ry, rx * rx, ry * ry, rx * ry)

    def statistic(w: np.ndarray) -> float:
        total, sx, sy, sxx, syy, sxy = (float(w @ (m @ w)) for m in forms)
        if total <= 0:
            return float("nan")
        scale = (sxx - sx * sx / total) * (syy - sy * sy / total)
        return (sxy - sx * sy / total) / float(np.sqrt(scale)) if scale > 0 else float("nan")

    return _resampled(statistic, groups, spec)
