"""Does what an image holds run, as the user and on the file system that the image gives it?

    docker run --rm --read-only --tmpfs /tmp --tmpfs /var/lib/t2v:uid=10001 t2v-cpu:0.1.0 python docker/smoke.py

Starts each command of the compose file on loopback with its authentication on, and runs a small pipeline through a Dask
scheduler and worker. `make image-test` runs it in a fresh root file system, since no engine is needed for that.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

__all__ = ["main"]

BIN = Path(sys.executable).parent
APP = Path(__file__).parents[1]


def _port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _status(url: str, auth: str = "") -> int:
    request = urllib.request.Request(url)
    if auth:
        request.add_header("Authorization", "Basic " + base64.b64encode(auth.encode()).decode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _wait(url: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if _status(url) == 200:
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"smoke: nothing answers at {url} after {seconds:.0f} s")
        time.sleep(1)


@contextlib.contextmanager
def _running(folder: Path, environment: dict[str, str], *command: str) -> Iterator[None]:
    log = folder / f"{command[0]}-{command[1]}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env=environment,
            cwd=folder,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield
    except BaseException:
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _told(step: str, began: float) -> None:
    print(f"smoke: {step} ({time.monotonic() - began:.0f} s)", flush=True)


def main() -> None:
    """Run all of it; the exit status says how it went."""
    began = time.monotonic()
    if os.getuid() == 0:
        raise SystemExit("smoke: runs as root; wanted the image's own user")
    if os.access(APP, os.W_OK) or os.access(BIN, os.W_OK):
        raise SystemExit(f"smoke: {APP} or {BIN} can be written to; wanted them read-only for this user")
    password, secret = secrets.token_hex(), secrets.token_hex()
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)

        port = _port()
        server = {**environment, "PREFECT_SERVER_API_AUTH_STRING": f"t2v:{secret}", "PREFECT_HOME": str(folder / "p")}
        with _running(folder, server, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)):
            api = f"http://127.0.0.1:{port}/api"
            _wait(f"{api}/health")
            assert _status(f"{api}/admin/version") == 401, "Prefect answers without its auth string"
            assert _status(f"{api}/admin/version", f"t2v:{secret}") == 200
            assert _status(f"http://127.0.0.1:{port}/") == 200, "Prefect's UI is not served"
        _told("Prefect server, authentication and UI", began)

        port = _port()
        (folder / "auth.ini").write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        )
        mlflow = {
            **environment,
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secret,
        }
        options = ["--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        options += [
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            str(folder / "a"),
        ]
        with _running(folder, mlflow, "mlflow", "server", *options):
            _wait(f"http://127.0.0.1:{port}/health")
            url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
            assert _status(url) == 401, "MLflow answers without a password"
            assert _status(url, f"admin:{password}") == 200
        _told("MLflow server and authentication", began)

        port, dashboard = _port(), _port()
        address = f"tcp://127.0.0.1:{port}"
        scheduler = [
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--dashboard-address",
            f"127.0.0.1:{dashboard}",
        ]
        stack.enter_context(_running(folder, environment, "dask", *scheduler))
        _wait(f"http://127.0.0.1:{dashboard}/health", 60)
        worker = ["worker", address, "--nthreads", "1", "--nworkers", "2", "--preload-nanny", "flows._cluster"]
        worker += ["--host", "127.0.0.1", "--no-dashboard", "--local-directory", str(folder)]
        stack.enter_context(_running(folder, environment, "dask", *worker))
        run = [
            str(BIN / "t2v"),
            "run",
            str(APP / "docker/smoke.yaml"),
            "--dask",
            address,
            "--store",
            str(folder / "store"),
        ]
        done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        assert list((folder / "store/reports").glob("smoke-*.html")), "the pipeline wrote no report"
        _told("a pipeline on Dask scheduler and workers", began)
    print("smoke: ok")


if __name__ == "__main__":
    main()
