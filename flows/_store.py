"""The store: immutable objects under readable keys, in a folder or in any object store fsspec knows.

This is the only file that imports fsspec. Two ways of writing are all there is:

- `Store.put` creates and never overwrites. Keys are content-addressed, so whoever is first is right, and a run
  resumes by asking which keys exist.
- `Store.replace` swaps a whole object at once. Only compacted datasets and other views are written so.

Either way a reader finds all of an object or none of it, also when the writer is killed half-way.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import gc
import json
import os
import re
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from t2v_core.errors import StoreError

__all__ = ["Store"]

# `list` is a method of the classes below, so their annotations need another name for the type.
_Keys: TypeAlias = list[str]

_PIECE = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*")
_UNIT = "unit"
_READERS = 16
_ATTEMPTS = 5
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


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
            self._url = _checked_remote(protocol, rest)
            self._objects: _Objects = _Remote(protocol, self._url)
        else:
            # fsspec's own reading of file:// and ~, so that both spellings name one folder.
            local: Any = fsspec.get_filesystem_class("file")
            self._url = str(local._strip_protocol(url))
            self._objects = _Folder(self._url)

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
        return _join(self._url, _checked(key))

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
            table = _parsed(data)
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
        folder = unit_prefix.rstrip("/")
        if _checked(dataset_key).startswith(f"{_checked(folder)}/"):
            raise StoreError(f"dataset {dataset_key!r} lies among its units in {folder!r}; give it another folder")
        units = self.list(folder)
        known = self._dataset(dataset_key)
        held = set() if known is None else set(known[_UNIT].unique().to_pylist())
        added = self._decoded([unit for unit in units if unit not in held], decode)
        if known is not None:
            if held <= set(units) and not any(table.num_rows for table in added.values()):
                return int(known.num_rows)
            added = {dataset_key: known.filter(pc.is_in(known[_UNIT], pa.array(units, pa.string()))), **added}
        if not added:
            return 0
        rows = _stacked(added)
        rows = rows.take(pc.sort_indices(rows[_UNIT]))  # stable: rows of one unit keep their order
        self.replace(dataset_key, self.table_bytes(rows))
        return int(rows.num_rows)

    @staticmethod
    def disconnect() -> None:
        """Close this process's S3 connections; the next use of any store makes new ones.

        For a process that changes its credentials or endpoint, and for tests. Not while another thread uses a store.
        """
        if "s3fs" in sys.modules:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            gc.collect()  # s3fs closes its sessions when its file systems are collected, and those hold cycles

    def _dataset(self, key: str) -> pa.Table | None:
        """The dataset so far; None where there is none, or one that no compaction wrote: then it is built anew."""
        if not self.exists(key):
            return None
        data = self.read(key)
        try:
            table = _parsed(data)
        except pa.ArrowException:
            return None
        return table if _UNIT in table.column_names else None

    def _decoded(self, units: _Keys, decode: Callable[[bytes], pa.Table]) -> dict[str, pa.Table]:
        tables: dict[str, pa.Table] = {}
        with ThreadPoolExecutor(_READERS) as pool:  # small objects: the time goes in round trips
            for unit, data in zip(units, pool.map(self.read, units), strict=True):
                with self._telling("decode", unit):
                    table = decode(data)
                    if _UNIT in table.column_names:
                        raise ValueError(f"it has a column {_UNIT!r}, which is kept for its key")
                    # pandas' schema metadata of the first unit would speak for all
                    table = table.replace_schema_metadata(None)
                    tables[unit] = table.append_column(_UNIT, pa.array([unit] * table.num_rows, pa.string()))
        return tables

    def _json_bytes(self, key: str, value: Any) -> bytes:
        with self._telling("write the JSON of", key):
            return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()

    @contextlib.contextmanager
    def _telling(self, action: str, key: str) -> Iterator[None]:
        """Turn whatever the file system raises into a `StoreError` that names action, key, store and remedy."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # fsspec's backends raise whatever their clients raise
            raise StoreError(f"cannot {action} {key!r} in store {self._url}: {_explained(error)}") from error


class _Objects(Protocol):
    """What the store asks of a place that keeps objects; keys are valid, errors are the backend's own."""

    def exists(self, key: str) -> bool: ...
    def read(self, key: str) -> bytes: ...
    def list(self, folder: str) -> Iterator[str]: ...
    def create(self, key: str, data: bytes) -> bool: ...
    def replace(self, key: str, data: bytes) -> None: ...
    def delete(self, key: str) -> None: ...
    def open_parquet(self, key: str) -> pq.ParquetFile: ...


