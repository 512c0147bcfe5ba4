"""pipeline: the main job. It reads as the diagram: sources, tasks, embeddings, experts, errors, MODEL2VEC, report."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows._cluster import shared_cluster
from flows._keys import result_key
from flows._links import linked, mlflow_link, store_link
from flows._outcome import StageFailed
from flows._pages import in_table, markdown_stages, show_pipeline
from flows._progress import Progress
from flows._registered import configured
from flows._settings import dask_address
from flows._stage import StageParams, StageResult, open_run
from flows.embed_tasks import EmbedTasksParams, embed_tasks
from flows.evaluate_experts import evaluate_experts
from flows.fit_model2vec import fit_model2vec
from flows.ingest import ingest
from flows.report import ReportParams, report
from flows.score_experts import score_experts
from flows.train_experts import train_experts
from t2v_core.evaluation import LEFT_OUT
from t2v_core.metatasks import EVERYTHING

__all__ = ["STAGES", "PipelineParams", "pipeline"]

STAGES = [
    "annotations",
    "pack images",
    "ingest",
    "probe features",
    "embed tasks",
    "train experts",
    "evaluate experts",
    "score experts",
    "second moments",
    "fit MODEL2VEC",
    "compare selectors",
    "report",
]


class PipelineParams(StageParams):
    """Parameters of the main job."""


def _summary(params: PipelineParams, stages: list[StageResult]) -> dict[str, Any]:
    """What people want to know at the end; small, plain, written last."""
    with open_run(params) as run:
        record, where = run.pointed("selection"), run.pointed("report")
        table = run.store.read_table(f"{record['prefix']}/table.parquet").to_pandas()
        table = table[table["meta_task"] == EVERYTHING]
        table = table.astype(object).where(table.notna(), None)  # JSON has no NaN
        return {
            "name": run.config.name,
            "store": run.store.url,
            "n_tasks": record["n_tasks"],
            "n_experts": record["n_experts"],
            "floor": run.config.selection.floor,
            # A measure that a method has not is null: JSON has no NaN.
            "table": table.astype(object).where(table.notna(), None).to_dict(orient="records"),
            "conclusions": record["conclusions"],
            "report": run.store.path(where["report"]),
            "prefix": record["prefix"],
            "keys": [where["report"], f"{record['prefix']}/selection.json"],
            "mlflow_run": where["mlflow_run"],
            "mlflow": where["mlflow"],
            "mlflow_experiment": where.get("experiment", ""),
            "model": where["model"],
            "stages": [s.model_dump(mode="json") for s in stages],
        }


def _markdown(summary: dict[str, Any]) -> list[str]:
    """Lines of the summary that the flow run shows."""
    left_out = [r for r in summary["table"] if r["reading"] == LEFT_OUT]
    rows = [r for r in left_out if r["meta_task"] == EVERYTHING]
    page = mlflow_link(summary["mlflow_experiment"], summary["mlflow_run"], summary["mlflow"])
    lines = [
        f"# {summary['name']}: {summary['n_tasks']} tasks, {summary['n_experts']} experts",
        "",
        f"- Report: {linked('the page', store_link(summary['report']))}",
        f"- MLflow run `{summary['mlflow_run']}`: {linked('open it', page)}, selector `{summary['model']}`",
        f"- Store: {linked(summary['store'], store_link(summary['store']))}",
        "",
        *markdown_stages([StageResult.model_validate(s) for s in summary["stages"]]),
        "",
        *(f"- {sentence}" for sentence in summary["conclusions"]),
        "",
        f"Own expert left out; errors below {summary['floor']:g} count as it in ratios.",
        "",
        "| selector | relative error increase | interval | absolute difference |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {in_table(r['method'])} "
        f"| {r['relative_increase']:+.1%} | {r['relative_low']:+.1%} to {r['relative_high']:+.1%} "
        f"| {100 * r['absolute_difference']:+.2f} points |"
        for r in rows
    ]
    if apart := [r for r in left_out if r["meta_task"] != EVERYTHING and r["method"] == "MODEL2VEC"]:
        lines += ["", "| meta-task | MODEL2VEC's relative error increase | interval |", "|---|---|---|"]
        lines += [
            f"| {in_table(r['meta_task'])} | {r['relative_increase']:+.1%} "
            f"| {r['relative_low']:+.1%} to {r['relative_high']:+.1%} |"
            for r in apart
        ]
    return lines


def _failed(params: PipelineParams, stages: list[StageResult], error: StageFailed) -> list[str]:
    """Lines for a run that a stage ended."""
    lines = [f"# {params.config}: failed", "", f"**{in_table(str(error))}**", "", *markdown_stages(stages), ""]
    return [*lines, "What is done stays done: mend it and run again. docs/runbook.md says how."]


@flow(name="pipeline", flow_run_name="pipeline[{params.config}]", persist_result=False)
def pipeline(params: PipelineParams) -> dict[str, Any]:
    """From sources to a selector: ingest, embed tasks, train experts, evaluate experts, fit MODEL2VEC, report.

    Every stage does what is missing in the store and nothing else; a second run does nothing.
    """
    common = params.model_dump()
    stages: list[StageResult] = []
    with shared_cluster(dask_address(params.dask), params.workers, params.deadline):
        try:
            stages.append(ingest(StageParams(**common)))
            stages.append(embed_tasks(EmbedTasksParams(**common, refresh=False)))
            stages.append(train_experts(StageParams(**common)))
            stages.append(evaluate_experts(StageParams(**common)))
            if configured(params.config, params.store)[0].scoring.methods:
                stages.append(score_experts(StageParams(**common)))
            stages.append(fit_model2vec(StageParams(**common)))
            progress = Progress("report", 1)
            stages.append(report(ReportParams(**common, stages=[s.model_dump(mode="json") for s in stages])))
            progress.advance()
        except StageFailed as error:
            show_pipeline(_failed(params, stages, error))
            raise
    summary = _summary(params, stages)
    with open_run(params) as run:
        run.store.replace_json(result_key(run.config), summary)
    show_pipeline(_markdown(summary))
    if not any(s.done for s in stages):
        get_run_logger().info("nothing to do: every unit was in the store already")
    return summary
