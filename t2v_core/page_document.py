"""The data that the page's script works on, small enough for 1,500 tasks: JSON in which arrays are packed.

Three blocks: ``page`` is read when the page opens, ``distances`` and ``images`` when they are first looked at.
Matrices are 16-bit steps between their extremes (8-bit for the distances between all tasks, which are only coloured),
in base64; of each task the nearest ones are kept with exact distances. ``templates/base.js`` undoes the packing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from t2v_core.arrange import Arrangement, domain_distances
from t2v_core.figures import floats, oracle_cells
from t2v_core.report_data import ReportData

__all__ = ["NEAREST", "page_blocks", "script_json"]

NEAREST = 20
"""Nearest tasks kept for each task."""


def page_blocks(data: ReportData, placed: Arrangement | None) -> dict[str, str]:
    """The blocks by name, as text that can stand in a ``script`` element.

    Args:
        data: what to show.
        placed: of `arrange`; None where there are no tasks.
    """
    blocks: dict[str, Any] = {"page": _page(data, placed), "distances": {}, "images": _images(data)}
    if placed is not None:
        order = placed.clustering.order
        for name, matrix in (("task", data.distances), ("domain", domain_distances(data))):
            ordered = np.asarray(matrix, dtype=np.float64)[np.ix_(order, order)]
            blocks["distances"][name] = _pack(ordered[np.triu_indices(len(order), 1)], bits=8, clip=True)
    return {name: script_json(block) for name, block in blocks.items()}


def script_json(value: Any) -> str:
    """JSON that no string in it can break out of: ``</script>`` and ``<!--`` need a ``<``, and none is left."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 is escaped too
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _page(data: ReportData, placed: Arrangement | None) -> dict[str, Any]:
    tasks = data.tasks
    lineages = [_path(lineage) for lineage in tasks["lineage"]]
    page: dict[str, Any] = {
        "ids": [str(task) for task in tasks["task_id"]],
        "source": _coded(tasks["source"]),
        "domain": _coded(tasks["domain"]),
        "kind": _coded(tasks["kind"]),
        "lineage": _coded(lineages),
        "selected": _coded(name if isinstance(name, str) else "" for name in tasks["selected_expert"]),
        "counts": {name: _whole(tasks[name]) for name in ("n_classes", "n_train", "n_test")},
        "norm": _short(floats(tasks["complexity"])),
        "error": {name: _short(floats(tasks[f"{name}_error"])) for name in ("head", "oracle", "generic", "selected")},
        "experts": list(data.experts),
        "errors": _pack(np.asarray(data.errors, dtype=np.float64)),
        "own": np.argwhere(data.own).ravel().tolist(),
        "best": oracle_cells(data).tolist() if len(data.experts) else [-1] * len(tasks),
        "groups": {},
    }
    if placed is None:
        return page
    page["groups"] = {g.name: {"colors": list(g.colors), "index": g.index.tolist()} for g in placed.groups}
    page["order"] = placed.clustering.order.tolist()
    links = placed.clustering.links
    page["tree"] = {"pairs": links[:, :2].astype(int).ravel().tolist(), "height": _short(links[:, 2])}
    page["maps"] = {"task": _pack(placed.task_map), "domain": _pack(placed.domain_map)}
    page["near"] = {
        "task": _nearest(np.asarray(data.distances, dtype=np.float64)),
        "domain": _nearest(domain_distances(data)),
    }
    return page


def _images(data: ReportData) -> dict[str, Any]:
    """Strips by the task's number, and the classes that they show."""
    shown = [(i, data.thumbnails[str(task)]) for i, task in enumerate(data.tasks["task_id"]) if task in data.thumbnails]
    return {
        str(i): {
            "strip": base64.b64encode(thumbnail.strip).decode("ascii"),
            "pixels": thumbnail.pixels,
            "names": list(thumbnail.names),
        }
        for i, thumbnail in shown
    }


def _nearest(distances: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Each task's nearest others, ``[T, K]``; -1 where fewer are at a finite distance."""
    away = np.where(np.isfinite(distances), distances, np.inf)
    np.fill_diagonal(away, np.inf)
    count = min(NEAREST, max(len(away) - 1, 0))
    index = np.argsort(away, axis=1, kind="stable")[:, :count]
    near = np.take_along_axis(away, index, axis=1)
    return {
        "count": count,
        "index": np.where(np.isfinite(near), index, -1).ravel().tolist(),
        "distance": _short(np.where(np.isfinite(near), near, np.nan).ravel()),
    }


def _pack(values: npt.NDArray[np.floating], bits: int = 16, clip: bool = False) -> dict[str, Any]:
    """Steps from the smallest to the largest value, row by row; the highest code is NaN.

    Args:
        values: any shape.
        bits: 8 or 16.
        clip: take the 1st and the 99th percentile as the extremes, so that one outlier does not wash out the colours.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    finite = np.isfinite(flat)
    low, high = 0.0, 0.0
    if finite.any():
        low, high = (float(v) for v in np.percentile(flat[finite], [1, 99] if clip else [0, 100]))
    missing = 2**bits - 1
    step = (high - low) / (missing - 1)
    steps = np.full(flat.shape, missing, dtype=f"<u{bits // 8}")
    steps[finite] = np.clip(np.round((flat[finite] - low) / (step or 1.0)), 0, missing - 1)
    return {
        "data": base64.b64encode(steps.tobytes()).decode("ascii"),
        "bits": bits,
        "low": low,
        "step": step,
    }


def _coded(values: Iterable[object]) -> dict[str, Any]:
    """A column of repeated strings: the names in order of appearance, and each row's."""
    texts = ["" if value is None or value != value else str(value) for value in values]
    number = {name: k for k, name in enumerate(dict.fromkeys(texts))}
    return {"names": list(number), "index": [number[text] for text in texts]}


def _path(lineage: object) -> str:
    """A lineage from the root down; Parquet gives it as an array, a folder source may have none."""
    return " › ".join(str(name) for name in lineage) if isinstance(lineage, (list, tuple, np.ndarray)) else ""


def _whole(column: Iterable[Any]) -> list[int]:
    return [int(value) for value in column]


def _short(values: npt.NDArray[np.floating]) -> list[float | None]:
    """Four significant digits; null for what is missing."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.tolist()]
