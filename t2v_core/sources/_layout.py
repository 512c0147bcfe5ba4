"""What the paper's datasets share: annotation files in an official layout, and image files below a root."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from t2v_core.errors import SourceError
from t2v_core.fingerprints import fingerprint

__all__ = ["coded_column", "json_items", "need", "refuse_outside", "revision_of", "text_lines", "whole_number"]

_CHUNK = 2**20
_NOT_A_NUMBER = re.compile(rb"NaN(?<=[:,\[\s]NaN)(?=[,\]}\s]|\Z)")


def need(path: Path, mend: str) -> Path:
    """``path``, if a file is there.

    Raises:
        SourceError: there is none; ``mend`` says what to download and where to put it.
    """
    if not path.is_file():
        raise SourceError(f"{path} is missing; {mend}")
    return path


class _Nulls:
    """A JSON file in which ``NaN``, which Python writes and JSON lacks, reads ``null``: places of iNaturalist 2021."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._kept = b""

    def read(self, size: int = -1) -> bytes:
        """The next bytes, a few more or less than asked for; none at the end."""
        if size == 0:
            return b""
        while chunk := self._file.read(size):
            data = self._kept + chunk
            # A word must not lie across two reads: from the last comma or bracket on, bytes wait for the next one.
            end = max(data.rfind(b","), data.rfind(b"}"), data.rfind(b"]"), 0)
            data, self._kept = data[:end], data[end:]
            if data:
                return _NOT_A_NUMBER.sub(b"null", data)
        data, self._kept = self._kept, b""
        return _NOT_A_NUMBER.sub(b"null", data)


def json_items(path: Path, prefix: str, mend: str) -> Iterator[dict[str, Any]]:
    """The objects of one array of a JSON file, one at a time, whatever the size of the file.

    Args:
        path: of the file.
        prefix: name of the array; empty where the file is one.
        mend: what to do where it is not right.

    Raises:
        SourceError: the file is missing, no JSON, or cut off, or the array holds something else.
    """
    with need(path, mend).open("rb") as file:
        try:
            items = ijson.items(_Nulls(file), f"{prefix}.item" if prefix else "item", use_float=True)
            for n, item in enumerate(items, start=1):
                if not isinstance(item, dict):
                    raise SourceError(
                        f"{path}: entry {n} of {prefix or 'the list'} is {item!r:.40}; wanted an object; {mend}"
                    )
                yield item
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise SourceError(
                f"{path}: not JSON, or cut off after {file.tell():,} of {path.stat().st_size:,} bytes read "
                f"({' '.join(str(error).split())[:80]}); {mend}"
            ) from error


def whole_number(value: object) -> int | None:
    """A number of 64 bits that is not negative, also as text; ``None`` for anything else."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def text_lines(path: Path, mend: str) -> list[str]:
    """The lines of a small text file, without their ends.

    Raises:
        SourceError: it is missing, or no UTF-8.
    """
    try:
        return need(path, mend).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text ({error}); {mend}") from error


def refuse_outside(paths: Iterable[str], where: Path) -> None:
    """Refuse a path that leaves the folder of the images.

    Raises:
        SourceError: an absolute path, or one with ``..``; an empty one, or one that no file can have.
    """
    for number, path in enumerate(paths, start=1):
        climbs = ".." in path and ".." in path.replace("\\", "/").split("/")
        if climbs or not path or path.startswith(("/", "\\")) or "\0" in path:
            raise SourceError(
                f"{where}: image {number} has the path {path!r}, which leaves the folder of the images; fetch the file "
                "again from its owner"
            )


def revision_of(files: Sequence[Path], missing: str, *more: Any) -> str:
    """A hash of annotation files as they are, and of the images that are not there."""

    digests = []
    for path in files:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        digests.append([path.name, digest.hexdigest()[:16]])
    return fingerprint(digests, missing, *more)


def coded_column(codes: NDArray[np.int64], values: Sequence[str]) -> pa.DictionaryArray:
    """A string column from codes into ``values``; -1 is null."""
    indices = pa.array(codes.astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(values), pa.string()))
