"""Databases of Prefect and MLflow, dumped while they are in use and restored: SQLite by its backup API, PostgreSQL by
its own client tools."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from t2v_core.errors import ConfigError, StoreError

__all__ = ["dump_database", "restore_database"]

_SQLITE = b"SQLite format 3\x00"
_POSTGRES = b"PGDMP"


def _kind(url: str) -> str:
    """``sqlite`` or ``postgresql``; drivers such as ``+aiosqlite`` and ``+asyncpg`` make no difference.

    Raises:
        ConfigError: another database.
    """
    kind = url.partition("://")[0].partition("+")[0]
    if kind not in ("sqlite", "postgresql", "postgres"):
        raise ConfigError(f"a database of kind {kind!r}; wanted sqlite:///FILE or postgresql://USER@HOST/NAME")
    return "sqlite" if kind == "sqlite" else "postgresql"


def _file(url: str) -> Path:
    path = url.partition("://")[2].partition("?")[0]
    return Path(path.removeprefix("/"))  # sqlite:////abs and sqlite:///relative, as SQLAlchemy reads them


def dump_database(url: str) -> bytes:
    """A consistent copy of a database that others write to meanwhile: an SQLite file, or a dump of pg_dump.

    Raises:
        ConfigError: another kind of database, or an SQLite file that is not there.
        StoreError: it cannot be dumped.
    """
    if _kind(url) == "postgresql":
        return _tool("pg_dump", url, ["--format=custom", "--no-owner", "--no-privileges"])
    path = _file(url)
    if not path.is_file():
        raise ConfigError(f"no SQLite database {path}; check its URL")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.db"
        try:
            with (
                contextlib.closing(sqlite3.connect(path, timeout=60)) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")  # one file, whatever the original's journal
        except sqlite3.Error as error:
            raise StoreError(f"cannot dump the SQLite database {path}: {error}") from error
        _check_sqlite(copy)
        return copy.read_bytes()


def restore_database(url: str, data: bytes, *, overwrite: bool = False) -> None:
    """Put a dump back. Its server (Prefect's, MLflow's) must be stopped.

    Args:
        url: where to; for PostgreSQL a database that exists.
        data: of `dump_database`, of the same kind.
        overwrite: take the place of what is there.

    Raises:
        ConfigError: the dump is of another kind, or there is a database and nothing says `overwrite`.
        StoreError: it cannot be restored; an SQLite database that was there is then still there.
    """
    kind = _kind(url)
    if not data.startswith(_SQLITE if kind == "sqlite" else _POSTGRES):
        raise ConfigError(f"the dump is not of a {kind} database; restore it to the kind that it was made from")
    if kind == "postgresql":
        _restore_postgres(url, data, overwrite)
        return
    path = _file(url)
    if path.exists() and not overwrite:
        raise ConfigError(f"there is a database {path}; stop its server, and say --overwrite to take its place")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.restoring")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _check_sqlite(fresh)
        for journal in ("-wal", "-shm", "-journal"):  # of the old one: they would be applied to the new
            path.with_name(path.name + journal).unlink(missing_ok=True)
        fresh.replace(path)
    except OSError as error:
        raise StoreError(f"cannot restore {path}: {error.strerror or error}") from error
    finally:
        fresh.unlink(missing_ok=True)


def _check_sqlite(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as copy:
        try:
            (answer,) = copy.execute("PRAGMA integrity_check").fetchone()
        except sqlite3.Error as error:
            answer = str(error)
    if answer != "ok":
        raise StoreError(f"the copy of the SQLite database is damaged: {answer}; so, it may be, is the original")


def _restore_postgres(url: str, data: bytes, overwrite: bool) -> None:
    count = "select count(*) from information_schema.tables where table_schema = 'public'"
    tables = int(_tool("psql", url, ["--tuples-only", "--no-align", "--command", count]) or b"0")
    if tables and not overwrite:
        raise ConfigError(
            f"the database has {tables} tables already; stop its server, and say --overwrite to replace them"
        )
    with tempfile.NamedTemporaryFile(suffix=".pgdump") as file:
        file.write(data)
        file.flush()
        # One transaction: all of it, or what was there before.
        options = ["--single-transaction", "--clean", "--if-exists", "--no-owner", "--no-privileges", file.name]
        _tool("pg_restore", url, options)


def _tool(name: str, url: str, options: list[str]) -> bytes:
    """Run one of PostgreSQL's client tools; the password goes by the environment, which no list of processes shows.

    Raises:
        ConfigError: the tool is not installed.
        StoreError: it failed; its words are repeated, without the password.
    """
    parts = urlsplit(url)
    place = {
        "PGHOST": parts.hostname or "",
        "PGPORT": str(parts.port or ""),
        "PGUSER": unquote(parts.username or ""),
        "PGPASSWORD": unquote(parts.password or ""),
        "PGDATABASE": unquote(parts.path.lstrip("/")),
    }
    environment = os.environ | {k: v for k, v in place.items() if v}
    command = [name, *([f"--dbname={place['PGDATABASE']}"] if name == "pg_restore" else []), "--no-password", *options]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=3600)
    except FileNotFoundError as error:
        raise ConfigError(f"{name} is not installed; on Debian: apt-get install postgresql-client") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise StoreError(f"{name} failed for the database {place['PGDATABASE']!r}: {said[-1] if said else 'no word'}")
    return done.stdout
