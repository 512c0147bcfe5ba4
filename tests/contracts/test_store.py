"""One contract for every kind of store, and what a folder and S3 owe beyond it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import flows._store
from flows._store import Store
from t2v_core.errors import StoreError

DATASET = "embeddings/part-0.parquet"


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns a thousand times more often, so that races show."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(usual)


def unit(*values: float, **more: object) -> bytes:
    table = pa.table({"value": pa.array(values, pa.float64()), **{k: [v] * len(values) for k, v in more.items()}})
    return Store.table_bytes(table)


def decode(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data))


def rows(store: Store) -> list[tuple[str, float]]:
    table = store.read_table(DATASET)
    return list(zip(table["unit"].to_pylist(), table["value"].to_pylist(), strict=True))


# --- objects


def test_put_creates_once_and_keeps_the_first(store: Store) -> None:
    assert not store.exists("a/b.bin")
    assert store.put("a/b.bin", b"first")
    assert store.exists("a/b.bin")
    assert not store.put("a/b.bin", b"second")
    assert store.read("a/b.bin") == b"first"
    assert store.put("empty", b"")
    assert not store.put("empty", b"full")
    assert store.read("empty") == b""


@pytest.mark.usefixtures("eager_threads")
def test_of_eight_racing_writers_one_wins(store: Store) -> None:
    barrier = threading.Barrier(8)

    def race(key: str, me: int) -> bool:
        barrier.wait(timeout=20)
        return store.put(key, bytes([me]) * 100_000)

    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            key = f"race/{turn:02}"
            won = list(pool.map(race, [key] * 8, range(8)))
            assert won.count(True) == 1
            assert store.read(key) == bytes([won.index(True)]) * 100_000
    assert store.list("race") == [f"race/{turn:02}" for turn in range(20)]


def test_replace_and_delete(store: Store) -> None:
    store.replace("x", b"one")
    store.replace("x", b"two")
    assert store.read("x") == b"two"
    store.delete("x")
    store.delete("x")
    assert not store.exists("x")
    assert store.put("x", b"three")


def test_list_is_sorted_deep_and_of_whole_pieces(store: Store) -> None:
    assert store.list() == [] == store.list("a")
    for key in ("b", "a/z", "a/b/c", "ab/c", "a/b.parquet"):
        store.put(key, b"")
    assert store.list() == ["a/b.parquet", "a/b/c", "a/z", "ab/c", "b"]
    assert store.list("a") == store.list("a/") == ["a/b.parquet", "a/b/c", "a/z"]
    assert store.list("a/b") == ["a/b/c"]
    assert store.list("b") == []
    assert not store.exists("a")
    assert not store.exists("a/b")


def test_what_one_store_object_writes_the_other_sees_at_once(store: Store) -> None:
    other = Store(store.url)
    assert store.list("d") == []
    assert not store.exists("d/1")
    other.put("d/1", b"1")
    assert store.list("d") == ["d/1"]
    assert store.exists("d/1")
    other.put("d/2", b"2")
    other.delete("d/1")
    assert store.list("d") == ["d/2"]
    assert not store.exists("d/1")


def test_a_missing_object_is_named(store: Store) -> None:
    for ask in (store.read, store.read_json, store.read_table, store.open_parquet):
        with pytest.raises(StoreError, match=r"no such object|missing") as caught:
            ask("no/where.parquet")
        assert "no/where.parquet" in str(caught.value)
        assert store.url in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", "..", "a/../b", ".", "./a", "a\\b", ".hidden", "a b", "a?b", "a*", "a\n", "ä", "s3://b"],
)
def test_wrong_keys_are_refused(folder: Store, key: str) -> None:
    for ask in (folder.exists, folder.read, folder.delete, folder.path, folder.open_parquet):
        with pytest.raises(StoreError, match="no valid key"):
            ask(key)
    for write in (folder.put, folder.replace):
        with pytest.raises(StoreError, match="no valid key"):
            write(key, b"")
    if key:
        with pytest.raises(StoreError, match="no valid key"):
            folder.list(key if key != "a/" else "a//b")


def test_pickles_as_its_url(store: Store) -> None:
    store.put("k", b"v")
    dumped = pickle.dumps(store)
    assert len(dumped) < 300
    again = pickle.loads(dumped)  # noqa: S301  our own bytes
    assert again == store
    assert hash(again) == hash(store)
    assert again.read("k") == b"v"
    assert repr(again) == f"Store({store.url!r})"


def test_check_writable_leaves_nothing(store: Store) -> None:
    store.check_writable()
    assert store.list() == []


def test_json(store: Store) -> None:
    assert store.put_json("j.json", {"b": [1, None], "a": "ä"})
    assert not store.put_json("j.json", {})
    assert store.read_json("j.json") == {"a": "ä", "b": [1, None]}
    store.replace_json("j.json", {"a": 1, "b": 2})
    before = store.read("j.json")
    store.replace_json("j.json", {"b": 2, "a": 1})
    assert store.read("j.json") == before
    with pytest.raises(StoreError, match=r"nan\.json"):
        store.put_json("nan.json", float("nan"))
    store.put("bad.json", b"{")
    with pytest.raises(StoreError, match=r"bad\.json"):
        store.read_json("bad.json")


def test_tables(store: Store) -> None:
    table = pa.table({"i": range(1000), "s": [str(i) for i in range(1000)]})
    assert store.put_table("t.parquet", table, row_group_size=100)
    assert not store.put_table("t.parquet", table)
    assert store.read_table("t.parquet").equals(table)
    assert store.read_table("t.parquet", columns=["s"]).column_names == ["s"]
    with pytest.raises(StoreError, match=r"t\.parquet"):
        store.read_table("t.parquet", columns=["absent"])
    with store.open_parquet("t.parquet") as file:
        assert file.num_row_groups == 10
        assert file.read_row_group(3)["i"].to_pylist() == list(range(300, 400))
    store.put("bad.parquet", b"not Parquet")
    for ask in (store.read_table, store.open_parquet):
        with pytest.raises(StoreError, match=r"bad\.parquet"):
            ask("bad.parquet")


def test_table_bytes_do_not_depend_on_chunks() -> None:
    whole = pa.table({"v": pa.array([[1.0, 2.0]] * 10, pa.list_(pa.float32(), 2)), "s": ["a", None] * 5})
    parts = pa.concat_tables([whole.slice(0, 3), whole.slice(3, 7)])
    assert Store.table_bytes(whole) == Store.table_bytes(parts) == Store.table_bytes(whole)


# --- compaction


def test_compaction_is_incremental_and_idempotent(store: Store) -> None:
    asked: list[bytes] = []

    def counting(data: bytes) -> pa.Table:
        asked.append(data)
        return decode(data)

    assert store.compact("units", DATASET, decode) == 0
    assert not store.exists(DATASET)
    store.put("units/b", unit(2.0, 1.0))
    store.put("units/d", unit(4.0))
    assert store.compact("units", DATASET, counting) == 3
    assert rows(store) == [("units/b", 2.0), ("units/b", 1.0), ("units/d", 4.0)]
    before = store.read(DATASET)

    asked.clear()
    assert store.compact("units/", DATASET, counting) == 3
    assert store.read(DATASET) == before
    assert asked == []

    store.put("units/a/x", unit(0.5))
    store.put("units/c", unit(3.0))
    store.put("units/none", unit())
    assert store.compact("units", DATASET, counting) == 5
    assert len(asked) == 3
    assert [value for _, value in rows(store)] == [0.5, 2.0, 1.0, 3.0, 4.0]
    incremental = store.read(DATASET)
    store.delete(DATASET)
    assert store.compact("units", DATASET, decode) == 5
    assert store.read(DATASET) == incremental

    store.delete("units/b")
    assert store.compact("units", DATASET, decode) == 3
    assert [value for _, value in rows(store)] == [0.5, 3.0, 4.0]
    for key in store.list("units"):
        store.delete(key)
    assert store.compact("units", DATASET, decode) == 0
    assert store.read_table(DATASET).column_names == ["value", "unit"]


def test_an_unchanged_dataset_is_not_written(folder: Store) -> None:
    folder.put("units/a", unit(1.0))
    folder.put("units/none", unit())
    assert folder.compact("units", DATASET, decode) == 1
    before = Path(folder.path(DATASET)).stat()
    assert folder.compact("units", DATASET, decode) == 1
    after = Path(folder.path(DATASET)).stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_compaction_widens_types_and_fills_columns(folder: Store) -> None:
    first = pa.table({"n": pa.array([1], pa.int32()), "v": pa.array([[1.0] * 3], pa.list_(pa.float32(), 3))})
    second = pa.table({"n": [2.5], "v": pa.array([[1.0] * 2], pa.list_(pa.float32(), 2)), "note": ["x"]})
    third = pa.table({"n": [None], "note": [None]})
    folder.put("units/1", Store.table_bytes(first))
    folder.compact("units", DATASET, decode)
    assert folder.read_table(DATASET).schema.field("v").type == pa.list_(pa.float32(), 3)
    folder.put("units/2", Store.table_bytes(second))
    folder.put("units/3", Store.table_bytes(third))
    assert folder.compact("units", DATASET, decode) == 3
    table = folder.read_table(DATASET)
    assert table["n"].to_pylist() == [1.0, 2.5, None]
    assert table["v"].to_pylist() == [[1.0] * 3, [1.0] * 2, None]
    assert table["note"].to_pylist() == [None, "x", None]


def test_a_unit_that_cannot_be_used_is_named(store: Store) -> None:
    store.put("units/good", unit(1.0))
    store.compact("units", DATASET, decode)
    before = store.read(DATASET)
    for data in (b"rubbish", unit(1.0, unit="mine"), Store.table_bytes(pa.table({"value": [{"a": 1}]}))):
        store.put("units/wrong", data)
        with pytest.raises(StoreError, match="units/wrong"):
            store.compact("units", DATASET, decode)
        assert store.read(DATASET) == before
        store.delete("units/wrong")
    with pytest.raises(StoreError, match="among its units"):
        store.compact("units", "units/all.parquet", decode)


def test_a_dataset_that_no_compaction_wrote_is_built_anew(folder: Store) -> None:
    folder.put("units/a", unit(1.0))
    for data in (b"rubbish", unit(7.0)):
        folder.replace(DATASET, data)
        assert folder.compact("units", DATASET, decode) == 1
        assert rows(folder) == [("units/a", 1.0)]


def test_others_open_the_compacted_folder(folder: Store) -> None:
    for i in range(3):
        folder.put(f"units/{i}", unit(float(i), task=f"t{i}"))
    folder.compact("units", DATASET, decode)
    place = folder.path("embeddings")
    Path(place, ".0123.tmp").write_bytes(b"left by a killed writer")
    assert pd.read_parquet(place)["task"].tolist() == ["t0", "t1", "t2"]
    assert ds.dataset(place).to_table()["value"].to_pylist() == [0.0, 1.0, 2.0]
    with duckdb.connect() as connection:
        found = connection.execute(f"select unit, value from '{place}/*.parquet' order by value desc").fetchall()
    assert found == [("units/2", 2.0), ("units/1", 1.0), ("units/0", 0.0)]
    assert folder.list("embeddings") == [DATASET]


# --- folders

_KILLED = """
import os, signal, sys, time
from flows._store import Store
store, data = Store(sys.argv[1]), os.urandom(16) * (1 << 20)
begin = time.perf_counter()
store.put("whole", data)
once = time.perf_counter() - begin
for turn in range(24):
    child = os.fork()
    if child == 0:
        (store.put if turn % 2 else store.replace)(f"killed/{turn}", data)
        os._exit(0)
    time.sleep(once * turn / 20)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_killed_writer_leaves_no_half_object(folder: Store) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, folder.url], check=True, timeout=60, env=_with_path())
    whole = folder.read("whole")
    done = folder.list("killed")
    assert all(folder.read(key) == whole for key in done)
    halves = [path.name for path in Path(folder.path("killed")).iterdir() if path.suffix == ".tmp"]
    assert halves, "no writer was killed half-way: the test tested nothing"
    assert not any(name in key for key in done for name in halves)
    assert folder.put("killed/0", whole) is ("killed/0" not in done)  # the place of a killed one is free


