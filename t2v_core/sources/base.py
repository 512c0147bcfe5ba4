"""What a source is: a table of annotations, one row an image, and a way to read each image. Nothing is packed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

import pyarrow as pa

from t2v_core.errors import ImageError, SourceError

__all__ = [
    "LabelValue",
    "RawImage",
    "Row",
    "Source",
    "SourceInfo",
    "annotation_table",
    "each_image",
    "inside",
    "read_file",
    "unknown_of",
]

LabelValue = str | bool | int | Sequence[str] | None

ROW_COLUMNS = ("image_id", "locator", "group", "split")
_MAX_BYTES = 512 * 2**20


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before its images are read."""

    name: str
    """The name that task ids begin with."""
    domain: str
    """What the images look like, in a word: ``emoji``, ``digits``, ``clothes``, ``photographs``."""
    revision: str
    """Changes when the data change: a package version, or a hash of annotation files or of a folder's listing."""
    licence: str = "unknown"
    """Licence of the images, as its owner names it."""
    homepage: str = ""
    """Where the data come from, for people."""
    label_columns: tuple[str, ...] = ()
    """The annotation columns that tasks may be cut by."""
    taxonomy: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Label column to value to the value's place in a taxonomy, from the root down, where the rows do not say it."""


@dataclass(frozen=True)
class Row:
    """One image's annotations."""

    image_id: str
    """Stable and unique in the source."""
    labels: Mapping[str, LabelValue] = field(default_factory=dict)
    """A value a label column; ``None`` where the image has none; a sequence where it has any number of them."""
    locator: str = ""
    """What `Source.read` wants; empty: the id."""
    group: str = ""
    """Images that must be on one side of a split (an emoji with its skin tones); empty: the image alone."""
    split: str = ""
    """``train`` or ``test`` where the source says so; empty: by a hash of the group."""


@dataclass(frozen=True)
class RawImage:
    """One image of a source with its annotations, for those who want them one by one."""

    image_id: str
    read: Callable[[], bytes]
    """Its encoded bytes. May raise `OSError` or `ImageError`."""
    labels: Mapping[str, LabelValue] = field(default_factory=dict)
    group: str = ""
    split: str = ""


class Source(Protocol):
    """A dataset that tasks are cut from."""

    @property
    def info(self) -> SourceInfo:
        """What is known without reading an image.

        Raises:
            SourceError: the data are not there; the message says how to get them.
            MissingPackageError: a package is not installed; the message names the extra.
        """
        ...

    def annotations(self) -> pa.Table:
        """One row an image, in a fixed order, without opening any.

        Columns ``image_id``, ``locator``, ``group``, ``split`` (strings, none null; see `Row`) and those of
        `SourceInfo.label_columns`: string, bool, int64, or a list of strings where an image has any number of values
        (a null list says nothing about the image, an empty one says that it has none of the values). Values that are
        undecided for an image stand in a list column ``NAME__unknown`` (see `unknown_of`).

        Raises:
            SourceError: an annotation file is missing or not what it should be; the message has file and line.
        """
        ...

    def read(self, locator: str) -> bytes:
        """One image, encoded. A worker calls it without the annotations, so it must find its way by the locator.

        Raises:
            OSError: it cannot be read; the image is skipped.
            ImageError: the same.
        """
        ...

    def check_images(self) -> None:
        """Called once before packing begins: are the images there?

        Raises:
            SourceError: so many are missing that the data are incomplete.
        """
        ...


def unknown_of(column: str) -> str:
    """The column that lists the values which are undecided for an image."""
    return f"{column}__unknown"


def _arrow_type(name: str, values: Iterable[LabelValue], source: str) -> pa.DataType:
    kinds = {tuple if isinstance(v, (tuple, list)) else type(v) for v in values if v is not None}
    types = ((str, pa.string()), (bool, pa.bool_()), (int, pa.int64()), (tuple, pa.list_(pa.string())))
    for kind, arrow in types:
        if kinds <= {kind}:
            return arrow
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise SourceError(
        f"source {source!r}: label {name!r} has values of type {found}; wanted all str, all bool, all int or all lists"
    )


def annotation_table(rows: Iterable[Row], columns: Sequence[str], source: str) -> pa.Table:
    """Rows as the table that `Source.annotations` gives; for sources that fit in memory row by row.

    Args:
        rows: one an image.
        columns: label columns, ``NAME__unknown`` among them.
        source: name, for errors.

    Raises:
        SourceError: labels that are not declared, or of mixed types.
    """
    listed = list(rows)
    for row in listed:
        if not row.labels.keys() <= set(columns):
            extra = sorted(row.labels.keys() - set(columns))
            raise SourceError(f"source {source!r}: image {row.image_id!r} has labels {extra} that are not declared")
    arrays = [
        pa.array([row.image_id for row in listed], pa.string()),
        pa.array([row.locator or row.image_id for row in listed], pa.string()),
        pa.array([row.group for row in listed], pa.string()),
        pa.array([row.split for row in listed], pa.string()),
    ]
    for name in columns:
        values = [row.labels.get(name) for row in listed]
        arrays.append(pa.array(values, _arrow_type(name, values, source)))
    return pa.table(arrays, names=[*ROW_COLUMNS, *columns])


def each_image(source: Source) -> Iterator[RawImage]:
    """The images of a source one by one, in its order."""
    table = source.annotations()
    names = [name for name in table.column_names if name not in ROW_COLUMNS]
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            read = partial(source.read, row["locator"])
            labels = {name: row[name] for name in names}
            yield RawImage(row["image_id"], read, labels, group=row["group"], split=row["split"])


def inside(root: Path, relative: str) -> Path:
    """A path below ``root``.

    Raises:
        ValueError: it is absolute, climbs out, or is a link that leaves the folder.
    """
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError(f"path {relative!r} leaves the folder {root}; wanted one below it, without '..'")
    path = root / pure
    if path.is_symlink() or path.exists():
        try:
            path.resolve().relative_to(root.resolve())
        except (ValueError, OSError, RuntimeError):
            raise ValueError(f"path {relative!r} is a link out of {root}; copy the file into the folder") from None
    return path


def read_file(root: Path, relative: str) -> bytes:
    """The bytes of a file below ``root``.

    Raises:
        ImageError: the path leaves the root, or the file is larger than any image should be.
        OSError: it cannot be read.
    """
    try:
        path = inside(root, relative)
    except ValueError as error:
        raise ImageError(str(error)) from None
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ImageError(f"the file has {size} bytes; images of at most {_MAX_BYTES} are read")
    return path.read_bytes()
