"""A folder of images with a subfolder per class: the way in for one's own data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pyarrow as pa

from t2v_core.errors import ConfigError, SourceError
from t2v_core.fingerprints import fingerprint
from t2v_core.sources._columns import coded, levels
from t2v_core.sources.base import Row, SourceInfo, annotation_table, read_file

__all__ = ["FolderSource"]

_SPLITS = {"train": "train", "test": "test", "val": "test"}


class _File(NamedTuple):
    path: Path
    parts: tuple[str, ...]
    """Below the folder, the file's name last."""
    size: int
    mtime_ns: int
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """``path/CLASS/IMAGE``, ``path/CLASS/SUBCLASS/IMAGE``, or the same below ``path/train`` and ``path/test``.

    Every file in a subfolder is taken for an image, whatever its extension, and is rejected later if it is none;
    with ``extensions``, only files that end in one of them. Hidden files, files outside any subfolder and links that
    leave the folder are passed over.
    """

    path: str | Path
    """The folder."""
    name: str | None = None
    """Name of the source; by default the folder's, in lower case with dashes."""
    domain: str = "photographs"
    """What the images look like, in a word."""
    licence: str = "unknown"
    """Licence of the images."""
    extensions: Sequence[str] = ()
    """Endings of the files to take, such as ``[png, jpg]``, in any case; empty: all files."""

    def __post_init__(self) -> None:
        listed = isinstance(self.extensions, (list, tuple))
        if not listed or not all(isinstance(ending, str) and ending.strip(".") for ending in self.extensions):
            raise ConfigError(f"source 'folder': extensions is {self.extensions!r}; wanted a list such as [png, jpg]")
        object.__setattr__(self, "extensions", tuple(self.extensions))

    @property
    def _asked(self) -> str:
        return f" that ends in {' or '.join(self.extensions)}" if self.extensions else ""

    @cached_property
    def _files(self) -> tuple[_File, ...]:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise SourceError(f"folder: {root} is not a folder; wanted one with a subfolder per class")
        root = root.resolve()
        try:
            found = [file for file in _walk(root, root, (), frozenset({root})) if len(file.parts) > 1]
        except OSError as error:
            raise SourceError(f"folder: cannot list {root}: {error}; make it readable") from error
        if self.extensions:
            endings = tuple("." + ending.lower().removeprefix(".") for ending in self.extensions)
            found = [file for file in found if file.parts[-1].lower().endswith(endings)]
        tops = {file.parts[0] for file in found}
        if "train" in tops and len(tops) > 1 and tops <= _SPLITS.keys():
            found = [file._replace(split=_SPLITS[file.parts[0]]) for file in found if len(file.parts) > 2]
        if not found:
            raise SourceError(
                f"folder: no file{self._asked} in a subfolder of {root}; wanted CLASS/IMAGE, or train/CLASS/IMAGE and "
                "test/CLASS/IMAGE (hidden files and links that leave the folder do not count)"
            )
        return tuple(found)

    @cached_property
    def _labels(self) -> list[str]:
        return ["/".join(file.parts[1:-1] if file.split else file.parts[:-1]) for file in self._files]

    @cached_property
    def _levels(self) -> dict[str, pa.Array]:
        """Columns of a taxonomy's levels, where most classes are nested folders."""
        found = levels(coded(pa.chunked_array([pa.array(self._labels, pa.string())])))
        return {f"label_{depth}": column for depth, column in enumerate(found, start=1)}

    @property
    def info(self) -> SourceInfo:
        """What the listing tells; no file is opened.

        Raises:
            SourceError: no such folder, or nothing in a subfolder of it.
        """
        listing = sorted(["/".join(file.parts), file.size, file.mtime_ns] for file in self._files)
        slug = re.sub(r"[^a-z0-9]+", "-", Path(self.path).expanduser().resolve().name.lower()).strip("-")
        return SourceInfo(
            name=self.name or slug or "folder",
            domain=self.domain,
            revision=fingerprint(listing),
            licence=self.licence,
            label_columns=("label", *self._levels),
        )

    def annotations(self) -> pa.Table:
        """In the order of their paths; the label is the path of the subfolder, ``/`` between its levels.

        Where at least half of the classes lie in folders of folders, ``label_1``, ``label_2``, ... are the levels.

        Raises:
            SourceError: no such folder, or nothing in a subfolder of it.
        """
        root = Path(self.path).expanduser().resolve()
        rows = (
            Row(
                "/".join(file.parts),
                {"label": label},
                locator=quote_from_bytes(os.fsencode(file.path.relative_to(root)), safe="/ "),
                split=file.split,
            )
            for file, label in zip(self._files, self._labels, strict=True)
        )
        table = annotation_table(rows, ("label",), self.info.name)
        for name, column in self._levels.items():
            table = table.append_column(name, column)
        return table

    def read(self, locator: str) -> bytes:
        """One file; names are quoted, as they may be no valid text."""
        return read_file(Path(self.path).expanduser().resolve(), os.fsdecode(unquote_to_bytes(locator)))

    def check_images(self) -> None:
        """They were listed."""


def _walk(folder: Path, root: Path, parts: tuple[str, ...], above: frozenset[Path]) -> Iterator[_File]:
    """Regular files in the order of their names; ``above`` breaks rings of links."""
    for path in sorted(folder.iterdir()):
        real = Path(os.path.realpath(path))  # unlike `resolve`, silent on a link to itself
        if path.name.startswith(".") or not real.is_relative_to(root):
            continue
        # A name that is not UTF-8 must still make a valid string for the table.
        below = (*parts, os.fsencode(path.name).decode("utf-8", "backslashreplace"))
        if real.is_dir():
            if real not in above:
                yield from _walk(path, root, below, above | {real})
        elif real.is_file():
            stat = real.stat()
            yield _File(path, below, stat.st_size, stat.st_mtime_ns)