def test_a_reader_sees_old_or_new_never_both(folder: Store) -> None:
    size = 1 << 20
    folder.replace("x", b"a" * size)
    stop = threading.Event()

    def write() -> None:
        for turn in range(60):
            folder.replace("x", (b"b" if turn % 2 else b"a") * size)
        stop.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not stop.is_set() and not writing.done():
            data = folder.read("x")
            assert len(data) == size
            assert data.count(data[:1]) == size
        writing.result()


def test_an_open_parquet_outlives_its_replacement(folder: Store) -> None:
    folder.put_table("t.parquet", pa.table({"i": [1, 2]}), row_group_size=1)
    with folder.open_parquet("t.parquet") as file:
        folder.replace("t.parquet", b"gone")
        assert file.read_row_group(1)["i"].to_pylist() == [2]


def test_objects_have_the_usual_mode(folder: Store) -> None:
    old = os.umask(0o022)
    try:
        folder.put("a", b"")
        folder.replace("b", b"")
    finally:
        os.umask(old)
    assert [Path(folder.path(key)).stat().st_mode & 0o777 for key in "ab"] == [0o644, 0o644]


def test_without_hard_links_put_still_creates_only(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    def late(self: Path, target: Path) -> None:
        time.sleep(0.002)  # room for others between looking and renaming
        os.rename(self, target)

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "rename", late)
    barrier = threading.Barrier(8)

    def race(key: str, me: int) -> bool:
        barrier.wait(timeout=20)
        return folder.put(key, bytes([me]) * 1000)

    with ThreadPoolExecutor(8) as pool:
        for turn in range(10):
            won = list(pool.map(race, [f"k{turn}"] * 8, range(8)))
            assert won.count(True) == 1
            assert folder.read(f"k{turn}") == bytes([won.index(True)]) * 1000
    assert folder.list() == [f"k{turn}" for turn in range(10)]


