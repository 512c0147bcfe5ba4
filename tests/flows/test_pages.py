"""What people see of a run, and where its units ran: on a cluster of one plain worker and one with a (made-up) GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import mlflow
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, TaskRunFilter, TaskRunFilterName
from prefect.client.schemas.objects import TaskRun

from flows._links import linked, mlflow_link, store_link, without_secret
from flows._outcome import StageResult, too_many_failed
from flows._pages import in_table, markdown_stages
from flows._stage import EstimatorChoice, StageFailed, StageParams
from flows._store import Store
from flows.evaluate_experts import evaluate_experts
from flows.pipeline import PipelineParams, pipeline
from t2v_core.fisher import ESTIMATORS

PLAIN = {"annotations", "pack images", "ingest", "evaluate experts", "second moments", "fit MODEL2VEC"}
ON_GPU = {"probe features", "embed tasks", "train experts", "expert features"}


def artifact(key: str) -> Any:
    """What the newest artifact of a key holds."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted, limit=200)
    return max(found, key=lambda a: a.created).data


def unit_run(name: str) -> TaskRun:
    """The newest run of a unit: other tests of this process may have run one of this name on the same server."""
    wanted = TaskRunFilter(name=TaskRunFilterName(any_=[name]))
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(task_run_filter=wanted, limit=200)
    return max(found, key=lambda r: r.created)


def parts(stages: list[dict[str, Any]]) -> dict[str, StageResult]:
    return {part.stage: part for s in stages for part in StageResult.model_validate(s).parts}


def check_mlflow(summary: dict[str, Any], stages: dict[str, StageResult]) -> None:
    """One run, one below it for each stage, costs by stage and device, and the selector's version."""
    client = mlflow.MlflowClient(summary["mlflow"], summary["mlflow"])
    run = client.get_run(summary["mlflow_run"])
    below = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    children = {r.info.run_name: r for r in below}
    assert set(children) == PLAIN | ON_GPU | {"report"}
    for name, child in children.items():
        device = "gpu" if name in ON_GPU else "cpu"
        metrics = child.data.metrics
        assert metrics["failed"] == 0
        assert metrics["done"] == stages[name].done > 0
        assert [k for k in metrics if k.startswith("busy")] == [f"busy_{device}_seconds"] * (name != "report")
    cost = run.data.metrics
    for device, names in (("gpu", ON_GPU), ("cpu", PLAIN)):
        total = sum(children[n].data.metrics[f"busy_{device}_seconds"] for n in names)
        assert cost[f"cost/busy_{device}_seconds"] == pytest.approx(total)
    assert cost["cost/embed-tasks/seconds"] == pytest.approx(stages["embed tasks"].seconds)
    assert cost["made/expert_features_seconds"] > 0  # units of features say it to the blocks
    judged = "model2vec/own_expert_left_out/relative_increase"
    version = client.get_model_version_by_alias("t2v-selector-mini", "champion")
    assert version.run_id == run.info.run_id
    assert version.tags["t2v.tasks"] == str(summary["n_tasks"])
    assert float(version.tags[judged]) == pytest.approx(cost[judged], rel=1e-4)
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert judged in {m.key for m in model.metrics}
    assert {d.dataset.name for d in run.inputs.dataset_inputs} == {"tasks", "embeddings", "error_matrix"}
    assert run.data.params["embedding.estimator"] == "variational"
    assert "Report page" in run.data.tags["mlflow.note.content"]


def check_prefect() -> None:
    """The artifacts, and names and tags of the units."""
    assert artifact("embed-tasks") == 100.0
    assert artifact("dask-dashboard").startswith("[Dask dashboard (1 GPUs and 1 threads without)](http://127.")
    assert "| embed tasks |" in artifact("embed-tasks-summary")
    assert set(unit_run("embed tasks: digits/digit").tags) == {"t2v", "embed-tasks"}


