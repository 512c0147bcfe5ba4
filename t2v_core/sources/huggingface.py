"""A dataset that the package `datasets` saved to disk; nothing is fetched, and no code of a dataset is run."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from t2v_core.errors import ImageError, MissingPackageError, SourceError
from t2v_core.fingerprints import fingerprint
from t2v_core.sources._columns import (
    check_names,
    coded,
    is_listed,
    is_text,
    lists_of,
    named,
    slug,
    split_sides,
    whole_numbers,
)
from t2v_core.sources._missing import check_missing
from t2v_core.sources.base import ROW_COLUMNS, SourceInfo, inside, read_file

__all__ = ["HuggingFaceSource"]

_OF_PACKING = frozenset((*ROW_COLUMNS, "digest", "width", "height", "image", "duplicate_of"))
_MEND = "save the dataset again with save_to_disk and copy the whole folder"


@dataclass(frozen=True, kw_only=True)
class HuggingFaceSource:
    """A ``Dataset`` or ``DatasetDict`` that ``save_to_disk`` wrote.

    A ``ClassLabel`` gives the names of its classes (a number without a name, such as -1, is null), a list of them a
    multi-label column, and columns of text, booleans and whole numbers are labels as they are. Other columns are left
    out; a list of text is a label only where ``labels`` names it, as it may be captions.

    The splits of a ``DatasetDict`` are ``train`` (or ``training``) and ``test``. ``val``, ``valid`` and ``validation``
    are the test split where there is no ``test``, else training images. A ``Dataset`` alone has no split.
    """

    path: str | Path
    """The folder."""
    name: str | None = None
    """Name of the source; by default the folder's, in lower case with dashes."""
    domain: str = "photographs"
    """What the images look like, in a word."""
    licence: str = "unknown"
    """Licence of the images."""
    image: str | None = None
    """The column of images; by default the first of type ``Image``."""
    labels: Sequence[str] | None = None
    """Label columns; by default all that can be labels."""

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", check_names("huggingface", "labels", self.labels))

    def __getstate__(self) -> dict[str, Any]:
        """The options alone: open files stay in their process."""
        return {option.name: getattr(self, option.name) for option in fields(self)}

    @property
    def _root(self) -> Path:
        return Path(self.path).expanduser()

    @cached_property
    def _folders(self) -> Mapping[str, Path]:
        """Split to folder; the split of a ``Dataset`` alone is empty."""
        root = self._root
        if (root / "state.json").is_file():
            return {"": root}
        names = _json(root / "dataset_dict.json", root).get("splits")
        if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
            raise SourceError(f"huggingface: {root / 'dataset_dict.json'} names no splits; {_MEND}")
        try:
            return {name: inside(root, name) for name in names}
        except ValueError as error:
            raise SourceError(f"huggingface: {root / 'dataset_dict.json'}: {error}; {_MEND}") from None

    @cached_property
    def _parts(self) -> Mapping[str, Any]:
        """Split to an open ``Dataset``."""
        package = _package()
        return {split: _load(package, folder) for split, folder in self._folders.items()}

    @cached_property
    def _image_column(self) -> str:
        split, part = next(iter(self._parts.items()))
        images = [name for name, feature in part.features.items() if type(feature).__name__ == "Image"]
        if self.image is None and not images:
            raise SourceError(
                f"huggingface: {self._root} has no column of type Image; its columns: {_listed(part)}; cast one with "
                "cast_column(NAME, datasets.Image()) and save it again"
            )
        found = self.image or images[0]
        for split, part in self._parts.items():
            if type(part.features.get(found)).__name__ != "Image":
                raise SourceError(
                    f"huggingface: column {found!r} of {split or self._root} is no column of type Image; "
                    f"its columns: {_listed(part)}"
                )
        return found

    @cached_property
    def _images(self) -> Mapping[str, Any]:
        """Split to a ``Dataset`` of undecoded images alone."""
        feature = _package().Image(decode=False)
        column = self._image_column
        return {n: p.select_columns([column]).cast_column(column, feature) for n, p in self._parts.items()}

    @cached_property
    def _missing(self) -> list[str]:
        """Rows that have neither bytes nor a file in the folder."""
        missing: list[str] = []
        for split, part in self._parts.items():
            start = 0
            for chunk in part.data.column(self._image_column).chunks:  # not combined: that would copy the images
                rows = np.flatnonzero(pc.is_null(pc.struct_field(chunk, "bytes")).to_numpy(zero_copy_only=False))
                paths = pc.struct_field(chunk, "path").take(pa.array(rows)).to_pylist()
                pairs = zip(rows, paths, strict=True)
                missing += [f"{split}/{start + row}" for row, path in pairs if not self._is_there(path)]
                start += len(chunk)
        return missing

    def _is_there(self, path: str | None) -> bool:
        try:
            return bool(path) and inside(self._root, str(path)).is_file()
        except ValueError:
            return False

    @cached_property
    def _columns(self) -> Mapping[str, pa.ChunkedArray]:
        """The label columns of all splits, one after another."""
        parts = list(self._parts.values())
        first = parts[0]
        for split, part in self._parts.items():
            if part.features != first.features:
                differ = sorted(
                    n for n in {*first.features, *part.features} if first.features.get(n) != part.features.get(n)
                )
                raise SourceError(
                    f"huggingface: the splits differ in the columns {', '.join(differ)} ({split}); {_MEND}"
                )
        columns = {}
        for name in self.labels if self.labels is not None else list(first.features):
            if name not in first.features:
                raise SourceError(f"huggingface: {self._root} has no column {name!r}; its columns: {_listed(first)}")
            asked = self.labels is not None
            made = None if name == self._image_column else _label(parts, name, asked)
            if made is not None and name not in _OF_PACKING:
                columns[name] = made
            elif asked:
                kind = "a name that packing uses; rename the column" if made is not None else str(first.features[name])
                raise SourceError(f"huggingface: column {name!r} cannot be a label, it is {kind:.200}")
        if not columns:
            raise SourceError(f"huggingface: no column of {self._root} can be a label; its columns: {_listed(first)}")
        return columns

    @property
    def info(self) -> SourceInfo:
        """What the dataset says; its revision is of the fingerprints that ``save_to_disk`` noted, and of file sizes.

        Raises:
            MissingPackageError: the package ``datasets`` is not installed.
            SourceError: see `annotations`.
        """
        states = {}
        for split, folder in self._folders.items():
            state = _json(folder / "state.json", folder)
            sizes = sorted([file.name, file.stat().st_size] for file in folder.glob("*.arrow"))
            states[split] = [state.get("_fingerprint"), sizes]
        asked = [self._image_column, list(self._columns), self._missing]
        return SourceInfo(
            name=self.name or slug(self._root.resolve().name) or "huggingface",
            domain=self.domain,
            revision=fingerprint(states, asked),
            licence=self.licence,
            label_columns=tuple(self._columns),
        )

    def annotations(self) -> pa.Table:
        """Split by split, in their order; the id is the split and the number of the row from 0.

        Raises:
            MissingPackageError: the package ``datasets`` is not installed.
            SourceError: no such folder, not written by ``save_to_disk``, files that are missing or cut short, a split
                that is neither train, test nor validation, or a column that cannot be what it is asked to be.
        """
        sides = split_sides(list(self._parts))
        odd = [split for split in self._parts if split not in sides]
        if odd:
            raise SourceError(
                f"huggingface: {self._root} has the split {odd[0]!r}; wanted train, test or validation. Name the "
                "folder of one split as `path:`, or save the DatasetDict without it"
            )
        ids, split_column = [], []
        for split, part in self._parts.items():
            ids += [f"{split}/{row}" if split else str(row) for row in range(len(part))]
            split_column += [sides[split]] * len(part)
        id_array, empty = pa.array(ids, pa.string()), pa.array([""] * len(ids), pa.string())
        rows = [id_array, id_array, empty, pa.array(split_column, pa.string())]
        return pa.table([*rows, *self._columns.values()], names=[*ROW_COLUMNS, *self._columns])

    def read(self, locator: str) -> bytes:
        """One image as it was saved, not decoded."""
        split, _, row = locator.rpartition("/")
        try:
            held = self._images[split][int(row)][self._image_column]
        except (pa.ArrowException, IndexError, KeyError) as error:
            raise ImageError(f"row {row} of {split or self._root} cannot be read: {error}") from error
        if held and held.get("bytes") is not None:
            return bytes(held["bytes"])
        if held and held.get("path"):
            return read_file(self._root, held["path"])
        raise ImageError(f"row {row} of {split or self._root} holds no image")

    def check_images(self) -> None:
        """Do the rows hold images?

        Raises:
            SourceError: more than 1% hold none, nor the path of a file in the folder.
        """
        n_images = sum(map(len, self._parts.values()))
        mend = "it holds paths of files elsewhere, or nothing; save it again with save_to_disk, which copies images in"
        check_missing("huggingface", self._root, self._missing, n_images, mend)


