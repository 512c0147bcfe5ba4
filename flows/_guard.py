"""Ends Prefect's temporary server when the process that started it was killed and could not do so.

`t2v run` without a server has Prefect start one as a child. A SIGKILL, or the system short of memory, leaves that child
behind, where it holds a port, a database and 200 MB. So a second, small process watches the first.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import psutil

__all__ = ["guard_server"]

_SERVER = "prefect.server.api.server"
_started: list[subprocess.Popen[bytes]] = []


def guard_server() -> None:
    """Start the watcher, unless Prefect's server is another's: it ends with this process."""
    if "PREFECT_API_URL" in os.environ or _started:
        return
    # A session of its own: Ctrl-C is for the run, which then ends its server itself.
    null = subprocess.DEVNULL
    command = [sys.executable, "-m", "flows._guard", str(os.getpid())]
    _started.append(subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True))


def _watch(parent: int, every: float = 0.5) -> None:
    servers: set[psutil.Process] = set()
    while os.getppid() == parent:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(parent).children():
                with contextlib.suppress(psutil.Error):
                    if _SERVER in " ".join(child.cmdline()):
                        servers.add(child)
        time.sleep(every)
    # psutil knows a process by its start too, so that another with the same number is left alone.
    left = [server for server in servers if server.is_running()]
    for server in left:
        with contextlib.suppress(psutil.Error):
            server.terminate()
    for server in psutil.wait_procs(left, timeout=10)[1]:
        with contextlib.suppress(psutil.Error):
            server.kill()


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