class _Folder:
    """A local folder. An object is written beside its place under a hidden name, then linked or renamed to it."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def exists(self, key: str) -> bool:
        try:
            return stat.S_ISREG((self.root / key).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def list(self, folder: str) -> Iterator[str]:
        def stop(error: OSError) -> None:
            # os.walk skips what it cannot list; gone or never made is fine, forbidden is not
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise error

        for parent, _, names in os.walk(self.root / folder, onerror=stop):
            yield from ((Path(parent) / name).relative_to(self.root).as_posix() for name in names)

    def create(self, key: str, data: bytes) -> bool:
        place = self.root / key
        if os.path.lexists(place):
            return False
        with self._written_beside(place, data) as temporary:
            try:
                os.link(temporary, place)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _renamed_without_links(temporary, place)
        return True

    def replace(self, key: str, data: bytes) -> None:
        place = self.root / key
        with self._written_beside(place, data) as temporary:
            temporary.replace(place)

    def delete(self, key: str) -> None:
        (self.root / key).unlink()

    def open_parquet(self, key: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.root / key)

    @contextlib.contextmanager
    def _written_beside(self, place: Path, data: bytes) -> Iterator[Path]:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:  # of the folder, and not to be taken for the object's
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place.parent)) from error
        temporary = place.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            # Not tempfile, whose files nobody else may read: these become objects that other users of a shared folder
            # open. "x" creates with the usual mode.
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # a name must not outlive its bytes when the machine goes down
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


class _Remote:
    """An object store, or fsspec's memory. A write is one request, or from 100 MB parts that one request joins."""

    # Only the in-memory file system looks first and creates then; it lives in one process, so a lock will do.
    _memory = threading.Lock()

    def __init__(self, protocol: str, root: str) -> None:
        self.protocol, self.root = protocol, root
        self.is_s3 = protocol in ("s3", "s3a")

    @property
    def files(self) -> Any:
        # Asked for at each use and never kept: fsspec holds one instance per process, with its own event loop, and
        # makes a new one in a forked child, where the parent's refuses to work. No listings cache: others write too.
        return fsspec.filesystem(self.protocol, use_listings_cache=False)

    def exists(self, key: str) -> bool:
        try:
            return bool(self.files.info(_join(self.root, key))["type"] == "file")
        except FileNotFoundError:
            return False

    def read(self, key: str) -> bytes:
        # One GET. By default s3fs asks for the size first and takes a large object in ranges, which may be of two
        # versions when the object is replaced meanwhile.
        one_request = {"max_concurrency": 1} if self.is_s3 else {}
        return bytes(self.files.cat_file(_join(self.root, key), **one_request))

    def list(self, folder: str) -> Iterator[str]:
        files = self.files
        top = str(files._strip_protocol(self.root))
        try:
            found = files.find(_join(self.root, folder), withdirs=False)
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise
            return
        for path in found:
            key = str(path)[len(top) :].lstrip("/")
            if not folder or key.startswith(f"{folder}/"):
                yield key

    def create(self, key: str, data: bytes) -> bool:
        with self._memory if self.protocol == "memory" else contextlib.nullcontext():
            try:
                self.files.pipe_file(_join(self.root, key), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # s3fs knows AWS's answer; other servers name no condition with it, and 409 it does not know at all
                if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
                    return False
                raise
        return True

    def replace(self, key: str, data: bytes) -> None:
        self.files.pipe_file(_join(self.root, key), data, mode="overwrite")

    def delete(self, key: str) -> None:
        self.files.rm_file(_join(self.root, key))

    def open_parquet(self, key: str) -> pq.ParquetFile:
        if self.protocol == "memory":  # its open files share one position
            return pq.ParquetFile(pa.BufferReader(self.read(key)))
        # No read-ahead (50 MB at each seek): pyarrow asks for whole column chunks, which it joins to few requests.
        return pq.ParquetFile(self.files.open(_join(self.root, key), "rb", cache_type="none"), pre_buffer=True)


def _renamed_without_links(temporary: Path, place: Path) -> bool:
    """Create-only rename where the file system has no hard links (FAT, some network mounts).

    A rename overwrites, so looking and renaming happen under a lock on the folder, which the system lifts when its
    holder dies. Network mounts that do not share locks are safe within one machine only.
    """
    import fcntl  # not on Windows, whose file systems have links

    with (place.parent / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(place):
            return False
        temporary.rename(place)
        return True


def _checked_remote(protocol: str, rest: str) -> str:
    """The URL without trailing slashes; what may hold a secret is not repeated in messages."""
    known = fsspec.available_protocols()
    if protocol not in known or "::" in protocol:
        near = difflib.get_close_matches(protocol, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}://?" if near else "wanted a folder, s3://bucket/prefix or memory://"
        raise StoreError(f"unknown kind of store {protocol}://; {hint}")
    if "@" in rest or "?" in rest or "#" in rest:
        raise StoreError(
            f"a {protocol}:// store URL may hold no '@', '?' or '#': no credentials and no options; set credentials in "
            "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or in a profile"
        )
    root = rest.rstrip("/")
    if protocol != "memory" and not root.strip("/"):
        raise StoreError(f"the store URL {protocol}:// names no bucket; wanted {protocol}://bucket/prefix")
    return f"{protocol}://{root}"


def _join(root: str, key: str) -> str:
    return f"{root}{key}" if root.endswith("/") else f"{root}/{key}"


def _is_key(key: str) -> bool:
    return all(_PIECE.fullmatch(piece) for piece in key.split("/"))


def _checked(key: str) -> str:
    if not _is_key(key):
        raise StoreError(
            f"{key!r} is no valid key; wanted pieces of letters, digits and . _ = - joined by single slashes, none of "
            "them empty or beginning with a dot (t2v_core.fingerprints.readable makes such a piece of any name)"
        )
    return key


def _parsed(data: bytes) -> pa.Table:
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read()


def _stacked(tables: dict[str, pa.Table]) -> pa.Table:
    """All rows under one schema that holds them all.

    Raises:
        StoreError: naming the first table whose types go with none of those before it.
    """
    options = {"promote_options": "permissive"}
    try:
        return pa.concat_tables(tables.values(), **options)
    except pa.ArrowException as error:
        schema = None
        for key, table in tables.items():
            try:
                schema = pa.unify_schemas([table.schema if schema is None else schema, table.schema], **options)
            except pa.ArrowException as cause:
                raise StoreError(
                    f"the columns of {key!r} do not go with those before it ({cause}); delete it, or compact units of "
                    "one kind only"
                ) from cause
        raise StoreError(f"cannot join {len(tables)} tables: {error}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__  # not __context__, which may be the caller's own trouble


def _code(error: BaseException) -> str:
    """The object store's own word for the failure (``NoSuchBucket``), or an empty string."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


_REMEDIES = {
    "no such object; has the step that writes it run, and is this the right store?": ("NoSuchKey", "FileNotFoundError"),
    "the bucket is missing: create it, or mend the store's URL": ("NoSuchBucket",),
    "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a "
    "role": ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
    "the credentials were refused: check the key, its secret and its date, and that they belong to this endpoint "
    "(AWS_ENDPOINT_URL)": ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
    "permission denied: for S3 allow GetObject, PutObject, DeleteObject and ListBucket here; for a folder check its "
    "owner and mode": ("AccessDenied", "403", "PermissionError"),
    "nobody answers: check AWS_ENDPOINT_URL, and that the object store runs": (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ConnectionRefusedError",
    ),
    "a part of the path is a file, not a folder: give the store another folder": ("NotADirectoryError",),
    "the object store cannot create conditionally (If-None-Match): use one that can": ("NotImplemented", "501"),
    "the disk is full: free some room and run again; what is in the store is whole, and stays": (
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
    ),
    "the package for this kind of store is missing: install it": ("ImportError", "ModuleNotFoundError"),
}
_REMEDY = {name: remedy for remedy, names in _REMEDIES.items() for name in names}


def _explained(error: BaseException) -> str:
    """What went wrong and how to mend it, without anything secret."""
    names = [_code(error), *(type(link).__name__ for link in _chain(error))]
    names += [errno.errorcode.get(getattr(link, "errno", None) or 0, "") for link in _chain(error)]
    remedy = next((_REMEDY[name] for name in names if name in _REMEDY), "")
    said = getattr(error, "strerror", None) or str(error)
    # An endpoint may hold user:password@, and some servers repeat the access key.
    said = re.sub(r"://[^/@\s]*@", "://", said)
    said = re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{12,}\b", "(access key)", said)
    return f"{said or type(error).__name__} [{names[0] or type(error).__name__}]" + (f"; {remedy}" if remedy else "")
