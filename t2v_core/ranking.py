"""How good a ranking of experts is, beyond its first place."""

from __future__ import annotations

import numpy as np
from scipy.stats import weightedtau

__all__ = ["KS", "random_ranks", "rank_measures"]

KS = (3, 5)
"""Places of which regret and hits are given."""
TAU_TASKS = 200
"""Tasks, a sample where there are more, whose tau is averaged."""


def _ranked(errors: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Errors in the order of the scores ``[T, E]``: no opinion after all others, no candidate (NaN) last."""
    value = np.where(np.isfinite(scores), scores, np.inf)
    order = np.lexsort((value, ~np.isfinite(errors)), axis=1)
    return np.take_along_axis(errors, order, 1)


def _at(ranked: np.ndarray, oracle: np.ndarray) -> dict[str, float]:
    out = {}
    for k in KS:
        best = np.nanmin(ranked[:, :k], 1)
        out[f"regret{k}"] = float((best - oracle).mean())
        out[f"top{k}"] = float((best == oracle).mean())
    return out


def rank_measures(errors: np.ndarray, scores: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Regret and hits at 3 and 5, and weighted Kendall tau.

    Args:
        errors: ``[T, E]``; NaN where an expert is no candidate.
        scores: ``[T, E]``, lower is better; NaN: no opinion, ranked after all others.
        seed: of the sample of tasks for tau.

    Returns:
        ``regret3``, ``regret5``: mean of the lowest error among the first k less the oracle's. ``top3``, ``top5``:
        share of tasks with a best expert among the first k. ``tau``: Vigna's weighted tau of errors and scores, mean
        over tasks with at least two candidates that the selector has an opinion of; NaN where there are none.
    """
    out = _at(_ranked(errors, scores), np.nanmin(errors, 1))
    taus, tasks = [], np.random.default_rng(seed).permutation(len(errors))[:TAU_TASKS]
    for t in tasks:
        known = np.isfinite(errors[t]) & np.isfinite(scores[t])
        if known.sum() > 1 and np.ptp(scores[t, known]) > 0 and np.ptp(errors[t, known]) > 0:
            taus.append(float(weightedtau(-errors[t, known], -scores[t, known]).statistic))
    return {**out, "tau": float(np.mean(taus)) if taus else float("nan")}


def random_ranks(errors: np.ndarray, *, seed: int = 0, draws: int = 20) -> dict[str, float]:
    """The same of random orders; tau is 0 by definition."""
    rng = np.random.default_rng(seed)
    oracle = np.nanmin(errors, 1)
    drawn = [_at(_ranked(errors, rng.random(errors.shape)), oracle) for _ in range(draws)]
    return {**{key: float(np.mean([d[key] for d in drawn])) for key in drawn[0]}, "tau": 0.0}
