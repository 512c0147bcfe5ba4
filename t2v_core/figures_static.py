"""Static figures, to log as PNG: the clustered distances, the error matrix, the selection, the map of tasks.

They are drawn on `matplotlib.figure.Figure` directly: no pyplot, no global state, so workers' threads may draw too.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from t2v_core.arrange import PALETTE, Arrangement, arrange, dendrogram_path
from t2v_core.report_data import ReportData

__all__ = [
    "static_distances",
    "static_error_matrix",
    "static_figures",
    "static_map",
    "static_selection",
]

_LABELLED = 40

# The colours of the page, see templates/base.js.
_CLOSENESS = LinearSegmentedColormap.from_list("closeness", ["#08306b", "#1c5a9c", "#4f93c9", "#a3cbe6", "#f3f8fc"])
_DIFFERENCE = LinearSegmentedColormap.from_list("difference", ["#00508c", "#5fa5d3", "#f7f7f6", "#eda268", "#a84300"])


def static_figures(data: ReportData, arrangement: Arrangement | None = None) -> dict[str, Figure]:
    """The static figures by file name, e.g. ``"distances.png"``; those that have nothing to draw are left out."""
    figures: dict[str, Figure] = {}
    if len(data.selection):
        figures["selection.png"] = static_selection(data)
    if len(data.tasks):
        placed = arrangement or arrange(data)
        figures["task_map.png"] = static_map(data, placed)
        figures["distances.png"] = static_distances(data, placed)
        if len(data.experts):
            figures["error_matrix.png"] = static_error_matrix(data, placed)
    return figures


def static_distances(data: ReportData, placed: Arrangement) -> Figure:
    """Symmetric distances in clustered order, the tree above them (left of Fig. 2)."""
    order = placed.clustering.order
    figure, axes = _canvas(7.5, 7.2, "")
    image = axes.imshow(data.distances[np.ix_(order, order)], cmap=_CLOSENESS, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.7, label="distance")
    ids = [data.tasks["task_id"].iloc[k] for k in order]
    _label(axes, "y", ids)
    _label(axes, "x", ids)
    tree = axes.inset_axes((0, 1.01, 1, 0.14), sharex=axes)
    xs, ys = dendrogram_path(placed.clustering)
    tree.plot(_gaps(xs), _gaps(ys), color="#5b626e", linewidth=0.8 if len(order) < 200 else 0.4)
    tree.set_axis_off()
    tree.set_title("Symmetric TASK2VEC distance, clustered", fontsize=11, loc="left")
    return figure


def static_error_matrix(data: ReportData, placed: Arrangement) -> Figure:
    """Each expert's error minus the generic one's, tasks in clustered order; own cells carry a square."""
    order = placed.clustering.order
    difference = (data.errors - data.errors[:, :1])[order]
    finite = np.abs(difference[np.isfinite(difference)])
    reach = float(np.percentile(finite, 99)) if len(finite) else 0.0
    reach = reach or 1.0
    figure, axes = _canvas(8.5, 6.5, "Error minus the generic expert's (blue: better)")
    image = axes.imshow(difference, cmap=_DIFFERENCE, vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.7, label="difference in error")
    rows, columns = np.nonzero(data.own[order])
    axes.scatter(columns, rows, s=14, marker="s", facecolors="none", edgecolors="black", linewidths=0.8)
    _label(axes, "y", [data.tasks["task_id"].iloc[k] for k in order])
    _label(axes, "x", data.experts)
    return figure


def static_selection(data: ReportData) -> Figure:
    """Relative error increase of each method, with its interval, one colour a reading."""
    frame = data.selection[~data.selection["method"].astype(str).str.contains("oracle", case=False)]
    methods = list(dict.fromkeys(frame["method"].astype(str)))
    readings = list(dict.fromkeys(frame["reading"].astype(str)))
    figure, axes = _canvas(8.0, 1.6 + 0.5 * len(methods), "Error above the best expert's")
    width = 0.8 / max(len(readings), 1)
    for k, reading in enumerate(readings):
        rows = frame[frame["reading"].astype(str) == reading]
        middle = rows["relative_increase"].to_numpy(dtype=np.float64)
        low = np.clip(middle - rows["relative_low"].to_numpy(dtype=np.float64), 0, None)
        high = np.clip(rows["relative_high"].to_numpy(dtype=np.float64) - middle, 0, None)
        at = np.array([methods.index(method) for method in rows["method"].astype(str)]) + (k + 0.5) * width - 0.4
        axes.barh(
            at,
            100 * middle,
            height=width * 0.9,
            xerr=100 * np.nan_to_num(np.stack([low, high])),
            color=PALETTE[k % len(PALETTE)],
            error_kw={"elinewidth": 1.0, "ecolor": "#333333"},
            label=_printable(reading),
        )
    axes.axvline(0.0, color="#333333", linewidth=0.8)
    axes.set_xlabel("%")
    axes.invert_yaxis()
    _label(axes, "y", methods)
    if readings:
        for text in axes.legend(frameon=False, loc="best").get_texts():
            text.set_parse_math(False)
    return figure


def static_map(data: ReportData, placed: Arrangement) -> Figure:
    """t-SNE of the task embeddings, coloured by source (left of Fig. 1)."""
    group = placed.groups[0]
    figure, axes = _canvas(7.5, 6.0, "Tasks, t-SNE of symmetric TASK2VEC distances")
    for k, label in enumerate(group.labels):
        places = placed.task_map[group.index == k]
        axes.scatter(
            places[:, 0],
            places[:, 1],
            s=26 if len(data.tasks) <= 300 else 9,
            color=group.colors[k],
            marker="oD^s"[k % 4],
            edgecolors="white",
            linewidths=0.4,
            label=_printable(label),
        )
    axes.set_xticks([])
    axes.set_yticks([])
    for text in axes.legend(frameon=False, fontsize=8, loc="best").get_texts():
        text.set_parse_math(False)
    return figure


def _gaps(path: list[float | None]) -> list[float]:
    """A broken line as matplotlib breaks it: at NaN."""
    return [float("nan") if value is None else value for value in path]


def _canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """One pair of axes on an Agg canvas, sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(axes: Axes, which: str, names: Iterable[object]) -> None:
    """Name the ticks, or drop them where they would overlap."""
    texts = [_printable(name) for name in names]
    axis = axes.yaxis if which == "y" else axes.xaxis
    if len(texts) > _LABELLED:
        axis.set_ticks([])
        return
    axis.set_ticks(list(range(len(texts))), labels=texts, fontsize=7, rotation=90 if which == "x" else 0)
    for label in axis.get_ticklabels():
        label.set_parse_math(False)


def _printable(name: object) -> str:
    """A name cut to a label's length, without glyphs that matplotlib's font lacks and without mathtext's trigger."""
    text = "".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in str(name))
    return text if len(text) <= 32 else text[:31] + "…"