def test_a_mixed_cluster_and_what_is_shown(
    config: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: None
) -> None:
    monkeypatch.setenv("T2V_GPUS", "1")
    path = config(experts__rules=[{"name": "digits-expert", "tasks": ["digits/digit"]}])
    params = PipelineParams(config=path, store=str(tmp_path / "store"), workers=1)
    summary = pipeline(params)
    stages = parts(summary["stages"])
    assert {name: set(stages[name].devices) for name in PLAIN} == {name: {"cpu"} for name in PLAIN}
    assert {name: set(stages[name].devices) for name in ON_GPU} == {name: {"gpu"} for name in ON_GPU}
    check_mlflow(summary, stages)
    check_prefect()
    shown = artifact("pipeline-summary")
    assert "| MODEL2VEC |" in shown
    assert "| expert features | 2 | 2 | 0 |" in shown
    assert f"`{summary['report']}`" in shown

    # Cells that failed count, although their blocks are there.
    store = Store(params.store)
    key = store.read_json("latest/mini/error_matrix.json")["blocks"][0]
    table = store.read_table(key)
    reasons = table["reason"].to_pylist()
    broken = table.set_column(table.column_names.index("reason"), "reason", [["no <test> split"] * len(reasons)])
    store.replace(key, store.table_bytes(broken))
    store.delete("error_matrix/part-0.parquet")  # compaction reads units that it does not hold
    with pytest.raises(StageFailed, match="3 of 12 cells failed, more than the 5%.*to have them made again, delete it"):
        evaluate_experts(StageParams(**params.model_dump()))
    assert "**Failed.** " in artifact("evaluate-experts-summary")
    assert "no &lt;test&gt; split" in artifact("error-matrix-failures")
    with pytest.raises(StageFailed):
        pipeline(params)
    shown = artifact("pipeline-summary")
    assert "mini.yaml: failed" in shown
    assert "| train experts | 0 | 1 | 0 |" in shown


def test_the_form_offers_every_estimator() -> None:
    assert list(get_args(EstimatorChoice)) == ["as configured", *ESTIMATORS]
    schema = StageParams.model_json_schema()["properties"]
    assert schema["estimator"]["enum"] == list(get_args(EstimatorChoice))
    assert (schema["workers"]["minimum"], schema["workers"]["maximum"]) == (0, 1024)


@pytest.mark.parametrize(
    ("failed", "total", "share", "said"),
    [
        (0, 0, 0.0, False),
        (0, 9, 0.0, False),
        (1, 20, 0.05, False),
        (2, 20, 0.05, True),
        (9, 9, 1.0, True),
        (8, 9, 1.0, False),
    ],
)
def test_when_a_stage_failed(failed: int, total: int, share: float, said: bool) -> None:
    assert too_many_failed(failed, total, share) is said


def test_a_table_holds_what_units_are_called() -> None:
    lines = markdown_stages([StageResult(stage="embed tasks", failed=1, failures=[("a|<script>", "bad\nline & more")])])
    assert "| embed tasks | a\\|&lt;script&gt; | bad line &amp; more |" in lines
    assert in_table("plain") == "plain"


def test_links(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "T2V_MLFLOW_URL",
        "MLFLOW_TRACKING_URI",
        "T2V_STORE_CONSOLE",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ):
        monkeypatch.delenv(name, raising=False)
    assert mlflow_link("7", "ab", "sqlite:////runs/mlflow.db") == "sqlite:////runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@mlflow:5000/")
    assert mlflow_link("7", "ab", "http://mlflow:5000") == "http://mlflow:5000/#/experiments/7/runs/ab"
    monkeypatch.setenv("T2V_MLFLOW_URL", "https://mlflow.example")
    assert mlflow_link("7", "ab", "http://mlflow:5000") == "https://mlflow.example/#/experiments/7/runs/ab"
    assert store_link("/data/store/reports/a.html") == "/data/store/reports/a.html"
    aws = "https://s3.console.aws.amazon.com/s3"
    assert store_link("s3://bucket/t2v") == f"{aws}/buckets/bucket?prefix=t2v/"
    assert store_link("s3://bucket/t2v/reports/a.html") == f"{aws}/object/bucket?prefix=t2v/reports/a.html"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3:9000")
    assert store_link("s3://bucket/t2v") == "s3://bucket/t2v"
    monkeypatch.setenv("T2V_STORE_CONSOLE", "https://console.example/browser/")
    assert store_link("s3://bucket/t2v/a b") == "https://console.example/browser/bucket/t2v/a%20b"
    assert linked("store", "https://x.example/a") == "[store](https://x.example/a)"
    assert linked("store", "/data/store") == "`/data/store`"
    assert without_secret("postgresql://u:hunter2@db/mlflow?sslpassword=x") == "postgresql://db/mlflow"
