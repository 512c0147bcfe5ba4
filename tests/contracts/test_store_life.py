"""What every kind of store owes its keepers: ages and sizes, parts of objects, leftovers; nothing leads out of it."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import pytest

import flows._store
from flows._store import Store
from t2v_core.errors import StoreError


def test_entries_are_the_list_with_sizes_and_times(store: Store) -> None:
    began = time.time()
    assert store.entries() == [] == store.entries("a")
    for key, size in {"a/b": 3, "a/c/d": 0, "ab": 7}.items():
        store.put(key, bytes(size))
    found = store.entries()
    assert [(e.key, e.size) for e in found] == [("a/b", 3), ("a/c/d", 0), ("ab", 7)]
    assert all(began - 2 <= e.modified <= time.time() + 2 for e in found)
    assert [e.key for e in store.entries("a/")] == ["a/b", "a/c/d"] == store.list("a")


def test_parts_of_objects(store: Store) -> None:
    store.put("x", b"0123456789")
    assert store.read_part("x", 2, 3) == b"234"
    assert store.read_part("x", 8, 5) == b"89"
    with pytest.raises(StoreError, match="no/where"):
        store.read_part("no/where", 0, 1)


def test_a_killed_writer_of_a_folder_leaves_what_can_be_swept(folder: Store) -> None:
    folder.put("a/b", b"1")
    left = Path(folder.path("a")) / f".{uuid.uuid4().hex}.tmp"
    left.write_bytes(b"half")
    Path(folder.path("a"), ".hidden").write_bytes(b"of somebody else")
    (found,) = folder.leftovers()
    assert (found.key, found.size) == (f"a/{left.name}", 4)
    folder.delete_leftover(found)
    folder.delete_leftover(found)
    assert not left.exists()
    assert folder.leftovers() == []
    assert Path(folder.path("a"), ".hidden").exists()


def test_a_killed_upload_to_s3_can_be_swept(s3_url: str) -> None:
    store, other = Store(s3_url), Store(f"{s3_url}-other")
    files: Any = vars(flows._store)["fsspec"].filesystem("s3", use_listings_cache=False)
    for place in (store, other):
        bucket, _, key = place.path("a/large").removeprefix("s3://").partition("/")
        files.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    (found,) = store.leftovers()
    assert found.key.startswith("a/large?uploadId=")
    assert abs(found.modified - time.time()) < 10 or found.modified < time.time()  # moto's uploads are of 2010
    store.delete_leftover(found)
    assert store.leftovers() == []
    assert len(other.leftovers()) == 1
    assert store.list() == []


@pytest.mark.parametrize("link", ["folder", "file"])
def test_a_link_does_not_lead_out_of_a_folder(folder: Store, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    folder.put("experts/mine", b"mine")
    if link == "folder":
        Path(folder.path("experts/there")).symlink_to(outside)
        key = "experts/there/secret"
    else:
        Path(folder.path("experts/secret")).symlink_to(outside / "secret")
        key = "experts/secret"
    for ask in (folder.exists, folder.read, folder.open_parquet, folder.delete):
        with pytest.raises(StoreError, match=r"leads out of the store .* symbolic link"):
            ask(key)
    for write in (folder.put, folder.replace):
        with pytest.raises(StoreError, match="leads out of the store"):
            write(key, b"mine now")
    assert (outside / "secret").read_bytes() == b"secret"
    assert sorted(p.name for p in outside.iterdir()) == ["secret"]
    assert folder.list() == ["experts/mine"] == [e.key for e in folder.entries()]
    if link == "folder":
        with pytest.raises(StoreError, match="leads out of the store"):
            folder.list("experts/there")


def test_links_within_a_folder_and_to_it_are_fine(folder: Store, tmp_path: Path) -> None:
    folder.put("a/real", b"1")
    Path(folder.path("a/again")).symlink_to(folder.path("a/real"))
    Path(folder.path("a/broken")).symlink_to(folder.path("a/nothing"))
    assert folder.list() == ["a/again", "a/real"]
    assert folder.read("a/again") == b"1"
    (tmp_path / "elsewhere").symlink_to(folder.url)
    linked = Store(str(tmp_path / "elsewhere"))
    assert linked.list() == ["a/again", "a/real"]
    assert linked.put("b", b"2")
    assert folder.read("b") == b"2"
