"""The figures of the report page, as plotly specifications.

Each function returns ``{"data": [...], "layout": {...}}``, what ``plotly.graph_objects.Figure`` takes. Two entries are
for the page's script: ``layout.meta.height`` (height from width) and ``meta.theme`` of a trace (which of its colours
follow the light or dark theme). The static versions for MLflow are in `t2v_core.figures_static`.

User strings reach plotly only through `t2v_core.figure_parts.plain`, because plotly renders a little HTML in labels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.stats

from t2v_core.arrange import PALETTE, Arrangement, Grouping, arrange, dendrogram_path
from t2v_core.figure_parts import (
    Spec,
    base_layout,
    cell_marks,
    colorbar,
    cut,
    error_points,
    floats,
    legend_above,
    names_axis,
    number,
    percent,
    plain,
    span,
)
from t2v_core.figures_static import static_figures
from t2v_core.report_data import ReportData

__all__ = [
    "distance_figure",
    "error_matrix_figure",
    "map_figure",
    "norm_figure",
    "oracle_cells",
    "page_figures",
    "rank_correlation",
    "selection_figure",
    "spread_figure",
    "static_figures",
]

_LABELLED = 40  # above this many rows, tick labels overlap: they show on hover only
_POINTS = 6000  # above this many points (or 120 tasks), the spread of errors is drawn as bands
_BLUE, _ORANGE, _GREEN, _PINK, _RED = PALETTE[:5]


def page_figures(data: ReportData, arrangement: Arrangement | None = None) -> dict[str, Spec]:
    """All figures of the page by name; those that have nothing to draw are left out."""
    figures: dict[str, Spec] = {}
    if len(data.selection):
        figures["selection"] = selection_figure(data)
    if len(data.tasks):
        placed = arrangement or arrange(data)
        figures["task_map"] = map_figure(data, placed.task_map, placed.groups)
        figures["domain_map"] = map_figure(data, placed.domain_map, placed.groups)
        figures["distances"] = distance_figure(data, placed)
        figures["norm"] = norm_figure(data)
        if len(data.experts):
            figures["error_matrix"] = error_matrix_figure(data, placed)
            figures["spread"] = spread_figure(data)
    return figures


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


def selection_figure(data: ReportData) -> Spec:
    """Relative error increase of each method with its interval, one colour a reading."""
    frame = data.selection[~data.selection["method"].astype(str).str.contains("oracle", case=False)]
    methods = list(dict.fromkeys(frame["method"].astype(str)))
    readings = list(dict.fromkeys(frame["reading"].astype(str)))
    traces: list[Spec] = []
    for k, reading in enumerate(readings):
        rows = frame[frame["reading"].astype(str) == reading]
        middle = floats(rows["relative_increase"])
        shift = (k - (len(readings) - 1) / 2) * 0.28
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plain(cut(reading)),
                "x": middle,
                "y": [methods.index(method) + shift for method in rows["method"].astype(str)],
                "text": [
                    f"<b>{plain(row.method)}</b><br>{plain(reading)}<br>"
                    f"{percent(row.relative_increase)} [{percent(row.relative_low)}, {percent(row.relative_high)}]"
                    for row in rows.itertuples()
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": floats(rows["relative_high"]) - middle,
                    "arrayminus": middle - floats(rows["relative_low"]),
                    "thickness": 1.6,
                    "width": 0,
                },
                "marker": {
                    "size": 9,
                    "symbol": ("circle", "diamond", "square")[k % 3],
                    "color": (_BLUE, _ORANGE, _GREEN)[k % 3],
                },
                "meta": {"theme": {"marker.color": "accent", "error_x.color": "accent"} if k % 3 == 0 else {}},
            }
        )
    layout = base_layout(
        height={"base": 96, "row": 40, "rows": len(methods)},
        xaxis={
            "title": {"text": "error above the best"},
            "tickformat": "+.0%",
            "zeroline": True,
            "rangemode": "tozero",
        },
        yaxis=names_axis(methods, shown=True) | {"range": [len(methods) - 0.5, -0.5], "showgrid": False},
        legend=legend_above(),
    )
    return {"data": traces, "layout": layout}


def map_figure(data: ReportData, places: npt.NDArray[np.floating], groups: tuple[Grouping, ...]) -> Spec:
    """Tasks on a plane (Fig. 1), coloured by the first grouping; the page's buttons switch to the others."""
    first = groups[0]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": places[:, 0],
        "y": places[:, 1],
        "text": _task_notes(data),
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "size": 10 if len(places) <= 150 else 7 if len(places) <= 600 else 5,
            "color": [first.colors[k] for k in first.index],
            "symbol": ["diamond" if 7 <= k < len(PALETTE) else "circle" for k in first.index],
            "line": {"width": 0.7, "color": "#ffffff"},
        },
        "meta": {"theme": {"marker.line.color": "surface"}},
    }
    blank = {"showticklabels": False, "zeroline": False, "showgrid": False, "ticks": "", "automargin": False}
    layout = base_layout(
        height={"ratio": 0.82, "least": 280, "most": 520},
        xaxis=blank,
        yaxis=blank | {"scaleanchor": "x"},
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
    )
    return {"data": [trace], "layout": layout | {"showlegend": False}}


