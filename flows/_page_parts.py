"""What the report page takes from the store beside tables: images of the tasks, costs, where the results lie."""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image

from flows._data import annotations, decode_rows
from flows._keys import EMBEDDINGS, ERROR_MATRIX
from flows._links import mlflow_link, without_secret
from flows._results import Results
from flows._settings import mlflow_uri
from flows._stage import Run
from t2v_core.images import ImageTransform
from t2v_core.library import TaskLibrary, resolve_task
from t2v_core.report_data import CostLine, Link
from t2v_core.thumbnails import Thumbnail, make_thumbnail, pick_images, thumbnail_size

__all__ = ["costs", "links", "task_images"]


def task_images(run: Run, library: TaskLibrary, task_ids: tuple[str, ...]) -> dict[str, Thumbnail]:
    """A few images of each task, read from the packed sources; of each source once, and only the parts needed."""
    size, wanted = thumbnail_size(len(task_ids)), set(task_ids)
    transform = ImageTransform(size=size.pixels, mean=(0, 0, 0), std=(1, 1, 1))
    prefixes = run.pointed("sources")["sources"]
    out: dict[str, Thumbnail] = {}
    for source, tasks in library.by_source().items():
        shown = [t for t in tasks if t.task_id in wanted]
        if not shown or source not in prefixes:
            continue
        table = annotations(run.store.url, prefixes[source])
        picked = {t.task_id: pick_images(resolve_task(t.spec, table), size.images) for t in shown}
        rows = np.unique([row for rows in picked.values() for row, _ in rows])
        pixels = decode_rows(run.store.url, prefixes[source], transform, rows)
        for task in shown:
            images = [Image.fromarray(pixels[np.searchsorted(rows, row)]) for row, _ in picked[task.task_id]]
            names = [task.spec.classes[c] for _, c in picked[task.task_id]]
            out[task.task_id] = make_thumbnail(images, names, size.pixels)
    return out


def costs(results: Results) -> tuple[CostLine, ...]:
    """Seconds of each kind of work behind these results, from their records."""
    cells = results.cells.to_pandas()
    made = cells[cells["features_seconds"] > 0].drop_duplicates(["expert", "source"])
    trained = [float(e["seconds"]) for e in results.experts if e["tasks"]]
    kinds = {
        "embed a task": results.table.frame["seconds"],
        "train an expert": pd.Series(trained, dtype=float),
        "features of a source by an expert": made["features_seconds"],
        "a head of the error matrix": cells["seconds"],
    }
    return tuple(
        CostLine(what, len(seconds), float(seconds.median()), float(seconds.sum()))
        for what, seconds in kinds.items()
        if len(seconds)
    )


def links(run: Run, selection: str, experiment: str, mlflow_run: str) -> tuple[Link, ...]:
    """Where the run and its results lie; paths in the store are relative to the page, which lies in ``reports/``.

    Args:
        run: of the pipeline.
        selection: folder of the selection.
        experiment: its id in MLflow.
        mlflow_run: likewise of the run.
    """
    uri = without_secret(mlflow_uri(run.config.name))
    page = mlflow_link(experiment, mlflow_run, uri)
    return (
        Link("MLflow run", f"{mlflow_run} in {uri}", page if page != uri else ""),
        Link("Store", without_secret(run.store.url)),
        Link("Embeddings", EMBEDDINGS, f"../{EMBEDDINGS}"),
        Link("Error matrix", ERROR_MATRIX, f"../{ERROR_MATRIX}"),
        Link("Tasks", (manifest := run.pointed("library")["manifest"]), f"../{manifest}"),
        Link("Selection table", f"{selection}/table.parquet", f"../{selection}/table.parquet"),
        Link("Choices for each task", f"{selection}/choices.parquet", f"../{selection}/choices.parquet"),
        Link("Selector", f"{selection}/selector.safetensors", f"../{selection}/selector.safetensors"),
    )
