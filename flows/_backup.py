"""Backups of a store, of databases and of folders: snapshots that share their objects, in any folder or object store.

    objects/0a/0a1b...         bytes, under their own SHA-256; created once, shared by all snapshots
    snapshots/STAMP/manifest.parquet   part, key, size, when written, SHA-256 of all that the snapshot holds
    snapshots/STAMP/snapshot.json      written last: only with it is there a snapshot

A backup may be made while flows run. Pointers are read first: what they refer to is there by then, is never changed,
and no collection deletes it while the backup has its mark in the store. What is not complete (a source half packed, an
expert in training) is left out: a run makes it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from flows._activity import FOLDER as ACTIVITY
from flows._activity import active
from flows._format import MARKER, check_format
from flows._reach import DATASETS, RECORDS, ROOTS, group_of, kind_of
from flows._store import Store
from flows._store_objects import Entry
from t2v_core.errors import ConfigError, StoreError

__all__ = ["STORE", "Made", "Snapshot", "backup", "newest", "object_key", "prune", "snapshots", "verify"]

STORE = "store"
"""The part of a snapshot that is the store; others are databases and folders."""
_COPIERS = 4
_SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("key", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.float64()),
        ("sha256", pa.string()),
    ]
)
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Snapshot:
    """One snapshot: what it holds."""

    stamp: str
    source: str
    rows: tuple[dict[str, object], ...]
    """Part, key, size, modified, sha256."""

    def part(self, name: str) -> dict[str, str]:
        """Key to SHA-256 of one part."""
        return {str(r["key"]): str(r["sha256"]) for r in self.rows if r["part"] == name}

    @property
    def parts(self) -> list[str]:
        """Names of the parts."""
        return sorted({str(r["part"]) for r in self.rows})


@dataclass(frozen=True)
class Made:
    """What a backup did."""

    stamp: str
    objects: int
    bytes: int
    """Of all that the snapshot holds."""
    copied: int
    copied_bytes: int
    """What the backup did not hold yet."""
    unfinished: tuple[str, ...]
    """Folders that were left out."""
    notes: tuple[str, ...]


def object_key(sha256: str) -> str:
    """Where bytes lie in a backup."""
    return f"objects/{sha256[:2]}/{sha256}"


class _Writer:
    """Puts bytes into a backup, each once, and collects the manifest."""

    def __init__(self, place: Store, before: Snapshot | None) -> None:
        self.place, self.rows = place, list[dict[str, object]]()
        self.there = {key.rsplit("/", 1)[-1] for key in place.list("objects")}
        rows = before.rows if before else ()
        self.known = {(r["part"], r["key"], r["size"], r["modified"]): str(r["sha256"]) for r in rows}
        self.copied = self.copied_bytes = 0
        self.lock = threading.Lock()

    def add(self, part: str, key: str, data: bytes, modified: float = 0.0) -> None:
        """Write bytes, and read back what was written.

        Raises:
            StoreError: what comes back is something else.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self.there:
            place = object_key(sha256)
            self.place.put(place, data)
            if hashlib.sha256(self.place.read(place)).hexdigest() != sha256:
                raise StoreError(
                    f"{self.place.url} gave other bytes back for {key!r} than were written; mend that first"
                )
            with self.lock:
                if sha256 not in self.there:
                    self.there.add(sha256)
                    self.copied += 1
                    self.copied_bytes += len(data)
        self._row(part, key, len(data), modified, sha256)

    def copy(self, store: Store, part: str, entry: Entry) -> None:
        """Copy an object, without reading it where the last snapshot has it at this size and time."""
        sha256 = self.known.get((part, entry.key, entry.size, entry.modified), "")
        if sha256 in self.there:
            self._row(part, entry.key, entry.size, entry.modified, sha256)
        else:
            self.add(part, entry.key, store.read(entry.key), entry.modified)

    def _row(self, part: str, key: str, size: int, modified: float, sha256: str) -> None:
        self.rows.append({"part": part, "key": key, "size": size, "modified": modified, "sha256": sha256})


