"""An object store behind a URL, S3 above all, or fsspec's memory, as a place of objects."""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from flows._settings import store_timeout
from flows._store_errors import error_code
from flows._store_objects import Entry, join
from t2v_core.errors import StoreError

__all__ = ["Remote", "checked_remote"]

_UPLOAD = "?uploadId="


class Remote:
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
        if not self.is_s3:
            return fsspec.filesystem(self.protocol, use_listings_cache=False)
        # A server that hangs is asked again and then given up. botocore's retries (three, each after a longer wait) are
        # inside s3fs's, and those inside s3fs's of a whole read: 27 requests at most, a quarter of an hour.
        patience = {"connect_timeout": 10, "read_timeout": store_timeout(), "retries": {"mode": "standard"}}
        files = fsspec.filesystem(self.protocol, use_listings_cache=False, config_kwargs=patience)
        files.retries = 3
        return files

    def exists(self, key: str) -> bool:
        try:
            return bool(self.files.info(join(self.root, key))["type"] == "file")
        except FileNotFoundError:
            return False

    def read(self, key: str) -> bytes:
        # One GET. By default s3fs asks for the size first and takes a large object in ranges, which may be of two
        # versions when the object is replaced meanwhile.
        one_request = {"max_concurrency": 1} if self.is_s3 else {}
        return bytes(self.files.cat_file(join(self.root, key), **one_request))

    def read_part(self, key: str, start: int, length: int) -> bytes:
        return bytes(self.files.cat_file(join(self.root, key), start=start, end=start + length))

    def list(self, folder: str) -> Iterator[str]:
        yield from (key for key, _ in self._found(folder))

    def entries(self, folder: str) -> Iterator[Entry]:
        for key, info in self._found(folder):
            yield Entry(key, int(info.get("size") or 0), _modified(info))

    def _found(self, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        files = self.files
        top = str(files._strip_protocol(self.root))
        try:
            found = files.find(join(self.root, folder), withdirs=False, detail=True)
        except FileNotFoundError as error:
            if error_code(error) == "NoSuchBucket":
                raise
            return
        for path, info in found.items():
            key = str(path)[len(top) :].lstrip("/")
            if not folder or key.startswith(f"{folder}/"):
                yield key, info

    def leftovers(self) -> Iterator[Entry]:
        """Uploads in parts that were begun and not completed; only S3 has them."""
        if not self.is_s3:
            return
        files = self.files
        bucket, _, prefix = str(files._strip_protocol(self.root)).partition("/")
        for upload in files.list_multipart_uploads(bucket):
            key = str(upload["Key"])
            if not prefix or key.startswith(f"{prefix}/"):
                name = f"{key[len(prefix) :].lstrip('/')}{_UPLOAD}{upload['UploadId']}"
                yield Entry(name, 0, upload["Initiated"].timestamp())

    def delete_leftover(self, name: str) -> None:
        key, _, upload = name.rpartition(_UPLOAD)
        bucket, _, inside = str(self.files._strip_protocol(join(self.root, key))).partition("/")
        self.files.abort_mpu(bucket, inside, upload)

    def create(self, key: str, data: bytes) -> bool:
        with self._memory if self.protocol == "memory" else contextlib.nullcontext():
            try:
                self.files.pipe_file(join(self.root, key), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # s3fs knows AWS's answer; other servers name no condition with it, and 409 it does not know at all
                if error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
                    return False
                raise
        return True

    def replace(self, key: str, data: bytes) -> None:
        self.files.pipe_file(join(self.root, key), data, mode="overwrite")

    def delete(self, key: str) -> None:
        self.files.rm_file(join(self.root, key))

    def open_parquet(self, key: str) -> pq.ParquetFile:
        if self.protocol == "memory":  # its open files share one position
            return pq.ParquetFile(pa.BufferReader(self.read(key)))
        # No read-ahead (50 MB at each seek): pyarrow asks for whole column chunks, which it joins to few requests.
        return pq.ParquetFile(self.files.open(join(self.root, key), "rb", cache_type="none"), pre_buffer=True)


def _modified(info: dict[str, Any]) -> float:
    """When an object was written, by the store's clock; each of fsspec's backends has its own word for it."""
    for name in ("LastModified", "last_modified", "updated", "modified", "mtime", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
    raise StoreError(f"this kind of store does not tell how old {info.get('name')} is")


def checked_remote(protocol: str, rest: str) -> str:
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
