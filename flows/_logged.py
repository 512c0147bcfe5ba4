"""What of a result is logged to MLflow: settings, measures by method and meta-task, costs, tables, figures, inputs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL

from flows._keys import EMBEDDINGS, ERROR_MATRIX
from flows._links import linked, store_link
from flows._outcome import StageResult
from flows._results import Results
from flows._stage import Run
from flows._tracking import log_run
from t2v_core.arrange import Arrangement
from t2v_core.figures_static import static_figures
from t2v_core.metatasks import EVERYTHING
from t2v_core.report_data import ReportData

__all__ = ["log_result"]

SELECTOR = "MODEL2VEC"
"""The method that is registered."""
MEASURES = (
    "error",
    "relative_increase",
    "relative_low",
    "relative_high",
    "median_increase",
    "absolute_difference",
    "top1",
)
"""Columns of the table that become metrics."""


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names; lists of specs by their length."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {f"{prefix}.count": len(value)}
    return {prefix: str(value)[:250]}


def _slug(text: str) -> str:
    """A name as MLflow takes it in a metric's."""
    return re.sub(r"[^a-z0-9_.-]+", "_", text.lower())


def _measures(selection: pd.DataFrame) -> dict[str, float]:
    """The measures of the table as metrics: METHOD/READING/MEASURE, and below meta_task/NAME/ those of a meta-task."""
    out = {}
    for row in selection.itertuples():
        stem = f"meta_task/{_slug(row.meta_task)}/" if row.meta_task != EVERYTHING else ""
        stem += f"{_slug(row.method)}/{_slug(row.reading)}"
        for column in MEASURES:
            out[f"{stem}/{column}"] = float(getattr(row, column))
    return {name: value for name, value in out.items() if np.isfinite(value)}


def _made(results: Results) -> dict[str, float]:
    """Seconds that workers took to make what this result is of, whichever run made it."""
    cells = results.cells.to_pandas()
    features = cells.drop_duplicates(["expert", "source", "unit"])["features_seconds"]
    return {
        "made/embeddings_seconds": float(results.table.frame["seconds"].sum()),
        "made/experts_seconds": float(sum(e.get("seconds") or 0.0 for e in results.experts)),
        "made/expert_features_seconds": float(features.sum()),
        "made/heads_seconds": float(cells["seconds"].sum()),
    }


def _described(run: Run, record: dict[str, Any], page: str, n_tasks: int) -> str:
    """The run in Markdown, with where everything is."""
    tasks = f"{n_tasks} tasks, {record['n_tasks']} of them judged, {record['n_experts']} experts"
    lines = [f"{tasks}, probe {run.probe.name}.", ""]
    lines += [f"- {sentence}" for sentence in record["conclusions"]]
    lines += [
        "",
        f"Report page: {linked('in the store', store_link(run.store.path(page)))}; report.html among the artifacts.",
        f"Store: {linked(run.store.url, store_link(run.store.url))}.",
    ]
    root, ui = flow_run.root_flow_run_id, PREFECT_UI_URL.value()
    if root and ui:
        lines.append(f"Prefect: {linked('flow run', f'{ui}/runs/flow-run/{root}')}.")
    return "\n".join(lines)


def log_result(
    run: Run,
    results: Results,
    data: ReportData,
    arrangement: Arrangement,
    page: str,
    record: dict[str, Any],
    key: str,
    stages: list[StageResult],
) -> str:
    """Log a result as one run, with a run below it for each stage; returns its id.

    Args:
        run: the flow's surroundings.
        results: what was found.
        data: of the report page.
        arrangement: of tasks and experts on it.
        page: the report page.
        record: of the selection.
        key: of the report page.
        stages: how the stages of the pipeline run went.
    """
    config, store = run.config, run.store
    measures = _measures(data.selection)
    metrics = {
        "oracle_error": data.oracle_error,
        "n_tasks": float(len(data.tasks)),
        "n_experts": float(len(data.experts)),
        **measures,
        **_made(results),
    }
    tasks = data.tasks.assign(lineage=data.tasks["lineage"].map("/".join))
    errors = pd.DataFrame(data.errors, columns=list(data.experts))
    errors.insert(0, "task_id", data.tasks["task_id"])
    return log_run(
        config.name,
        record["prefix"],
        params=_flat(config.model_dump(mode="json")),
        metrics=metrics,
        tables={"selection.json": data.selection, "tasks.json": tasks, "error_matrix.json": errors},
        figures=static_figures(data, arrangement),
        inputs={
            "tasks": (tasks, store.path(run.pointed("library")["manifest"])),
            "embeddings": (results.table.frame, store.path(EMBEDDINGS)),
            "error_matrix": (errors, store.path(ERROR_MATRIX)),
        },
        texts={"report.html": page},
        selector=store.read(f"{record['prefix']}/selector.safetensors"),
        n_filters=run.probe.n_filters,
        tags={
            "t2v.store": store.url,
            "t2v.probe": run.probe.name,
            "t2v.config": config.name,
            "t2v.selection": record["prefix"],
            "t2v.tasks": str(record["n_tasks"]),
            "t2v.experts": str(record["n_experts"]),
            "t2v.prefect_flow_run": str(flow_run.root_flow_run_id or ""),
        },
        stages=stages,
        judged={k: v for k, v in measures.items() if _slug(SELECTOR) in k.split("/")},
        described=_described(run, record, key, len(data.tasks)),
    )
