"""Fingerprints: content addresses of specs, so that a key says what made the object behind it."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

__all__ = ["SCHEMA_VERSION", "digest_bytes", "fingerprint", "matching", "name_rank", "readable"]

SCHEMA_VERSION = 1
"""Part of every fingerprint: raise it when the meaning of a stored record changes."""


def digest_bytes(data: bytes) -> str:
    """SHA-256 of ``data``, its first 16 hex digits (64 bits)."""
    return hashlib.sha256(data).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"cannot fingerprint {type(value).__name__}; wanted a model, dict, list or scalar")


def fingerprint(*parts: Any) -> str:
    """Hash of any nesting of pydantic models, dicts, lists and scalars; key order does not matter.

    Returns:
        16 hex digits. The schema version is part of it.
    """
    canonical = json.dumps([SCHEMA_VERSION, _plain(list(parts))], sort_keys=True, separators=(",", ":"))
    return digest_bytes(canonical.encode())


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match any of some glob patterns, in their order; case counts, and ``*`` matches ``/`` too."""
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def name_rank(name: str) -> int:
    """A random rank, 64 bits, that depends on the name alone: what is added to a set disturbs no sample of the rest."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def readable(name: str) -> str:
    """``name`` as a safe piece of a store key: letters, digits and ``. _ = -``; ``/`` becomes ``__``."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name.replace("/", "__")).strip("-")
