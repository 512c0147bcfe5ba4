"""One page of results: a single HTML file that needs no network.

What comes from outside (names of tasks, reasons, paths) is escaped by Jinja in the page, by `figure_parts.plain` inside
plotly's labels and by `_script_json` inside the data block. A content security policy names the two scripts of the
page by digest and allows no address to be fetched, so markup that got through would still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from t2v_core.arrange import Arrangement, arrange
from t2v_core.figure_parts import Spec, percent
from t2v_core.figures import oracle_cells, page_figures, rank_correlation
from t2v_core.report_data import SELECTION_COLUMNS, ReportData

__all__ = ["headline", "pack", "render_report"]

# A method whose name holds one of these words is what TASK2VEC is compared with, not TASK2VEC.
_BASELINES = ("oracle", "chance", "random", "generic", "imagenet", "static", "domain", "nearest")

_TIE = 5e-4  # relative increases nearer than this look the same at the one decimal shown
_PACKED = 20_000  # arrays above this size are sent as 16-bit steps between their extremes, not as decimal text
_SHARED = 32  # lists of strings from this length on are sent once


def render_report(data: ReportData, arrangement: Arrangement | None = None) -> str:
    """Render the page.

    Args:
        data: what to show.
        arrangement: of `arrange`, where it is known already: maps and clusters are the slow part.

    Returns:
        The whole HTML document. The same data give the same bytes.
    """
    placed = arrangement or (arrange(data) if len(data.tasks) else None)
    script, plotly = _asset("report.js"), get_plotlyjs()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "signed": _signed, "seconds": _seconds, "points": _points}
    return environment.from_string(_asset("report.html")).render(
        data=data,
        style=Markup(_asset("report.css")),
        script=Markup(script),
        plotly=Markup(plotly),
        policy=_policy(script, plotly),
        figures=Markup(_script_json(page_figures(data, placed), placed.groups if placed else ())),
        groups=placed.groups if placed else (),
        headline=headline(data.selection, len(data.tasks)),
        tiles=_tiles(data),
        readings=_readings(data.selection),
        tasks=[row._asdict() for row in data.tasks.itertuples(index=False)],
        correlations=_correlations(data),
        unevaluated=int(np.isnan(data.errors).sum()),
        scored=int((oracle_cells(data) >= 0).sum()),
        slowest=max((stage.seconds for stage in data.stages), default=0.0) or 1.0,
        rejected=_by_reason(data.rejected_images),
    )


def headline(selection: pd.DataFrame, n_tasks: int) -> str:
    """The answer in a sentence or two, whichever way it goes.

    Args:
        selection: as in `ReportData`; the first reading is judged.
        n_tasks: tasks embedded, for when there is nothing to judge.
    """
    first = _readings(selection)[0][1] if len(selection) else []
    judged = [row for row in first if np.isfinite(row["relative_increase"])]
    ours = [row for row in judged if not any(word in row["method"].lower() for word in _BASELINES)]
    generic = next((row for row in judged if "generic" in row["method"].lower()), None)
    if not ours:
        return f"{n_tasks:,} {_plural('task', n_tasks)} embedded; no selection of experts was judged."
    best = min(ours, key=lambda row: row["relative_increase"])
    count = int(best["n_tasks"])
    text = (
        f"For {count:,} {_plural('task', count)}, {best['method']} picks an expert whose error is on average "
        f"{_above(best)} the best expert’s"
    )
    if generic is None:
        return f"{text}."
    gain = generic["relative_increase"] - best["relative_increase"]
    if abs(gain) < _TIE:
        return f"{text}. The generic expert does as well, so choosing makes no difference here."
    if gain > 0:
        text += f"; the generic expert’s is {_above(generic)} it."
    else:
        text += f". It loses to the generic expert, whose error is {_above(generic)} it."
    if best["relative_low"] <= generic["relative_high"] and generic["relative_low"] <= best["relative_high"]:
        text += " The two intervals overlap."
    rivals = [row for row in judged if row not in ours and "oracle" not in row["method"].lower()]
    rival = min(rivals, key=lambda row: row["relative_increase"])
    if rival is not generic and rival["relative_increase"] < best["relative_increase"] - _TIE:
        text += f" The baseline “{rival['method']}” does better, at {_above(rival)} it."
    return text


def pack(value: Any, shared: list[list[str]]) -> Any:
    """Turn a figure into plain JSON values.

    Large arrays become ``{"$packed": ...}`` (of symmetric matrices the upper triangle only), long lists of strings
    ``{"$shared": k}``; the page's script undoes both. Other floats keep four significant digits.

    Args:
        value: dicts, lists, arrays, strings and numbers.
        shared: receives the shared lists.
    """
    if isinstance(value, Mapping):
        return {key: pack(item, shared) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        if value.ndim == 2 and value.size > _PACKED and value.dtype.kind == "f":
            return _pack_matrix(value)
        return pack(value.tolist(), shared)
    if isinstance(value, (list, tuple)):
        if len(value) >= _SHARED and all(isinstance(item, str) for item in value):
            if list(value) not in shared:
                shared.append(list(value))
            return {"$shared": shared.index(list(value))}
        return [pack(item, shared) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value


def _pack_matrix(matrix: npt.NDArray[np.floating]) -> dict[str, Any]:
    """16-bit steps from the smallest to the largest value; 65535 is NaN."""
    values = np.asarray(matrix, dtype=np.float64)
    finite = np.isfinite(values)
    low = float(values[finite].min()) if finite.any() else 0.0
    step = (float(values[finite].max()) - low) / 65534 if finite.any() else 0.0
    steps = np.full(values.shape, 65535, dtype="<u2")
    steps[finite] = np.round((values[finite] - low) / (step or 1.0))
    triangle = values.shape[0] == values.shape[1] and bool(np.array_equal(steps, steps.T))
    body = steps[np.triu_indices(len(steps))] if triangle else steps
    return {
        "$packed": base64.b64encode(body.tobytes()).decode("ascii"),
        "shape": list(values.shape),
        "triangle": triangle,
        "low": low,
        "step": step,
    }


def _script_json(figures: dict[str, Spec], groups: tuple[Any, ...]) -> str:
    """The figures as JSON that no string in it can break out of: ``</script>`` needs a ``<``, and none is left."""
    shared: list[list[str]] = []
    document = {
        "figures": pack(figures, shared),
        "groups": {group.name: {"colors": group.colors, "index": group.index.tolist()} for group in groups},
        "shared": shared,
    }
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 is escaped too
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _asset(name: str) -> str:
    """A file of ``t2v_core/templates``."""
    return (files("t2v_core") / "templates" / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """A content security policy that runs these scripts and nothing else, and loads nothing."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def _readings(selection: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows by reading, in the order given; ``best`` is true on the lowest increase that is not the oracle's."""
    readings: dict[str, list[dict[str, Any]]] = defaultdict(list)
    numbers = [column for column in SELECTION_COLUMNS if column not in ("reading", "method", "note")]
    selection = selection.assign(**{column: pd.to_numeric(selection[column]) for column in numbers})
    for row in selection.itertuples(index=False):
        readings[str(row.reading)].append(row._asdict() | {"method": str(row.method), "best": False})
    for rows in readings.values():
        rivals = [
            row for row in rows if "oracle" not in row["method"].lower() and np.isfinite(row["relative_increase"])
        ]
        for row in rivals:
            row["best"] = row["relative_increase"] == min(rival["relative_increase"] for rival in rivals)
    return list(readings.items())


