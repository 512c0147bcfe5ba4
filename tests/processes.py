"""Servers for tests: started on a free port of loopback, waited for, and always ended."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

__all__ = ["BIN", "environment", "free_port", "running", "status", "stop", "wait_for"]

BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """This process's variables without those of any server, and more."""
    dropped = ("PREFECT_", "MLFLOW_", "T2V_", "DASK_", "AWS_", "PG")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {**kept, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "DO_NOT_TRACK": "1", **more}


def status(url: str, auth: str = "", host: str = "") -> int:
    """The status of a GET, with NAME:PASSWORD and another Host header where they are given."""
    request = urllib.request.Request(url)
    if auth:
        request.add_header("Authorization", "Basic " + base64.b64encode(auth.encode()).decode())
    if host:
        request.add_header("Host", host)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def wait_for(url: str, seconds: float = 200) -> None:
    """Until it answers 200."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if status(url) == 200:
                return
        assert time.monotonic() < deadline, f"nothing at {url} after {seconds:.0f} s"
        time.sleep(0.5)


def stop(process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    """Ask a process to end, and end it where it does not."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(seconds)


@contextlib.contextmanager
def running(
    log: Path, env: dict[str, str], *command: str, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in a file; ended, or killed with its children, when the block is left."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env=env,
            cwd=cwd or log.parent,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)
