"""Backups and restores of stores and databases: nothing changed, nothing half, nothing lost under a running flow."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from kept_store import GARBAGE, fill, fp

import flows._backup
from flows._backup import backup, newest, object_key, prune, snapshots, verify
from flows._check import check_store
from flows._collect import collect
from flows._databases import dump_database, restore_database
from flows._keys import EMBEDDINGS, ERROR_MATRIX
from flows._pointers import write_pointer
from flows._restore import restore_folder, restore_store
from flows._store import Store
from t2v_core.errors import ConfigError, StoreError

Make = Callable[[str], Store]


@pytest.fixture(params=["folder", "s3"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """New places of a kind."""
    if request.param == "folder":
        return lambda name: Store(str(tmp_path / name))
    bucket = request.getfixturevalue("s3_bucket")
    return lambda name: Store(f"{bucket(name)}/{name}")


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    return lambda name: Store(str(tmp_path / name))


def contents(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}


def whole(store: Store) -> dict[str, bytes]:
    """What a backup holds: all but what is half-made."""
    half = (
        f"experts/left-{fp('left')}",
        f"sources/digits-{fp('digits of last year')}",
        f"selections/mine-{fp('nobody')}",
    )
    return {key: data for key, data in contents(store).items() if not key.startswith(half)}


def test_a_restored_store_is_the_store(make: Make) -> None:
    store, place = make("store"), make("backup")
    fill(store)
    before = contents(store)
    made = backup(store, place)
    assert contents(store) == before
    assert sorted(made.unfinished) == sorted({k.rpartition("/")[0] for k in before.keys() - whole(store).keys()})
    assert (made.objects, made.bytes) == (len(whole(store)), sum(map(len, whole(store).values())))
    assert verify(place, newest(place)) == []
    again = make("again")
    restore_store(place, newest(place), again)
    assert contents(again) == whole(store)
    assert check_store(again).whole
    assert restore_store(place, newest(place), again).written == 0


def test_a_second_backup_reads_and_copies_only_what_is_new(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store, place = make("store"), make("backup")
    fill(store)
    first = backup(store, place)
    store.put(f"reports/mine-{fp('new')}.html", b"<html>new")
    write_pointer(store, "mine", "report", {"report": f"reports/mine-{fp('new')}.html"})
    read: list[str] = []
    original = Store.read
    monkeypatch.setattr(Store, "read", lambda self, key: (read.append(key), original(self, key))[1])
    second = backup(store, place)
    monkeypatch.undo()
    mine = {key for key in read if key.startswith(("sources", "experts", "units", "features", "reports", "selections"))}
    assert mine == {f"reports/mine-{fp('new')}.html"}
    assert (second.copied, second.objects) == (2, first.objects + 1)
    assert snapshots(place) == [first.stamp, second.stamp]
    old, new = make("old"), make("new")
    restore_store(place, newest(place, first.stamp), old)
    restore_store(place, newest(place), new)
    assert old.read_json("latest/mine/report.json") == {
        "report": f"reports/mine-{fp('newest')}.html",
        "model": "models:/t2v-selector-mine@champion",
    }
    assert contents(new) == whole(store)


def test_older_snapshots_are_dropped_with_what_only_they_hold(make: Make) -> None:
    store, place = make("store"), make("backup")
    fill(store)
    backup(store, place)
    collect(store, 0)
    backup(store, place)
    objects = len(place.list("objects"))
    assert prune(place, 2) == (0, 0)
    dropped, gone = prune(place, 1)
    assert (dropped, len(place.list("objects"))) == (1, objects - gone)
    assert gone > 0
    assert verify(place, newest(place)) == []
    again = make("again")
    restore_store(place, newest(place), again)
    assert contents(again) == contents(store)


def test_what_is_damaged_in_a_backup_is_never_restored(folder: Make) -> None:
    store, place = folder("store"), folder("backup")
    fill(store)
    backup(store, place)
    key = f"experts/mine-{fp('mine')}/weights.safetensors"
    lies = object_key(hashlib.sha256(store.read(key)).hexdigest())
    place.replace(lies, b"something else")
    assert key in "".join(verify(place, newest(place)))
    again = folder("again")
    with pytest.raises(StoreError, match="is not what was backed up"):
        restore_store(place, newest(place), again)
    assert again.list("latest") == []  # nothing points into what is half restored
    place.delete(lies)
    assert key in "".join(verify(place, newest(place)))
    manifest = place.list("snapshots")[0]
    place.replace(manifest, place.read(manifest) + b"x")
    with pytest.raises(StoreError, match="damaged; restore another snapshot"):
        newest(place)


def test_a_restore_takes_no_ones_place_unasked(folder: Make) -> None:
    store, place = folder("store"), folder("backup")
    fill(store)
    backup(store, place)
    wanted = whole(store)
    write_pointer(store, "mine", "selection", {"prefix": "another"})
    write_pointer(store, "yours", "selection", {"prefix": "another"})
    store.delete(EMBEDDINGS)
    before = contents(store)
    with pytest.raises(ConfigError, match=r"holds 2 pointers.*Nothing was written"):
        restore_store(place, newest(place), store)
    assert contents(store) == before
    restore_store(place, newest(place), store, overwrite=True)
    assert whole(store) == wanted


def test_places_that_are_no_backup_are_refused(folder: Make, tmp_path: Path) -> None:
    store, other = folder("store"), folder("other")
    fill(store)
    other.put("mine", b"")
    with pytest.raises(ConfigError, match="holds what is no backup, e.g. mine"):
        backup(store, other)
    for place in (Store(store.path("backup")), Store(str(tmp_path)), Store(store.url)):
        with pytest.raises(ConfigError, match="lie in one another"):
            backup(store, place)
    with pytest.raises(ConfigError, match="no snapshot in"):
        newest(folder("empty"))
    assert "backup" not in {key.split("/")[0] for key in store.list()}


def test_a_backup_on_a_full_disk_is_said_and_is_finished_later(folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store, place = folder("store"), folder("backup")
    fill(store)
    fsync, budget = os.fsync, [12]

    def full(fd: int) -> None:
        budget[0] -= 1
        if budget[0] < 0:
            raise OSError(28, os.strerror(28))
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="the disk is full"):
            backup(store, place)
    assert snapshots(place) == []
    assert [key for key in store.list() if key.startswith("activity")] == []
    assert place.list("objects") != []
    backup(store, place)
    assert verify(place, newest(place)) == []


_BACKUP = """
import os, sys
import flows._store_folder as f
from flows._backup import backup
from flows._store import Store
fsync, left = os.fsync, int(sys.argv[3])
def dying(fd):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    fsync(fd)
os.fsync = dying
backup(Store(sys.argv[1]), Store(sys.argv[2]))
"""


def test_a_killed_backup_is_no_snapshot_and_spoils_none(folder: Make) -> None:
    store, place = folder("store"), folder("backup")
    fill(store)
    first = backup(store, place)
    for i in range(20):
        store.put(f"reports/mine-{fp(str(i))}.html", b"%d" % i)
    root = str(Path(flows._backup.__file__).parents[1])
    command = [sys.executable, "-c", _BACKUP, store.url, place.url, "10"]
    child = subprocess.run(command, env=os.environ | {"PYTHONPATH": root}, capture_output=True, check=False, timeout=60)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    assert snapshots(place) == [first.stamp]
    assert verify(place, newest(place)) == []
    second = backup(store, place)
    assert 0 < second.copied < 22
    assert verify(place, newest(place)) == []


def test_a_backup_under_a_writer_is_consistent(make: Make) -> None:
    """Units, datasets and pointers grow all the while: whatever a snapshot points to is in it."""
    store, place = make("store"), make("backup")
    fill(store)
    stop = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        blocks = list(store.read_json("latest/mine/error_matrix.json")["blocks"])
        try:
            for i in range(400):
                key = f"units/error_matrix/mine/digits-{fp(f'grown {i}')}.parquet"
                store.put_table(key, pa.table({"expert": ["mine"], "task_id": ["one"], "error": [0.5]}))
                store.compact("units/error_matrix", ERROR_MATRIX, flows._collect.parsed)
                blocks.append(key)
                write_pointer(store, "mine", "error_matrix", {"blocks": blocks})
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001  shown by the test
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sizes = []
        for turn in range(3):
            backup(store, place)
            again = make(f"again-{turn}")
            restore_store(place, newest(place), again)
            assert check_store(again).missing == ()
            blocks = again.read_json("latest/mine/error_matrix.json")["blocks"]
            rows = set(again.read_table(ERROR_MATRIX)["unit"].to_pylist())
            assert set(blocks) <= rows <= set(again.list("units/error_matrix"))
            sizes.append(len(blocks))
    finally:
        stop.set()
        writer.join()
    assert not failed
    assert sizes[-1] > 1, "nothing was written meanwhile: the test tested nothing"


def test_what_a_collection_took_is_not_lost_in_older_snapshots(folder: Make) -> None:
    store, place = folder("store"), folder("backup")
    fill(store)
    first = backup(store, place)
    collect(store, 0)
    backup(store, place)
    old = folder("old")
    restore_store(place, newest(place, first.stamp), old)
    assert f"experts/old-{fp('old')}/weights.safetensors" in GARBAGE
    assert old.exists(f"experts/old-{fp('old')}/weights.safetensors")


def test_folders_of_other_files(folder: Make, tmp_path: Path) -> None:
    store, place, files = folder("store"), folder("backup"), folder("mlartifacts")
    fill(store)
    files.put("1/models/m-1/artifacts/MLmodel", b"flavors: {}")
    files.put("1/models/m-1/artifacts/code/t2v_core/__init__.py", b"")
    backup(store, place, folders={"mlartifacts": files})
    before = contents(files)
    shutil.rmtree(files.url)
    restore_folder(place, newest(place), "folder:mlartifacts", files)
    assert contents(files) == before
    files.replace("1/models/m-1/artifacts/MLmodel", b"another")
    with pytest.raises(ConfigError, match="holds another 1/models/m-1/artifacts/MLmodel"):
        restore_folder(place, newest(place), "folder:mlartifacts", files)
    restore_folder(place, newest(place), "folder:mlartifacts", files, overwrite=True)
    assert contents(files) == before
    (Path(files.url) / "a b").write_bytes(b"")
    with pytest.raises(StoreError, match="1 files in .* 'a b'"):
        backup(store, place, folders={"mlartifacts": files})


# --- databases


def rows_of(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path)) as base:
        return [row[0] for row in base.execute("select x from t order by x")]


def test_sqlite_is_dumped_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("create table t (x integer)")
        base.executemany("insert into t values (?)", [(i,) for i in range(1000)])
        base.commit()
        base.execute("insert into t values (5000)")  # not committed: in no copy
        data = dump_database(f"sqlite:///{path}")
        base.commit()
    restored = tmp_path / "else" / "copy.db"
    restore_database(f"sqlite+aiosqlite:///{restored}", data)
    assert rows_of(restored) == list(range(1000))
    with pytest.raises(ConfigError, match="--overwrite"):
        restore_database(f"sqlite:///{path}", data)
    assert len(rows_of(path)) == 1001
    restore_database(f"sqlite:///{path}", data, overwrite=True)
    assert rows_of(path) == list(range(1000))


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_bytes(b"this is text, and a good deal longer than a header of SQLite would be " * 20)
    with pytest.raises(StoreError, match="cannot dump"):
        dump_database(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(ConfigError, match="no SQLite database"):
        dump_database(f"sqlite:///{tmp_path / 'absent.db'}")
    with pytest.raises(ConfigError, match="kind 'mysql'"):
        dump_database("mysql://root:hunter2@host/base")
    with pytest.raises(ConfigError, match="not of a sqlite database"):
        restore_database(f"sqlite:///{tmp_path / 'x.db'}", b"PGDMP")
    good = tmp_path / "good.db"
    with contextlib.closing(sqlite3.connect(good)) as base:
        base.execute("create table t (x integer)")
        base.executemany("insert into t values (?)", [(i,) for i in range(5000)])
        base.commit()
    data = bytearray(dump_database(f"sqlite:///{good}"))
    data[5000:20000] = bytes(15000)
    with pytest.raises(StoreError, match="damaged"):
        restore_database(f"sqlite:///{good}", bytes(data), overwrite=True)
    assert len(rows_of(good)) == 5000
    assert [p.name for p in tmp_path.iterdir() if "restoring" in p.name] == []


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """URL of a PostgreSQL server's database, the server started for this test and its password asked for."""
    found = [p for p in Path("/usr/lib/postgresql").glob("*/bin/initdb") if p.is_file()]
    if not found or not shutil.which("pg_dump"):
        pytest.skip("PostgreSQL is not installed here (apt-get install postgresql)")
    import socket

    tools, user = found[0].parent, ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    place = Path(f"/var/tmp/t2v-{uuid.uuid4().hex[:8]}")  # a user other than root must get there
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    (place / "password").write_text("hunter2\n")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    data = place / "data"
    make = [
        str(tools / "initdb"),
        "-D",
        str(data),
        "-U",
        "keeper",
        "-A",
        "scram-sha-256",
        f"--pwfile={place / 'password'}",
    ]
    subprocess.run([*user, *make], check=True, capture_output=True)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place} -c fsync=off"
    control = [*user, str(tools / "pg_ctl"), "-D", str(data), "-w", "-l", str(place / "log")]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True)
    try:
        yield f"postgresql+psycopg2://keeper:hunter2@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


def test_postgresql_by_its_own_tools(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(words: str) -> str:
        return flows._databases._tool("psql", postgres, ["--tuples-only", "--no-align", "-c", words]).decode().strip()

    ask("create table t (x integer); insert into t select generate_series(1, 1000)")
    data = dump_database(postgres)
    ask("delete from t where x > 10; create table later (y integer)")
    with pytest.raises(ConfigError, match="has 2 tables already"):
        restore_database(postgres, data)
    assert ask("select count(*) from t") == "10"
    restore_database(postgres, data, overwrite=True)
    assert ask("select count(*) from t") == "1000"
    with pytest.raises(StoreError) as caught:
        dump_database(postgres.replace("hunter2", "hunter3"))
    assert "hunter" not in str(caught.value)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="pg_dump is not installed"):
        dump_database(postgres)