def _tiles(data: ReportData) -> list[tuple[str, str]]:
    """The four numbers under the headline."""
    sources = data.tasks["source"].nunique()
    return [
        (f"{len(data.tasks):,}", f"{_plural('task', len(data.tasks))} from {sources} {_plural('source', sources)}"),
        (f"{len(data.experts):,}", f"{_plural('expert', len(data.experts))} to choose from"),
        (f"{data.embeddings.shape[1]:,}", "numbers in an embedding"),
        (percent(data.oracle_error), "mean error of the best expert"),
    ]


def _correlations(data: ReportData) -> list[tuple[str, float, int]]:
    """Rank correlation of norm and error: ``(whose error, rho, n)``."""
    norm = pd.to_numeric(data.tasks["complexity"]).to_numpy(dtype=np.float64)
    return [
        (label, *rank_correlation(norm, pd.to_numeric(data.tasks[column]).to_numpy(dtype=np.float64)))
        for column, label in (("head_error", "the head on the probe"), ("oracle_error", "the best expert"))
    ]


def _by_reason(rejected: tuple[tuple[str, str, str], ...]) -> list[tuple[str, str, int, list[str]]]:
    """Rejected images as ``(source, reason, count, first ids)``, the most frequent first."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for source, image_id, reason in rejected:
        found[source, reason].append(image_id)
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(source, reason, len(ids), ids[:4]) for (source, reason), ids in ranked]


def _above(row: Mapping[str, Any]) -> str:
    """``12.3% [8.1, 17.0] above``, or below."""
    value = row["relative_increase"]
    word = "above" if value >= 0 else "below"
    interval = (
        "" if not np.isfinite(row["relative_low"]) else f" [{_bounds(row['relative_low'], row['relative_high'])}]"
    )
    return f"{percent(abs(value))}{interval if value >= 0 else ''} {word}"


def _signed(value: float, low: float | None = None, high: float | None = None) -> str:
    """A ratio as ``+12.3% [8.1, 17.0]``."""
    return _interval(value, low, high, "%")


def _points(value: float, low: float | None = None, high: float | None = None) -> str:
    """A difference of errors in percentage points, ``+1.2 [0.8, 1.7]``."""
    return _interval(value, low, high, "")


def _interval(value: float, low: float | None, high: float | None, unit: str) -> str:
    if not np.isfinite(value):
        return "–"
    text = f"{100 * value:+.1f}{unit}".replace("-", "−")
    if low is None or high is None or not (np.isfinite(low) and np.isfinite(high)):
        return text
    return f"{text} [{_bounds(low, high)}]"


def _bounds(low: float, high: float) -> str:
    return f"{100 * low:.1f}, {100 * high:.1f}".replace("-", "−")


def _seconds(value: float) -> str:
    """``95.2`` as ``1 min 35 s``."""
    if not np.isfinite(value):
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
