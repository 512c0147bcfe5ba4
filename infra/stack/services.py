"""The stack's processes: what each runs, in which environment, and how it is stopped. In the order of starting."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from infra.stack.config import Layout
from infra.stack.postgres import ROLE, account

__all__ = ["ROOT", "Service", "flow_environment", "services", "socket_path", "write_s3_identities"]

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: flows are deployed from it and run in it."""
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Service:
    """One process, as the process manager keeps it."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    stop_signal: str = "TERM"
    stop_seconds: int = 20
    whole_group: bool = True
    """Whether the stop signal goes to the process's children too."""


def socket_path(folder: Path, name: str) -> str:
    """A Unix socket's place: beside the data, or in the temporary folder where its name would be too long."""
    path = str(folder / f"{name}.sock")
    if len(path) <= 90:
        return path
    return str(Path(tempfile.gettempdir()) / f"t2v-{sha256(path.encode()).hexdigest()[:12]}-{name}.sock")


def _database(layout: Layout, name: str, driver: dict[str, str]) -> str:
    if layout.postgres:
        login = f"{ROLE}:{quote(layout.password)}@127.0.0.1:{layout.ports['postgres']}"
        return f"postgresql+{driver['postgres']}://{login}/{name}"
    return f"sqlite{driver['sqlite']}:///{layout.folder / name}.db"


def _s3_environment(layout: Layout) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": layout.access_key,
        "AWS_SECRET_ACCESS_KEY": layout.secret_key,
        "AWS_ENDPOINT_URL": layout.url["s3"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # Settings and profiles of the user's own belong to other stores.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def flow_environment(layout: Layout) -> dict[str, str]:
    """What a flow, or a person at a shell, needs to use the stack."""
    return {
        "PREFECT_API_URL": layout.api,
        "PREFECT_HOME": str(layout.folder / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        # A server or database that dies is back in half a minute: ask again for two, also where the server says 500
        # because its database is away.
        "PREFECT_CLIENT_MAX_RETRIES": "6",
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        "MLFLOW_TRACKING_URI": layout.url["mlflow"],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "DO_NOT_TRACK": "1",
        "T2V_STORE": layout.url["store"],
        "T2V_DASK": layout.url["scheduler"],
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        **_s3_environment(layout),
    }


def write_s3_identities(layout: Layout) -> Path:
    """SeaweedFS's list of who may do what, for the owner's eyes only. Without it S3 would be open to all."""
    path = layout.folder / "s3.json"
    keys = {"accessKey": layout.access_key, "secretKey": layout.secret_key}
    content = {"identities": [{"name": "t2v", "credentials": [keys], "actions": ["Admin"]}]}
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file)
    return path


def _postgres(layout: Layout) -> Service:
    command = [f"{layout.postgres}/postgres", "-D", str(layout.folder / "postgres"), "-p"]
    command += [str(layout.ports["postgres"]), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    # INT is PostgreSQL's "fast": it ends sessions and writes everything out. TERM would wait for the sessions.
    return Service("postgres", command, user=account(), stop_signal="INT", stop_seconds=60, whole_group=False)


def _s3(layout: Layout) -> Service:
    p, folder = layout.ports, layout.folder
    command = [str(BIN / "weed"), "-logtostderr=true", "server", f"-dir={folder / 's3'}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    for part, name in (("master", "s3_master"), ("volume", "s3_volume"), ("filer", "s3_filer"), ("s3", "s3")):
        command += [f"-{part}.port={p[name]}", f"-{part}.port.grpc={p[f'{name}_grpc']}"]
    command += [f"-{part}.localSocket={socket_path(folder, f'weed-{part}')}" for part in ("filer", "s3")]
    # Seven volumes are made for a bucket at once: small ones, or a small disk is said to be full.
    command += ["-master.volumeSizeLimitMB=512", "-volume.max=200", "-master.telemetry=false"]
    command += ["-volume.preStopSeconds=0"]  # no other server has to learn that this one goes
    # A bucket that is misspelt is an error, not a new bucket.
    command += [f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false"]
    return Service("s3", command, stop_seconds=40)


def _prefect(layout: Layout) -> Service:
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(layout.ports["prefect"])]
    environment = {
        "PREFECT_HOME": str(layout.folder / "prefect"),
        "PREFECT_API_URL": layout.api,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": _database(
            layout, "prefect", {"postgres": "asyncpg", "sqlite": "+aiosqlite"}
        ),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # One write per batch of task runs; the default records about 20 runs a second.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "DO_NOT_TRACK": "1",
    }
    return Service("prefect", command, environment)


def _mlflow(layout: Layout) -> Service:
    command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(layout.ports["mlflow"])]
    command += ["--workers", "2", "--artifacts-destination", f"s3://{layout.config.bucket}/mlflow"]
    environment = {
        # Not on the command line, where everyone on the machine reads the password.
        "MLFLOW_BACKEND_STORE_URI": _database(layout, "mlflow", {"postgres": "psycopg2", "sqlite": ""}),
        "MLFLOW_S3_ENDPOINT_URL": layout.url["s3"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        **_s3_environment(layout),
    }
    return Service("mlflow", command, environment)


def _scheduler(layout: Layout) -> Service:
    p = layout.ports
    command = [str(BIN / "dask"), "scheduler", "--host", "127.0.0.1", "--port", str(p["scheduler"])]
    command += ["--dashboard-address", f"127.0.0.1:{p['dashboard']}"]
    environment = {
        "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "300s",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "3",
    }
    return Service("scheduler", command, environment)


def _dask_workers(layout: Layout) -> Service:
    n = layout.config.dask_workers or os.cpu_count() or 1
    command = [str(BIN / "dask"), "worker", layout.url["scheduler"], "--host", "127.0.0.1", "--nthreads", "1"]
    command += ["--nworkers", str(n), "--no-dashboard", "--local-directory", str(layout.folder / "dask")]
    command += ["--memory-limit", "0", "--death-timeout", "60", "--preload-nanny", "flows._cluster"]
    return Service("dask-workers", command, flow_environment(layout))


def _worker(layout: Layout) -> Service:
    command = [str(BIN / "prefect"), "worker", "start", "--pool", layout.config.pool, "--type", "process"]
    command += ["--name", "stack", "--with-healthcheck"]
    environment = {
        **flow_environment(layout),
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": str(layout.ports["worker"]),
        "PREFECT_WORKER_QUERY_SECONDS": "5",
    }
    return Service("worker", command, environment, stop_seconds=60)


def services(layout: Layout) -> list[Service]:
    """All processes, in the order in which they start; they stop in the opposite one."""
    database = [_postgres(layout)] if layout.postgres else []
    return [
        *database,
        _s3(layout),
        _prefect(layout),
        _mlflow(layout),
        _scheduler(layout),
        _dask_workers(layout),
        _worker(layout),
    ]
