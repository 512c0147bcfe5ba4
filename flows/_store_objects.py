"""What the store asks of a place that keeps objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow.parquet as pq

__all__ = ["Entry", "Objects", "join"]


def join(root: str, key: str) -> str:
    """A root and a key with one slash between."""
    return f"{root}{key}" if root.endswith("/") else f"{root}/{key}"


@dataclass(frozen=True, order=True)
class Entry:
    """An object as a listing shows it; or what a writer left that died half-way, whose ``key`` is its name there."""

    key: str
    size: int
    """Bytes; 0 where the place does not tell."""
    modified: float
    """Seconds since 1970 by the clock of the store, not of this machine."""


class Objects(Protocol):
    """What the store asks of a place that keeps objects; keys are valid, errors are the backend's own."""

    def exists(self, key: str) -> bool: ...
    def read(self, key: str) -> bytes: ...
    def read_part(self, key: str, start: int, length: int) -> bytes: ...
    def list(self, folder: str) -> Iterator[str]: ...
    def entries(self, folder: str) -> Iterator[Entry]: ...
    def create(self, key: str, data: bytes) -> bool: ...
    def replace(self, key: str, data: bytes) -> None: ...
    def delete(self, key: str) -> None: ...
    def open_parquet(self, key: str) -> pq.ParquetFile: ...
    def leftovers(self) -> Iterator[Entry]: ...
    def delete_leftover(self, name: str) -> None: ...
