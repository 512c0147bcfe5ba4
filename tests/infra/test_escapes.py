"""Keys of the store and paths of manifests stay below their root; store URLs hold no credentials."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows._store import Store
from t2v_core.errors import ImageError, SourceError, StoreError
from t2v_core.fingerprints import readable
from t2v_core.sources._layout import refuse_outside
from t2v_core.sources.base import read_file

BAD_KEYS = [
    "../outside",
    "a/../../outside",
    "/etc/passwd",
    "a//b",
    "a/./b",
    ".hidden",
    "a/.hidden/b",
    "a\\..\\b",
    "a\x00b",
    "%2e%2e/outside",
    "~/outside",
    "",
    "a/",
    "a/\n",
    "ａ/‥/b",
]


@pytest.mark.parametrize("key", BAD_KEYS)
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_keys_cannot_leave_the_store(kind: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    store = Store(str(tmp_path / "store") if kind == "folder" else "memory://escapes")
    for call in (store.path, store.exists, store.read, store.delete, store.open_parquet):
        with pytest.raises(StoreError, match="no valid key"):
            call(key)
    for write in (store.put, store.replace):
        with pytest.raises(StoreError, match="no valid key"):
            write(key, b"x")
    if key not in ("", "a/"):  # the whole store, and the folder a
        with pytest.raises(StoreError, match="no valid key"):
            store.list(key)
    assert (tmp_path / "outside").read_bytes() == b"secret"
    assert sorted(os.listdir(tmp_path)) == ["outside"]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30) | st.sampled_from(["..", ".", "../..", "/", "-", "a/../b"]))
def test_a_name_in_a_key_stays_in_its_folder(name: str) -> None:
    """Of configs, sources and experts: made readable, then checked like any key."""
    store = Store("/nowhere/store")
    try:
        path = store.path(f"registered/{readable(name)}.json")
    except StoreError:  # refused, as one whose name is only dots
        return
    assert os.path.dirname(os.path.normpath(path)) == "/nowhere/store/registered"


BAD_PATHS = ["../x.png", "/etc/passwd", "a/../../x.png", "a/..", "..\\x.png", "\\\\host\\x.png", "a\x00.png", ""]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_of_annotation_files_cannot_leave_their_folder(path: str) -> None:
    with pytest.raises(SourceError, match="leaves the folder"):
        refuse_outside(["fine/a.png", path], Path("annotations.json"))


@pytest.mark.parametrize("path", [*BAD_PATHS[:4], "link.png", "folder/secret.png"])
def test_files_outside_the_root_are_not_read(path: str, tmp_path: Path) -> None:
    """Whatever a locator in the store says, and wherever a link leads."""
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    with pytest.raises((ImageError, OSError)) as caught:
        read_file(root, path)
    if path != "a/..":  # a folder of the root itself, and no file
        assert isinstance(caught.value, ImageError), caught.value


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:s3cret-value@bucket/prefix",
        "s3://bucket/prefix?secret=s3cret-value",
        "s3://bucket/prefix#s3cret-value",
        "https://user:s3cret-value@host/store",
    ],
)
def test_a_store_url_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert "s3cret-value" not in str(caught.value)
    link: BaseException | None = caught.value
    while link is not None:
        assert "s3cret-value" not in str(link)
        link = link.__cause__
