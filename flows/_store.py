"""The store: immutable objects under readable keys, in a folder or in any object store fsspec knows.

Only this file and `_store_remote.py` import fsspec. Two ways of writing are all there is:

- `Store.put` creates and never overwrites. Keys are content-addressed, so whoever is first is right, and a run
  resumes by asking which keys exist.
- `Store.replace` swaps a whole object at once. Only compacted datasets and other views are written so.

Either way a reader finds all of an object or none of it, also when the writer is killed half-way.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import re
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeAlias

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from flows._store_compaction import compact, parsed
from flows._store_errors import telling
from flows._store_folder import Folder
from flows._store_objects import Entry, Objects, join
from flows._store_remote import Remote, checked_remote
from t2v_core.errors import StoreError

__all__ = ["Store"]

# `list` is a method of the classes below, so their annotations need another name for the type.
_Keys: TypeAlias = list[str]
_Entries: TypeAlias = list[Entry]

_PIECE = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*")
_ATTEMPTS = 5


class Store:
    """Objects under keys such as ``embeddings/resnet34/inat2018__order=Rodentia-0123456789abcdef.parquet``.

    Cheap to construct (nothing is contacted), holds no secret and no connection, and pickles as its URL: send it to
    workers freely. Credentials and endpoints are found by the object store's own client (for S3: ``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``, a profile or a role).

    Args:
        url: a local path, ``file://``, ``s3://bucket/prefix``, ``memory://`` or another fsspec URL. A relative path is
            made absolute here and now.

    Raises:
        StoreError: the URL is empty, of an unknown kind, without a bucket, or holds credentials.
    """

    def __init__(self, url: str) -> None:
        protocol, separator, rest = url.partition("://")
        if not url.strip():
            raise StoreError("the store's URL is empty; wanted a folder or a URL such as s3://bucket/prefix")
        if separator and protocol not in ("file", "local"):
            self._url = checked_remote(protocol, rest)
            self._objects: Objects = Remote(protocol, self._url)
        else:
            # fsspec's own reading of file:// and ~, so that both spellings name one folder.
            local: Any = fsspec.get_filesystem_class("file")
            self._url = str(local._strip_protocol(url))
            self._objects = Folder(self._url)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return type(self), (self._url,)

    def __repr__(self) -> str:
        return f"Store({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)

    @property
    def url(self) -> str:
        """Where the store is: an absolute path, or a URL without a trailing slash."""
        return self._url

    def path(self, key: str) -> str:
        """Full path or URL of an object or of a folder of objects, to paste into pandas or DuckDB.

        Raises:
            StoreError: the key is not valid.
        """
        return join(self._url, _checked(key))

    def exists(self, key: str) -> bool:
        """Whether there is an object under ``key``; asks the store each time.

        Raises:
            StoreError: the key is not valid, or the store does not answer.
        """
        with self._telling("look for", key):
            return self._objects.exists(_checked(key))

    def read(self, key: str) -> bytes:
        """All bytes of one object, from one version of it.

        Raises:
            StoreError: there is no such object, the key is not valid, or the store does not answer.
        """
        with self._telling("read", key):
            return self._objects.read(_checked(key))

    def list(self, prefix: str = "") -> _Keys:
        """Keys of all objects in the folder ``prefix``, at any depth, sorted; asks the store each time.

        Names that are no valid keys (temporary files, what others left in the folder) are left out. A folder without
        objects, or none at all, gives an empty list.

        Raises:
            StoreError: the prefix is not valid, the bucket is missing, or the store does not answer.
        """
        folder = _checked(prefix.rstrip("/")) if prefix else ""
        with self._telling("list", folder):
            return sorted(key for key in self._objects.list(folder) if _is_key(key))

    def read_part(self, key: str, start: int, length: int) -> bytes:
        """Some bytes of one object; fewer where it ends before.

        Raises:
            StoreError: as `read`.
        """
        with self._telling("read", key):
            return self._objects.read_part(_checked(key), start, length)

    def entries(self, prefix: str = "") -> _Entries:
        """As `list`, with the size of each object and when it was written, by the store's own clock.

        Raises:
            StoreError: as `list`.
        """
        folder = _checked(prefix.rstrip("/")) if prefix else ""
        with self._telling("list", folder):
            return sorted(entry for entry in self._objects.entries(folder) if _is_key(entry.key))

    def odd_names(self) -> _Keys:
        """Names that are no keys, which `list` leaves out, sorted; leftovers among them.

        Raises:
            StoreError: the store does not answer.
        """
        with self._telling("list", ""):
            return sorted(name for name in self._objects.list("") if not _is_key(name))

    def leftovers(self) -> _Entries:
        """What killed writers left: hidden files of a folder, begun uploads of S3. Readers see neither.

        Raises:
            StoreError: the store does not answer.
        """
        with self._telling("look for leftovers in", ""):
            return sorted(self._objects.leftovers())

    def delete_leftover(self, leftover: Entry) -> None:
        """Delete one of `leftovers`.

        Raises:
            StoreError: it cannot be deleted.
        """
        with self._telling("delete the leftover", leftover.key), contextlib.suppress(FileNotFoundError):
            self._objects.delete_leftover(leftover.key)

    def put(self, key: str, data: bytes) -> bool:
        """Create one object, or leave the one that is there untouched.

        Returns:
            True if this call wrote the object, False if the key was taken. (Where a network fails after S3 has stored
            the object but before it has said so, the client's own retry finds the key taken: the answer is then False
            although the bytes are ours. Same key, same bytes, so it makes no difference.)

        Raises:
            StoreError: the key is not valid, or the object cannot be written.
        """
        with self._telling("create", key):
            key = _checked(key)
            for attempt in range(_ATTEMPTS):
                time.sleep(0.05 * attempt)
                if self._objects.create(key, data):
                    return True
                # A conflict that is not an object: S3 answers 409 while a deletion of the key is in flight, and a
                # folder may stand where the object should go.
                if self._objects.exists(key):
                    return False
            raise OSError(errno.EEXIST, "something that is not an object keeps the key taken")

    def replace(self, key: str, data: bytes) -> None:
        """Write one object whether or not it exists, in one step for every reader.

        Raises:
            StoreError: the key is not valid, or the object cannot be written.
        """
        with self._telling("replace", key):
            self._objects.replace(_checked(key), data)

    def delete(self, key: str) -> None:
        """Delete one object; a missing one is fine.

        Raises:
            StoreError: the key is not valid, or the object cannot be deleted.
        """
        with self._telling("delete", key), contextlib.suppress(FileNotFoundError):
            self._objects.delete(_checked(key))

    def read_json(self, key: str) -> Any:
        """One JSON object, parsed.

        Raises:
            StoreError: as `read`, or the object is not JSON.
        """
        data = self.read(key)
        with self._telling("parse", key):
            return json.loads(data)

    def put_json(self, key: str, value: Any) -> bool:
        """`put` of ``value`` as JSON; same value, same bytes.

        Raises:
            StoreError: as `put`, or ``value`` has no JSON form (NaN has none).
        """
        return self.put(key, self._json_bytes(key, value))

    def replace_json(self, key: str, value: Any) -> None:
        """`replace` by ``value`` as JSON; same value, same bytes.

        Raises:
            StoreError: as `replace`, or ``value`` has no JSON form (NaN has none).
        """
        self.replace(key, self._json_bytes(key, value))

    def read_table(self, key: str, columns: _Keys | None = None) -> pa.Table:
        """One Parquet object as a table.

        Args:
            key: of the object.
            columns: which to read, in this order; all by default.

        Raises:
            StoreError: as `read`, or the object is not Parquet, or a column is missing.
        """
        data = self.read(key)
        with self._telling("parse", key):
            table = parsed(data)
            return table if columns is None else table.select(columns)

    def put_table(self, key: str, table: pa.Table, row_group_size: int | None = None) -> bool:
        """`put` of ``table`` as Parquet; see `table_bytes`.

        Raises:
            StoreError: as `put`, or the table has no Parquet form.
        """
        with self._telling("write the Parquet of", key):
            data = self.table_bytes(table, row_group_size)
        return self.put(key, data)

    @staticmethod
    def table_bytes(table: pa.Table, row_group_size: int | None = None) -> bytes:
        """A table as Parquet (zstd); same rows and schema, same bytes, however the table is chunked.

        Args:
            table: what to write.
            row_group_size: rows of a group, at most; pyarrow's default (2^20) if None.
        """
        sink = pa.BufferOutputStream()
        pq.write_table(table.combine_chunks(), sink, compression="zstd", row_group_size=row_group_size)
        return bytes(sink.getvalue().to_pybytes())

    def open_parquet(self, key: str) -> pq.ParquetFile:
        """One Parquet object, opened for reading single row groups; only the footer is read here.

        Open it in the process that reads it, and close it (it is a context manager). Reading on after the object was
        replaced gives the old rows (folder, memory) or an `OSError` (S3), never a mixture.

        Raises:
            StoreError: the object is missing or not Parquet, the key is not valid, or the store does not answer.
        """
        with self._telling("open", key):
            return self._objects.open_parquet(_checked(key))

    def check_writable(self) -> None:
        """Write, read and delete a small object, so that a long run fails now rather than at its first result.

        Raises:
            StoreError: what was tried, what came back, and how to mend it. Also where the store would overwrite
                an object that it was told to create only.
        """
        key = f"probe-{uuid.uuid4().hex}"
        try:
            fresh, again, back = self.put(key, b"t2v"), self.put(key, b"second"), self.read(key)
        except StoreError:
            with contextlib.suppress(StoreError):  # the first failure says more than that of cleaning up after it
                self.delete(key)
            raise
        self.delete(key)
        if not fresh or again or back != b"t2v":
            raise StoreError(
                f"the store {self._url} overwrites objects that were to be created only (it ignores If-None-Match), "
                "so two workers could undo each other's results; use an object store with conditional writes"
            )

    def compact(self, unit_prefix: str, dataset_key: str, decode: Callable[[bytes], pa.Table]) -> int:
        """Gather many small objects (units) into the one Parquet object that people read.

        The dataset has a column ``unit`` with each row's key, is sorted by it, and is replaced in one step. Only units
        it does not hold yet are read; rows of units that are gone are dropped; where nothing changed, nothing is
        written. Columns missing in a unit are null, and types are widened to hold all units. As units never change,
        compacting twice, or after a crash, or from two processes at once, ends in the same rows.

        Args:
            unit_prefix: folder of the units.
            dataset_key: of the dataset, outside of ``unit_prefix``, e.g. ``embeddings/part-0.parquet``.
            decode: bytes of a unit to its rows. Called in this thread.

        Returns:
            Number of rows of the dataset. Without any unit nothing is written and it is 0, unless there is a dataset
            to be emptied.

        Raises:
            StoreError: a unit cannot be read, decoded or joined to the others (named), or the dataset not written.
        """
        return compact(self, unit_prefix, dataset_key, decode)

    @staticmethod
    def disconnect() -> None:
        """Close this process's S3 connections; the next use of any store makes new ones.

        For a process that changes its credentials or endpoint, and for tests. Not while another thread uses a store.
        """
        if "s3fs" in sys.modules:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            gc.collect()  # s3fs closes its sessions when its file systems are collected, and those hold cycles

    def _json_bytes(self, key: str, value: Any) -> bytes:
        with self._telling("write the JSON of", key):
            return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()

    def _telling(self, action: str, key: str) -> contextlib.AbstractContextManager[None]:
        return telling(self._url, action, key)


def _is_key(key: str) -> bool:
    return all(_PIECE.fullmatch(piece) for piece in key.split("/"))


def _checked(key: str) -> str:
    if not _is_key(key):
        raise StoreError(
            f"{key!r} is no valid key; wanted pieces of letters, digits and . _ = - joined by single slashes, none of "
            "them empty or beginning with a dot (t2v_core.fingerprints.readable makes such a piece of any name)"
        )
    return key