def test_spellings_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spelled = [Store("x"), Store("./x"), Store("x/"), Store(str(tmp_path / "x")), Store(f"file://{tmp_path}/x")]
    assert {store.url for store in spelled} == {str(tmp_path / "x")}
    assert spelled[0].path("a/b") == str(tmp_path / "x" / "a" / "b")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for url in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match=r"cannot create 'probe-.*is a file, not a folder"):
            Store(str(url)).check_writable()
        assert Store(str(url)).list() == []

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere, so modes would not do
    with pytest.raises(StoreError, match=r"Permission denied.*owner and mode"):
        Store(str(tmp_path / "denied")).check_writable()


def test_a_folder_in_the_place_of_an_object(folder: Store) -> None:
    folder.put("a/b", b"")
    for write in (folder.put, folder.replace):
        with pytest.raises(StoreError, match="'a'"):
            write("a", b"")
        with pytest.raises(StoreError, match=r"'a/b/c'.*is a file"):
            write("a/b/c", b"")
    assert folder.list() == ["a/b"]


# --- URLs


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "empty"),
        ("s4://bucket", "did you mean s3://"),
        ("s3://", "no bucket"),
        ("simplecache::s3://bucket", "unknown kind"),
        ("s3://key:hunter2@host/bucket", "no credentials"),
        ("s3://bucket?secret=hunter2", "no credentials"),
    ],
)
def test_wrong_urls_are_refused(url: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        Store(url)
    assert "hunter2" not in str(caught.value)


def test_paths_of_remote_objects() -> None:
    assert Store("s3://bucket/pre/").path("a/b.parquet") == "s3://bucket/pre/a/b.parquet"
    assert Store("s3://bucket").path("a") == "s3://bucket/a"
    assert Store("memory://").path("a") == "memory://a"


# --- S3


def _with_path() -> dict[str, str]:
    root = str(Path(flows._store.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root}


def _in_child(url: str, sender: Any) -> None:
    store = Store(url)
    store.put("child", store.read("parent"))
    sender.send(store.list())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_s3_after_fork_and_in_a_new_process(s3_url: str, method: str) -> None:
    store = Store(s3_url)
    store.put("parent", b"v")  # the parent's connection and event loop exist now
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(s3_url, sender))
    child.start()
    try:
        assert receiver.poll(20), "the child hangs"
        assert receiver.recv() == ["child", "parent"]
        child.join(10)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
        child.close()
        receiver.close()
        sender.close()
    assert store.read("child") == b"v"


def test_s3_without_a_prefix(s3_bucket: Callable[[str], str]) -> None:
    store = Store(s3_bucket("bucket"))
    store.check_writable()
    store.put("a", b"")
    assert store.list() == ["a"]


def test_s3_listings_that_others_cached_are_not_used(s3_url: str) -> None:
    store = Store(s3_url)
    store.put("a", b"")
    filesystem = vars(flows._store)["fsspec"].filesystem
    shared = filesystem("s3")  # what pandas, say, would use in this process
    assert len(shared.ls(s3_url)) == 1
    elsewhere = filesystem("s3", skip_instance_cache=True)
    elsewhere.pipe_file(f"{s3_url}/b", b"")
    elsewhere.rm_file(f"{s3_url}/a")
    assert store.exists("b")
    assert not store.exists("a")
    assert store.list() == ["b"]


def test_s3_large_objects_are_created_only_too(s3_url: str) -> None:
    store = Store(s3_url)
    large = bytes(101 << 20)  # from 100 MB on s3fs uploads in parts
    assert store.put("large", large)
    assert not store.put("large", large[1:])
    assert len(store.read("large")) == len(large)


def test_s3_conflict_without_a_named_condition(s3_bucket: Callable[[str], str]) -> None:
    store = Store(s3_bucket("terse"))
    assert store.put("k", b"1")
    assert not store.put("k", b"2")
    store.check_writable()


def test_s3_servers_that_ignore_conditions_are_found_out(s3_bucket: Callable[[str], str]) -> None:
    store = Store(s3_bucket("lax"))
    with pytest.raises(StoreError, match="ignores If-None-Match"):
        store.check_writable()
    assert store.list() == []


def test_s3_denied(s3_bucket: Callable[[str], str]) -> None:
    with pytest.raises(StoreError, match=r"AccessDenied.*PutObject"):
        Store(s3_bucket("readonly")).check_writable()


@pytest.mark.usefixtures("s3_environment")
def test_s3_missing_bucket() -> None:
    store = Store("s3://no-such-bucket/prefix")
    for ask in (store.check_writable, store.list, lambda: store.read("k"), lambda: store.replace("k", b"")):
        with pytest.raises(StoreError, match=r"no-such-bucket.*create it"):
            ask()


def test_s3_missing_credentials(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    Store.disconnect()
    with pytest.raises(StoreError, match="set AWS_ACCESS_KEY_ID"):
        Store(s3_url).check_writable()


def test_s3_nobody_there(s3_url: str, monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    Store.disconnect()
    with pytest.raises(StoreError, match="check AWS_ENDPOINT_URL"):
        Store(s3_url).read("k")


def test_no_message_holds_credentials(s3_bucket: Callable[[str], str]) -> None:
    for store in (Store(s3_bucket("readonly")), Store("s3://no-such-bucket")):
        with pytest.raises(StoreError) as caught:
            store.check_writable()
        text = "".join(traceback.format_exception(caught.value))
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
        assert os.environ["AWS_ACCESS_KEY_ID"] not in text


def test_what_a_backend_says_is_scrubbed(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("AKIAABCDEFGHIJKLMNOP at http://user:hunter2@host:9000/bucket")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(StoreError, match=r"\(access key\) at http://host:9000/bucket \[RuntimeError\]"):
        folder.read("k")


@pytest.fixture
def unused_port() -> Iterator[int]:
    import socket

    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_all_names_the_public_names() -> None:
    assert flows._store.__all__ == ["Store"]
