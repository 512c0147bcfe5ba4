"""The selection table as the report shows it: by meta-task and reading, with the words that intervals allow."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from t2v_core.report_data import SELECTION_COLUMNS
from t2v_core.report_words import above, percent, plain_number, plural, points, seconds

__all__ = ["Block", "MetaTask", "Pairs", "headline", "selection_blocks"]

# A method whose name holds one of these words is what TASK2VEC is compared with, not TASK2VEC.
_BASELINES = ("oracle", "chance", "random", "generic", "imagenet", "static", "domain", "nearest", "largest", "taxonom")
_OTHERS = ("logme", "h-score", "hscore", "leep", "parc", "k-nn", "knn", "probe", "landmark", "tried")
_TEXTS = ("reading", "method", "note", "meta_task")
_SHOWN = (*SELECTION_COLUMNS, "meta_task", "error")  # the columns that have a place of their own in the table

# Further measures by name: header, and how a value is told; K stands for a number. Others are shown as they are.
_MEASURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    (r"regret(\d+)", "Best of first K, in points", lambda value: points(value)),
    (r"top(\d+)", "Best among first K", lambda value: percent(value, 0)),
    (r"tau", "Weighted τ", plain_number),
    (r"score_seconds", "Time to score", seconds),
    (r"query_images", "Image passes for a new task", lambda value: plain_number(round(value))),
    (r"query_seconds", "Time for a new task", seconds),
)

_TIE = 5e-4  # relative increases nearer than this look the same at the one decimal shown

Row = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """One reading of one meta-task.

    Attributes:
        reading: its name.
        rows: one a method: the columns of the table, ``best`` (lowest increase that is not the oracle's), ``overlaps``
            (its interval reaches the best one's) and ``range`` (see `_range`).
        reach: relative increase at the right end of the drawn intervals.
        more: headers of further measures; their values are each row's ``more``.
    """

    reading: str
    rows: list[Row]
    reach: float
    more: list[str]


@dataclass(frozen=True)
class Pairs:
    """Methods compared two by two, task by task, in one reading."""

    reading: str
    against: list[str]
    """The yardsticks."""
    rows: list[tuple[str, list[Row | None]]]
    """Method, and its comparison with each yardstick: ``difference``, ``low``, ``high``, ``verdict``."""


@dataclass(frozen=True)
class MetaTask:
    """The readings of one set of tasks and experts; ``name`` is empty where the table has only one."""

    name: str
    blocks: list[Block]
    overview: list[tuple[str, list[Row | None]]]
    """Method, and its row in each block."""
    pairs: list[Pairs]
    """Paired differences, by reading."""


def selection_blocks(selection: pd.DataFrame, pairs: pd.DataFrame | None = None) -> list[MetaTask]:
    """The table by meta-task and reading, in the order given, with the paired differences of each."""
    if not len(selection):
        return []
    frame = _named(selection)
    compared = None if pairs is None or not len(pairs) else _named(pairs)
    for column in frame.columns:
        if column in SELECTION_COLUMNS and column not in _TEXTS:
            frame[column] = pd.to_numeric(frame[column])
    out = []
    for name, part in frame.groupby("meta_task", sort=False):
        blocks = [_block(str(reading), rows) for reading, rows in part.groupby("reading", sort=False)]
        methods = list(dict.fromkeys(str(method) for method in part["method"]))
        found = [{row["method"]: row for row in block.rows} for block in blocks]
        beside = [] if compared is None else _pairs(compared[compared["meta_task"] == name])
        out.append(MetaTask(str(name), blocks, [(m, [rows.get(m) for rows in found]) for m in methods], beside))
    return out


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """With a column of meta-tasks, whose only one has no name where the table has none."""
    names = table["meta_task"] if "meta_task" in table else [""] * len(table)
    return table.assign(meta_task=["" if pd.isna(name) else str(name) for name in names])


def _pairs(frame: pd.DataFrame) -> list[Pairs]:
    out = []
    for reading, part in frame.groupby("reading", sort=False):
        against = list(dict.fromkeys(str(name) for name in part["against"]))
        found = {(str(row["method"]), str(row["against"])): row for row in part.to_dict("records")}
        methods = list(dict.fromkeys(method for method, _ in found))
        out.append(Pairs(str(reading), against, [(m, [found.get((m, a)) for a in against]) for m in methods]))
    return out


def _measure(column: str) -> tuple[str, Callable[[Any], str]]:
    """Header of a further measure, and how its values are told."""
    for pattern, header, told in _MEASURES:
        if match := re.fullmatch(pattern, column):
            return (header.replace("K", match[1]) if match.groups() else header), told
    return column.replace("_", " "), plain_number


def _block(reading: str, frame: pd.DataFrame) -> Block:
    extra = [c for c in frame.columns if c not in _SHOWN and frame[c].notna().any()]
    measures = {str(column): _measure(str(column)) for column in extra}
    rows: list[Row] = []
    for record in frame.to_dict("records"):
        row: Row = {str(k): v for k, v in record.items()}
        row["method"] = str(row["method"])
        row["note"] = row["note"] if isinstance(row["note"], str) else ""
        row["more"] = [told(row[c]) for c, (_, told) in measures.items()]
        rows.append(row | {"best": False, "overlaps": False})
    rivals = [r for r in rows if "oracle" not in r["method"].lower() and np.isfinite(r["relative_increase"])]
    reach = _reach(rivals)
    best = min(rivals, key=lambda r: r["relative_increase"]) if rivals else None
    for row in rows:
        row["range"] = _range(row, reach)
        if best is not None and row in rivals:
            row["best"] = row["relative_increase"] == best["relative_increase"]
            row["overlaps"] = not row["best"] and bool(row["relative_low"] <= best["relative_high"])
    return Block(reading, rows, reach, [header for header, _ in measures.values()])


def _reach(rows: Sequence[Row]) -> float:
    """Where the drawn intervals end: the largest bound, unless a few methods are far out and would squeeze the rest."""
    ends = sorted(
        row["relative_high"] if np.isfinite(row["relative_high"]) else row["relative_increase"] for row in rows
    )
    if not ends or ends[-1] <= 0:
        return 1.0
    usual = ends[(3 * (len(ends) - 1)) // 4]
    return float(min(ends[-1], 2.0 * usual) if usual > 0 else ends[-1])


def _range(row: Row, reach: float) -> dict[str, Any] | None:
    """Places from 0 to 100 of the interval's ends and its middle; ``beyond`` where the middle is further right."""
    middle = row["relative_increase"]
    if not np.isfinite(middle):
        return None
    low = row["relative_low"] if np.isfinite(row["relative_low"]) else middle
    high = row["relative_high"] if np.isfinite(row["relative_high"]) else middle

    def at(value: float) -> float:
        return round(float(np.clip(100 * value / reach, 0, 100)), 2)

    return {"low": at(low), "middle": at(middle), "high": at(high), "beyond": bool(middle > reach)}


def headline(selection: pd.DataFrame, n_tasks: int) -> str:
    """The answer in a sentence or two, whichever way it goes.

    Args:
        selection: as in `ReportData`; the first reading of the first meta-task is judged.
        n_tasks: tasks embedded, for when there is nothing to judge.
    """
    metas = selection_blocks(selection)
    first = metas[0].blocks[0].rows if metas else []
    judged = [row for row in first if np.isfinite(row["relative_increase"])]
    ours = [row for row in judged if not any(word in row["method"].lower() for word in (*_BASELINES, *_OTHERS))]
    generic = next((row for row in judged if "generic" in row["method"].lower()), None)
    if not ours:
        return f"{n_tasks:,} {plural('task', n_tasks)} embedded; no selection of experts was judged."
    best = min(ours, key=lambda row: row["relative_increase"])
    count = int(best["n_tasks"])
    text = (
        f"For {count:,} {plural('task', count)}, {best['method']} picks an expert whose error is on average "
        f"{above(best)} the best expert’s"
    )
    if generic is None:
        return f"{text}."
    gain = generic["relative_increase"] - best["relative_increase"]
    if abs(gain) < _TIE:
        return f"{text}. The generic expert does as well, so choosing makes no difference here."
    if gain > 0:
        text += f"; the generic expert’s is {above(generic)} it."
    else:
        text += f". It loses to the generic expert, whose error is {above(generic)} it."
    if best["relative_low"] <= generic["relative_high"] and generic["relative_low"] <= best["relative_high"]:
        text += " The two intervals overlap."
    rivals = [row for row in judged if row not in ours and "oracle" not in row["method"].lower()]
    rival = min(rivals, key=lambda row: row["relative_increase"])
    if rival is not generic and rival["relative_increase"] < best["relative_increase"] - _TIE:
        costly = any(word in rival["method"].lower() for word in _OTHERS)
        what = f"“{rival['method']}”, which looks at the experts themselves," if costly else f"“{rival['method']}”"
        text += f" {what} does better, at {above(rival)} it."
    return text
