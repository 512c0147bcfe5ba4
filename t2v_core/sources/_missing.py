"""Which image files are not there: one scan of the folders that hold them, and no look at any file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from t2v_core.errors import SourceError
from t2v_core.fingerprints import digest_bytes

__all__ = ["MISSING_SHARE", "check_missing", "digest_of", "missing_files"]

MISSING_SHARE = 0.01
"""With more of the images missing than this, data count as half downloaded."""


def _files(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
    except (OSError, ValueError):
        return frozenset()


def missing_files(root: Path, paths: Iterable[str]) -> list[str]:
    """Those of ``paths``, relative to ``root``, where no file is; all of them where the folder is not there."""
    there: dict[str, frozenset[str]] = {}
    missing = []
    for path in paths:
        parent, _, name = path.rpartition("/")
        if parent not in there:
            there[parent] = _files(root / parent)
        if name not in there[parent]:
            missing.append(path)
    return missing


def digest_of(missing: Sequence[str]) -> str:
    """A digest of missing paths, in their order; empty where none is missing."""
    return digest_bytes("\0".join(missing).encode("utf-8", "surrogateescape")) if missing else ""


def check_missing(source: str, root: Path, missing: Sequence[str], n_images: int, mend: str) -> None:
    """Tell a half-downloaded set of images from one with a few losses.

    Raises:
        SourceError: more than `MISSING_SHARE` of the images are missing.
    """
    if len(missing) > MISSING_SHARE * n_images:
        first = os.fsencode(missing[0]).decode("utf-8", "backslashreplace") or "a row without a path"
        slashes = "; the paths have backslashes, write them with /" if "\\" in missing[0] else ""
        raise SourceError(
            f"{source}: {len(missing):,} of {n_images:,} images are missing in {root}, first {first}{slashes}; {mend}"
        )