def distance_figure(data: ReportData, placed: Arrangement) -> Spec:
    """Symmetric distances in clustered order, with the tree and a bar of sources (left of Fig. 2)."""
    order = placed.clustering.order
    n_tasks = len(order)
    matrix = np.asarray(data.distances, dtype=np.float64)[np.ix_(order, order)]
    low, high = span(matrix[~np.eye(n_tasks, dtype=bool)])
    source = placed.groups[0]
    xs, ys = dendrogram_path(placed.clustering)
    n_groups = len(source.labels)
    steps = [[(k + end) / n_groups, source.colors[k]] for k in range(n_groups) for end in (0, 1)]
    traces: list[Spec] = [
        {
            "type": "heatmap",
            "z": matrix,
            "zmin": low,
            "zmax": high,
            "zsmooth": "fast" if n_tasks > 400 else False,
            "colorscale": "Blues",
            "colorbar": colorbar("distance"),
            "hovertemplate": "%{y}<br>%{x}<br>distance %{z:.3f}<extra></extra>",
            "meta": {"theme": {"colorscale": "sequential"}},
        },
        {
            "type": "scatter",
            "mode": "lines",
            "x": xs,
            "y": ys,
            "yaxis": "y2",
            "hoverinfo": "skip",
            "line": {"width": 1 if n_tasks < 200 else 0.5, "color": "#60656f"},
            "meta": {"theme": {"line.color": "muted"}},
        },
        {
            "type": "heatmap",
            "z": [[int(source.index[k]) for k in order]],
            "text": [[plain(source.labels[source.index[k]]) for k in order]],
            "zmin": -0.5,
            "zmax": n_groups - 0.5,
            "yaxis": "y3",
            "colorscale": steps,
            "showscale": False,
            "hovertemplate": "%{x}<br>%{text}<extra></extra>",
        },
    ]
    names = names_axis(data.tasks["task_id"].iloc[order], shown=n_tasks <= _LABELLED)
    hidden = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": ""}
    layout = base_layout(
        height={"ratio": 1.02, "least": 340, "most": 860},
        roomy=("xaxis", "yaxis"),
        xaxis=names | {"range": [-0.5, n_tasks - 0.5], "tickangle": -60, "showgrid": False, "anchor": "y"},
        yaxis=names | {"range": [n_tasks - 0.5, -0.5], "domain": [0, 0.83], "showgrid": False},
    )
    layout["yaxis2"] = hidden | {"domain": [0.88, 1], "fixedrange": True, "rangemode": "tozero"}
    layout["yaxis3"] = hidden | {"domain": [0.84, 0.87], "fixedrange": True}
    return {"data": traces, "layout": layout | {"showlegend": False}}


