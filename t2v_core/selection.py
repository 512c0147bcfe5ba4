"""Which expert for this task: choices, and how good they are (Sect. 4.2, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from t2v_core.config import SelectionSpec
from t2v_core.errors import DataError
from t2v_core.ranking import random_ranks, rank_measures

__all__ = [
    "RelativeIncrease",
    "bootstrap_interval",
    "choose",
    "compare_selectors",
    "conclusions",
    "paired_differences",
    "relative_error_increase",
]

CHANCE = "chance"


@dataclass(frozen=True, eq=False)
class RelativeIncrease:
    """How much worse than the oracle a selector's choices are."""

    mean: float
    """Mean over tasks of (selected / oracle - 1): 0.1 is +10%."""
    low: float
    """Lower end of the bootstrap interval over tasks."""
    high: float
    """Upper end."""
    median: float
    per_task: np.ndarray
    """``[T]``"""


def _candidate_mask(errors: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """``[T, E]`` bool: known cells, the task's own expert left out. ``own``: index per task (-1: none), or a mask."""
    mask = np.isfinite(errors)
    if own is not None:
        own = np.asarray(own)
        if own.shape == errors.shape:
            mask &= ~own.astype(bool)
        elif own.shape == (len(errors),):
            for t in np.flatnonzero(own >= 0):
                mask[t, int(own[t])] = False
        else:
            raise DataError(f"got own of shape {own.shape}; wanted [{len(errors)}] indices or a mask {errors.shape}")
    if not mask.any(1).all():
        raise DataError(f"{int((~mask.any(1)).sum())} tasks have no candidate left; they cannot be judged")
    return np.asarray(mask)


def bootstrap_interval(
    values: np.ndarray, spec: SelectionSpec, groups: np.ndarray | None = None
) -> tuple[float, float]:
    """Percentiles of bootstrap means ``[T]``; whole groups of tasks are drawn where they are given."""
    rng = np.random.default_rng(spec.seed)
    _, group = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    size = np.bincount(group).astype(np.float64)
    total = np.bincount(group, weights=values)
    n = len(size)
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=spec.n_bootstrap)
    tail = 50 * (1 - spec.confidence)
    low, high = np.percentile((counts @ total) / (counts @ size), [tail, 100 - tail])
    return float(low), float(high)


def _ratios(errors: np.ndarray, oracle: np.ndarray, floor: float) -> np.ndarray:
    """selected / oracle - 1, both at least ``floor``."""
    return np.asarray(np.maximum(errors, floor) / np.maximum(oracle, floor) - 1.0)


def relative_error_increase(
    errors: np.ndarray,
    selected: np.ndarray,
    own: np.ndarray | None = None,
    *,
    floor: float = 0.01,
    spec: SelectionSpec | None = None,
) -> RelativeIncrease:
    """Mean over tasks of (selected error / oracle error - 1), the task's own expert left out.

    Args:
        errors: ``[T, E]``; NaN where a cell is not known.
        selected: ``[T]``, the chosen expert of each task.
        own: ``[T]``, the expert trained on that very task, -1 for none (or a mask ``[T, E]``); it is no candidate, for
            the oracle either.
        floor: errors below it count as it, so that a task with oracle error 0 has a finite ratio.
        spec: bootstrap settings.

    Raises:
        DataError: shapes do not fit, a choice is no candidate, or a task has none.
    """
    errors = np.asarray(errors, np.float64)
    selected = np.asarray(selected)
    if errors.ndim != 2 or selected.shape != (len(errors),):
        raise DataError(f"got errors {errors.shape} and selected {selected.shape}; wanted [T, E] and [T]")
    mask = _candidate_mask(errors, own)
    rows = np.arange(len(errors))
    outside = (selected < 0) | (selected >= errors.shape[1])
    if outside.any():
        raise DataError(
            f"choices {np.unique(selected[outside]).tolist()} are no expert; wanted 0 to {errors.shape[1] - 1}"
        )
    wrong = ~mask[rows, selected]
    if wrong.any():
        raise DataError(
            f"{int(wrong.sum())} choices are a task's own expert or an unknown cell, e.g. of task {rows[wrong][0]}"
        )
    oracle = np.where(mask, errors, np.inf).min(1)
    ratio = _ratios(errors[rows, selected], oracle, floor)
    low, high = bootstrap_interval(ratio, spec or SelectionSpec())
    return RelativeIncrease(float(ratio.mean()), low, high, float(np.median(ratio)), ratio)


