"""What the paper's datasets share: annotation files in an official layout, and image files below a root."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ijson
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from t2v_core.errors import SourceError
from t2v_core.fingerprints import fingerprint

__all__ = ["coded_column", "json_items", "need", "refuse_outside", "revision_of", "text_lines"]

_CHUNK = 2**20


def need(path: Path, mend: str) -> Path:
    """``path``, if a file is there.

    Raises:
        SourceError: there is none; ``mend`` says what to download and where to put it.
    """
    if not path.is_file():
        raise SourceError(f"{path} is missing; {mend}")
    return path


def json_items(path: Path, prefix: str, mend: str) -> Iterator[dict[str, Any]]:
    """The objects of one array of a JSON file, one at a time, whatever the size of the file.

    Args:
        path: of the file.
        prefix: name of the array; empty where the file is one.
        mend: what to do where it is not right.

    Raises:
        SourceError: the file is missing, no JSON, or cut off.
    """
    with need(path, mend).open("rb") as file:
        try:
            yield from ijson.items(file, f"{prefix}.item" if prefix else "item", use_float=True)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise SourceError(
                f"{path}: not JSON, or cut off after {file.tell():,} of {path.stat().st_size:,} bytes read "
                f"({' '.join(str(error).split())[:80]}); {mend}"
            ) from error


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
        SourceError: an absolute path, or one with ``..``.
    """
    for number, path in enumerate(paths, start=1):
        if path.startswith(("/", "\\")) or (".." in path and ".." in path.replace("\\", "/").split("/")) or not path:
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