def snapshots(place: Store) -> list[str]:
    """Stamps of the complete snapshots of a backup, the newest last."""
    return sorted(key.split("/")[1] for key in place.list("snapshots") if key.endswith("/snapshot.json"))


def newest(place: Store, stamp: str = "") -> Snapshot:
    """A snapshot, the newest by default.

    Raises:
        ConfigError: there is none, or none of that stamp.
        StoreError: it cannot be read, or its manifest is not the one that was written.
    """
    stamps = snapshots(place)
    if not stamps or (stamp and stamp not in stamps):
        told = f"no snapshot {stamp!r} in {place.url}" if stamp else f"no snapshot in {place.url}"
        raise ConfigError(f"{told}; there are: {', '.join(stamps) or 'none'}")
    folder = f"snapshots/{stamp or stamps[-1]}"
    record, data = place.read_json(f"{folder}/snapshot.json"), place.read(f"{folder}/manifest.parquet")
    if hashlib.sha256(data).hexdigest() != record["manifest_sha256"]:
        raise StoreError(f"the manifest in {place.url}/{folder} is damaged; restore another snapshot with --at")
    rows = place.read_table(f"{folder}/manifest.parquet").to_pylist()
    return Snapshot(folder.split("/")[1], record["source"], tuple(rows))


def backup(
    store: Store,
    place: Store,
    *,
    databases: Mapping[str, Callable[[], bytes]] | None = None,
    folders: Mapping[str, Store] | None = None,
    skip: Sequence[str] = (),
    progress: Told | None = None,
) -> Made:
    """Make a snapshot. Flows may run meanwhile, collections wait.

    Args:
        store: to back up.
        place: of the backup; the same each time, so that only what is new is copied.
        databases: name to what dumps it.
        folders: name to folders of other files, such as MLflow's artifacts.
        skip: kinds of objects to leave out; ``features`` is what makes sense, as they are only kept to save time.
        progress: told (objects done, objects in all).

    Raises:
        ConfigError: the backup lies in the store, or something that is no backup lies at its place.
        StoreError: something cannot be read or written, or comes back changed.
    """
    _check_place(store, place)
    check_format(store)
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(active(store, "t2v store backup"))
        except StoreError as error:  # a store that may only be read is backed up all the same
            if "AccessDenied" not in str(error) and "permission denied" not in str(error).lower():
                raise
            notes.append("no mark could be left in the store: see that no `t2v store gc` runs there meanwhile")
        writer = _Writer(place, newest(place) if snapshots(place) else None)
        roots = [key for folder in ROOTS for key in store.list(folder)]
        first = {key: store.read(key) for key in [*roots, *(d for d in (*DATASETS, MARKER) if store.exists(d))]}
        entries = {e.key: e for e in store.entries() if e.key not in first and kind_of(e.key) not in (*skip, ACTIVITY)}
        wanted, unfinished = _complete(entries)
        _copy(writer, [(store, STORE, entry) for entry in wanted], progress)
        for key, data in first.items():
            writer.add(STORE, key, data)
        for name, dump in (databases or {}).items():
            writer.add(f"database:{name}", "dump", dump())
        for name, folder in (folders or {}).items():
            _check_names(folder)
            _copy(writer, [(folder, f"folder:{name}", entry) for entry in folder.entries()], progress)
    stamp = _write(place, store, writer)
    sizes = [int(str(r["size"])) for r in writer.rows]
    return Made(stamp, len(sizes), sum(sizes), writer.copied, writer.copied_bytes, tuple(unfinished), tuple(notes))


def _check_place(store: Store, place: Store) -> None:
    ours, theirs = f"{store.url.rstrip('/')}/", f"{place.url.rstrip('/')}/"
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise ConfigError(f"the backup {place.url} and the store {store.url} lie in one another; choose another place")
    strange = [key for key in place.list() if not key.startswith(("objects/", "snapshots/"))]
    if strange:
        raise ConfigError(f"{place.url} holds what is no backup, e.g. {strange[0]}; name an empty place, or a backup")


