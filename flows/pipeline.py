"""pipeline: the main job. It reads as the diagram: sources, tasks, embeddings, experts, errors, MODEL2VEC, report."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows._cluster import shared_cluster
from flows._keys import result_key
from flows._progress import Progress
from flows._settings import dask_address
from flows._stage import StageParams, StageResult, open_run
from flows.embed_tasks import EmbedTasksParams, embed_tasks
from flows.evaluate_experts import evaluate_experts
from flows.fit_model2vec import fit_model2vec
from flows.ingest import ingest
from flows.report import ReportParams, report
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
    "fit MODEL2VEC",
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
            "table": table.to_dict(orient="records"),
            "conclusions": record["conclusions"],
            "report": run.store.path(where["report"]),
            "prefix": record["prefix"],
            "keys": [where["report"], f"{record['prefix']}/selection.json"],
            "mlflow_run": where["mlflow_run"],
            "mlflow": where["mlflow"],
            "model": where["model"],
            "stages": [s.model_dump(mode="json") for s in stages],
        }


def _markdown(summary: dict[str, Any]) -> str:
    rows = [r for r in summary["table"] if r["reading"] == LEFT_OUT]
    lines = [f"# {summary['name']}: {summary['n_tasks']} tasks, {summary['n_experts']} experts", ""]
    lines += ["| selector | relative error increase | interval | absolute difference |", "|---|---|---|---|"]
    lines += [
        f"| {r['method']} | {r['relative_increase']:+.1%} | {r['relative_low']:+.1%} to {r['relative_high']:+.1%} "
        f"| {100 * r['absolute_difference']:+.2f} points |"
        for r in rows
    ]
    lines += ["", f"Own expert left out; errors below {summary['floor']:g} count as it in ratios.", ""]
    lines += [f"- {sentence}" for sentence in summary["conclusions"]]
    lines += ["", "| stage | done | reused | failed | seconds |", "|---|---|---|---|---|"]
    lines += [
        f"| {s['stage']} | {s['done']} | {s['reused']} | {s['failed']} | {s['seconds']:.0f} |"
        for s in summary["stages"]
    ]
    lines += ["", f"Report: `{summary['report']}`", f"MLflow run: `{summary['mlflow_run']}` in `{summary['mlflow']}`"]
    return "\n".join(lines)


@flow(name="pipeline", flow_run_name="pipeline[{params.config}]", persist_result=False)
def pipeline(params: PipelineParams) -> dict[str, Any]:
    """From sources to a selector: ingest, embed tasks, train experts, evaluate experts, fit MODEL2VEC, report.

    Every stage does what is missing in the store and nothing else; a second run does nothing.
    """
    common = params.model_dump()
    with shared_cluster(dask_address(params.dask), params.workers):
        stages = [
            ingest(StageParams(**common)),
            embed_tasks(EmbedTasksParams(**common, refresh=False)),
            train_experts(StageParams(**common)),
            evaluate_experts(StageParams(**common)),
            fit_model2vec(StageParams(**common)),
        ]
        progress = Progress("report", 1)
        stages.append(report(ReportParams(**common, stages=stages)))
        progress.advance()
    summary = _summary(params, stages)
    with open_run(params) as run:
        run.store.replace_json(result_key(run.config), summary)
    create_markdown_artifact(_markdown(summary), key="pipeline-summary", description="What the pipeline found")
    if not any(s.done for s in stages):
        get_run_logger().info("nothing to do: every unit was in the store already")
    return summary
