"""Authentication as the compose file turns it on: refused without, let in with; the host header is checked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from processes import BIN, environment, free_port, running, status, wait_for
from stacks import COMPOSE, ROOT, compose_stack

AUTH = "t2v:planted-auth-string"


@pytest.mark.server
@pytest.mark.timeout(600)
def test_prefect_refuses_without_its_auth_string(tmp_path: Path) -> None:
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    compose = compose_stack("compose.yaml")["prefect-server"]
    assert compose.env["PREFECT_SERVER_API_AUTH_STRING"] == "<PREFECT_AUTH_STRING>"
    env = environment(
        PREFECT_HOME=str(tmp_path / "home"),
        PREFECT_SERVER_API_AUTH_STRING=AUTH,
        PREFECT_SERVER_UI_STATIC_DIRECTORY=str(tmp_path / "ui"),
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
    )
    command = ["0.0.0.0" if w == "0.0.0.0" else w for w in compose.command]
    command = [{"0.0.0.0": "127.0.0.1", "4200": str(port)}.get(word, word) for word in command]
    with running(tmp_path / "server.log", env, *command):
        # The health check of compose and Kubernetes needs no secret.
        wait_for(f"{api}/health")
        assert status(f"{api}/admin/version") == 401
        assert status(f"{api}/admin/version", "t2v:wrong") == 401
        assert status(f"{api}/admin/version", AUTH) == 200
        # The same for Prefect's own client, by its own variable.
        client = environment(PREFECT_HOME=str(tmp_path / "client"), PREFECT_API_URL=api)
        inspect = [str(BIN / "prefect"), "--no-prompt", "work-pool", "ls"]
        refused = subprocess.run(inspect, env=client, capture_output=True, text=True, check=False, timeout=120)
        assert refused.returncode != 0
        assert "401" in refused.stdout + refused.stderr
        let_in = client | {"PREFECT_API_AUTH_STRING": AUTH}
        done = subprocess.run(inspect, env=let_in, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "planted-auth-string" not in (tmp_path / "server.log").read_text()


@pytest.mark.soak
@pytest.mark.server
@pytest.mark.timeout(600)
def test_the_first_steps_on_a_new_stack(tmp_path: Path, s3_environment: str) -> None:
    """docker/setup.py with authentication on: bucket, pool and deployments; and once more, which changes nothing."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    home = {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_SERVER_UI_ENABLED": "false"}
    server = environment(**home, PREFECT_SERVER_API_AUTH_STRING=AUTH, PREFECT_SERVER_ANALYTICS_ENABLED="false")
    s3 = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
    setup = environment(
        **s3,
        PREFECT_HOME=str(tmp_path / "client"),
        PREFECT_API_URL=api,
        PREFECT_API_AUTH_STRING=AUTH,
        T2V_STORE="s3://first-steps/t2v",
        PYTHONPATH=str(ROOT),
    )
    with running(
        tmp_path / "server.log", server, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)
    ):
        wait_for(f"{api}/health")
        outputs = []
        for _ in range(2):
            command = [str(BIN / "python"), "docker/setup.py"]
            done = subprocess.run(
                command, cwd=ROOT, env=setup, capture_output=True, text=True, check=False, timeout=300
            )
            assert done.returncode == 0, done.stdout + done.stderr
            outputs.append(done.stdout)
    assert "bucket created" in outputs[0]
    assert "pool t2v: created, of type process" in outputs[0]
    assert "bucket is there" in outputs[1]
    assert "pool t2v: is there" in outputs[1]
    for output in outputs:
        assert "deployments: all of prefect.yaml" in output
        assert s3["AWS_SECRET_ACCESS_KEY"] not in output
        assert "planted-auth-string" not in output


@pytest.mark.server
@pytest.mark.timeout(600)
def test_mlflow_refuses_without_a_password_and_under_other_names(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    ini = (COMPOSE / "mlflow-auth.ini").read_text()
    (tmp_path / "auth.ini").write_text(ini.replace("postgresql:///mlflow_auth", f"sqlite:///{tmp_path}/auth.db"))
    compose = compose_stack("compose.yaml")["mlflow"]
    changes = {
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=5000": f"--port={port}",
        "--workers=2": "--workers=1",
        "--backend-store-uri=postgresql:///mlflow": f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination=s3://t2v/mlflow": f"--artifacts-destination={tmp_path}/artifacts",
    }
    assert set(changes) <= set(compose.command)
    command = [changes.get(word, word).replace("127.0.0.1:5000", f"127.0.0.1:{port}") for word in compose.command]
    env = environment(
        MLFLOW_AUTH_CONFIG_PATH=str(tmp_path / "auth.ini"),
        MLFLOW_AUTH_ADMIN_USERNAME="admin",
        MLFLOW_AUTH_ADMIN_PASSWORD="planted-password",
        MLFLOW_FLASK_SERVER_SECRET_KEY="planted-flask-secret",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_DISABLE_TELEMETRY="true",
    )
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"}
    assert secrets <= {name for name, value in compose.env.items() if value.startswith("<")}
    experiment = f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0"
    with running(tmp_path / "mlflow.log", env, *command):
        wait_for(f"{url}/health")
        assert status(experiment) == 401
        assert status(experiment, "admin:wrong") == 401
        assert status(experiment, "admin:planted-password") == 200
        # The name that compose gives the service, and the loopback address, and no other.
        assert status(experiment, "admin:planted-password", host="mlflow:5000") == 200
        assert status(experiment, "admin:planted-password", host="evil.example") == 403
        assert status(f"{url}/health", host="10.1.2.3:5000") == 200
        script = "import mlflow; print(mlflow.MlflowClient().search_experiments()[0].name)"
        client = environment(MLFLOW_TRACKING_URI=url, MLFLOW_DISABLE_TELEMETRY="true")
        client |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        python = [str(BIN / "python"), "-W", "ignore", "-c", script]
        refused = subprocess.run(python, env=client, capture_output=True, text=True, check=False, timeout=120)
        assert refused.returncode != 0
        client |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "planted-password"}
        done = subprocess.run(python, env=client, capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout.strip() == "Default", done.stdout + done.stderr
    assert "planted" not in (tmp_path / "mlflow.log").read_text()