def _check_names(folder: Store) -> None:
    odd = folder.odd_names()
    if odd:
        raise StoreError(
            f"{len(odd)} files in {folder.url} have names that cannot be backed up, e.g. {odd[0]!r}; rename them, or "
            "back the folder up by other means"
        )


def _complete(entries: Mapping[str, Entry]) -> tuple[list[Entry], list[str]]:
    """Objects of complete folders and all that lie alone; folders that are not complete. Checkpoints are neither."""
    wanted, unfinished = [], set()
    for key, entry in entries.items():
        kind, group = kind_of(key), group_of(key)
        if kind in RECORDS and f"{group}/{RECORDS[kind]}" not in entries:
            unfinished.add(group)
        elif kind != "probe" and not (kind == "experts" and key.endswith("/checkpoint.safetensors")):
            wanted.append(entry)
    return wanted, sorted(unfinished)


def _copy(writer: _Writer, todo: Sequence[tuple[Store, str, Entry]], progress: Told | None) -> None:
    with ThreadPoolExecutor(_COPIERS) as pool:
        for i, _ in enumerate(pool.map(lambda args: writer.copy(*args), todo), start=1):
            if progress:
                progress(i, len(todo))


def _write(place: Store, store: Store, writer: _Writer) -> str:
    """The manifest and, last, the record."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    while place.list(f"snapshots/{stamp}"):  # two within a second
        stamp = f"{stamp}-1"
    rows = sorted(writer.rows, key=lambda r: (str(r["part"]), str(r["key"])))
    data = Store.table_bytes(pa.Table.from_pylist(rows, schema=_SCHEMA))
    place.replace(f"snapshots/{stamp}/manifest.parquet", data)
    record = {
        "source": store.url,
        "made_by": f"t2v {importlib.metadata.version('t2v')}",
        "objects": len(rows),
        "manifest_sha256": hashlib.sha256(data).hexdigest(),
    }
    place.put_json(f"snapshots/{stamp}/snapshot.json", record)
    return stamp


def verify(place: Store, snapshot: Snapshot, progress: Told | None = None) -> list[str]:
    """Read all that a snapshot holds again; the keys whose bytes are missing or changed."""
    rows: dict[str, list[str]] = {}
    for r in snapshot.rows:
        rows.setdefault(str(r["sha256"]), []).append(f"{r['part']}: {r['key']}")

    def wrong(sha256: str) -> bool:
        try:
            return hashlib.sha256(place.read(object_key(sha256))).hexdigest() != sha256
        except StoreError:
            return True

    bad: list[str] = []
    with ThreadPoolExecutor(_COPIERS) as pool:
        for i, (sha256, is_wrong) in enumerate(zip(rows, pool.map(wrong, rows), strict=True), start=1):
            if is_wrong:
                bad += rows[sha256]
            if progress:
                progress(i, len(rows))
    return bad


def prune(place: Store, keep: int) -> tuple[int, int]:
    """Drop all snapshots but the newest ``keep``, and the objects that none of these holds. Not during a backup.

    Returns:
        Snapshots and objects that were dropped.
    """
    stamps = snapshots(place)
    old, stay = (stamps[:-keep], stamps[-keep:]) if keep > 0 else ([], stamps)
    wanted = {object_key(str(r["sha256"])) for stamp in stay for r in newest(place, stamp).rows}
    for stamp in old:
        _delete(place, [f"snapshots/{stamp}/snapshot.json"])  # first: a snapshot without its objects is none
        _delete(place, place.list(f"snapshots/{stamp}"))
    extra = [key for key in place.list("objects") if key not in wanted] if old else []
    _delete(place, extra)
    return len(old), len(extra)


def _delete(place: Store, keys: Iterable[str]) -> None:
    with ThreadPoolExecutor(_COPIERS) as pool:
        list(pool.map(place.delete, keys))
