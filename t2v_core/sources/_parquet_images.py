"""Images that are stored in a Parquet file, one by one: only the row group that holds one is read."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t2v_core.errors import ImageError

__all__ = ["LARGEST_ROW_GROUP", "image_at", "largest_row_group"]

LARGEST_ROW_GROUP = 2**31
"""Bytes of images in one row group, above which reading one image would take too much memory."""


class _Images:
    """One column of an open file, and the row group that was read last."""

    def __init__(self, path: Path, column: str) -> None:
        self._file = pq.ParquetFile(path)
        self._column = column
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._group = -1
        self._rows: pa.ChunkedArray | None = None
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row < self._starts[-1]:
            raise ImageError(f"there is no row {row + 1}; the file has {self._starts[-1]}")
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._lock:
            if group != self._group or self._rows is None:
                self._rows = None  # not two groups in memory at once
                self._rows = self._file.read_row_group(group, columns=[self._column])[self._column]
                self._group = group
            return self._rows[row - int(self._starts[group])].as_py()


@lru_cache(maxsize=4)
def _opened(path: Path, column: str, size: int, changed_ns: int) -> _Images:
    """One open file per process; another one when the file has changed."""
    return _Images(path, column)


def image_at(path: Path, column: str, row: int) -> Any:
    """What a row holds: bytes, a mapping with ``bytes`` and ``path``, or ``None``.

    Raises:
        OSError: the file cannot be read.
        ImageError: it has no such row, or is damaged there.
    """
    stat = path.stat()
    try:
        return _opened(path, column, stat.st_size, stat.st_mtime_ns)[row]
    except (pa.ArrowException, KeyError) as error:
        raise ImageError(f"row {row + 1} of {path.name} cannot be read: {error}") from error


def largest_row_group(path: Path, column: str) -> tuple[int, int]:
    """Bytes of a column in the largest row group, unpacked, and rows of that group."""
    metadata = pq.read_metadata(path)
    largest = (0, 0)
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        parts = [group.column(c) for c in range(group.num_columns)]
        size = sum(p.total_uncompressed_size for p in parts if p.path_in_schema.split(".")[0] == column)
        largest = max(largest, (size, group.num_rows))
    return largest
