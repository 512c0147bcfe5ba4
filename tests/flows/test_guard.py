"""A killed `t2v run` leaves no Prefect server behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

# A stand-in for Prefect's server with its command line: the real one takes a quarter of a minute to start.
PARENT = """
import subprocess, sys, time
from flows._guard import guard_server
guard_server()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "prefect.server.api.server:create_app"])
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print(child.pid, other.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("own", [True, False])
def test_a_killed_run_takes_its_server_along(tmp_path: Path, own: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    if not own:
        environment["PREFECT_API_URL"] = "http://127.0.0.1:1/api"  # somebody else's server
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        child, other = (psutil.Process(int(pid)) for pid in run.stdout.readline().split())
        time.sleep(3)  # the watcher has started and looked
        run.send_signal(signal.SIGKILL)
    try:
        if own:
            psutil.wait_procs([child], timeout=20)
            assert not child.is_running()
        else:
            time.sleep(2)
            assert child.is_running()
        assert other.is_running()
    finally:
        for process in (child, other):
            if process.is_running():
                process.kill()
