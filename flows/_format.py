"""The version of a store: a marker object, read before any work, so that no code works on a layout it does not know.

The version has two parts: ``format``, how objects are laid out, and ``schema``, what stored records mean
(`t2v_core.fingerprints.SCHEMA_VERSION`). A store without a marker is from before there was one, which is version 1 of
both. Raise `FORMAT` only when old objects could be misread, and add the step that upgrades them to `STEPS`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

from flows._store import Store
from t2v_core.errors import StoreError
from t2v_core.fingerprints import SCHEMA_VERSION

__all__ = ["FORMAT", "MARKER", "STEPS", "check_format", "mark_format", "store_version", "upgrade"]

MARKER = "format.json"
FORMAT = 1
"""The layout that this code reads and writes."""

Step = Callable[[Store, bool], list[str]]
"""Takes a store to the next version: with False it says what it would do, with True it does it and says what it did. It
must bear being run again after a crash half-way."""
STEPS: dict[int, Step] = {}
"""The step from each format to the next."""


def store_version(store: Store) -> tuple[int, int]:
    """Format and schema of a store; (1, 1) where no marker is.

    Raises:
        StoreError: the marker cannot be read.
    """
    if not store.exists(MARKER):
        return 1, 1
    said = store.read_json(MARKER)
    try:
        return int(said["format"]), int(said["schema"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the marker {MARKER} of {store.url} is damaged: it says {str(said)[:100]!r}, wanted numbers `format` and "
            "`schema`; restore it from a backup"
        ) from error


def check_format(store: Store) -> None:
    """See that this code may work on a store; nothing is written.

    Raises:
        StoreError: the store is of a newer version than this code knows, or of an older one that wants an upgrade.
    """
    theirs, ours = store_version(store), (FORMAT, SCHEMA_VERSION)
    if theirs == ours:
        return
    told = f"the store {store.url} is of format {theirs[0]}, schema {theirs[1]}; this t2v ({_t2v()}) is for format "
    told += f"{ours[0]}, schema {ours[1]}"
    if theirs[0] > ours[0] or theirs[1] > ours[1]:
        raise StoreError(f"{told}. A newer t2v wrote it: install that one here. Nothing was touched")
    raise StoreError(f"{told}. `t2v store upgrade` says what an upgrade would do, and --apply does it")


def mark_format(store: Store) -> None:
    """Write the marker where there is none.

    Raises:
        StoreError: as `check_format`.
    """
    check_format(store)
    if not store.exists(MARKER):
        store.put_json(MARKER, _marker(FORMAT, SCHEMA_VERSION))


def upgrade(store: Store, *, apply: bool) -> list[str]:
    """Take a store to this code's version, one step after the other; the marker is raised after each.

    Args:
        store: nobody else may work on it meanwhile (`flows._activity.alone`).
        apply: whether to do it, or to say what would be done.

    Returns:
        What was done, or would be, a line each; empty where nothing is to do.

    Raises:
        StoreError: the store is newer than this code, or there is no way from its version.
    """
    form, schema = store_version(store)
    if form > FORMAT or schema > SCHEMA_VERSION:
        check_format(store)
    lines = []
    while form < FORMAT:
        if form not in STEPS:
            raise StoreError(f"no upgrade from format {form} of {store.url}; start a new store, or ask for a step")
        lines += [f"format {form} to {form + 1}: {line}" for line in STEPS[form](store, apply)]
        form += 1
        lines.append(f"{MARKER}: format {form}")
        if apply:
            store.replace_json(MARKER, _marker(form, schema))
    if schema < SCHEMA_VERSION:
        lines.append(
            f"{MARKER}: schema {SCHEMA_VERSION}; what was made under schema {schema} is made again under new keys when "
            "a config next runs, and `t2v store gc` drops the old"
        )
    elif not store.exists(MARKER):
        lines.append(f"{MARKER}: format {FORMAT}, schema {SCHEMA_VERSION}, where there was no marker")
    if lines and apply:
        store.replace_json(MARKER, _marker(FORMAT, SCHEMA_VERSION))
    return lines


def _marker(form: int, schema: int) -> dict[str, Any]:
    return {"format": form, "schema": schema, "written_by": f"t2v {_t2v()}"}


def _t2v() -> str:
    return importlib.metadata.version("t2v")
