"""Is a store whole? Everything that is referred to is there and can be read; what is half-made is named."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flows._collect import SKEW
from flows._keys import EMBEDDING_UNITS
from flows._reach import DATASETS, RECORDS, Reach, group_of, kind_of, reach
from flows._store import Store
from flows._store_compaction import parsed
from flows._store_objects import Entry
from t2v_core.errors import T2VError
from t2v_core.fingerprints import digest_bytes, fingerprint

__all__ = ["Checked", "check_store"]

_READERS = 4
_PARTS = {
    "sources": ("annotations.parquet", "rejects.parquet", "plan.json", "plan.parquet"),
    "experts": ("weights.safetensors", "heads.safetensors"),
    "selections": ("table.parquet", "choices.parquet", "selector.safetensors", "model2vec.safetensors"),
}


@dataclass(frozen=True)
class Checked:
    """What was looked at, and what was found."""

    objects: int
    bytes: int
    missing: tuple[tuple[str, str], ...]
    """(what is not there, who refers to it)."""
    damaged: tuple[tuple[str, str], ...]
    """(key, what is wrong with it)."""
    unfinished: tuple[tuple[str, str], ...]
    """(folder or leftover, how far it got): work that a run goes on with, or that nobody will."""
    notes: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is missing or damaged."""
        return not self.missing and not self.damaged


def check_store(store: Store, *, full: bool = False, progress: Callable[[int, int], None] | None = None) -> Checked:
    """Check a store; nothing is written.

    Args:
        store: whose.
        full: read every byte, and compare digests and fingerprints where keys and records have them; otherwise JSON is
            parsed, and of Parquet and safetensors the directory is read and compared with the size.
        progress: told (objects looked at, objects in all).

    Raises:
        StoreError: the store does not answer, or a pointer, result or registration cannot be read.
    """
    found = reach(store, roots_first=True)
    missing = dict(found.missing)
    unfinished: list[tuple[str, str]] = []
    groups: dict[str, list[Entry]] = {}
    for key, entry in found.entries.items():
        if kind_of(key) in RECORDS:
            groups.setdefault(group_of(key), []).append(entry)
    complete = set()
    for group, members in groups.items():
        record = f"{group}/{RECORDS[kind_of(group)]}"
        if record in found.entries:
            complete.add(group)
            parts = _parts(store, group, record)
            missing = {key: record for key in parts if key not in found.entries} | missing
        else:
            size = sum(e.size for e in members)
            unfinished.append((group, f"{len(members)} objects, {size} bytes, and no {record.rsplit('/', 1)[-1]}"))
    unfinished += [(left.key, f"{left.size} bytes of a killed writer") for left in store.leftovers()]
    damaged: list[tuple[str, str]] = []
    todo = [found.entries[key] for key in sorted(found.entries)]

    def looked(entry: Entry) -> tuple[str, str] | None:
        try:
            (_look_fully if full else _look)(store, entry)
        except (T2VError, ValueError, OSError, KeyError) as error:
            return entry.key, str(error)
        return None

    with ThreadPoolExecutor(_READERS) as pool:
        for i, wrong in enumerate(pool.map(looked, todo), start=1):
            if wrong and (store.exists(wrong[0]) or wrong[0] in found.reached):
                damaged.append(wrong)
            if progress:
                progress(i, len(todo))
    if full:
        damaged += _experts(store, sorted(g for g in complete if kind_of(g) == "experts"))
    notes = _datasets(store, found, {key for key, _ in damaged})
    return Checked(
        objects=len(todo),
        bytes=sum(e.size for e in todo),
        missing=tuple(missing.items()),
        damaged=tuple(damaged),
        unfinished=tuple(unfinished),
        notes=tuple(notes),
    )


def _parts(store: Store, group: str, record: str) -> list[str]:
    """What a complete folder must hold."""
    parts = [f"{group}/{name}" for name in _PARTS[kind_of(group)]]
    if kind_of(group) == "sources":
        with contextlib.suppress(T2VError, KeyError, TypeError):  # the record itself is named as damaged
            parts += [shard["key"] for shard in store.read_json(record)["shards"]]
    return parts


