"""Garbage collection, checks and versions, over every kind of store that several processes can share."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kept_store import GARBAGE, PROBE, fill, fp

import flows._activity
import flows._format
from flows._activity import active, alone, marks
from flows._check import check_store
from flows._collect import collect, find_garbage, forget
from flows._format import check_format, mark_format, store_version, upgrade
from flows._keys import EMBEDDING_UNITS, EMBEDDINGS, ERROR_MATRIX, TRANSFERABILITY
from flows._query import newest_selector
from flows._store import Store
from t2v_core.errors import ConfigError, StoreError


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store")) if request.param == "folder" else Store(request.getfixturevalue("s3_url"))


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store"))
    fill(made)
    return made


def contents(store: Store, but: tuple[str, ...] = (EMBEDDINGS, ERROR_MATRIX, TRANSFERABILITY)) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list() if key not in but}


def aged(store: Store, days: float, *keys: str) -> None:
    for key in keys or tuple(store.list()):
        os.utime(store.path(key), (time.time() - days * 86_400,) * 2)


# --- garbage


def test_a_collection_takes_what_nothing_refers_to_and_nothing_else(store: Store) -> None:
    fill(store)
    before = contents(store)
    said = find_garbage(store, grace=0)
    assert sorted(e.key for group in said.groups.values() for e in group) == GARBAGE
    assert said.rows == {EMBEDDINGS: 1, ERROR_MATRIX: 2, TRANSFERABILITY: 2}
    assert contents(store) == before, "a dry run changes nothing"
    assert store.read_table(EMBEDDINGS).num_rows == 3

    done = collect(store, grace=0)
    assert done.groups == said.groups
    assert done.bytes == sum(len(before[key]) for key in GARBAGE)
    after = contents(store)
    assert after == {key: data for key, data in before.items() if key not in GARBAGE}
    assert store.read_table(EMBEDDINGS)["fingerprint"].to_pylist() == [fp("one"), fp("two")]
    assert store.read_table(ERROR_MATRIX)["expert"].to_pylist() == ["mine", "mine"]
    assert store.read_table(TRANSFERABILITY)["expert"].to_pylist() == ["mine", "mine"]
    again = collect(store, grace=0)
    assert (again.objects, again.kept) == (0, done.kept)
    assert contents(store) == after


def test_what_is_young_is_kept_and_a_folder_is_as_young_as_its_newest_object(folder: Store) -> None:
    assert find_garbage(folder).objects == 0
    assert collect(folder, grace=3600).objects == 0
    aged(folder, 10)
    young = f"experts/old-{fp('old')}/weights.safetensors"
    aged(folder, 3, young)
    found = find_garbage(folder)
    keys = [e.key for group in found.groups.values() for e in group]
    assert sorted(keys) == [key for key in GARBAGE if not key.startswith("experts/old-")]
    assert found.young == 3
    assert collect(folder).groups == found.groups
    assert folder.exists(young)


def test_a_config_that_is_forgotten_leaves_only_what_others_need(store: Store) -> None:
    fill(store)
    for key in [key for key in store.list() if key.startswith(("latest/mine/", "results/"))]:
        store.put(key.replace("mine", "mine-2"), store.read(key))
    mine = forget(store, "mine", delete=False)
    assert sorted(k.split("/")[0] for k in mine) == [*["latest"] * 9, "registered", "registered-experts", "results"]
    with pytest.raises(ConfigError, match="it knows mine, mine-2"):
        forget(store, "min", delete=True)
    forget(store, "mine", delete=True)
    outside = f"experts/outside/added-{fp('added')}.pt"
    gone = collect(store, 0)
    assert sorted(e.key for group in gone.groups.values() for e in group) == sorted([*GARBAGE, outside])
    forget(store, "mine-2", delete=True)
    collect(store, 0)
    assert store.list() == [EMBEDDINGS, ERROR_MATRIX, "notes/of-another-tool.txt", TRANSFERABILITY]
    assert store.read_table(EMBEDDINGS).num_rows == 0


def test_patterns_spare_what_they_match(folder: Store) -> None:
    found = find_garbage(folder, 0, ["features/*", "experts/old-*/expert.json"])
    keys = [e.key for group in found.groups.values() for e in group]
    assert sorted(keys) == [key for key in GARBAGE if not key.startswith(("features/", "experts/old-"))]


def test_nothing_is_deleted_while_a_root_cannot_be_read(folder: Store) -> None:
    before = contents(folder)
    folder.replace("latest/mine/experts.json", b"{")
    with pytest.raises(StoreError, match=r"latest/mine/experts\.json"):
        collect(folder, 0)
    assert contents(folder).keys() == before.keys()
    assert marks(folder, now=time.time()) == []


def test_times_in_the_future_are_said_and_kept(folder: Store) -> None:
    aged(folder, 10)
    key = f"libraries/mine-{fp('old library')}.parquet"
    aged(folder, -2, key)
    found = find_garbage(folder)
    assert any("1 objects were written in the future" in note and key in note for note in found.notes)
    assert key not in found.groups
    assert found.young == 1
    assert any("future" in note for note in check_store(folder).notes)


def test_ages_are_by_the_clock_of_the_store(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock a month ahead: nothing is a month old for that."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 30 * 86_400)
    found = find_garbage(folder)
    assert found.objects == 0
    assert any("from this machine's" in note for note in found.notes)


def test_leftovers_of_killed_writers_go_when_they_are_old(folder: Store) -> None:
    left = Path(folder.path(f"libraries/.{uuid.uuid4().hex}.tmp".replace("/.", "/x"))).with_name(
        f".{uuid.uuid4().hex}.tmp"
    )
    left.write_bytes(bytes(1000))
    assert find_garbage(folder).leftovers == ()
    os.utime(left, (0, 0))
    assert [e.size for e in find_garbage(folder).leftovers] == [1000]
    assert ("libraries/" + left.name, "1000 bytes of a killed writer") in check_store(folder).unfinished
    collect(folder)
    assert not left.exists()


_COLLECT = """
import os, sys, threading, time
from flows._collect import collect
from flows._store import Store
deaths = int(sys.argv[2])
delete, count = Store.delete, 0
def dying(self, key):
    global count
    if not key.startswith("activity/"):
        count += 1
        if count > deaths:
            os.kill(os.getpid(), 9)
    delete(self, key)
