"""What people do with a store in which a pipeline has run; one store for all tests, its experts scored by features."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from prefect.client.orchestration import get_client
from processes import free_port

from flows._data import Extractor, load_network
from flows._plan import Speed, make_plan, probe_of
from flows._query import SelectExpertParams, newest_selector
from flows._registered import configured
from flows._stage import StageParams
from flows._store import Store
from flows.pipeline import PipelineParams, pipeline
from flows.score_experts import score_experts
from flows.select_expert import select_expert
from t2v_core.features import extract_features
from t2v_core.heads import balanced_error, fit_head, predict
from t2v_core.query import read_folder
from t2v_core.served import COLUMNS
from t2v_core.transferability import METHODS
from t2v_core.verify import split_of

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, mini_settings: dict[str, Any], prefect_api: None, dask_cluster: str
) -> Iterator[tuple[PipelineParams, dict[str, Any]]]:
    """The small pipeline, run with every scoring method: its parameters and its summary."""
    folder = tmp_path_factory.mktemp("use")
    content = copy.deepcopy(mini_settings) | {"scoring": {"methods": list(METHODS), "max_images": 30}}
    (folder / "mini.yaml").write_text(yaml.safe_dump(content))
    here = Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("T2V_STORE", "T2V_DASK", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        params = PipelineParams(config=str(folder / "mini.yaml"), store=str(folder / "store"), dask=dask_cluster)
        yield params, pipeline(params)
    os.chdir(here)


Made = tuple[PipelineParams, dict[str, Any]]


def test_scores_are_a_stage_with_rows_selectors_and_a_plan(made: Made) -> None:
    params, summary = made
    store = Store(params.store)
    stages = {s["stage"]: (s["done"], s["failed"]) for s in summary["stages"]}
    assert stages["score experts"] == (6, 0)  # three experts, two sources
    rows = pd.read_parquet(store.path("transferability"))
    assert len(rows) == 6 * 3 * len(list(METHODS))  # tasks x experts x methods
    assert rows.groupby("method")["task_id"].nunique().to_dict() == dict.fromkeys(METHODS, 6)
    assert set(rows["source"]) == {"digits", "shapes"}
    assert (rows["n_images"] <= 30).all()
    assert (rows["seconds"] > 0).all()
    # Heads of all three are known: those that two were trained with, and ImageNet's of the generic one.
    assert rows[rows["method"] == "leep"]["score"].map(math.isfinite).all()
    assert (rows["reason"] != "").sum() == rows["score"].isna().sum()
    table = pd.DataFrame(summary["table"])
    titles = {m.title for m in (METHODS[name] for name in METHODS)}
    for _, part in table.groupby("reading"):
        assert titles <= set(part["method"])
    # Again: nothing is left to do, and the plan knows it.
    again = score_experts(StageParams(**params.model_dump()))
    assert (again.done, again.reused, again.failed) == (0, 6, 0)
    config, place = configured(params.config, params.store)
    lines = {x.stage: x for x in make_plan(config, place, probe_of(config, place), Speed(100.0, 10.0)).lines}
    assert (lines["score experts"].units, lines["score experts"].there) == (6, 6)


def test_no_methods_no_stage(made: Made, tmp_path: Path) -> None:
    params, _ = made
    content = yaml.safe_load(Path(params.config).read_text()) | {"scoring": {}}
    (tmp_path / "off.yaml").write_text(yaml.safe_dump(content))
    result = score_experts(params.model_copy(update={"config": str(tmp_path / "off.yaml")}))
    assert (result.done, result.reused, result.failed) == (0, 0, 0)


# t2v select


def ask(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "select", *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=True, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def told(made: Made, shapes_folder: Path) -> dict[str, Any]:
    """The answer for the folder of shapes, two experts tried, as JSON."""
    params, _ = made
    answer: dict[str, Any] = json.loads(
        ask(str(shapes_folder), "--store", params.store, "--verify", "2", "--json").stdout
    )
    return answer


def test_the_answer_has_predictions_reasons_and_costs(told: dict[str, Any]) -> None:
    rows = told["experts"]
    assert [r["rank"] for r in rows] == [1, 2, 3]
    for row in rows:
        assert 0 <= row["low"] <= row["predicted_error"] <= row["high"] <= 1
        assert 0 <= row["better"] <= 1
        assert row["seconds"] > 0
    assert next(r for r in rows if r["rank"] == 1)["better"] == 0.5
    by = {r["expert"]: r for r in rows}
    assert by["generic"]["nearest"] == ""
    assert by["generic"]["nearest_distance"] is None
    assert by["digits-expert"]["nearest"] == "digits/digit"
    assert by["shapes-expert"]["nearest"].startswith("shapes/")
    # The folder is the source that the library's shapes were cut from: its own tasks are the nearest.
    near = told["nearest_tasks"]
    assert near[0]["task_id"].startswith("shapes/")
    assert near[0]["distance"] <= near[1]["distance"] <= near[2]["distance"]
    assert near[0]["best"] != "shapes-expert"  # it was trained on that task
    assert "6 tasks" in told["calibration"]
    assert set(told["parts"]) >= {"images", "probe features, head and Fisher", "trying experts"}
    assert sum(told["parts"].values()) <= told["seconds"]


def test_the_first_experts_are_tried_by_the_recipe_of_a_cell(
    told: dict[str, Any], made: Made, shapes_folder: Path
) -> None:
    params, _ = made
    assert [v["expert"] for v in told["verified"]] == [r["expert"] for r in told["experts"][:2]]
    store = Store(params.store)
    record = store.read_json("latest/mini/selection.json")
    for v in told["verified"]:
        assert v["n_train"] + v["n_test"] == 78
        assert v["low"] <= v["error"] <= v["high"]
        # The same by hand: features by the expert's weights, a head, errors on the same images.
        x = next(Extractor.model_validate(e["extractor"]) for e in record["experts"] if e["name"] == v["expert"])
        network = load_network(store.url, x)
        images = read_folder(str(shapes_folder), network.transform)
        test = split_of(images)
        z = extract_features(network, images.images).astype(np.float16).astype(np.float64)
        head = fit_head(z[~test], images.labels[~test], groups=images.groups[~test])
        wrong = balanced_error(images.labels[test], predict(z[test], head.weight, head.bias), 3)
        assert v["error"] == pytest.approx(wrong, abs=1e-9)
    assert told["verdict"].startswith("Tried on")
    # Two files with the same bytes (there are some) are on one side of the split.
    assert not set(images.groups[test]) & set(images.groups[~test])


def test_the_answer_for_people(made: Made, shapes_folder: Path) -> None:
    params, _ = made
    said = ask(str(shapes_folder), "--store", params.store, "--top", "2", COLUMNS="200").stdout
    assert "predicted" in said
    assert "Nearest tasks of the library:" in said
    assert "half of the errors were missed by less than" in said
    assert "nearest" in said
    assert "Trying all 3 experts" in said
    rows = [line for line in said.splitlines() if line.lstrip().startswith("│")]
    assert sum(any(expert in line for expert in ("generic", "digits-expert", "shapes-expert")) for line in rows) == 2


def test_three_lines_of_python(made: Made, shapes_folder: Path) -> None:
    params, _ = made
    from flows import select_experts

    answer = select_experts(str(shapes_folder), store=params.store)
    assert list(answer.ranking["rank"]) == [1, 2, 3]
    assert answer.cost_of_all == pytest.approx(answer.ranking["seconds"].sum())
    again = select_experts(str(shapes_folder), store=params.store)
    pd.testing.assert_frame_equal(answer.ranking, again.ranking)


def test_the_flow_keeps_the_answer_as_artifacts(made: Made, shapes_folder: Path) -> None:
    params, _ = made
    rows = select_expert(SelectExpertParams(path=str(shapes_folder), store=params.store, verify=1, top_k=2))
    assert [r["rank"] for r in rows] == [1, 2]
    with get_client(sync_client=True) as client:
        found = {a.key: a.data for a in client.read_artifacts()}
    assert "| tried | error |" in found["selection"]
    assert "Nearest tasks of the library" in found["selection"]
    assert json.loads(found["ranking"])[0]["expert"] == rows[0]["expert"]


# Over HTTP


@pytest.mark.server
def test_the_registered_model_answers_over_http(made: Made, tmp_path: Path) -> None:
    params, summary = made
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("mlflow")),
        "models",
        "serve",
        "-m",
        summary["model"],
        "-p",
        str(port),
    ]
    command += ["-h", "127.0.0.1", "--env-manager", "local", "-w", "1"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": summary["mlflow"], "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it starts uvicorn by its name
    # Elsewhere, where neither t2v's own folder nor an installed copy is at hand but the one that the model carries.
    environment.pop("PYTHONPATH", None)
    with (tmp_path / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        vectors = np.stack(pd.read_parquet(f"{params.store}/embeddings")["vector"].to_numpy())[:2].astype(np.float32)
        body = {"inputs": {"vector": vectors.tolist()}, "params": {"top_k": 2, "head_error": 0.2}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None, (tmp_path / "serve.log").read_text()[-3000:]
            try:
                with opener.open(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "serve.log").read_text()[-3000:]
                time.sleep(0.5)
        with opener.open(request, timeout=60) as answer:
            rows = json.load(answer)["predictions"]
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself, and says why
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    assert [(r["query"], r["rank"]) for r in rows] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    selector, _ = newest_selector(Store(params.store))
    expected = selector.rank(vectors[0], head_error=0.2).head(2)
    assert [r["expert"] for r in rows[:2]] == expected["expert"].tolist()
    assert [r["predicted_error"] for r in rows[:2]] == pytest.approx(expected["predicted_error"].tolist())
    assert set(rows[0]) == set(COLUMNS)
