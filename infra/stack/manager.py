"""Supervisor keeps the processes: one log each, started again when they die, stopped in order. See ADR 0007."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.stack.config import Layout
from infra.stack.services import ROOT, Service, socket_path
from t2v_core.errors import T2VError

__all__ = ["Manager", "StackError", "render"]

_OURS = ("PREFECT_", "MLFLOW_", "T2V_", "AWS_", "DASK_", "PG")
"""What the processes do not inherit: the stack says all of it, process by process."""


class StackError(T2VError):
    """A process did not start, did not get well, or did not stop."""


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _program(layout: Layout, service: Service) -> list[str]:
    command = " ".join(shlex.quote(part).replace("%", "%%") for part in service.command)
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **service.environment}
    lines = [
        f"[program:{service.name}]",
        f"command={command}",
        f"directory={'/' if service.user else ROOT}",
        "environment=" + ",".join(f"{name}={_quoted(value)}" for name, value in environment.items()),
        "autostart=false",  # the launcher starts them one after another, each when those before are well
        "autorestart=true",
        "startsecs=2",
        "startretries=20",
        f"stopsignal={service.stop_signal}",
        f"stopwaitsecs={service.stop_seconds}",
        f"stopasgroup={str(service.whole_group).lower()}",
        "killasgroup=true",
        "redirect_stderr=true",
        f"stdout_logfile={layout.folder / 'logs' / service.name}.log",
        "stdout_logfile_maxbytes=20MB",
        "stdout_logfile_backups=2",
    ]
    return [*lines, f"user={service.user}"] if service.user else lines


def render(layout: Layout, programs: list[Service]) -> str:
    """Supervisor's configuration. It holds passwords: `Manager.start` writes it for the owner's eyes only."""
    sock = socket_path(layout.folder, "supervisor")
    lines = [
        "[unix_http_server]",
        f"file={sock}",
        "chmod=0700",
        "[supervisord]",
        f"logfile={layout.folder / 'logs' / 'supervisord.log'}",
        f"pidfile={layout.folder / 'supervisord.pid'}",
        f"childlogdir={layout.folder / 'logs'}",
        "logfile_maxbytes=5MB",
        "minfds=1024",
        *(["user=root"] if os.geteuid() == 0 else []),
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "[supervisorctl]",
        f"serverurl=unix://{sock}",
    ]
    for program in programs:
        lines += ["", *_program(layout, program)]
    return "\n".join(lines) + "\n"


class Manager:
    """One supervisord, by its socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "supervisord.conf"
        self._pid = folder / "supervisord.pid"

    @contextlib.contextmanager
    def _rpc(self) -> Iterator[Any]:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{socket_path(self.folder, 'supervisor')}")
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
            yield proxy.supervisor

    def running(self) -> bool:
        """Whether the process manager itself answers."""
        try:
            with self._rpc() as rpc:
                rpc.getState()
        except (OSError, xmlrpc.client.Error):
            return False
        return True

    def states(self) -> dict[str, dict[str, Any]]:
        """State, process id and description of each process.

        Raises:
            StackError: the process manager does not answer.
        """
        try:
            with self._rpc() as rpc:
                return {p["name"]: p for p in rpc.getAllProcessInfo()}
        except (OSError, xmlrpc.client.Error) as error:
            raise StackError(
                f"no stack runs in {self.folder} ({type(error).__name__}); `make stack` starts one"
            ) from None

    def start(self, text: str) -> None:
        """Start the process manager, without any process yet.

        Raises:
            StackError: it did not start.
        """
        with os.fdopen(os.open(self.conf, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        kept |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.conf)]
        done = subprocess.run(command, env=kept, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        deadline = time.monotonic() + 20
        while not self.running():
            if done.returncode or time.monotonic() > deadline:
                raise StackError(f"supervisord did not start: {(done.stderr or done.stdout).strip()[-800:]}")
            time.sleep(0.1)

    def start_process(self, name: str) -> None:
        """Begin to start one process; whether it gets well is for the health check."""
        with self._rpc() as rpc, contextlib.suppress(xmlrpc.client.Fault):  # already started
            rpc.startProcess(name, False)

    def stop_process(self, name: str) -> None:
        """Stop one process and wait for it."""
        with self._rpc() as rpc, contextlib.suppress(xmlrpc.client.Fault):  # not running
            rpc.stopProcess(name, True)

    def stop(self, order: list[str], seconds: float = 30) -> None:
        """Stop the processes in this order, then the process manager.

        Raises:
            StackError: the process manager did not end.
        """
        there = self.states()
        for name in (n for n in order if n in there):
            self.stop_process(name)
        pid = int(self._pid.read_text()) if self._pid.exists() else 0
        with contextlib.suppress(OSError, xmlrpc.client.Error), self._rpc() as rpc:
            rpc.shutdown()
        deadline = time.monotonic() + seconds
        while self.running() or (pid and _lives(pid)):
            if time.monotonic() > deadline:
                raise StackError(f"supervisord (process {pid}) did not end in {seconds:.0f} s; see {self.folder}/logs")
            time.sleep(0.2)

    def tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a process's log."""
        path = self.folder / "logs" / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
