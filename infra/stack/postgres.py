"""PostgreSQL: where its programs are, a cluster of the stack's own, and a database for each server."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from infra.stack.config import Layout, StackConfig
from t2v_core.errors import ConfigError

__all__ = ["DATABASES", "account", "create_databases", "find_postgres", "init_cluster"]

DATABASES = ("prefect", "mlflow")
ROLE = "t2v"


def account() -> str:
    """The account that PostgreSQL runs under; empty for one's own. It refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else ""


def _as_account() -> dict[str, Any]:
    name = account()
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []} if name else {}


def _programs() -> str:
    """Folder of ``initdb``: on the path, or where Debian puts it; the newest."""
    found = shutil.which("initdb")
    if found:
        return str(Path(found).resolve().parent)
    places = [p for p in Path("/usr/lib/postgresql").glob("*/bin/initdb") if p.parent.parent.name.isdigit()]
    return str(max(places, key=lambda p: int(p.parent.parent.name)).parent) if places else ""


def _why_not(config: StackConfig, programs: str) -> str:
    """Why PostgreSQL cannot be used here; empty where it can."""
    if not programs:
        return "PostgreSQL is not installed (on Debian: apt-get install postgresql)"
    name = account()
    if not name:
        return ""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return f"PostgreSQL does not run as root, and there is no account {name!r}"
    folder = config.folder.expanduser().resolve()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if subprocess.run(["test", "-x", str(there)], **_as_account(), check=False, cwd="/").returncode:
        return f"PostgreSQL runs as {name!r} here, and that account may not enter {there}; set T2V_STACK_FOLDER"
    return ""


def find_postgres(config: StackConfig) -> tuple[str, str]:
    """Folder of PostgreSQL's programs, empty for SQLite; and, where it was looked for in vain, why.

    Raises:
        ConfigError: PostgreSQL was asked for and cannot be used.
    """
    if config.database == "sqlite":
        return "", ""
    programs = _programs()
    reason = _why_not(config, programs)
    if reason and config.database == "postgresql":
        raise ConfigError(f"T2V_STACK_DATABASE=postgresql, but {reason}")
    return ("", reason) if reason else (programs, "")


def init_cluster(layout: Layout) -> None:
    """Make the data folder, once; passwords over loopback only, no Unix socket, no trust.

    Raises:
        ConfigError: initdb failed.
    """
    data = layout.folder / "postgres"
    if (data / "PG_VERSION").exists():
        return
    data.mkdir(exist_ok=True)
    data.chmod(0o700)
    if account():
        shutil.chown(data, account())
    with tempfile.NamedTemporaryFile("w", dir="/tmp" if account() else None) as file:
        file.write(layout.password)
        file.flush()
        if account():
            shutil.chown(file.name, account())
        command = [
            f"{layout.postgres}/initdb", f"--pgdata={data}", f"--username={ROLE}", f"--pwfile={file.name}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8",
        ]  # fmt: skip
        done = subprocess.run(
            command, **_as_account(), cwd="/", capture_output=True, text=True, timeout=120, check=False
        )
    if done.returncode:
        raise ConfigError(f"initdb failed in {data}: {done.stderr.strip()[-500:]}; empty that folder and try again")


def connect(layout: Layout, database: str = "postgres") -> Any:
    """A connection that commits each statement."""
    import psycopg2

    connection = psycopg2.connect(
        host="127.0.0.1", port=layout.ports["postgres"], user=ROLE, password=layout.password, dbname=database,
        connect_timeout=5,
    )  # fmt: skip
    connection.autocommit = True
    return connection


def create_databases(layout: Layout) -> None:
    """A database for Prefect and one for MLflow, where they are missing."""
    connection = connect(layout)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            there = {row[0] for row in cursor.fetchall()}
            for name in DATABASES:
                if name not in there:
                    cursor.execute(f'CREATE DATABASE "{name}"')
    finally:
        connection.close()