def choose(scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The candidate with the lowest score of each task, ``[T]``; -1 where a selector has no opinion of any."""
    value = np.where(candidates & np.isfinite(scores), scores, np.inf)
    return np.where(np.isfinite(value).any(1), value.argmin(1), -1)


def compare_selectors(
    errors: np.ndarray,
    own: np.ndarray,
    selectors: Mapping[str, np.ndarray],
    spec: SelectionSpec | None = None,
    *,
    leave_own_out: bool,
    notes: Mapping[str, str] | None = None,
    candidates: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every selector on every task.

    Args:
        errors: ``[T, E]``.
        own: ``[T, E]`` bool, experts that were trained on the task (alone or in a collection).
        selectors: name to scores ``[T, E]``, lower is better; ``chance`` is added.
        spec: floor, bootstrap.
        leave_own_out: whether own experts are no candidates (for the oracle either).
        notes: a remark per selector.
        candidates: ``[T, E]`` bool, instead of what ``leave_own_out`` says.
        groups: ``[T]``; bootstrap resamples draw whole groups. Default: tasks.

    Returns:
        The table (one row a selector: relative increase with interval, median, absolute difference with interval, share
        of tasks where the best was picked or is among the first 3 or 5, regret at 3 and 5: how much worse than the
        oracle the best of the first k is, weighted Kendall tau), and per-task values (columns: method, task, expert,
        error, ratio).

    Raises:
        DataError: a task has no candidate, or a selector has no opinion on a task.
    """
    spec = spec or SelectionSpec()
    if candidates is None:
        mask = _candidate_mask(errors, own if leave_own_out else None)
    else:
        mask = _candidate_mask(errors, ~candidates)
    masked = np.where(mask, errors, np.nan)
    oracle = np.nanmin(masked, 1)
    rows = np.arange(len(errors))
    table, detail = [], []
    for name, scores in {**selectors, CHANCE: None}.items():
        if scores is None:
            chosen = np.full(len(errors), -1)
            error = np.nanmean(masked, 1)
            ratio = np.nanmean(np.where(mask, _ratios(masked, oracle[:, None], spec.floor), np.nan), 1)
            top1 = np.nanmean(np.where(mask, masked == oracle[:, None], np.nan), 1)
            ranked = random_ranks(masked)
        else:
            chosen = choose(scores, mask)
            if (chosen < 0).any():
                raise DataError(f"selector {name!r} has no opinion on {int((chosen < 0).sum())} tasks")
            error = errors[rows, chosen]
            ratio = _ratios(error, oracle, spec.floor)
            top1 = (error == oracle).astype(np.float64)
            ranked = rank_measures(masked, scores)
        low, high = bootstrap_interval(ratio, spec, groups)
        absolute_low, absolute_high = bootstrap_interval(error - oracle, spec, groups)
        table.append(
            {
                "method": name,
                "relative_increase": float(ratio.mean()),
                "relative_low": low,
                "relative_high": high,
                "median_increase": float(np.median(ratio)),
                "absolute_difference": float((error - oracle).mean()),
                "absolute_low": absolute_low,
                "absolute_high": absolute_high,
                "error": float(error.mean()),
                "top1": float(top1.mean()),
                **ranked,
                "n_tasks": len(errors),
                "note": (notes or {}).get(name, ""),
            }
        )
        detail.append(pd.DataFrame({"method": name, "task": rows, "expert": chosen, "error": error, "ratio": ratio}))
    return pd.DataFrame(table), pd.concat(detail, ignore_index=True)


def paired_differences(
    detail: pd.DataFrame,
    methods: Sequence[str],
    against: Sequence[str],
    spec: SelectionSpec | None = None,
    groups: np.ndarray | None = None,
) -> pd.DataFrame:
    """Each method less each yardstick, task by task.

    Args:
        detail: of `compare_selectors`, one reading.
        methods: names; those that are not in ``detail`` are left out.
        against: yardsticks, likewise.
        spec: bootstrap.
        groups: ``[T]`` by the index of a task; resamples draw whole groups.

    Returns:
        Columns: method, against, difference (mean of errors), low, high, relative (mean difference of ratios to the
        oracle), relative_low, relative_high, n_tasks, verdict: better, worse, or not told apart, by the interval of
        the errors.
    """
    spec = spec or SelectionSpec()
    wide = detail.pivot(index="task", columns="method", values="error")
    ratio = detail.pivot(index="task", columns="method", values="ratio") if "ratio" in detail else wide * np.nan
    group = None if groups is None else np.asarray(groups)[wide.index.to_numpy()]
    rows = []
    for method in methods:
        for yardstick in against:
            if method == yardstick or method not in wide or yardstick not in wide:
                continue
            difference = (wide[method] - wide[yardstick]).to_numpy()
            relative = (ratio[method] - ratio[yardstick]).to_numpy()
            low, high = bootstrap_interval(difference, spec, group)
            relative_low, relative_high = bootstrap_interval(relative, spec, group)
            rows.append(
                {
                    "method": method,
                    "against": yardstick,
                    "difference": float(difference.mean()),
                    "low": low,
                    "high": high,
                    "relative": float(relative.mean()),
                    "relative_low": relative_low,
                    "relative_high": relative_high,
                    "n_tasks": len(difference),
                    "verdict": "better" if high < 0 else "worse" if low > 0 else "not told apart",
                }
            )
    return pd.DataFrame(rows)


VERDICTS = {"better": "is better than", "worse": "is worse than", "not told apart": "cannot be told apart from"}


def conclusions(
    detail: pd.DataFrame,
    methods: list[str],
    against: list[str],
    spec: SelectionSpec | None = None,
    groups: np.ndarray | None = None,
) -> list[str]:
    """In words: each method against each yardstick, by the paired difference of errors over tasks.

    A difference whose interval holds zero is said to be none that can be told.
    """
    return [
        f"{row.method} {VERDICTS[row.verdict]} {row.against}: {100 * row.difference:+.1f} points of error "
        f"[{100 * row.low:+.1f}, {100 * row.high:+.1f}], paired over {row.n_tasks} tasks."
        for row in paired_differences(detail, methods, against, spec, groups).itertuples()
    ]