def error_matrix_figure(data: ReportData, placed: Arrangement) -> Spec:
    """Each expert's error minus the generic one's, tasks in clustered order; own and best cells are marked."""
    order = placed.clustering.order
    n_tasks, n_experts = data.errors.shape
    errors = np.asarray(data.errors, dtype=np.float64)[order]
    difference = errors - errors[:, :1]
    reach = span(np.abs(difference[:, 1:]))[1]
    best = oracle_cells(data)[order]
    rows, columns = np.nonzero(data.own[order])
    scored = np.flatnonzero(best >= 0)
    size = float(np.clip(420 / max(n_tasks, n_experts, 1), 3, 11))
    traces: list[Spec] = [
        {
            "type": "heatmap",
            "z": difference,
            "customdata": errors,
            "zmin": -reach,
            "zmax": reach,
            "colorscale": "RdBu",
            "colorbar": colorbar("error minus<br>generic's") | {"tickformat": "+.0%"},
            "hovertemplate": "%{y}<br>expert %{x}<br>error %{customdata:.1%}, %{z:+.1%} against generic<extra></extra>",
            "meta": {"theme": {"colorscale": "diverging"}},
        },
        cell_marks("trained on this task", columns, rows, "square-open", size + 2),
        cell_marks("best of the other experts", best[scored], scored, "circle", max(size * 0.55, 2.5)),
    ]
    layout = base_layout(
        height={"base": 150, "row": 18 if n_tasks <= _LABELLED else 5, "rows": n_tasks, "least": 320, "most": 860},
        roomy=("xaxis", "yaxis"),
        xaxis=names_axis(data.experts, shown=n_experts <= 60)
        | {"range": [-0.5, n_experts - 0.5], "tickangle": -60, "showgrid": False, "zeroline": False},
        yaxis=names_axis(data.tasks["task_id"].iloc[order], shown=n_tasks <= _LABELLED)
        | {"range": [n_tasks - 0.5, -0.5], "showgrid": False, "zeroline": False},
        legend=legend_above(),
    )
    return {"data": traces, "layout": layout}


def spread_figure(data: ReportData) -> Spec:
    """Errors of all experts on each task, the generic and the selected one marked, ordered by norm (Fig. 3)."""
    order = np.argsort(floats(data.tasks["complexity"]), kind="stable")
    n_tasks = len(order)
    errors = np.asarray(data.errors, dtype=np.float64)[order]
    own = data.own[order]
    column = np.arange(n_tasks)
    selected = floats(data.tasks["selected_error"])[order]
    generic = floats(data.tasks["generic_error"])[order]
    chosen = [plain(name) if isinstance(name, str) else "none" for name in data.tasks["selected_expert"].iloc[order]]
    traces: list[Spec] = []
    if n_tasks <= 120 and errors.size <= _POINTS:
        names = np.array([plain(name) for name in data.experts], dtype=object)
        for label, mask, symbol, color, theme in (
            ("expert", ~own, "circle", "#8A8F98", "faint"),
            ("trained on this task", own, "circle-open", _ORANGE, None),
        ):
            rows, columns = np.nonzero(mask & np.isfinite(errors))
            traces.append(
                error_points(label, rows, errors[rows, columns], symbol, color, theme, 5 if label == "expert" else 8)
                | {"text": [str(name) for name in names[columns]]}
            )
    else:
        traces += _bands(errors)
    small = 1.0 if n_tasks <= 120 else 0.6
    traces.append(
        error_points("generic", column, generic, "triangle-up", _BLUE, "accent", 10 * small)
        | {"text": ["generic"] * n_tasks}
    )
    traces.append(error_points("selected", column, selected, "x-thin", _RED, None, 10 * small) | {"text": chosen})
    traces[-1]["marker"]["line"] = {"width": 2.4 * small + 0.2, "color": _RED}
    layout = base_layout(
        height={"ratio": 0.5, "least": 340, "most": 520},
        roomy=("xaxis",),
        xaxis=names_axis(data.tasks["task_id"].iloc[order], shown=n_tasks <= _LABELLED)
        | {"range": [-0.7, n_tasks - 0.3], "tickangle": -60, "showgrid": n_tasks <= _LABELLED, "zeroline": False},
        yaxis={"title": {"text": "error on held-out data"}, "tickformat": ".0%", "rangemode": "tozero"},
        legend=legend_above(),
    )
    layout["xaxis"]["title"] = {"text": "tasks, by norm of their embedding →"}
    return {"data": traces, "layout": layout}


