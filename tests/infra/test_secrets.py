"""Credentials are in nothing that a run writes: logs, artifacts, parameters, databases, objects, report."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest
from processes import BIN, environment, free_port, running, wait_for
from stacks import ROOT

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret-0123456789abcdef",
    "PREFECT_API_AUTH_STRING": "t2v:planted-prefect-string",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
}
IN_URL = "planted-url-password"
PLANTED = b"planted-"


def _mlflow(folder: Path, stack: ExitStack) -> str:
    """An MLflow server with authentication; its address holds the user's password, as some people write it."""
    port = free_port()
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
    )
    env = environment(
        MLFLOW_AUTH_CONFIG_PATH=str(folder / "auth.ini"),
        MLFLOW_AUTH_ADMIN_USERNAME="admin",
        MLFLOW_AUTH_ADMIN_PASSWORD=SECRETS["MLFLOW_TRACKING_PASSWORD"],
        MLFLOW_FLASK_SERVER_SECRET_KEY="planted-flask-secret",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_DISABLE_TELEMETRY="true",
    )
    command = ["mlflow", "server", "--app-name=basic-auth", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    stack.enter_context(running(folder / "mlflow.log", env, *command))
    wait_for(f"http://127.0.0.1:{port}/health")
    return f"http://127.0.0.1:{port}"


def _prefect(folder: Path, stack: ExitStack) -> str:
    port = free_port()
    env = environment(
        PREFECT_HOME=str(folder / "prefect"),
        PREFECT_SERVER_API_AUTH_STRING=SECRETS["PREFECT_API_AUTH_STRING"],
        PREFECT_SERVER_UI_ENABLED="false",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
    )
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    stack.enter_context(running(folder / "prefect.log", env, *command))
    wait_for(f"http://127.0.0.1:{port}/api/health")
    return f"http://127.0.0.1:{port}/api"


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def _objects(url: str) -> Iterator[tuple[str, bytes]]:
    s3 = boto3.client("s3")
    bucket = url.removeprefix("s3://").split("/")[0]
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            yield item["Key"], s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()


@pytest.mark.soak
@pytest.mark.server
@pytest.mark.timeout(900)
def test_nothing_that_a_run_writes_holds_a_secret(
    tmp_path: Path, s3_url: str, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["AWS_SECRET_ACCESS_KEY"])
    servers, work = tmp_path / "servers", tmp_path / "work"
    servers.mkdir()
    work.mkdir()
    with ExitStack() as stack:
        aws = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        env = environment(
            **aws,
            PREFECT_API_URL=_prefect(servers, stack),
            PREFECT_API_AUTH_STRING=SECRETS["PREFECT_API_AUTH_STRING"],
            PREFECT_HOME=str(work / "home"),
            PREFECT_LOGGING_LEVEL="DEBUG",
            MLFLOW_TRACKING_URI=_mlflow(servers, stack),
            MLFLOW_TRACKING_USERNAME="admin",
            MLFLOW_TRACKING_PASSWORD=SECRETS["MLFLOW_TRACKING_PASSWORD"],
            T2V_STORE=s3_url,
            PYTHONPATH=str(ROOT),
        )

        def t2v(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
            command = [str(BIN / "t2v"), *words]
            done = subprocess.run(
                command, cwd=work, env=env | more, capture_output=True, text=True, check=False, timeout=600
            )
            assert "planted-" not in done.stdout + done.stderr
            return done

        done = t2v("run", str(ROOT / "docker/smoke.yaml"), "--workers", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        # Failures say much, and may say too much: refused credentials, and credentials in a URL.
        wrong = t2v(
            "tasks", "--config", str(ROOT / "docker/smoke.yaml"), AWS_ENDPOINT_URL="http://u:planted-x@127.0.0.1:1"
        )
        assert wrong.returncode != 0, wrong.stdout
        for store in (f"s3://key:{IN_URL}@bucket/x", f"s3://bucket/x?secret={IN_URL}"):
            refused = t2v("run", str(ROOT / "docker/smoke.yaml"), "--store", store)
            assert refused.returncode == 2, refused.stdout
            assert "credentials" in refused.stdout + refused.stderr
    written = dict(_files(work))
    written |= {f"store: {key}": data for key, data in _objects(s3_url)}
    # Whatever the servers keep: Prefect's database, MLflow's database and artifacts, both logs. Users and their hashed
    # passwords are MLflow's affair.
    written |= {f"servers: {name}": data for name, data in _files(servers) if name != "auth.db"}
    assert any(name.endswith(".html") for name in written)
    assert any("prefect.db" in name for name in written)
    assert any("artifacts/" in name for name in written)
    assert len(written) > 40
    leaks = [name for name, data in written.items() if PLANTED in data]
    assert not leaks


def test_the_search_finds_what_was_planted(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"key={SECRETS['AWS_SECRET_ACCESS_KEY']}")
    assert [name for name, data in _files(tmp_path) if PLANTED in data] == ["log"]
