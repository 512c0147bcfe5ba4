"""Restoring a snapshot: every byte is compared with its digest before it is written, and pointers come last."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flows._activity import alone
from flows._backup import STORE, Snapshot, Told, object_key
from flows._format import MARKER, check_format
from flows._reach import DATASETS, RECORDS, ROOTS, kind_of
from flows._store import Store
from t2v_core.errors import ConfigError, StoreError

__all__ = ["Restored", "read_object", "restore_folder", "restore_store"]

_COPIERS = 4


@dataclass(frozen=True)
class Restored:
    """What a restore did."""

    written: int
    there: int
    """Objects that were there already, the same."""


def read_object(place: Store, sha256: str, key: str) -> bytes:
    """Bytes of a snapshot.

    Raises:
        StoreError: they are missing, or changed since the backup.
    """
    data = place.read(object_key(sha256))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError(
            f"{key!r} in the backup {place.url} is not what was backed up ({object_key(sha256)} has another digest); "
            "restore an older snapshot with --at"
        )
    return data


def _rank(key: str) -> int:
    """When a key is written: parts before the records that say they are complete, pointers last."""
    kind = kind_of(key)
    if kind in ROOTS:
        return 3
    if key in DATASETS or key == MARKER:
        return 2
    return 1 if kind in RECORDS and key.endswith(f"/{RECORDS[kind]}") else 0


def restore_store(
    place: Store, snapshot: Snapshot, store: Store, *, overwrite: bool = False, progress: Told | None = None
) -> Restored:
    """Write a snapshot's store. Nobody else works there meanwhile; a restore that was cut off is run again.

    Args:
        place: of the backup.
        snapshot: to restore.
        store: where to; an empty one, or what is left of the one that was backed up.
        overwrite: take the place also of pointers, results and registrations that are there and differ.

    Raises:
        ConfigError: the store holds other pointers; nothing was written.
        StoreError: something is damaged in the backup, or a flow is at work in the store.
    """
    check_format(store)
    wanted = snapshot.part(STORE)
    with alone(store, "t2v store restore"):
        roots = [key for folder in ROOTS for key in store.list(folder)]
        other = [key for key in roots if hashlib.sha256(store.read(key)).hexdigest() != wanted.get(key)]
        if other and not overwrite:
            raise ConfigError(
                f"{store.url} holds {len(other)} pointers, results or registrations that the snapshot does not, e.g. "
                f"{other[0]}; restore to an empty store, or say --overwrite. Nothing was written"
            )
        there = {entry.key: entry.size for entry in store.entries()}
        sizes = {str(r["key"]): int(str(r["size"])) for r in snapshot.rows if r["part"] == STORE}

        def write(key: str) -> bool:
            sha256 = wanted[key]
            if there.get(key) == sizes[key] and hashlib.sha256(store.read(key)).hexdigest() == sha256:
                return False
            store.replace(key, read_object(place, sha256, key))
            return True

        count = written = 0
        for rank in range(4):
            with ThreadPoolExecutor(_COPIERS) as pool:
                for wrote in pool.map(write, [key for key in wanted if _rank(key) == rank]):
                    count, written = count + 1, written + wrote
                    if progress:
                        progress(count, len(wanted))
        for key in other:  # only with `overwrite`: pointers to what the snapshot may not hold
            if key not in wanted:
                store.delete(key)
    return Restored(written, count - written)


def restore_folder(
    place: Store, snapshot: Snapshot, part: str, folder: Store, *, overwrite: bool = False, progress: Told | None = None
) -> Restored:
    """Write a part of a snapshot that is a folder of files.

    Raises:
        ConfigError: there are files already that differ, and nothing says `overwrite`; nothing was written.
        StoreError: something is damaged in the backup.
    """
    wanted = snapshot.part(part)
    there = [key for key in folder.list() if key in wanted]
    same = {key for key in there if hashlib.sha256(folder.read(key)).hexdigest() == wanted[key]}
    if len(same) < len(there) and not overwrite:
        key = next(k for k in there if k not in same)
        raise ConfigError(
            f"{folder.url} holds another {key}; name an empty folder, or say --overwrite. Nothing was written"
        )
    for i, (key, sha256) in enumerate(wanted.items(), start=1):
        if key not in same:
            folder.replace(key, read_object(place, sha256, key))
        if progress:
            progress(i, len(wanted))
    return Restored(len(wanted) - len(same), len(same))