Store.delete = dying
collect(Store(sys.argv[1]), 0)
"""


def _child(store: Store, deaths: int) -> subprocess.Popen[bytes]:
    root = str(Path(flows._activity.__file__).parents[1])
    command = [sys.executable, "-c", _COLLECT, store.url, str(deaths)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": root}, stderr=subprocess.PIPE)


@pytest.mark.parametrize("deaths", [1, 7])
def test_a_killed_collection_leaves_nothing_that_passes_for_complete(
    store: Store, deaths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    before = contents(store)
    child = _child(store, deaths)
    _, said = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, said.decode()[-2000:]
    checked = check_store(store)
    assert checked.missing == ()
    assert {key for key, _ in checked.damaged} <= set(GARBAGE)
    with pytest.raises(StoreError, match="there is at work: t2v store gc"):
        collect(store, 0)  # its mark is young still
    monkeypatch.setattr(flows._activity, "DEAD", 0.0)
    collect(store, 0)
    assert contents(store) == {key: data for key, data in before.items() if key not in GARBAGE}


def test_of_two_collections_at_once_none_takes_what_is_wanted(store: Store) -> None:
    fill(store)
    before = contents(store)
    children = [_child(store, 10_000) for _ in range(2)]
    said = [child.communicate(timeout=60)[1].decode() for child in children]
    for child, told in zip(children, said, strict=True):
        assert child.returncode == 0 or "there is at work: t2v store gc" in told, told[-2000:]
    collect(store, 0)
    assert contents(store) == {key: data for key, data in before.items() if key not in GARBAGE}


def test_a_collection_gives_way_to_a_flow(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)
    before = store.list()
    with active(store, "flow of mine"):
        with active(store, "a stage of it"):
            pass
        with pytest.raises(StoreError, match=r"there is at work: flow of mine on .*Nothing was done"):
            collect(store, 0)
        assert [key for key in store.list() if not key.startswith("activity/")] == before
        # Dead by the clock: its writer was killed, say.
        monkeypatch.setattr(flows._activity, "DEAD", 0.0)
        assert collect(store, 0).objects == len(GARBAGE)
        monkeypatch.undo()
        with pytest.raises(StoreError, match="took it for dead; run the same command again"), active(store, "the next"):
            pass
        store.put_json(next(iter(flows._activity._held.values()))[0].key, {})  # so that this test can end
    assert store.list("activity") == []


def test_a_flow_waits_for_a_collection(store: Store) -> None:
    order: list[str] = []

    def flow() -> None:
        with active(store, "flow of mine"):
            order.append("flow")

    with ThreadPoolExecutor(1) as pool:
        with alone(store, "t2v store gc") as hold:
            running = pool.submit(flow)
            time.sleep(1)
            hold.check()
            order.append("collection")
        running.result(timeout=30)
    assert order == ["collection", "flow"]
    assert store.list() == []


def test_a_full_disk_does_not_keep_a_collection_from_making_room(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, room = contents(folder), threading.Event()
    fsync, unlink = os.fsync, Path.unlink

    def full(fd: int) -> None:
        if not room.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    def freed(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        if not self.name.startswith("."):
            room.set()

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "unlink", freed)
    with pytest.raises(StoreError, match="the disk is full"):
        folder.put("x", b"")
    assert collect(folder, 0).objects == len(GARBAGE)
    assert contents(folder) == {key: data for key, data in before.items() if key not in GARBAGE}


def test_a_full_disk_without_garbage_is_said(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = contents(folder)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"the disk of .* is full, and nothing old"):
        collect(folder)
    assert contents(folder) == before


# --- checks


def test_a_whole_store_is_whole(store: Store) -> None:
    fill(store)
    collect(store, 0)
    checked = check_store(store)
    assert checked.whole
    assert (checked.objects, checked.bytes) == (len(store.list()), sum(e.size for e in store.entries()))
    assert checked.unfinished == ()
    assert checked.notes == ()


@pytest.mark.parametrize(
    ("key", "data", "said"),
    [
        (f"{EMBEDDING_UNITS}/{PROBE}/digits__one-{fp('one')}.parquet", None, f"{EMBEDDING_UNITS}: one, {fp('one')}"),
        (f"experts/mine-{fp('mine')}/heads.safetensors", None, ""),
        (f"experts/mine-{fp('mine')}/weights.safetensors", None, ""),
        (f"sources/digits-{fp('digits')}/shard-00000.parquet", None, ""),
        (f"libraries/mine-{fp('library')}.parquet", None, ""),
        (f"experts/outside/added-{fp('added')}.pt", None, ""),
        (f"sources/digits-{fp('digits')}/shard-00000.parquet", b"PAR1 cut short", "Parquet"),
        (f"experts/mine-{fp('mine')}/weights.safetensors", b"cut", "cut short"),
        (f"selections/mine-{fp('newest')}/selection.json", b"{", "parse"),
    ],
)
def test_what_is_missing_or_damaged_is_named(folder: Store, key: str, data: bytes | None, said: str) -> None:
    if data is None:
        folder.delete(key)
        missing = check_store(folder).missing
        assert [what for what, _ in missing] == [said or key]
        assert missing[0][1].startswith(("latest/", "registered-experts/", "experts/", "sources/"))
    else:
        folder.replace(key, data)
        ((named, reason),) = [x for x in check_store(folder).damaged if x[0] not in GARBAGE]
        assert named == key
        assert said in reason


def test_what_is_half_made_is_named(folder: Store) -> None:
    unfinished = dict(check_store(folder).unfinished)
    assert unfinished[f"experts/left-{fp('left')}"].endswith("no expert.json")
    assert unfinished[f"sources/digits-{fp('digits of last year')}"].startswith("2 objects")
    assert sorted(unfinished) == sorted({*unfinished} & {"/".join(key.split("/")[:2]) for key in GARBAGE})


def test_a_full_check_compares_with_keys(folder: Store) -> None:
    collect(folder, 0)
    wrong = {key for key, _ in check_store(folder, full=True).damaged}
    # The small store's library has no tasks, its program not the digest that its key says, its experts no networks.
    assert wrong == {
        f"experts/outside/added-{fp('added')}.pt",
        f"libraries/mine-{fp('library')}.parquet",
        f"experts/mine-{fp('mine')}/weights.safetensors",
    }
    key = f"{EMBEDDING_UNITS}/{PROBE}/digits__one-{fp('one')}.parquet"
    folder.replace(key, folder.read(f"{EMBEDDING_UNITS}/{PROBE}/digits__two-{fp('two')}.parquet"))
    assert key in {k for k, _ in check_store(folder, full=True).damaged}
    assert key not in {k for k, _ in check_store(folder).damaged}


# --- versions


def test_a_newer_store_is_refused_before_anything_is_written(store: Store) -> None:
    fill(store)
    for newer in ({"format": 99, "schema": 1}, {"format": 1, "schema": 99}):
        store.replace_json("format.json", newer)
        before = contents(store)
        asks: list[Callable[[], object]] = [
            lambda: check_format(store),
            lambda: mark_format(store),
            lambda: upgrade(store, apply=True),
            lambda: newest_selector(store),
        ]
        for ask in asks:
            with pytest.raises(StoreError, match=r"A newer t2v wrote it: install that one here\. Nothing was touched"):
                ask()
        assert contents(store) == before


def test_a_damaged_marker_is_named(folder: Store) -> None:
    for data in (b"{", b"[]", b'{"format": "x"}'):
        folder.replace("format.json", data)
        with pytest.raises(StoreError, match=r"format\.json"):
            mark_format(folder)
        assert folder.read("format.json") == data


def test_stores_without_a_marker_are_of_version_1(store: Store) -> None:
    assert store_version(store) == (1, 1)
    assert upgrade(store, apply=False) == ["format.json: format 1, schema 1, where there was no marker"]
    assert store.list() == []
    mark_format(store)
    assert store_version(store) == (1, 1)
    assert upgrade(store, apply=True) == []


def test_an_older_store_wants_an_upgrade_which_bears_being_killed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps, to formats 2 and 3; the first renames objects and is cut off half-way."""
    fill(store)
    mark_format(store)
    before = contents(store)
    budget = [1]

    def rename(place: Store, apply: bool) -> list[str]:
        keys = place.list("reports")
        for key in keys if apply else []:
            if not budget[0]:
                raise StoreError("killed")
            budget[0] -= 1
            place.put(key.replace("reports/", "pages/"), place.read(key))
            place.delete(key)
        return [f"{len(keys)} reports are renamed"]

    monkeypatch.setattr(flows._format, "FORMAT", 3)
    monkeypatch.setattr(flows._format, "STEPS", {1: rename, 2: lambda place, apply: ["nothing to move"]})
    with pytest.raises(StoreError, match=r"is of format 1, schema 1; .*`t2v store upgrade` says"):
        mark_format(store)
    lines = upgrade(store, apply=False)
    assert lines == [
        "format 1 to 2: 3 reports are renamed",
        "format.json: format 2",
        "format 2 to 3: nothing to move",
        "format.json: format 3",
    ]
    assert contents(store) == before
    with pytest.raises(StoreError, match="killed"):
        upgrade(store, apply=True)
    assert store_version(store) == (1, 1)
    budget[0] = 100
    upgrade(store, apply=True)
    assert store_version(store) == (3, 1)
    check_format(store)
    expected = {k.replace("reports/", "pages/"): v for k, v in before.items() if k != "format.json"}
    assert {k: v for k, v in contents(store).items() if k != "format.json"} == expected


