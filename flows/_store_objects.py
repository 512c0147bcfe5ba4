"""What the store asks of a place that keeps objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pyarrow.parquet as pq

__all__ = ["Objects", "join"]


def join(root: str, key: str) -> str:
    return f"{root}{key}" if root.endswith("/") else f"{root}/{key}"


class Objects(Protocol):
    """What the store asks of a place that keeps objects; keys are valid, errors are the backend's own."""

    def exists(self, key: str) -> bool: ...
    def read(self, key: str) -> bytes: ...
    def list(self, folder: str) -> Iterator[str]: ...
    def create(self, key: str, data: bytes) -> bool: ...
    def replace(self, key: str, data: bytes) -> None: ...
    def delete(self, key: str) -> None: ...
    def open_parquet(self, key: str) -> pq.ParquetFile: ...