def _look(store: Store, entry: Entry) -> None:
    """Parse what is small, and the directory of what is large.

    Raises:
        T2VError, ValueError: it is damaged.
    """
    if entry.key.endswith(".json"):
        store.read_json(entry.key)
    elif entry.key.endswith(".parquet"):
        with store.open_parquet(entry.key) as file:
            _ = file.metadata.num_rows
    elif entry.key.endswith(".safetensors"):
        _look_at_tensors(store.read_part(entry.key, 0, 8), lambda n: store.read_part(entry.key, 8, n), entry.size)


def _look_at_tensors(head: bytes, read: Callable[[int], bytes], size: int) -> None:
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length + 8 > size:
        raise ValueError(f"it is cut short: {size} bytes, its header alone has {length + 8}")
    tensors = json.loads(read(length))
    end = max((t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"), default=0)
    if 8 + length + end != size:
        raise ValueError(f"it has {size} bytes where its header says {8 + length + end}")


def _look_fully(store: Store, entry: Entry) -> None:
    """Read all of it, and compare with what its key says.

    Raises:
        T2VError, ValueError: it is damaged.
    """
    key, data = entry.key, store.read(entry.key)
    if len(data) != entry.size and kind_of(key) not in ("latest", "results", "activity") and key not in DATASETS:
        raise ValueError(f"{len(data)} bytes were read of {entry.size}")
    if key.endswith(".json"):
        json.loads(data)
    elif key.endswith(".parquet"):
        table = parsed(data)
        named = key.removesuffix(".parquet").rsplit("-", 1)[-1]
        if key.startswith(f"{EMBEDDING_UNITS}/") and table["fingerprint"].to_pylist() != [named]:
            raise ValueError(f"it is embedding {table['fingerprint'].to_pylist()}, and its key says {named}")
        if kind_of(key) == "libraries":
            from t2v_core.library import TaskLibrary

            made = fingerprint("library", [[t.task_id, t.fingerprint] for t in TaskLibrary.from_table(table).tasks])
            if made != named:
                raise ValueError(f"its tasks have the fingerprint {made}, and its key says {named}")
    elif key.endswith(".safetensors"):
        _look_at_tensors(data[:8], lambda n: data[8 : 8 + n], len(data))
    if kind_of(key) == "experts/outside":
        named = key.rsplit("-", 1)[-1].split(".")[0]
        if digest_bytes(data) != named:
            raise ValueError(f"its digest is {digest_bytes(data)}, and its key says {named}")


def _experts(store: Store, folders: list[str]) -> list[tuple[str, str]]:
    """Experts whose weights are not those that their records name."""
    from flows._data import weights_of
    from t2v_core.probes import load_probe

    wrong = []
    for folder in folders:
        key = f"{folder}/weights.safetensors"
        try:
            record = store.read_json(f"{folder}/expert.json")
            spec, weights = record["spec"], weights_of(store.url, f"store:{key}")
            digest = load_probe(spec["architecture"], weights, image_size=spec["image_size"]).digest
        except (T2VError, ValueError, KeyError) as error:
            wrong.append((key, str(error)))
            continue
        if digest != record["digest"]:
            wrong.append((key, f"its digest is {digest}, and expert.json says {record['digest']}"))
    return wrong


def _datasets(store: Store, found: Reach, damaged: set[str]) -> list[str]:
    """Rows without a unit, and units without a row: the next compaction mends both."""
    notes = []
    for dataset in DATASETS:
        if dataset not in found.entries or dataset in damaged:
            continue
        rows = set(store.read_table(dataset, ["unit"])["unit"].to_pylist())
        units = {key for key in found.entries if key.startswith(f"units/{dataset.split('/')[0]}/")}
        if rows - units:
            notes.append(f"{dataset}: {len(rows - units)} units are gone, and their rows go when it is next compacted")
        if units - rows:
            notes.append(f"{dataset}: {len(units - rows)} units are not in it yet (a unit without rows never is)")
    future = [e.key for e in found.entries.values() if e.modified > time.time() + SKEW]
    if future:
        notes.append(f"{len(future)} objects were written in the future by this machine's clock, e.g. {future[0]}")
    return notes
