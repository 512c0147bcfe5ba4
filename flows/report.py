"""report: one self-contained page of a pipeline's results, and the same in MLflow."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow
from pydantic import Field

from flows._keys import report_key
from flows._links import without_secret
from flows._logged import log_result
from flows._page_parts import costs, links, task_images
from flows._results import Results
from flows._settings import mlflow_uri
from flows._stage import Run, StageParams, StageResult, open_run
from flows._tracking import experiment_id, find_run, registered_name
from flows.ingest import library_of
from t2v_core.arrange import arrange
from t2v_core.config import EmbeddingSpec
from t2v_core.distances import distance_matrix
from t2v_core.evaluation import LEFT_OUT
from t2v_core.metatasks import EVERYTHING
from t2v_core.report import render_report
from t2v_core.report_data import Failure, ReportData, StageLine

__all__ = ["ReportParams", "report"]

SHOWN = "MODEL2VEC"
"""The selector whose choice is marked in the figures."""


class ReportParams(StageParams):
    """Parameters of report."""

    stages: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Outcomes of the stages that ran before; the pipeline fills it, leave it empty.",
    )

    @property
    def results(self) -> list[StageResult]:
        """The outcomes, read."""
        return [StageResult.model_validate(stage) for stage in self.stages]


def _versions() -> str:
    names = ("t2v", "torch", "prefect", "dask", "mlflow")
    return ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)


def _tasks(run: Run, results: Results, choices: pd.DataFrame) -> pd.DataFrame:
    """One row a task, as the page wants it."""
    library, table, matrix = library_of(run), results.table, results.matrix
    by_id = {t.task_id: t for t in library.tasks}
    mine = choices[(choices["reading"] == LEFT_OUT) & (choices["method"] == SHOWN)]
    mine = mine.drop_duplicates("task_id").set_index("task_id")  # of several meta-tasks, the first
    masked = np.where(matrix.own, np.nan, matrix.errors)
    rows = []
    for i, task_id in enumerate(table.task_ids):
        task = by_id[task_id]
        known = np.isfinite(masked[i]).any()
        rows.append(
            {
                "task_id": task_id,
                "source": task.spec.source,
                "domain": task.spec.domain,
                "kind": task.spec.kind,
                "lineage": list(task.spec.lineage),
                "n_classes": len(task.spec.classes),
                "n_train": sum(task.train_counts),
                "n_test": sum(task.test_counts),
                "complexity": float(table.frame["complexity"].iloc[i]),
                "head_error": float(table.frame["head_error"].iloc[i]),
                "oracle_error": float(np.nanmin(masked[i])) if known else np.nan,
                "generic_error": float(matrix.errors[i, 0]),
                "selected_expert": mine["expert"].get(task_id, ""),
                "selected_error": float(mine["error"].get(task_id, np.nan)),
            }
        )
    return pd.DataFrame(rows)


def _rejects(run: Run) -> list[tuple[str, str, str]]:
    out = []
    for name, prefix in run.pointed("sources")["sources"].items():
        rejects = run.store.read_table(f"{prefix}/rejects.parquet").to_pylist()
        out += [(name, r["image_id"], r["reason"]) for r in rejects]
    return out


def _commands(run: Run) -> list[tuple[str, str]]:
    store, name = run.store.url, run.config.name
    return [
        ("Rank the experts for a folder of yours", f"t2v select PATH --store {store}"),
        ("Open the runs in MLflow", f"t2v ui mlflow --name {name}"),
        ("Open the flows in Prefect", f"t2v ui prefect --name {name}"),
        (
            "Read the embeddings",
            f"python -c \"import pandas; print(pandas.read_parquet('{run.store.path('embeddings')}'))\"",
        ),
    ]


def _estimator(spec: EmbeddingSpec) -> str:
    """The estimator and its budget."""
    budgets = {
        "montecarlo": f", {spec.draws} draws",
        "montecarlo_plain": f", {spec.draws} draws",
        "variational": f" ({spec.variational.diagonal}), {spec.variational.images} images a pass",
        "reference": f", {spec.reference.epoch_size} draws",
    }
    return spec.estimator + budgets.get(spec.estimator, "")


def _data(run: Run, results: Results, record: dict[str, Any], stages: list[StageResult]) -> ReportData:
    selection = run.store.read_table(f"{record['prefix']}/table.parquet").to_pandas()
    choices = run.store.read_table(f"{record['prefix']}/choices.parquet").to_pandas()
    choices = choices[choices["meta_task"] == EVERYTHING]
    pairs = f"{record['prefix']}/pairs.parquet"
    table, matrix, config = results.table, results.matrix, run.config
    cells = results.cells.to_pandas()
    failures = [Failure(s.stage, unit, reason) for s in stages for unit, reason in s.failures]
    failures += [
        Failure("evaluate experts", f"{c.expert} on {c.task_id}", c.reason, c.seconds)
        for c in cells[cells["reason"] != ""].itertuples()
    ]
    notes = [note.split(" left out: ", 1) for s in stages for note in s.notes]
    judged = selection[(selection["reading"] == LEFT_OUT) & (selection["meta_task"] == EVERYTHING)]
    oracle = judged[judged["method"] == "oracle"]["error"]
    p, e = config.probe, config.embedding
    return ReportData(
        title=f"t2v: {config.name}",
        subtitle=f"{len(table.task_ids)} tasks, {len(matrix.experts)} experts, probe {config.probe.name}",
        run={
            "probe": f"{run.probe.name}, weights {p.weights} ({run.probe.digest}), {p.image_size} px",
            "embedding": f"{run.probe.n_filters} filters, {_estimator(e)}, {e.max_images} images",
            "prior": f"beta {e.beta:g}; trivial embedding 2 beta / mean squared weight of the layer",
            "errors": config.selection.metric.replace("_", " "),
            "MODEL2VEC": f"gamma {record['gamma']:.3g}, l2 {record['l2']:g}, alpha {config.model2vec.alpha:g}",
            "store": run.store.url,
            "versions": _versions(),
        },
        stages=tuple(StageLine(s.stage, s.done, s.reused, s.failed, s.seconds, s.busy or np.nan) for s in stages),
        tasks=_tasks(run, results, choices),
        embeddings=table.vectors,
        domain_embeddings=table.domains,
        distances=distance_matrix(table.vectors),
        experts=matrix.experts,
        errors=matrix.errors,
        own=matrix.own,
        selection=selection,
        pairs=run.store.read_table(pairs).to_pandas() if run.store.exists(pairs) else None,
        floor=config.selection.floor,
        oracle_error=float(oracle.iloc[0]),
        conclusions=tuple(record["conclusions"]),
        failures=tuple(failures),
        rejected_images=tuple(_rejects(run)),
        skipped_tasks=tuple((n[0], n[-1]) for n in [*notes, *run.pointed("library")["skipped"]]),
        commands=tuple(_commands(run)),
        thumbnails=task_images(run, library_of(run), table.task_ids),
        costs=costs(results),
    )


@flow(name="report", flow_run_name="report[{params.config}]", persist_result=False)
def report(params: ReportParams) -> StageResult:
    """Write the report page and log the result to MLflow, once for each result."""
    began = time.perf_counter()
    result = StageResult(stage="report")
    with open_run(params) as run:
        results = Results(run)
        record = run.pointed("selection")
        key = report_key(run.config.name, record["prefix"])
        mlflow_run = find_run(run.config.name, record["prefix"])
        if run.store.exists(key) and mlflow_run:
            result.reused = 1
        else:
            stages = params.results
            data = _data(run, results, record, stages)
            arrangement = arrange(data)
            result.done, result.seconds = 1, time.perf_counter() - began
            mlflow_run = mlflow_run or log_result(
                run,
                results,
                data,
                arrangement,
                render_report(data, arrangement),
                record,
                key,
                [*stages, result] if stages else [],
            )
            # The page in the store names the MLflow run, so it is written when that is there.
            data = replace(data, links=links(run, record["prefix"], experiment_id(run.config.name), mlflow_run))
            run.store.replace(key, render_report(data, arrangement).encode())
        run.point(
            "report",
            {
                "report": key,
                "mlflow_run": mlflow_run,
                "mlflow": without_secret(mlflow_uri(run.config.name)),
                "experiment": experiment_id(run.config.name),
                "model": f"models:/{registered_name(run.config.name)}@champion",
            },
        )
        result.seconds = time.perf_counter() - began
        return result
