"""What the servers must hold before a flow runs: a bucket, a work pool, the deployments, a variable with addresses."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

from infra.stack.config import Layout
from infra.stack.health import call, s3_client
from infra.stack.manager import StackError
from infra.stack.services import BIN, ROOT, flow_environment

__all__ = ["cancel_runs", "create_bucket", "deploy", "prefect", "settle_by_heartbeat", "settle_runs"]


def create_bucket(layout: Layout) -> None:
    """The bucket of store and MLflow, where it is missing."""
    client = s3_client(layout)
    if layout.config.bucket not in {b["Name"] for b in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=layout.config.bucket)


def prefect(layout: Layout, *command: str) -> str:
    """One command of Prefect's client against the stack.

    Raises:
        StackError: it failed.
    """
    return _client(layout, [str(BIN / "prefect"), "--no-prompt", *command])


def _client(layout: Layout, command: list[str]) -> str:
    """A program in the stack's environment, without what the caller's says of other servers."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "T2V_", "MLFLOW_"))}
    done = subprocess.run(
        command,
        env={**ours, **flow_environment(layout), "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StackError(f"`{' '.join(command)}` failed: {(done.stdout + done.stderr).strip()[-800:]}")
    return done.stdout


def _schedule(layout: Layout) -> None:
    """Give the nightly deployment its cron, where it is another than prefect.yaml's."""
    deployment: dict[str, Any] = call(f"{layout.api}/deployments/name/embed-tasks/nightly")
    if [s["schedule"].get("cron") for s in deployment["schedules"]] == [layout.config.cron]:
        return
    name = "embed-tasks/nightly"
    prefect(layout, "deployment", "schedule", "clear", name, "--accept-yes")
    prefect(layout, "deployment", "schedule", "create", name, "--cron", layout.config.cron, "--timezone", "Etc/UTC")


def deploy(layout: Layout) -> list[str]:
    """Pool, deployments and variable; all of it may be there already. Returns the deployments' names.

    Raises:
        StackError: a command of Prefect's failed.
    """
    pool = layout.config.pool
    there = {p["name"] for p in call(f"{layout.api}/work_pools/filter", {})}
    if pool not in there:
        prefect(layout, "work-pool", "create", pool, "--type", "process")
    prefect(layout, "deploy", "--all", *(["--pool", pool] if pool != "t2v" else []))
    _schedule(layout)
    # For people: the page of variables says where everything is. No credentials.
    prefect(layout, "variable", "set", "t2v_stack", json.dumps(layout.url), "--overwrite")
    names = {f["id"]: f["name"] for f in call(f"{layout.api}/flows/filter", {"limit": 200})}
    found = call(f"{layout.api}/deployments/filter", {"limit": 200})
    return sorted(f"{names[d['flow_id']]}/{d['name']}" for d in found)


def settle_by_heartbeat(layout: Layout) -> None:
    """Have Prefect call a run Crashed whose process says nothing any more, and the runs inside it.

    Raises:
        StackError: the server did not take the automation.
    """
    command = [str(BIN / "t2v"), "alerts", str(ROOT / "infra/automations/heartbeats.yaml")]
    _client(layout, command)


def _busy(layout: Layout) -> list[dict[str, Any]]:
    """Flow runs that are under way by their state, nested ones too."""
    states = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
    return list(call(f"{layout.api}/flow_runs/filter", {"flow_runs": {"state": states}, "limit": 200}))


def settle_runs(layout: Layout) -> int:
    """Call those runs crashed that no process can be behind: the server has just started, and no worker yet.

    Whoever was killed could not say so, and Prefect would show the run, or a nested one, as Running for ever.
    """
    stale = _busy(layout)
    message = "The stack was stopped, or the flow's process killed, while this ran; start it again."
    for run in stale:
        body = {"state": {"type": "CRASHED", "message": message}, "force": True}
        call(f"{layout.api}/flow_runs/{run['id']}/set_state", body)
    return len(stale)


def cancel_runs(layout: Layout, seconds: float = 40) -> int:
    """Cancel the flow runs that are under way, and wait for them: a worker that stops kills them without a word."""
    outer = [r for r in _busy(layout) if r["parent_task_run_id"] is None]
    for run in outer:
        call(f"{layout.api}/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}, "force": False})
    deadline = time.monotonic() + seconds
    while _busy(layout) and time.monotonic() < deadline:
        time.sleep(0.5)
    return len(outer)
