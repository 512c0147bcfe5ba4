"""What the page and the static figures compute from the results before they draw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from t2v_core.report_data import ReportData

__all__ = ["floats", "oracle_cells", "rank_correlation"]


def oracle_cells(data: ReportData) -> npt.NDArray[np.int64]:
    """The best expert of each task, ``[T]``, its own left out where there is another; -1 if nothing was evaluated."""
    errors = np.where(np.isnan(data.errors), np.inf, data.errors)
    others = np.where(data.own, np.inf, errors)
    candidates = np.where(np.isfinite(others).any(axis=1, keepdims=True), others, errors)
    best = candidates.argmin(axis=1)
    return np.where(np.isfinite(candidates).any(axis=1), best, -1).astype(np.int64)


def rank_correlation(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> tuple[float, int]:
    """Spearman's rho over the pairs that are finite, and their number; NaN where it is not defined."""
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), len(x)
    return float(scipy.stats.spearmanr(x, y).statistic), len(x)


def floats(column: Iterable[Any]) -> npt.NDArray[np.float64]:
    """A column as floats, NaN where a value is missing."""
    return np.array([float("nan") if pd.isna(value) else float(value) for value in column], dtype=np.float64)