def test_an_upgrade_without_a_way_is_refused(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    monkeypatch.setattr(flows._format, "FORMAT", 2)
    with pytest.raises(StoreError, match="no upgrade from format 1"):
        upgrade(folder, apply=True)
    assert contents(folder) == before


def test_a_raised_schema_is_told(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows._format, "SCHEMA_VERSION", 2)
    with pytest.raises(StoreError, match="t2v store upgrade"):
        check_format(folder)
    assert "made again under new keys" in upgrade(folder, apply=True)[0]
    assert store_version(folder) == (1, 2)


# --- the command


def test_the_command_says_before_it_does(folder: Store) -> None:
    from typer.testing import CliRunner

    from flows._cli_backup import store_app

    def ask(*words: str) -> tuple[int, str]:
        answer = CliRunner().invoke(store_app, ["--store", folder.url, *words], env={"COLUMNS": "200"})
        return answer.exit_code, answer.output + (str(answer.exception) if answer.exit_code == 1 else "")

    before = contents(folder)
    code, said = ask("gc", "--grace", "0s", "--verbose")
    assert code == 0
    assert "Nothing was deleted; --delete does it." in said
    for key in GARBAGE:
        assert "/".join(key.split("/")[:2]) in said
    assert f"{EMBEDDINGS}: 1 rows would go" in said
    assert f"{len(GARBAGE)} " in said
    assert contents(folder) == before
    assert "deleted" in ask("gc", "--grace", "0s", "--delete", "--keep", "features/*")[1]
    assert set(before) - set(contents(folder)) == {key for key in GARBAGE if not key.startswith("features/")}
    assert "'7x' is no duration; wanted" in ask("gc", "--grace", "7x")[1]
    assert "configs: mine" in ask("info")[1]
    assert ask("check")[0] == 0
    folder.delete(f"experts/mine-{fp('mine')}/weights.safetensors")
    code, said = ask("check")
    assert (code, "1 missing, 0 damaged" in said) == (1, True)
    assert f"missing experts/mine-{fp('mine')}/weights.safetensors, named by " in said
    assert "Nothing was changed; --apply does it." in ask("upgrade")[1]
    assert "format.json: format 1" in ask("upgrade", "--apply")[1]
    assert "Nothing to do" in ask("upgrade")[1]
    assert "latest/mine/selection.json" in ask("forget", "mine")[1]
    assert folder.exists("latest/mine/selection.json")