def _package() -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise MissingPackageError("source 'huggingface' needs the package datasets; pip install 't2v[huggingface]'")
    return importlib.import_module("datasets")


def _json(path: Path, root: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(
            f"huggingface: cannot read {path}: {error.strerror or error}; wanted {root} to be a folder that "
            "save_to_disk wrote (datasets.load_dataset(NAME).save_to_disk(FOLDER))"
        ) from error
    except ValueError as error:
        raise SourceError(f"huggingface: {path} is not JSON, or cut short: {error}; {_MEND}") from error
    if not isinstance(content, dict):
        raise SourceError(f"huggingface: {path} holds {type(content).__name__}, wanted a mapping; {_MEND}")
    return content


def _load(package: Any, folder: Path) -> Any:
    """An open ``Dataset``; its files are mapped into memory, no code comes with them."""
    files = _json(folder / "state.json", folder).get("_data_files")
    names = [entry.get("filename") for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    if not names:
        raise SourceError(f"huggingface: {folder} has no rows, its state.json names no files; {_MEND}")
    for name in names:
        try:
            there = isinstance(name, str) and inside(folder, name).is_file()
        except ValueError as error:
            raise SourceError(f"huggingface: {folder / 'state.json'}: {error}; {_MEND}") from None
        if not there:
            raise SourceError(f"huggingface: {folder / str(name)} is missing, of {len(names)} files; {_MEND}")
    try:
        part = package.Dataset.load_from_disk(str(folder.resolve()), keep_in_memory=False)
    except Exception as error:  # a damaged folder ends in errors of any kind
        raise SourceError(f"huggingface: cannot load {folder}: {type(error).__name__}: {error}; {_MEND}") from error
    if len(part) == 0:
        raise SourceError(f"huggingface: {folder} has no rows; {_MEND}")
    return part.with_format(None)  # tensors, if it was saved so


def _listed(part: Any) -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in part.features.items())


def _label(parts: Sequence[Any], name: str, asked: bool) -> pa.Array | None:
    """A column of all splits as labels; ``None`` where it holds no labels."""
    feature = parts[0].features[name]
    column = pa.chunked_array([chunk for part in parts for chunk in part.data.column(name).chunks])
    kind = column.type
    if type(feature).__name__ == "ClassLabel":
        return named(column, feature.names)
    if is_listed(kind):
        of = getattr(feature, "feature", None)
        names: list[str] | None = getattr(of, "names", None)  # of a ClassLabel
        return lists_of(column, names).array if names is not None or (asked and is_text(kind.value_type)) else None
    if is_text(kind):
        return coded(column).array
    if pa.types.is_boolean(kind):
        return column.combine_chunks()
    return whole_numbers(column) if pa.types.is_integer(kind) else None
