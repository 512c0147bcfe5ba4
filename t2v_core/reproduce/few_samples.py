"""Fig. 4's numbers: the error from each start against the size of the training set, relative to the best start."""

from __future__ import annotations

import numpy as np
import pandas as pd

from t2v_core.config import SelectionSpec
from t2v_core.errors import DataError
from t2v_core.reproduce.bootstrap import group_weights, interval

__all__ = ["CURVES", "gain_kept", "relative_curves", "starts_of"]

GENERIC = "generic"
CURVES = ("selected, frozen", "generic, frozen", "selected, fine-tuned", "generic, fine-tuned")
"""Lines of Fig. 4."""


def starts_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Each task's errors at each size, means over runs: of the selected start, the generic one, the best frozen one.

    Args:
        runs: columns expert, task_id, size, n_train, balanced_error, frozen_balanced_error, and ``selected`` and
            ``own`` (bool): the start that a selector picked for the task without its own experts, and those own ones,
            which are no candidates for the oracle.

    Returns:
        One row a task and size that has all three: task_id, size, n_train, the `CURVES`, oracle (the best candidate's
        frozen error) and candidates (so many).

    Raises:
        DataError: a column is missing.
    """
    missing = {"selected", "own"} - set(runs)
    if missing:
        raise DataError(f"the transfer runs lack columns {', '.join(sorted(missing))}; wanted what Fig. 4 compares")
    means = runs.groupby(["task_id", "size", "expert"], sort=False).agg(
        fine=("balanced_error", "mean"),
        frozen=("frozen_balanced_error", "mean"),
        n_train=("n_train", "first"),
        selected=("selected", "max"),
        own=("own", "max"),
    )
    rows = []
    for (task, size), part in means.groupby(["task_id", "size"], sort=False):
        part = part.droplevel(["task_id", "size"])
        chosen = part.index[part["selected"].astype(bool)]
        if GENERIC not in part.index or len(chosen) != 1:
            continue
        mine, plain, candidates = part.loc[chosen[0]], part.loc[GENERIC], part[~part["own"].astype(bool)]
        values = (mine["frozen"], plain["frozen"], mine["fine"], plain["fine"])
        rows.append(
            {
                "task_id": task,
                "size": int(size),
                "n_train": int(plain["n_train"]),
                **dict(zip(CURVES, (float(v) for v in values), strict=True)),
                "oracle": float(candidates["frozen"].min()),
                "candidates": len(candidates),
            }
        )
    return pd.DataFrame(rows)


def _sizes(starts: pd.DataFrame) -> list[int]:
    """From small to large; 0 stands for all images."""
    return sorted(starts["size"].unique(), key=lambda s: (s == 0, s))


def relative_curves(starts: pd.DataFrame, spec: SelectionSpec) -> pd.DataFrame:
    """Mean over tasks of (error / oracle - 1) at each size, with its interval.

    Only tasks that have every size count, so that a curve does not move because its tasks change.

    Returns:
        Columns curve, size, n_train (mean), value, low, high, n_tasks.
    """
    if starts.empty:
        return pd.DataFrame(columns=["curve", "size", "n_train", "value", "low", "high", "n_tasks"])
    sizes = _sizes(starts)
    whole = starts.groupby("task_id")["size"].nunique()
    kept = starts[starts["task_id"].isin(whole.index[whole == len(sizes)])]
    rows = []
    for size in sizes:
        part = kept[kept["size"] == size].sort_values("task_id")
        if part.empty:
            continue
        weights = group_weights(np.arange(len(part)), spec) / len(part)
        for curve in CURVES:
            floor = spec.floor
            ratio = np.maximum(part[curve], floor).to_numpy() / np.maximum(part["oracle"], floor).to_numpy() - 1
            low, high = interval(weights @ ratio, spec)
            rows.append(
                {
                    "curve": curve,
                    "size": size,
                    "n_train": float(part["n_train"].mean()),
                    "value": float(ratio.mean()),
                    "low": low,
                    "high": high,
                    "n_tasks": len(part),
                }
            )
    return pd.DataFrame(rows)


def gain_kept(runs: pd.DataFrame, spec: SelectionSpec) -> tuple[float, float, float, int, str] | None:
    """Gain of the selected start over the generic one (frozen) at the smallest size, over that at the largest.

    Returns:
        (share, low, high, tasks, words); None where there is no gain at the largest size.
    """
    starts = starts_of(runs)
    if starts.empty or starts["size"].nunique() < 2:
        return None
    starts = starts.assign(gain=starts["generic, frozen"] - starts["selected, frozen"])
    wide = starts.pivot(index="task_id", columns="size", values="gain").dropna()
    sizes = _sizes(starts)
    small, large = wide[sizes[0]].to_numpy(), wide[sizes[-1]].to_numpy()
    if not len(wide) or large.mean() <= 0:
        return None
    weights = group_weights(np.arange(len(wide)), spec)
    below = weights @ large
    # A resample in which nothing is gained at the largest size has no share to keep.
    shares = np.where(below > 0, weights @ small / np.where(below > 0, below, 1.0), np.nan)
    low, high = interval(shares, spec)
    words = (
        f"{100 * small.mean():+.1f} points with {sizes[0]} images, {100 * large.mean():+.1f} with "
        f"{sizes[-1] or 'all'}; the choice itself was made with all of a task's images"
    )
    return float(small.mean() / large.mean()), low, high, len(wide), words
