"""Garbage collection: objects that nothing refers to, and are old enough, are deleted; datasets lose their rows.

Three things keep it from taking what is wanted. Nothing is deleted while a flow works in the store, and a flow that
comes waits (`flows._activity`). What is younger than the grace period is kept, by the store's own clock: it may be of a
writer that left no mark. And of a folder (source, expert, selection) the record that says it is complete goes first,
all the rest with it, so that a collection that is killed leaves nothing that passes for complete.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flows._activity import FOLDER, Hold, alone, marks, store_clock
from flows._keys import GATHERED
from flows._reach import RECORDS, ROOTS, Reach, group_of, kind_of, reach
from flows._store import Store
from flows._store_compaction import parsed
from flows._store_objects import Entry
from t2v_core.errors import ConfigError, StoreError
from t2v_core.fingerprints import matching, readable

__all__ = ["GRACE", "Garbage", "collect", "find_garbage", "forget"]

GRACE = 7 * 86_400.0
"""Seconds for which an object that nothing refers to is kept after the last write to its folder."""
SKEW = 60.0
"""Seconds by which clocks may differ before it is worth a word."""
_BATCH = 256
_DELETERS = 16


@dataclass(frozen=True)
class Garbage:
    """What a collection takes, and what it leaves."""

    groups: dict[str, tuple[Entry, ...]]
    """Folder or key to its objects, all to be deleted; the record of a folder is the first."""
    leftovers: tuple[Entry, ...]
    """What killed writers left, old enough to go."""
    kept: int
    """Objects that are referred to, or of a kind that is never collected."""
    kept_bytes: int
    young: int
    """Objects that nothing refers to, within the grace period or among those to keep."""
    young_bytes: int
    rows: dict[str, int]
    """Dataset to its rows whose unit goes, or is gone."""
    notes: tuple[str, ...]
    """About clocks."""

    @property
    def objects(self) -> int:
        """How many objects go, leftovers not counted."""
        return sum(map(len, self.groups.values()))

    @property
    def bytes(self) -> int:
        """How much room they take."""
        return sum(e.size for group in (*self.groups.values(), self.leftovers) for e in group)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Kind to (objects, bytes) that go."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for entry in (e for group in self.groups.values() for e in group):
            counts[kind_of(entry.key)] += 1
            sizes[kind_of(entry.key)] += entry.size
        return {kind: (counts[kind], sizes[kind]) for kind in sorted(counts)}


def _clock(store: Store) -> tuple[float, list[str]]:
    """The store's time, and what is odd about it."""
    try:
        now = store_clock(store)
    except StoreError as error:
        return time.time(), [f"the store's clock could not be read, this machine's is used: {error}"]
    off = now - time.time()
    if abs(off) > SKEW:
        return now, [f"the store's clock is {off:+.0f} s from this machine's; ages are by the store's"]
    return now, []


def _in_order(entries: list[Entry]) -> tuple[Entry, ...]:
    """The record of a folder first."""
    return tuple(sorted(entries, key=lambda e: (e.key.rsplit("/", 1)[-1] not in RECORDS.values(), e.key)))


def find_garbage(store: Store, grace: float = GRACE, keep: Sequence[str] = ()) -> Garbage:
    """Look for what may be deleted; nothing is, but a small object that tells the store's time comes and goes.

    Args:
        store: whose.
        grace: seconds.
        keep: patterns of keys (``*`` matches ``/`` too) that stay, whatever refers to them.

    Raises:
        StoreError: the store does not answer, or a pointer, result or registration cannot be read: then nothing can
            be said of what is referred to.
    """
    now, notes = _clock(store)
    found: Reach = reach(store)
    future = [e.key for e in found.entries.values() if e.modified > now + SKEW]
    if future:
        notes.append(
            f"{len(future)} objects were written in the future by the store's clock, e.g. {future[0]}; they are kept "
            "until that time and the grace period have passed"
        )
    spared = set(matching(found.unreached, keep))
    groups: dict[str, list[Entry]] = {}
    for key in found.unreached:
        groups.setdefault(group_of(key), []).append(found.entries[key])
    old: dict[str, tuple[Entry, ...]] = {}
    young: list[Entry] = []
    for name, members in groups.items():
        if max(e.modified for e in members) <= now - grace and not any(e.key in spared for e in members):
            old[name] = _in_order(members)
        else:
            young += members
    gone = {e.key for members in old.values() for e in members}
    left = tuple(e for e in store.leftovers() if e.modified <= now - grace)
    kept = [found.entries[key] for key in found.reached if kind_of(key) != FOLDER]
    return Garbage(
        groups=old,
        leftovers=left,
        kept=len(kept),
        kept_bytes=sum(e.size for e in kept),
        young=len(young),
        young_bytes=sum(e.size for e in young),
        rows=_rows(store, found.entries.keys() - gone),
        notes=tuple(notes),
    )


