"""Start the stack in waves, each when those before it are well; watch it; stop it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

from infra.stack.config import Layout, StackConfig, lay_out
from infra.stack.health import why_ill
from infra.stack.manager import Manager, StackError, render
from infra.stack.postgres import create_databases, find_postgres, init_cluster
from infra.stack.provision import cancel_runs, create_bucket, deploy, settle_by_heartbeat, settle_runs
from infra.stack.services import services, socket_path, write_s3_identities
from t2v_core.errors import ConfigError

__all__ = ["Stack"]

WAVES = (("postgres", "s3"), ("prefect", "mlflow", "scheduler", "dask-workers"), ("worker",))
"""What starts together: each wave uses those before it."""
_GIVEN_UP = ("FATAL", "EXITED", "STOPPED", "UNKNOWN")


def _say_nothing(_: str) -> None:
    pass


class Stack:
    """The stack of one folder.

    Args:
        config: its settings.
        say: where lines for people go.
    """

    def __init__(self, config: StackConfig, say: Callable[[str], None] = _say_nothing) -> None:
        self.say = say
        programs, self.no_postgres = find_postgres(config)
        folder = config.folder.expanduser().resolve()
        # A folder keeps the database that it began with: its runs are in there.
        if config.database == "auto" and (folder / "prefect.db").exists():
            programs, self.no_postgres = "", "this folder began with SQLite"
        self.layout: Layout = lay_out(config, programs)
        self.services = services(self.layout)
        self.manager = Manager(self.layout.folder)

    def _check_ports(self) -> None:
        for name, port in self.layout.ports.items():
            if name == "postgres" and not self.layout.postgres:
                continue
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    s.bind(("127.0.0.1", port))
                except OSError as error:
                    raise ConfigError(
                        f"port {port} of {name!r} is not free ({error.strerror}); stop what listens there, or give "
                        f"another: T2V_STACK_PORTS='{{\"{name}\": 0}}' takes a free one"
                    ) from None

    def up(self, only: list[str] | None = None) -> None:
        """Start what is not running, make bucket, pool and deployments, and return when all is well.

        Args:
            only: names of processes; all without it. Deployments are made where Prefect is among them.

        Raises:
            ConfigError: a port is taken, or PostgreSQL's folder cannot be made.
            StackError: a process did not get well; what was started is stopped again.
        """
        if self.manager.running():
            raise StackError(f"a stack runs in {self.layout.folder} already; `make stack-stop` stops it")
        wanted = [s for s in self.services if only is None or s.name in only]
        self._check_ports()
        for name in ("s3", "prefect", "dask"):
            (self.layout.folder / name).mkdir(exist_ok=True)
        write_s3_identities(self.layout)
        if self.layout.postgres:
            init_cluster(self.layout)
        elif self.no_postgres:
            self.say(f"SQLite: {self.no_postgres}")
        self.manager.start(render(self.layout, self.services))
        try:
            names = [s.name for s in wanted]
            for wave in WAVES:
                self._start([name for name in names if name in wave])
        except BaseException:
            with contextlib.suppress(StackError):
                self.down()
            raise

    def _start(self, names: list[str]) -> None:
        """Start these at once, and wait until all are well."""
        began = time.monotonic()
        if "worker" in names:
            if stale := settle_runs(self.layout):
                self.say(f"{stale} flow runs were under way when the stack ended; they are Crashed now")
            self.say(f"{len(deploy(self.layout))} deployments")
            settle_by_heartbeat(self.layout)
        for name in names:
            self.manager.start_process(name)
        for name in names:
            self.wait_well(name, self.layout.config.start_seconds)
            if name == "postgres":
                create_databases(self.layout)
            elif name == "s3":
                create_bucket(self.layout)
            self.say(f"{name:<13} well after {time.monotonic() - began:.0f} s")

    def wait_well(self, name: str, seconds: float) -> None:
        """Wait until a process is well.

        Raises:
            StackError: it is not after so long, or the process manager has given it up.
        """
        deadline = time.monotonic() + seconds
        while True:
            state = self.manager.states()[name]["statename"]
            ill = why_ill(self.layout, name) if state == "RUNNING" else f"process is {state}"
            if not ill:
                return
            if time.monotonic() > deadline or state in _GIVEN_UP:
                raise StackError(f"{name} did not get well: {ill}. Its log ends:\n{self.manager.tail(name)}")
            time.sleep(0.3)

    def ills(self) -> dict[str, str]:
        """Each process that was started, and why it is not well; empty where it is."""
        told = {}
        for name, info in self.manager.states().items():
            if info["statename"] == "STOPPED" and not info["start"]:
                continue  # never asked to run
            running = info["statename"] == "RUNNING"
            told[name] = why_ill(self.layout, name) if running else f"process is {info['statename']}"
        order = [s.name for s in self.services]
        return dict(sorted(told.items(), key=lambda item: order.index(item[0])))

    def down(self) -> None:
        """Cancel the runs in flight, then stop everything: who uses a server goes before it.

        Raises:
            StackError: nothing runs, or it did not end.
        """
        states = self.manager.states()
        if states["worker"]["statename"] == "RUNNING" and not why_ill(self.layout, "prefect"):
            with contextlib.suppress(OSError):  # what cannot be cancelled is settled at the next start
                if n := cancel_runs(self.layout):
                    self.say(f"{n} flow runs cancelled; start them again when the stack is back")
        self.manager.stop([s.name for s in reversed(self.services)])
        for name in ("supervisor", "weed-filer", "weed-s3"):
            with contextlib.suppress(OSError):
                Path(socket_path(self.layout.folder, name)).unlink()

    def watch(self, every: float = 10) -> None:
        """Say whenever a process falls ill or gets well again; until interrupted."""
        before: dict[str, str] = {}
        while True:
            now = self.ills()
            for name, ill in now.items():
                if bool(ill) != bool(before.get(name, "")):
                    self.say(f"{time.strftime('%H:%M:%S')} {name}: {ill or 'well again'}")
            before = now
            time.sleep(every)
