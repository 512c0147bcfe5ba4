"""prefect.yaml on a real Prefect server: every deployment, the form, a run by the API, and the nightly schedule."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import free_port, stop

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DEPLOYED = {
    "pipeline/default",
    "ingest/default",
    "embed-tasks/nightly",
    "train-experts/default",
    "transfer/default",
    "evaluate-experts/default",
    "score-experts/default",
    "fit-model2vec/default",
    "report/default",
    "select-expert/default",
}


class Server:
    """A Prefect server and its API."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "T2V_"))},
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "DO_NOT_TRACK": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "NO_PROXY": "127.0.0.1",
        }

    def call(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for seconds in (0.5, 1, 2, 4, 8, None):
            try:
                with opener.open(request, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                # SQLite is busy with another writer: the server says 503, and its own clients ask again.
                if error.code != 503 or seconds is None:
                    raise
                time.sleep(seconds)
        raise AssertionError("not reached")

    def wait(self, what: str, ready: Callable[[], Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                value = ready()
            except OSError:
                value = None
            if value:
                return value
            time.sleep(1)
        raise AssertionError(f"{what} did not happen in {seconds:.0f} s")

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [str(BIN / "prefect"), "--no-prompt", *command],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, log: Path, *command: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            return subprocess.Popen(
                [str(BIN / "prefect"), *command], env=self.environment, cwd=ROOT, stdout=out, stderr=out
            )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect")
    server = Server(home)
    process = server.start(home / "server.log", "server", "start", "--host", "127.0.0.1", "--port", str(server.port))
    try:
        server.wait("the server's start", lambda: server.call("/health"), 120)
        server.run("work-pool", "create", "t2v", "--type", "process")
        server.run("deploy", "--all")
        yield server
    finally:
        stop(process, 30)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.server
@pytest.mark.timeout(600)
def test_the_deployments(server: Server) -> None:
    found = {}
    for d in server.call("/deployments/filter", {}):
        flow = server.call(f"/flows/{d['flow_id']}")
        found[f"{flow['name']}/{d['name']}"] = d
    assert set(found) == DEPLOYED
    assert all(d["work_pool_name"] == "t2v" for d in found.values())
    # The form of the UI: every parameter of every flow has words beside it.
    for name, d in found.items():
        schema = d["parameter_openapi_schema"]
        model = next(iter(schema["properties"]["params"].get("allOf", [schema["properties"]["params"]])))
        fields = schema["definitions"][model["$ref"].split("/")[-1]]["properties"]
        assert {"config", "store", "dask"} <= set(fields) or name == "select-expert/default"
        assert all(field.get("description") for field in fields.values()), name
    # The nightly run: a cron with a time zone, one at a time, and runs are really scheduled.
    nightly = found["embed-tasks/nightly"]
    (schedule,) = nightly["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["cron"] == "0 2 * * *"
    assert schedule["schedule"]["timezone"] == "Etc/UTC"
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    body = {
        "deployments": {"id": {"any_": [nightly["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    runs = server.wait("the scheduling of nightly runs", lambda: server.call("/flow_runs/filter", body), 90)
    assert all(r["expected_start_time"][11:16] == "02:00" for r in runs)
    assert all(r["auto_scheduled"] for r in runs)


@pytest.mark.server
@pytest.mark.timeout(600)
def test_a_run_by_the_api(server: Server, config: Callable[..., str], tmp_path: Path) -> None:
    """What a person does in the UI: changed parameters, Run; a worker picks it up; it completes and says what it found."""
    path = config()
    worker = server.start(tmp_path / "worker.log", "worker", "start", "--pool", "t2v", "--name", "test")
    try:
        deployment = server.call("/deployments/name/pipeline/default")
        params = {"config": path, "store": str(tmp_path / "store"), "workers": 2}
        body = {"parameters": {"params": params}, "idempotency_key": "by the API"}
        run = server.call(f"/deployments/{deployment['id']}/create_flow_run", body)

        def ended() -> Any:
            state = server.call(f"/flow_runs/{run['id']}")["state"]
            return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        state = server.wait("the end of the run", ended, 300)
        assert state["type"] == "COMPLETED", (state, (tmp_path / "worker.log").read_text()[-3000:])
    finally:
        stop(worker, 30)
    artifacts = server.call("/artifacts/filter", {})
    kinds = {a["key"]: a["type"] for a in artifacts}
    assert kinds["pipeline-summary"] == "markdown"
    assert kinds["embed-tasks"] == "progress"
    summary = next(a["data"] for a in artifacts if a["key"] == "pipeline-summary")
    assert "| MODEL2VEC |" in summary
    names = {r["name"] for r in server.call("/task_runs/filter", {"limit": 200})}
    assert {
        "embed tasks: digits/digit",
        "train experts: digits-expert",
        "evaluate experts: generic on shapes",
    } <= names


@pytest.mark.soak
@pytest.mark.server
@pytest.mark.timeout(600)
def test_two_nightlies_at_once(server: Server, config: Callable[..., str], tmp_path: Path) -> None:
    """One runs, the other is cancelled; none waits, fails, or does the work twice."""
    deployment = server.call("/deployments/name/embed-tasks/nightly")
    params = {"config": config(), "store": str(tmp_path / "store"), "workers": 1}
    body = {"parameters": {"params": params}}
    runs = [server.call(f"/deployments/{deployment['id']}/create_flow_run", body)["id"] for _ in range(2)]
    worker = server.start(tmp_path / "worker.log", "worker", "start", "--pool", "t2v", "--name", "nights")
    final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    try:

        def ended() -> Any:
            states = [server.call(f"/flow_runs/{run}")["state"] for run in runs]
            return states if all(s["type"] in final for s in states) else None

        states = server.wait("the end of both", ended, 300)
    finally:
        stop(worker, 30)
    assert sorted(s["type"] for s in states) == ["CANCELLED", "COMPLETED"], states


class Hook(BaseHTTPRequestHandler):
    """Takes messages, as a chat's webhook does."""

    messages: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.messages.append(json.loads(body)["text"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, list[str]]]:
    """A webhook's secret address, and what it was told."""
    messages: list[str] = []
    handler = type("MyHook", (Hook,), {"messages": messages})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/secret-part", messages
        listening.shutdown()


@pytest.mark.server
@pytest.mark.timeout(600)
def test_a_crashed_nightly_is_told(server: Server, hook: tuple[str, list[str]], tmp_path: Path) -> None:
    """`t2v alerts`, then: a crash of another flow, a nightly that crashes, and one whose machine is gone."""
    url, messages = hook
    quick = yaml.safe_load((ROOT / "infra/automations/heartbeats.yaml").read_text())
    quick["automations"][0]["trigger"]["within"] = 12  # not six minutes
    file = tmp_path / "heartbeats.yaml"
    file.write_text(yaml.safe_dump(quick))

    def alerts(path: Path, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", "alerts", str(path)]
        environment = server.environment | more
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )

    told = alerts(ROOT / "infra/automations/nightly.yaml")
    assert told.returncode == 2
    assert "set T2V_ALERT_URL" in told.stderr
    told = alerts(ROOT / "infra/automations/nightly.yaml", T2V_ALERT_URL=url)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("created: ") == 2
    told = alerts(ROOT / "infra/automations/nightly.yaml")  # the address is known to the server by now
    assert told.stdout.count("updated: ") == 2, told.stderr
    told = alerts(file)
    assert told.stdout.count("created: ") == 1, told.stderr
    found = {a["name"]: a for a in server.call("/automations/filter", {})}
    assert set(found) == {"t2v nightly failed", "t2v nightly missing", "t2v run without a heartbeat is crashed"}
    assert all(a["enabled"] for a in found.values())
    failed = found["t2v nightly failed"]["trigger"]
    assert set(failed["expect"]) >= {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
    assert "secret-part" not in json.dumps([list(found.values()), server.call("/block_documents/filter", {})])

    def run_of(deployment: str) -> dict[str, Any]:
        found = server.call(f"/deployments/name/{deployment}")
        run: dict[str, Any] = server.call(f"/deployments/{found['id']}/create_flow_run", {})
        return run

    def set_state(run: dict[str, Any], kind: str, message: str) -> None:
        state = {"type": kind, "name": kind.capitalize(), "message": message}
        server.call(f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})

    set_state(run_of("ingest/default"), "CRASHED", "not of the night")
    night = run_of("embed-tasks/nightly")
    set_state(night, "CRASHED", 'killed by "nobody"')
    server.wait("the message", lambda: messages, 90)
    assert "embed-tasks/nightly" in messages[0]
    assert night["name"] in messages[0]
    assert 'is Crashed: killed by "nobody"' in messages[0]
    assert night["id"] in messages[0]  # the link

    gone = run_of("embed-tasks/nightly")
    set_state(gone, "RUNNING", "")
    flow = {
        "prefect.resource.id": f"prefect.flow.{gone['flow_id']}",
        "prefect.resource.role": "flow",
        "prefect.resource.name": "embed-tasks",
    }
    beat = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{gone['id']}"},
        "related": [flow],
    }
    server.call("/events", [beat])
    server.wait("the second message", lambda: len(messages) > 1, 120)
    assert server.call(f"/flow_runs/{gone['id']}")["state"]["type"] == "CRASHED"
    assert gone["name"] in messages[1]
    assert "No heartbeat" in messages[1]
    assert len(messages) == 2  # of the other flow nothing was said
