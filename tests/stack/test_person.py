"""`make stack-test`: what a person does with the whole stack, by the pages' own calls and in Chromium. One after another."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from person import Person, draw_shapes, small_config

from flows._store import Store
from infra.stack.health import call

pytestmark = [pytest.mark.soak, pytest.mark.server, pytest.mark.timeout(1200)]

SHOTS = os.environ.get("T2V_STACK_SHOTS", "")
"""Where screenshots are kept; empty: in the stack's folder. docs/images has those of a run with this set."""


@pytest.fixture(scope="module")
def config(place: Path) -> str:
    """A config by a short name, as a person would write it."""
    return small_config(place)


@pytest.fixture(scope="module")
def page(place: Path) -> Iterator[Any]:
    """A page of a headless Chromium."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "no Chromium here; on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def shot(page: Any, place: Path, name: str) -> None:
    folder = Path(SHOTS) if SHOTS else place / "shots"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    page.wait_for_timeout(1500)  # charts move into place
    page.screenshot(path=str(path))
    assert path.stat().st_size < 400_000


def test_everything_is_well_and_deployed(person: Person) -> None:
    assert set(person.stack.ills().values()) == {""}
    names = {d["name"] for d in person.api("/deployments/filter", {})}
    assert names == {"default", "nightly"}
    assert len(person.api("/deployments/filter", {})) >= 9
    workers = person.api("/work_pools/t2v/workers/filter", {})
    assert [w["status"] for w in workers] == ["ONLINE"]
    variable = person.api("/variables/name/t2v_stack")["value"]
    assert person.stack.layout.url["store"] in variable
    assert person.stack.layout.secret_key not in variable


def test_the_form_runs_the_pipeline(person: Person, page: Any, place: Path, config: str) -> None:
    url, deployment = person.stack.layout.url, person.deployment("pipeline/default")
    page.goto(f"{url['prefect']}/deployments/deployment/{deployment['id']}/run")
    page.get_by_text("Configuration file of the pipeline (YAML).").wait_for()
    fields = page.locator("textarea")
    filled = [i for i in range(fields.count()) if fields.nth(i).input_value() == "examples/demo.yaml"]
    assert len(filled) == 1
    fields.nth(filled[0]).fill(config)
    shot(page, place, "prefect-form")
    page.get_by_role("button", name="Submit").click()
    body = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    (run,) = person.wait("the run of the form", lambda: person.api("/flow_runs/filter", body), 60)
    assert run["parameters"]["params"]["config"] == config
    # Progress moves while it runs: the stage's artifact is neither at its beginning nor at its end.
    seen: set[float] = set()

    def embedding() -> bool:
        artifact = person.artifacts(run["id"]).get("embed-tasks")
        if artifact:
            seen.add(float(artifact["data"]))
        return bool(artifact) and float(artifact["data"]) == 100

    person.wait("the end of embedding", embedding, 400)
    assert any(0 < value < 100 for value in seen), seen
    state = person.end(run["id"])
    assert state["type"] == "COMPLETED", state
    summary = person.artifacts(run["id"])["pipeline-summary"]["data"]
    assert "| MODEL2VEC |" in summary
    page.goto(f"{url['prefect']}/runs/flow-run/{run['id']}")
    page.get_by_text("Completed").first.wait_for()
    page.get_by_text("embed-tasks").first.wait_for(state="attached") if page.get_by_text(
        "embed-tasks"
    ).count() else None
    shot(page, place, "prefect-run")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("pipeline-summary").first.wait_for()
    artifact = person.artifacts(run["id"])["pipeline-summary"]
    page.goto(f"{url['prefect']}/artifacts/artifact/{artifact['id']}")
    page.get_by_text("relative error increase").first.wait_for()
    shot(page, place, "prefect-summary")


def test_cancelled_in_flight_and_started_again(person: Person, shell: Person, config: str) -> None:
    url = f"s3://{person.stack.layout.config.bucket}/again"
    store = Store(url)
    run = person.run("pipeline/default", config=config, store=url)
    person.wait("two embeddings", lambda: len(store.list("units/embeddings")) >= 2, 300)
    person.api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": False})
    assert person.end(run, 120)["type"] == "CANCELLED"
    there = store.list("units")
    assert there
    assert not store.list("units/error_matrix")  # it really was in mid-flight
    # The page's button Retry.
    again = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}, "force": True}
    person.api(f"/flow_runs/{run}/set_state", again)
    person.wait("the second start", lambda: person.state(run)["type"] != "CANCELLED", 60)
    state = person.end(run)
    assert state["type"] == "COMPLETED", state
    whole = Store(person.stack.layout.url["store"])
    assert store.list("units") == whole.list("units")
    # What was complete was reused: the summary of the second start counts the rest only.
    (result,) = [store.read_json(key) for key in store.list("results")]
    stages = {s["stage"]: s for s in result["stages"]}
    embedded = [key for key in there if key.startswith("units/embeddings/")]
    assert stages["embed tasks"]["reused"] == len(embedded)
    assert stages["embed tasks"]["done"] == len(whole.list("units/embeddings")) - len(embedded)


def test_the_nightly_embeds_what_was_added(person: Person, shell: Person, place: Path, config: str) -> None:
    store = Store(person.stack.layout.url["store"])
    before = set(store.list("units/embeddings"))
    added = draw_shapes(place / "added", seed=1, kinds=("square", "cross"))
    command = [sys.executable, "-m", "flows.cli", "tasks", "--config", config, "add", "extra", str(added)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # As the page of the deployment does it: parameters, then the schedule.
    deployment = person.deployment("embed-tasks/nightly")
    params = {"params": {**deployment["parameters"]["params"], "config": config}}
    patch(f"{person.stack.layout.api}/deployments/{deployment['id']}", {"parameters": params})
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=75)
    (schedule,) = deployment["schedules"]
    patch(
        f"{person.stack.layout.api}/deployments/{deployment['id']}/schedules/{schedule['id']}",
        {"schedule": {"cron": f"{soon.minute} {soon.hour} * * *", "timezone": "Etc/UTC"}},
    )
    body = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["RUNNING", "COMPLETED", "FAILED", "CRASHED"]}}},
    }
    (run,) = person.wait("the nightly", lambda: person.api("/flow_runs/filter", body), 240)
    assert run["auto_scheduled"]
    state = person.end(run["id"])
    assert state["type"] == "COMPLETED", state
    new = set(store.list("units/embeddings")) - before
    assert new
    assert before <= set(store.list("units/embeddings"))
    units = person.units(run["id"], "embed tasks")
    assert len(units) == len(new)
    assert all("extra/" in unit for unit in units), units


def patch(url: str, body: dict[str, Any]) -> None:
    """PATCH, which the pages use to change a deployment."""
    import json
    import urllib.request

    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method="PATCH", headers={"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
        pass


def test_results_are_read_with_duckdb_and_pandas(shell: Person) -> None:
    import duckdb
    import fsspec

    url = shell.stack.layout.url["store"]
    embeddings = pd.read_parquet(f"{url}/embeddings")
    assert {"digits/digit", "shapes/label"} <= set(embeddings["task_id"])
    assert embeddings["task_id"].str.startswith("extra/").any()
    vectors = np.stack(embeddings["vector"])  # [T, P]
    assert np.isfinite(vectors).all()
    assert (vectors > 0).any()
    database = duckdb.connect()
    database.register_filesystem(fsspec.filesystem("s3"))
    found = database.execute(
        f"SELECT expert, count(*), min(error), max(error) FROM '{url}/error_matrix/*.parquet' GROUP BY expert"
    ).fetchall()
    assert {row[0] for row in found} == {"generic", "digits-expert", "shapes-expert"}
    assert all(0 <= low <= high <= 1 for _, _, low, high in found)


def test_the_champion_ranks_experts(shell: Person) -> None:
    import mlflow

    mlflow.set_tracking_uri(shell.stack.layout.url["mlflow"])
    selector = mlflow.pyfunc.load_model("models:/t2v-selector-mini@champion")
    embeddings = pd.read_parquet(f"{shell.stack.layout.url['store']}/embeddings")
    vectors = np.stack(embeddings["vector"].head(2)).astype(np.float32)  # [N, P]
    ranked = selector.predict({"vector": vectors}, params={"top_k": 3})
    assert set(ranked["query"]) == {0, 1}
    assert set(ranked["expert"]) <= {"generic", "digits-expert", "shapes-expert"}
    assert (ranked.groupby("query")["distance"].apply(lambda d: d.is_monotonic_increasing)).all()


def test_mlflow_shows_the_run_and_its_figures(person: Person, page: Any, place: Path) -> None:
    url = person.stack.layout.url["mlflow"]
    experiments = call(f"{url}/api/2.0/mlflow/experiments/search", {"max_results": 10})["experiments"]
    (experiment,) = [e["experiment_id"] for e in experiments if e["name"] == "t2v mini"]
    runs = call(f"{url}/api/2.0/mlflow/runs/search", {"experiment_ids": [experiment]})["runs"]
    run = runs[0]["info"]["run_id"]
    page.goto(f"{url}/#/experiments/{experiment}/runs/{run}")
    page.get_by_text("model2vec/").first.wait_for()
    close = page.get_by_role("button", name="Close").or_(page.get_by_label("Close"))
    if close.count():
        close.first.click()  # the assistant's pane
    shot(page, place, "mlflow-run")
    page.goto(f"{url}/#/experiments/{experiment}/runs/{run}/artifacts")
    page.get_by_text("error_matrix.png").click()
    page.locator("img[src*='blob:'], img[alt*='error_matrix'], .image-outer-container img").first.wait_for(
        state="attached"
    )
    shot(page, place, "mlflow-figure")


def test_dask_shows_its_workers(person: Person, page: Any, place: Path) -> None:
    page.goto(f"{person.stack.layout.url['dashboard']}/workers")
    page.locator(".bk-Figure, .bk-DataTable, div[class*='bk']").first.wait_for(state="attached")
    shot(page, place, "dask-workers")
