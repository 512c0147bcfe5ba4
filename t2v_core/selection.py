"""Which expert for this task: choices, and how good they are (Sect. 4.2, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from t2v_core.config import SelectionSpec
from t2v_core.errors import DataError

__all__ = ["RelativeIncrease", "choose", "compare_selectors", "conclusions", "relative_error_increase"]

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


def _resample(values: np.ndarray, spec: SelectionSpec) -> np.ndarray:
    """Bootstrap means over axis 0, ``[n_bootstrap, ...]``."""
    rng = np.random.default_rng(spec.seed)
    n = len(values)
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=spec.n_bootstrap)
    return np.asarray(counts @ values / n)


def _interval(values: np.ndarray, spec: SelectionSpec) -> tuple[float, float]:
    tail = 50 * (1 - spec.confidence)
    low, high = np.percentile(_resample(values, spec), [tail, 100 - tail])
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
    low, high = _interval(ratio, spec or SelectionSpec())
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
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every selector on every task.

    Args:
        errors: ``[T, E]``.
        own: ``[T, E]`` bool, experts that were trained on the task (alone or in a collection).
        selectors: name to scores ``[T, E]``, lower is better; ``chance`` is added.
        spec: floor, bootstrap.
        leave_own_out: whether own experts are no candidates (for the oracle either).
        notes: a remark per selector.

    Returns:
        The table (one row a selector: relative increase with interval, median, absolute difference with interval,
        share of tasks where the best was picked), and per-task values (columns: method, task, expert, error, ratio).

    Raises:
        DataError: a task has no candidate, or a selector has no opinion on a task.
    """
    spec = spec or SelectionSpec()
    mask = _candidate_mask(errors, own if leave_own_out else None)
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
        else:
            chosen = choose(scores, mask)
            if (chosen < 0).any():
                raise DataError(f"selector {name!r} has no opinion on {int((chosen < 0).sum())} tasks")
            error = errors[rows, chosen]
            ratio = _ratios(error, oracle, spec.floor)
            top1 = (error == oracle).astype(np.float64)
        low, high = _interval(ratio, spec)
        absolute_low, absolute_high = _interval(error - oracle, spec)
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
                "n_tasks": len(errors),
                "note": (notes or {}).get(name, ""),
            }
        )
        detail.append(pd.DataFrame({"method": name, "task": rows, "expert": chosen, "error": error, "ratio": ratio}))
    return pd.DataFrame(table), pd.concat(detail, ignore_index=True)


def conclusions(
    detail: pd.DataFrame, methods: list[str], against: list[str], spec: SelectionSpec | None = None
) -> list[str]:
    """In words: each method against each yardstick, by the paired difference of errors over tasks."""
    spec = spec or SelectionSpec()
    wide = detail.pivot(index="task", columns="method", values="error")
    out = []
    for method in methods:
        for yardstick in against:
            if method == yardstick or method not in wide or yardstick not in wide:
                continue
            difference = (wide[method] - wide[yardstick]).to_numpy()
            low, high = _interval(difference, spec)
            numbers = f"{100 * difference.mean():+.1f} points of error [{100 * low:+.1f}, {100 * high:+.1f}]"
            if high < 0:
                verdict = "is better than"
            elif low > 0:
                verdict = "is worse than"
            else:
                verdict = "cannot be told apart from"
            out.append(f"{method} {verdict} {yardstick}: {numbers}, paired over {len(difference)} tasks.")
    return out