def norm_figure(data: ReportData) -> Spec:
    """Norm of the embedding against error (right of Fig. 2)."""
    norm = floats(data.tasks["complexity"])
    ids = [plain(task) for task in data.tasks["task_id"]]
    traces: list[Spec] = []
    for column, label, symbol, color, theme in (
        ("head_error", "head on the probe", "circle", _BLUE, "accent"),
        ("oracle_error", "best expert", "diamond", _ORANGE, None),
    ):
        trace = error_points(
            label, norm, floats(data.tasks[column]), symbol, color, theme, 8 if len(norm) <= 300 else 5
        )
        trace["hovertemplate"] = f"%{{text}}<br>norm %{{x:.4g}}<br>{label}: %{{y:.1%}}<extra></extra>"
        trace["marker"]["opacity"] = 0.8
        traces.append(trace | {"text": ids})
    positive = norm[np.isfinite(norm) & (norm > 0)]
    wide = len(positive) == len(norm) and len(positive) > 0 and positive.max() > 30 * positive.min()
    layout = base_layout(
        height={"ratio": 0.5, "least": 320, "most": 480},
        xaxis={"title": {"text": "norm of the embedding (L1)"}, "type": "log" if wide else "linear"},
        yaxis={"title": {"text": "error on held-out data"}, "tickformat": ".0%", "rangemode": "tozero"},
        legend=legend_above(),
    )
    return {"data": traces, "layout": layout}


def _task_notes(data: ReportData) -> list[str]:
    """What hovering over a task says."""
    return [
        f"<b>{plain(row.task_id)}</b><br>{plain(row.source)} · {plain(row.domain)} · {plain(row.kind)}<br>"
        f"{row.n_classes} classes, {row.n_train} train, {row.n_test} test<br>"
        f"error: head {percent(row.head_error)}, best expert {percent(row.oracle_error)}, "
        f"generic {percent(row.generic_error)}<br>"
        f"chosen: {plain(row.selected_expert) if isinstance(row.selected_expert, str) else 'none'}"
        f" ({percent(number(row.selected_error))})"
        for row in data.tasks.itertuples()
    ]


def _bands(errors: npt.NDArray[np.float64]) -> list[Spec]:
    """Range and middle half of the experts' errors on each task, as two shaded bands."""
    seen = np.isfinite(errors).any(axis=1)
    levels = np.full((len(errors), 4), np.nan)
    if seen.any():
        levels[seen] = np.nanquantile(errors[seen], [0.0, 0.25, 0.75, 1.0], axis=1).T
    column = np.arange(len(errors))[seen]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": np.concatenate([column, column[::-1]]),
            "y": np.concatenate([levels[seen, low], levels[seen, high][::-1]]),
            "fill": "toself",
            "fillcolor": color,
            "line": {"width": 0},
            "hoverinfo": "skip",
        }
        for name, low, high, color in (
            ("all experts", 0, 3, "rgba(138,143,152,0.30)"),
            ("middle half", 1, 2, "rgba(138,143,152,0.55)"),
        )
    ]