def _rows(store: Store, kept: set[str]) -> dict[str, int]:
    rows = {}
    for dataset in GATHERED:
        if dataset in kept:
            units = store.read_table(dataset, ["unit"])["unit"].to_pylist()
            rows[dataset] = sum(unit not in kept for unit in units)
    return rows


def collect(
    store: Store,
    grace: float = GRACE,
    keep: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Garbage:
    """Delete what nothing refers to, and drop the rows of datasets whose units are gone.

    Args:
        store: whose.
        grace: seconds.
        keep: as for `find_garbage`.
        progress: told (objects deleted, objects in all).

    Returns:
        What was deleted.

    Raises:
        StoreError: as `find_garbage`; or a flow or another keeper is at work, and nothing was deleted.
    """
    room = _made_room(store, grace, keep)
    with alone(store, "t2v store gc") as hold:
        garbage = find_garbage(store, grace, keep)
        _delete(store, garbage, hold, progress)
        for dataset, units in GATHERED.items():
            if store.exists(dataset):
                store.compact(units, dataset, parsed)
    return garbage if not room else Garbage(**{**vars(garbage), "groups": {**room, **garbage.groups}})


def _delete(store: Store, garbage: Garbage, hold: Hold, progress: Callable[[int, int], None] | None) -> None:
    done, total = 0, garbage.objects
    for leftover in garbage.leftovers:
        store.delete_leftover(leftover)
    waiting = list(garbage.groups.values())
    with ThreadPoolExecutor(_DELETERS) as pool:
        while waiting:
            batch: list[tuple[Entry, ...]] = []
            while waiting and sum(map(len, batch)) < _BATCH:
                batch.append(waiting.pop())
            hold.check()
            list(pool.map(store.delete, [group[0].key for group in batch]))
            list(pool.map(store.delete, [e.key for group in batch for e in group[1:]]))
            done += sum(map(len, batch))
            if progress:
                progress(done, total)


def _made_room(store: Store, grace: float, keep: Sequence[str]) -> dict[str, tuple[Entry, ...]]:
    """On a full disk: delete single objects that nothing refers to until a mark can be written again.

    No flow can begin meanwhile, as it could not write its mark either; one that works already has left one, and is
    looked for.
    """
    try:
        store_clock(store)
    except StoreError as error:
        if "the disk is full" not in str(error):
            raise
    else:
        return {}
    working = [mark.said for mark in marks(store, now=time.time()) if mark.alive]
    if working:
        raise StoreError(
            f"the disk of {store.url} is full and there is at work: {'; '.join(working)}. Wait for its end, or free "
            "room by other means. Nothing was deleted"
        )
    garbage, done = find_garbage(store, grace, keep), {}
    for leftover in garbage.leftovers:
        store.delete_leftover(leftover)
    # One object at a time, and no folder: whoever begins as soon as there is room finds nothing half.
    for name, group in [("", ()), *((n, g) for n, g in garbage.groups.items() if len(g) == 1)]:
        for entry in group:
            store.delete(entry.key)
            done[name] = group
        with contextlib.suppress(StoreError):
            store_clock(store)
            return done
    raise StoreError(f"the disk of {store.url} is full, and nothing old that nobody refers to is there; free room")


def forget(store: Store, name: str, *, delete: bool) -> list[str]:
    """The pointers, results and registrations of a config; once they are gone, a collection takes what only it needs.

    Raises:
        ConfigError: the store knows no such config.
        StoreError: a flow is at work; nothing was deleted.
    """
    own = readable(name)
    folders = tuple(f"{root}/{own}/" for root in ROOTS)
    result = re.compile(rf"results/{re.escape(own)}-[0-9a-f]{{16}}\.json")
    keys = [k for root in ROOTS for k in store.list(root) if k.startswith(folders) or result.fullmatch(k)]
    if not keys:
        names = sorted({key.split("/")[1] for key in store.list("latest")})
        raise ConfigError(f"{store.url} knows no config {name!r}; it knows {', '.join(names) or 'none'}")
    if delete:
        with alone(store, "t2v store forget"):
            for key in keys:
                store.delete(key)
    return keys
