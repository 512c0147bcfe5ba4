"""What in a store is referred to, and by whom: from pointers, results and registrations to everything else.

Roots are `latest/`, `results/`, `registered/` and `registered-experts/`. Whatever a root names is reached: an object, a
folder, an expert's file as ``store:KEY``, an embedding by its fingerprint. Strings are looked at wherever they stand in
a root, so that a field that a later version adds keeps what it names. Features are reached by the network and the
source that they are of.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from flows._activity import FOLDER as ACTIVITY
from flows._format import MARKER
from flows._keys import EMBEDDING_UNITS, EMBEDDINGS, GATHERED, MOMENT_UNITS
from flows._store import Store
from flows._store_objects import Entry

__all__ = ["DATASETS", "KINDS", "RECORDS", "ROOTS", "Reach", "group_of", "kind_of", "reach", "read_roots"]

ROOTS = ("latest", "results", "registered", "registered-experts")
DATASETS = tuple(GATHERED)
RECORDS = {"sources": "source.json", "experts": "expert.json", "selections": "selection.json"}
"""Kinds whose objects come in folders, and the record in each that is written last."""
COLLECTED = (*GATHERED.values(), MOMENT_UNITS, "libraries", "features", "reports", "experts/outside", "probe", *RECORDS)
"""Kinds of which objects may be garbage. All others are kept, those that this code does not know among them."""
KINDS = (*ROOTS, *(dataset.split("/")[0] for dataset in GATHERED), *COLLECTED, ACTIVITY, MARKER)
_READERS = 16
_DIGEST = re.compile(r"[0-9a-f]{16}")
_PROBE = re.compile(r"probe-[0-9a-f]{32}")
_MADE = re.compile(r"-[0-9a-f]{16}(\.[a-z]+|/.*)?$")
"""The end of a key with a fingerprint: what looks so names an object, and no task."""


def kind_of(key: str) -> str:
    """The kind of an object: the first piece of its key, or the first two where kinds share a folder."""
    if _PROBE.fullmatch(key):  # of `Store.check_writable`, killed half-way
        return "probe"
    first, _, rest = key.partition("/")
    second = rest.partition("/")[0]
    return f"{first}/{second}" if first == "units" or (first, second) == ("experts", "outside") else first


def group_of(key: str) -> str:
    """The folder that an object belongs to, where it is kept or dropped with others; else its key."""
    return "/".join(key.split("/")[:2]) if kind_of(key) in RECORDS else key


@dataclass(frozen=True)
class Reach:
    """What a store holds, and what of it is reached."""

    entries: dict[str, Entry]
    reached: set[str]
    """Keys."""
    wanted: dict[str, str]
    """Keys, folders and units that a root names, to the root that does."""
    missing: dict[str, str] = field(default_factory=dict)
    """Those of them that are not there, to the root that names them."""

    @property
    def unreached(self) -> list[str]:
        """Keys that may be garbage, sorted."""
        return sorted(
            k for k in self.entries if k not in self.reached and kind_of(k) in (*COLLECTED, "experts/outside")
        )


def read_roots(store: Store) -> dict[str, Any]:
    """All pointers, results and registrations.

    Raises:
        StoreError: one of them cannot be read: nothing can be said of what is reached then.
    """
    keys = [key for folder in ROOTS for key in store.list(folder)]
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(keys, pool.map(store.read_json, keys), strict=True))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _below(keys: list[str], folder: str) -> list[str]:
    """The keys in a folder; ``keys`` is sorted."""
    return keys[bisect.bisect_left(keys, f"{folder}/") : bisect.bisect_left(keys, f"{folder}0")]  # "0" follows "/"


def _probe_digests(store: Store, fingerprints: set[str], entries: dict[str, Entry]) -> set[str]:
    """Digests of the probes that made some embeddings: their features are wanted before any expert is."""
    if EMBEDDINGS not in entries:
        return set()
    table = store.read_table(EMBEDDINGS, ["fingerprint", "probe"])
    pairs = zip(table["fingerprint"].to_pylist(), table["probe"].to_pylist(), strict=True)
    return {probe.rsplit(":", 1)[-1] for fingerprint, probe in pairs if fingerprint in fingerprints}


def reach(store: Store, *, roots_first: bool = False) -> Reach:
    """Find what is reached.

    Args:
        store: whose.
        roots_first: read the roots before the listing, so that nothing they name can be missing only because it was
            made in between; otherwise the listing comes first, so that nothing in it can lack a root that was written
            in between.

    Raises:
        StoreError: the store does not answer, or a root cannot be read.
    """
    roots = read_roots(store) if roots_first else {}
    entries = {entry.key: entry for entry in store.entries()}
    roots = roots or read_roots(store)
    keys = sorted(entries)
    wanted: dict[str, str] = {}
    digests: set[str] = set()
    reached = {key for key in keys if kind_of(key) not in COLLECTED}
    for root, value in roots.items():
        for said in _strings(value):
            name = said.removeprefix("store:").rstrip("/")
            if _DIGEST.fullmatch(name):
                digests.add(name)
            elif "/" in name and kind_of(name) in KINDS:
                found = [name] if name in entries else _below(keys, name)
                if found or said.startswith("store:") or _MADE.search(name):
                    wanted.setdefault(name, root)
                reached.update(member for key in found for member in _members(keys, key))
    units = {key.rsplit("-", 1)[-1].removesuffix(".parquet"): key for key in _below(keys, EMBEDDING_UNITS)}
    missing = {key: root for key, root in wanted.items() if key not in entries and not _below(keys, key)}
    for root, value in roots.items():
        if root.endswith("/embeddings.json"):
            for task, fingerprint in value.get("embeddings", {}).items():
                if fingerprint not in units:
                    missing[f"{EMBEDDING_UNITS}: {task}, {fingerprint}"] = root
    reached.update(key for fingerprint, key in units.items() if fingerprint in digests)
    networks = digests | _probe_digests(store, digests, entries)
    sources = tuple({f"{key.split('/')[1]}-" for key in reached if kind_of(key) == "sources"})
    for key in _below(keys, "features"):
        _, digest, name = key.split("/", 2)
        if digest in networks and name.startswith(sources):
            reached.add(key)
    return Reach(entries, reached, wanted, missing)


def _members(keys: list[str], key: str) -> list[str]:
    """All of the folder that an object belongs to: none of its parts goes without the others."""
    group = group_of(key)
    return [key] if group == key else _below(keys, group)
