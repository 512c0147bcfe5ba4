"""A CSV or Parquet file with a row for each image: the way in for one's own data with any number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from t2v_core.errors import ConfigError, ImageError, SourceError
from t2v_core.fingerprints import digest_bytes, fingerprint
from t2v_core.sources._columns import check_names, slug
from t2v_core.sources._manifest_file import ManifestFile, fail, image_column
from t2v_core.sources._manifest_table import IMAGE_COLUMNS, ManifestColumns, ManifestTable
from t2v_core.sources._missing import check_missing, digest_of, missing_files
from t2v_core.sources._parquet_images import LARGEST_ROW_GROUP, image_at, largest_row_group
from t2v_core.sources._taxonomy import read_taxonomy
from t2v_core.sources.base import SourceInfo, read_file

__all__ = ["ManifestSource"]


@dataclass(frozen=True, eq=False)
class _Content:
    """What a manifest and its taxonomies say."""

    table: pa.Table
    labels: tuple[str, ...]
    taxonomy: Mapping[str, Mapping[str, tuple[str, ...]]]
    digests: Mapping[str, str]
    missing: Sequence[str]
    """Paths of images that are not there."""


@dataclass(frozen=True, kw_only=True)
class ManifestSource:
    """One row an image, one column a label.

    A CSV is in UTF-8, with a header and commas (tabs where it is named ``.tsv``); an empty cell is a missing value.
    Cells that all read true or false are booleans, whole numbers are numbers (not ``007``), all else is text. Columns
    of fractions, dates and other types are no labels and are left out, as are those that packing writes itself
    (``width``, ``height`` and so on). In Parquet, columns are what they say they are; numbered classes get the names
    that Hugging Face notes in the file.

    A text column whose values are paths such as ``animal/bird/wren`` (two levels in at least half of the distinct
    values) also gives ``NAME_1`` (``animal``), ``NAME_2`` (``animal/bird``) and so on, unless one of these is a column
    already.

    Splits are ``train`` (or ``training``) and ``test``; nothing leaves an image to the hash of its group. ``val``,
    ``valid`` and ``validation`` are the test split where no row says ``test``; where one does, they are training
    images.
    """

    path: str | Path
    """The file."""
    name: str | None = None
    """Name of the source; by default the file's, in lower case with dashes and without its ending."""
    domain: str = "photographs"
    """What the images look like, in a word."""
    licence: str = "unknown"
    """Licence of the images."""
    root: str | Path | None = None
    """Folder that paths of images are below; by default the one that the manifest is in."""
    image: str | None = None
    """Column of paths, or in Parquet of bytes or structs of ``bytes`` and ``path``; by default the first there is of
    path, file, filename, file_name, image."""
    labels: Sequence[str] | None = None
    """Label columns; by default all that can be labels and are not the image, id, split or group."""
    lineage: Sequence[str] = ()
    """Columns from the root of a taxonomy down; they are label columns too."""
    split: str | None = None
    """Column of the split; by default ``split``, where there is one."""
    group: str | None = None
    """Column of what must be on one side of a split; by default ``group``, where there is one."""
    id: str | None = None
    """Column of ids; by default ``image_id`` or ``id``, else the path, or for bytes the number of the row from 0."""
    separator: str = "|"
    """Between the values of a cell of a ``multi`` column; a cell with nothing else is an empty list, an empty cell is
    unknown."""
    multi: Sequence[str] = ()
    """Text columns whose cells hold any number of values; list columns of Parquet do without being named."""
    classes: Mapping[str, Sequence[object]] | None = None
    """Label column to the values that it may have."""
    taxonomy: Mapping[str, str | Path] | None = None
    """Label column to a CSV ``value,parent`` that gives the place of its values in a taxonomy."""
    attributes: Sequence[str] = ()
    """Columns of -1, 0, 1 that make up one multi-label column ``attribute``: 1 is yes, -1 no, 0 undecided. Where no -1
    occurs in any of them, 0 is no."""

    def __post_init__(self) -> None:
        for option in ("lineage", "multi", "attributes", "labels"):
            if getattr(self, option) is not None:
                object.__setattr__(self, option, check_names("manifest", option, getattr(self, option)))
        if not isinstance(self.separator, str) or not self.separator.strip():
            raise ConfigError(f"source 'manifest': separator is {self.separator!r}; wanted a mark such as '|'")
        kinds = {"classes": (list, tuple), "taxonomy": (str, Path)}
        for option, wanted in kinds.items():
            value = getattr(self, option)
            if value is None or (isinstance(value, Mapping) and all(isinstance(v, wanted) for v in value.values())):
                continue
            what = "a list of values" if option == "classes" else "a CSV file"
            raise ConfigError(f"source 'manifest': {option} is {value!r}; wanted a mapping of column to {what}")

    def __getstate__(self) -> dict[str, Any]:
        """The options alone: what was read stays in its process."""
        return {option.name: getattr(self, option.name) for option in fields(self)}

    @property
    def _path(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def _root(self) -> Path:
        return self._path.parent if self.root is None else Path(self.root).expanduser()

    @cached_property
    def _content(self) -> _Content:
        file = ManifestFile.read(self._path)
        columns = ManifestColumns(
            image=self.image,
            labels=self.labels,
            lineage=self.lineage,
            split=self.split,
            group=self.group,
            id=self.id,
            separator=self.separator,
            multi=self.multi,
            classes=self.classes or {},
            attributes=self.attributes,
        )
        built = ManifestTable(file, columns)
        digests, taxonomy = {"": file.digest}, {}
        for column, name in (self.taxonomy or {}).items():
            if column not in built.labels:
                have = ", ".join(built.labels)
                raise fail(self._path, f"`taxonomy:` names {column!r}, no label column; there are {have}")
            taxonomy[column], data = read_taxonomy(Path(name).expanduser())
            digests[column] = digest_bytes(data)
        missing = missing_files(self._root, built.table["locator"].to_pylist()) if built.has_paths else []
        return _Content(built.table, built.labels, taxonomy, digests, missing)

    @cached_property
    def _bytes_column(self) -> str:
        """The Parquet column that holds the images; empty where they are files."""
        return image_column(self._path, self.image, IMAGE_COLUMNS)

    @property
    def info(self) -> SourceInfo:
        """What the file says; its revision is a hash of it, of the options and of the images that are not there.

        Raises:
            SourceError: see `annotations`.
        """
        content = self._content
        asked = {k: v for k, v in self.__getstate__().items() if k not in ("path", "name", "domain", "licence", "root")}
        asked["taxonomy"] = sorted(self.taxonomy or {})
        return SourceInfo(
            name=self.name or slug(self._path.resolve().stem) or "manifest",
            domain=self.domain,
            revision=fingerprint(dict(content.digests), {**asked, "classes": None}, digest_of(content.missing)),
            licence=self.licence,
            label_columns=content.labels,
            taxonomy=content.taxonomy,
        )

    def annotations(self) -> pa.Table:
        """In the order of the file.

        Raises:
            SourceError: the file is not there, empty, cut short or no CSV or Parquet; a column is not there or not of a
                type that it must be; a path leaves the root; a split, class or attribute is not an allowed one; a
                taxonomy has a ring, an unknown parent or two parents of a value. The message has file and line.
        """
        return self._content.table

    def read(self, locator: str) -> bytes:
        """One image: a file below the root, or a row of the Parquet file."""
        column = self._bytes_column
        if not column:
            return read_file(self._root, locator)
        held = image_at(self._path, column, int(locator))
        if isinstance(held, dict):
            if held.get("bytes") is None and held.get("path"):
                return read_file(self._root, held["path"])
            held = held.get("bytes")
        if held is None:
            raise ImageError(f"row {int(locator) + 1} holds no image")
        return bytes(held)

    def check_images(self) -> None:
        """Are the files there?

        Raises:
            SourceError: more than 1% are missing; or a row group of a Parquet file is too large to read one image.
        """
        content = self._content
        mend = "unpack the images there again, or name their folder with the option `root:`"
        check_missing("manifest", self._root, content.missing, len(content.table), mend)
        if self._bytes_column:
            size, rows = largest_row_group(self._path, self._bytes_column)
            if size > LARGEST_ROW_GROUP:
                raise SourceError(
                    f"manifest: {self._path} has a row group of {rows:,} images and {size / 2**30:.1f} GiB, all "
                    "of which would be read to get at one; write the file with at most 1,000 rows in a row group"
                )
