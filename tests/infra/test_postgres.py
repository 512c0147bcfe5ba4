"""Prefect and MLflow on a real Postgres, by the variables and command lines of the compose file."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from processes import BIN, environment, free_port, running, status, wait_for
from stacks import COMPOSE, compose_stack

PASSWORD = "planted-postgres-password"


def _binary(name: str) -> str | None:
    found = shutil.which(name)
    return found or next((str(p) for p in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)


@contextmanager
def _postgres(folder: Path) -> Iterator[int]:
    """A server on a free port with the compose file's user and databases; not as root, which Postgres refuses."""
    user = "nobody" if os.getuid() == 0 else None
    folder.mkdir()
    if user:
        account = pwd.getpwnam(user)
        for path in (folder, *list(folder.parents)[:3]):
            path.chmod(path.stat().st_mode | 0o011)
        os.chown(folder, account.pw_uid, account.pw_gid)
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    initdb, postgres = _binary("initdb"), _binary("postgres")
    assert initdb
    assert postgres
    make = [initdb, "--pgdata", str(folder / "data"), "--username", "t2v", "--pwfile", str(folder / "password")]
    made = subprocess.run(
        [*make, "--auth", "scram-sha-256"], user=user, cwd=folder, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    port = free_port()
    serve = [postgres, "-D", str(folder / "data"), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(serve, user=user, cwd=folder, stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                connection = psycopg2.connect(
                    host="127.0.0.1", port=port, user="t2v", password=PASSWORD, dbname="postgres"
                )
                break
            except psycopg2.OperationalError:
                time.sleep(0.3)
        else:
            raise AssertionError((folder / "log").read_text())
        connection.autocommit = True
        with connection.cursor() as cursor:
            for line in (COMPOSE / "postgres-init.sql").read_text().splitlines():
                if line.startswith("CREATE"):
                    cursor.execute(line)
        connection.close()
        yield port
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.soak
@pytest.mark.server
@pytest.mark.timeout(600)
def test_servers_keep_their_data_in_postgres(tmp_path: Path) -> None:
    if _binary("initdb") is None:
        pytest.skip("no PostgreSQL here; on Debian: apt-get install postgresql")
    stack = compose_stack("compose.yaml")
    with _postgres(tmp_path / "postgres") as database:
        port = free_port()
        given = {k: v for k, v in stack["prefect-server"].env.items() if k.startswith("PREFECT_SERVER_DATABASE_")}
        given |= {
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(database),
            "PREFECT_SERVER_DATABASE_PASSWORD": PASSWORD,
        }
        env = environment(**given, PREFECT_HOME=str(tmp_path / "home"), PREFECT_SERVER_UI_ENABLED="false")
        command = [{"0.0.0.0": "127.0.0.1", "4200": str(port)}.get(w, w) for w in stack["prefect-server"].command]
        with running(tmp_path / "prefect.log", env, *command):
            wait_for(f"http://127.0.0.1:{port}/api/health")
            client = environment(PREFECT_HOME=str(tmp_path / "c"), PREFECT_API_URL=f"http://127.0.0.1:{port}/api")
            make = [str(BIN / "prefect"), "--no-prompt", "work-pool", "create", "t2v", "--type", "process"]
            subprocess.run(make, env=client, check=True, capture_output=True, timeout=120)
        assert not list((tmp_path / "home").glob("*.db"))

        port = free_port()
        shutil.copy(COMPOSE / "mlflow-auth.ini", tmp_path / "auth.ini")
        mlflow = environment(
            PGHOST="127.0.0.1",
            PGPORT=str(database),
            PGUSER=stack["mlflow"].env["PGUSER"],
            PGPASSWORD=PASSWORD,
            MLFLOW_AUTH_CONFIG_PATH=str(tmp_path / "auth.ini"),
            MLFLOW_AUTH_ADMIN_USERNAME="admin",
            MLFLOW_AUTH_ADMIN_PASSWORD="planted-password",
            MLFLOW_FLASK_SERVER_SECRET_KEY="planted-flask-secret",
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        )
        changes = {
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=5000": f"--port={port}",
            "--artifacts-destination=s3://t2v/mlflow": f"--artifacts-destination={tmp_path}/artifacts",
        }
        command = [changes.get(w, w).replace("127.0.0.1:5000", f"127.0.0.1:{port}") for w in stack["mlflow"].command]
        with running(tmp_path / "mlflow.log", mlflow, *command):
            wait_for(f"http://127.0.0.1:{port}/health")
            url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
            assert status(url, "admin:planted-password") == 200, (tmp_path / "mlflow.log").read_text()[-2000:]
        tables = {}
        for name in ("prefect", "mlflow", "mlflow_auth"):
            login = {"host": "127.0.0.1", "port": database, "user": "t2v", "password": PASSWORD}
            connection = psycopg2.connect(dbname=name, **login)
            with connection.cursor() as cursor:
                cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
                tables[name] = {row[0] for row in cursor.fetchall()}
                if name == "prefect":
                    cursor.execute("SELECT name FROM work_pool")
                    assert ("t2v",) in cursor.fetchall()
            connection.close()
        assert "experiments" in tables["mlflow"]
        assert "users" in tables["mlflow_auth"]
        assert "experiments" not in tables["mlflow_auth"]
    for log in ("prefect.log", "mlflow.log", "postgres/log"):
        assert "planted" not in (tmp_path / log).read_text()
