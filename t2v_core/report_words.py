"""Numbers of the report as text: percentages, points, intervals, times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

__all__ = ["above", "bounds", "percent", "plain_number", "plural", "points", "safe_link", "seconds", "signed"]


def percent(value: float | None, digits: int = 1) -> str:
    """``0.123`` as ``"12.3%"``; a dash for what is missing."""
    return "–" if value is None or pd.isna(value) else f"{100 * value:.{digits}f}%"


def signed(value: float, low: float | None = None, high: float | None = None) -> str:
    """A ratio as ``+12.3% [8.1, 17.0]``."""
    return _interval(value, low, high, "%")


def points(value: float, low: float | None = None, high: float | None = None) -> str:
    """A difference of errors in percentage points, ``+1.2 [0.8, 1.7]``."""
    return _interval(value, low, high, "")


def bounds(low: float, high: float) -> str:
    """Two ratios as ``8.1, 17.0``."""
    return f"{100 * low:.1f}, {100 * high:.1f}".replace("-", "−")


def above(row: Mapping[str, Any]) -> str:
    """``12.3% [8.1, 17.0] above``, or below, from a row of the selection table."""
    value = row["relative_increase"]
    known = math.isfinite(row["relative_low"]) and value >= 0
    interval = f" [{bounds(row['relative_low'], row['relative_high'])}]" if known else ""
    return f"{percent(abs(value))}{interval} {'above' if value >= 0 else 'below'}"


def seconds(value: float) -> str:
    """``95.2`` as ``1 min 35 s``."""
    if not math.isfinite(value):
        return "–"
    if value < 60:
        return f"{value:.1f} s" if value >= 0.05 or value == 0 else f"{1000 * value:.2g} ms"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def plain_number(value: Any) -> str:
    """Whatever a table holds, at three significant digits."""
    if isinstance(value, (bool, str)):
        return str(value)
    if value is None or pd.isna(value):
        return "–"
    number = float(value)
    text = f"{number:,.0f}" if number == round(number) or abs(number) >= 1000 else f"{number:.3g}"
    return text.replace("-", "−")


def plural(word: str, count: int) -> str:
    """``task``, or ``tasks`` where there is not one."""
    return word if count == 1 else f"{word}s"


def safe_link(href: str) -> str:
    """The address where a link may lead there, else nothing: a web page, or a path relative to this page."""
    if href.startswith(("http://", "https://")):
        return href
    head = href.split("/", 1)[0]
    return href if href and ":" not in head and "\\" not in href and not href.startswith("//") else ""


def _interval(value: float, low: float | None, high: float | None, unit: str) -> str:
    if not math.isfinite(value):
        return "–"
    text = f"{100 * value:+.1f}{unit}".replace("-", "−")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return text
    return f"{text} [{bounds(low, high)}]"
