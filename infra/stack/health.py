"""Is each process well? A check does what its users do: it asks the database, not only the port."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from infra.stack.config import Layout
from infra.stack.postgres import connect

__all__ = ["CHECKS", "call", "s3_client", "why_ill"]

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy


def call(url: str, body: dict[str, Any] | None = None, timeout: float = 10) -> Any:
    """GET, or POST of JSON; the answer's JSON, or its text where it is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with _direct.open(request, timeout=timeout) as answer:
        text = answer.read().decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


def s3_client(layout: Layout) -> Any:
    """A client of the stack's S3 server, with short patience."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", endpoint_url=layout.url["s3"], region_name="us-east-1",
        aws_access_key_id=layout.access_key, aws_secret_access_key=layout.secret_key,
        config=Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1}, proxies={}),
    )  # fmt: skip


def _postgres(layout: Layout) -> None:
    connection = connect(layout)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connection.close()


def _s3(layout: Layout) -> None:
    s3_client(layout).list_buckets()


def _prefect(layout: Layout) -> None:
    call(f"{layout.api}/ready")  # asks the database
    call(f"{layout.api}/flow_runs/count", {})


def _mlflow(layout: Layout) -> None:
    call(f"{layout.url['mlflow']}/api/2.0/mlflow/experiments/search", {"max_results": 1})


def _scheduler(layout: Layout) -> None:
    call(f"{layout.url['dashboard']}/health")


def _dask_workers(layout: Layout) -> None:
    if not call(f"{layout.url['dashboard']}/json/counts.json")["workers"]:
        raise ValueError("the scheduler sees no worker")


def _worker(layout: Layout) -> None:
    # 503 once it has not polled the server for a while.
    call(f"http://127.0.0.1:{layout.ports['worker']}/health")
    workers = call(f"{layout.api}/work_pools/{layout.config.pool}/workers/filter", {})
    if not any(w["status"] == "ONLINE" for w in workers):
        raise ValueError(f"the pool {layout.config.pool!r} sees no worker")


CHECKS: dict[str, Callable[[Layout], None]] = {
    "postgres": _postgres,
    "s3": _s3,
    "prefect": _prefect,
    "mlflow": _mlflow,
    "scheduler": _scheduler,
    "dask-workers": _dask_workers,
    "worker": _worker,
}


def why_ill(layout: Layout, name: str) -> str:
    """Why a process is not well, in one line; empty where it is."""
    try:
        CHECKS[name](layout)
    except urllib.error.HTTPError as error:
        return f"answers {error.code} {error.reason}"
    except Exception as error:  # noqa: BLE001  clients raise whatever they like, and all of it means ill
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return ""
