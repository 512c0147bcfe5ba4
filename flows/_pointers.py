"""Pointers: where a config's newest result of a stage is written down. Replaced, and never relied on for resuming."""

from __future__ import annotations

from typing import Any

from flows._keys import pointer_key
from flows._store import Store
from t2v_core.errors import ConfigError

__all__ = ["find_pointer", "read_pointer", "write_pointer"]


def write_pointer(store: Store, name: str, stage: str, value: dict[str, Any]) -> None:
    """Write a config's newest result of a stage; an equal one is left alone."""
    key = pointer_key(name, stage)
    if not store.exists(key) or store.read_json(key) != value:
        store.replace_json(key, value)


def find_pointer(store: Store, name: str, stage: str) -> dict[str, Any] | None:
    """Read it back; None where the stage has not run yet."""
    key = pointer_key(name, stage)
    if not store.exists(key):
        return None
    value: dict[str, Any] = store.read_json(key)
    return value


def read_pointer(store: Store, name: str, stage: str) -> dict[str, Any]:
    """Read it back.

    Raises:
        ConfigError: the stage has not run yet.
    """
    value = find_pointer(store, name, stage)
    if value is None:
        raise ConfigError(
            f"stage {stage!r} of {name!r} has not run in {store.url}; run it first, e.g. with `t2v run CONFIG`"
        )
    return value
