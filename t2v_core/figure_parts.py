"""The parts that the page's figures share: text that plotly cannot misread, axes, legends, marks, number columns."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = [
    "Spec",
    "base_layout",
    "cell_marks",
    "colorbar",
    "cut",
    "error_points",
    "floats",
    "legend_above",
    "names_axis",
    "number",
    "percent",
    "plain",
    "span",
]

Spec = dict[str, Any]


def plain(text: object) -> str:
    """A user's string such that plotly shows it as it is, neither as its HTML subset nor as TeX."""
    return html.escape(str(text), quote=False).replace("$", "&#36;")


def percent(value: float | None, digits: int = 1) -> str:
    """``0.123`` as ``"12.3%"``; a dash for what is missing."""
    return "–" if value is None or pd.isna(value) else f"{100 * value:.{digits}f}%"


def base_layout(
    *, height: dict[str, float], xaxis: Spec, yaxis: Spec, roomy: tuple[str, ...] = (), **more: Any
) -> Spec:
    """What all figures share: transparent grounds, the page's font, no title (the page has captions).

    ``height`` is worked out by the page from the figure's width; tick labels of ``roomy`` axes are left out where the
    page is narrow.
    """
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 12, "r": 12, "t": 28, "b": 36},
        "hovermode": "closest",
        "dragmode": "zoom",
        "xaxis": {"automargin": True, "zeroline": False} | xaxis,
        "yaxis": {"automargin": True, "zeroline": False} | yaxis,
        "meta": {"height": height, "roomy": roomy},
    } | more


def names_axis(names: Iterable[object], shown: bool) -> Spec:
    """An axis of names at 0, 1, 2, ...; as tick texts they are also what hovering says.

    Names that are shown are cut in the middle; the table of tasks has them in full.
    """
    texts = [str(name) for name in names]
    if shown:
        texts = [cut(text) for text in texts]
    return {
        "tickmode": "array",
        "tickvals": list(range(len(texts))),
        "ticktext": [plain(text) for text in texts],
        "showticklabels": shown,
    }


def cut(text: str) -> str:
    """A long name without its middle."""
    return text if len(text) <= 32 else f"{text[:14]}…{text[-17:]}"


def legend_above() -> Spec:
    """A legend in a row, above the plot."""
    return {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"}


def colorbar(title: str) -> Spec:
    """A short colour bar at the lower right."""
    return {
        "title": {"text": title, "side": "top", "font": {"size": 12}},
        "thickness": 10,
        "len": 130,
        "lenmode": "pixels",
        "nticks": 5,
        "y": 0,
        "yanchor": "bottom",
        "outlinewidth": 0,
    }


def cell_marks(name: str, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], symbol: str, size: float) -> Spec:
    """Marks on cells of a heatmap; the cell below answers the pointer."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "hoverinfo": "skip",
        "marker": {"symbol": symbol, "size": size, "color": "#1b1f27", "line": {"width": 1.5, "color": "#1b1f27"}},
        "meta": {"theme": {"marker.color": "ink", "marker.line.color": "ink"}},
    }


def error_points(
    name: str,
    x: npt.NDArray[Any],
    y: npt.NDArray[np.floating],
    symbol: str,
    color: str,
    theme: str | None,
    size: float,
) -> Spec:
    """A scatter of errors over ``x``."""
    trace: Spec = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "hovertemplate": "%{x}<br>%{text}: %{y:.1%}<extra></extra>",
        "marker": {"symbol": symbol, "size": size, "color": color},
    }
    if symbol.endswith("-open"):
        trace["marker"]["line"] = {"width": 1.8, "color": color}
    return trace | {"meta": {"theme": {"marker.color": theme}}} if theme else trace


def span(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """First and last percentile, so that one outlier does not wash out the colours; never an empty range."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = (float(level) for level in np.percentile(finite, [1, 99]))
    return (low, high) if high > low else (min(low, 0.0), max(high, 0.0) or 1.0)


def floats(column: Any) -> npt.NDArray[np.float64]:
    """A column as floats, NaN where a value is missing."""
    return np.array([number(value) for value in column], dtype=np.float64)


def number(value: Any) -> float:
    """A cell of a table as a float, NaN where it is missing."""
    return float("nan") if pd.isna(value) else float(value)
