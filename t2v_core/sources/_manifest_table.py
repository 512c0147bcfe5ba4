"""From the columns of a manifest to the annotation table of a source."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from t2v_core.errors import SourceError
from t2v_core.sources._columns import (
    Lists,
    attribute_lists,
    coded,
    is_listed,
    is_text,
    label_array,
    levels,
    lists_of,
    named,
    signs,
    split_lists,
    split_sides,
    text,
    whole_numbers,
)
from t2v_core.sources._manifest_file import ManifestFile, fail
from t2v_core.sources.base import ROW_COLUMNS, unknown_of

__all__ = ["IMAGE_COLUMNS", "ManifestColumns", "ManifestTable"]

IMAGE_COLUMNS = ("path", "file", "filename", "file_name", "image")
"""Columns that are taken for the image, the first there is."""

_ID_COLUMNS = ("image_id", "id")
_OF_PACKING = frozenset((*ROW_COLUMNS, "digest", "width", "height", "image", "duplicate_of"))
_LEAVES_ROOT = r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)|\x00"
_SIGNS = frozenset(("-1", "0", "1", "-1.0", "0.0", "1.0", "true", "false", "nan"))


@dataclass(frozen=True, kw_only=True)
class ManifestColumns:
    """What each column is for; see the options of `ManifestSource`."""

    image: str | None = None
    labels: Sequence[str] | None = None
    lineage: Sequence[str] = ()
    split: str | None = None
    group: str | None = None
    id: str | None = None
    separator: str = "|"
    multi: Sequence[str] = ()
    classes: Mapping[str, Sequence[object]] = field(default_factory=dict)
    attributes: Sequence[str] = ()


class ManifestTable:
    """The annotation table of a manifest.

    Args:
        file: the manifest.
        columns: what its columns are for.

    Raises:
        SourceError: a column that is not there or cannot be what it is asked to be, a path that leaves the root, a
            split, class or attribute that is not allowed; with the line.
    """

    def __init__(self, file: ManifestFile, columns: ManifestColumns) -> None:
        self._file, self._columns = file, columns
        self._image = self._pick("image", columns.image, IMAGE_COLUMNS, needed=True)
        self._id = self._pick("id", columns.id, _ID_COLUMNS)
        self._split = self._pick("split", columns.split, ("split",))
        self._group = self._pick("group", columns.group, ("group",))
        self._made: dict[str, pa.Array] = {}
        self._unknown: dict[str, pa.Array] = {}
        self.has_paths = self._image not in file.images
        """Whether images are files; otherwise they are in the manifest."""
        rows = self._rows()
        self._make_labels()
        self.labels = tuple(self._made)
        """Label columns."""
        arrays = [*rows, *self._made.values(), *self._unknown.values()]
        self.table = pa.table(arrays, names=[*ROW_COLUMNS, *self._made, *map(unknown_of, self._unknown)])
        """As `Source.annotations` gives it."""

    def _pick(self, option: str, asked: str | None, usual: Sequence[str], *, needed: bool = False) -> str:
        """A column by its option or its usual names; empty where there is none."""
        if asked is not None:
            self._check_there(option, asked)
            return asked
        found = next((name for name in usual if name in self._file.columns), "")
        if needed and not found:
            have = ", ".join(self._file.columns)
            wanted = ", ".join(usual)
            message = f"no column {wanted}; its columns: {have}; name the one with the option `{option}:`"
            raise fail(self._file.path, message)
        return found

    def _check_there(self, option: str, name: str) -> None:
        have = self._file.columns
        if name not in have:
            near = difflib.get_close_matches(name, have, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"its columns: {', '.join(have)}"
            raise fail(self._file.path, f"no column {name!r}, which the option `{option}:` names; {hint}")

    def _row_text(self, option: str, name: str) -> pa.ChunkedArray:
        if name in self._file.other or is_listed(self._file.table[name].type):
            kind = self._file.other.get(name) or self._file.table[name].type
            raise fail(self._file.path, f"column {name!r} ({option}) has type {kind}; wanted text or numbers")
        return pc.fill_null(text(self._file.table[name]), "")

    def _rows(self) -> list[pa.Array]:
        """image_id, locator, group, split."""
        n = len(self._file.table)
        numbers = pa.array(np.arange(n)).cast(pa.string())
        if self.has_paths:
            locators = self._row_text("image", self._image).combine_chunks()
            leaves = pc.match_substring_regex(locators, _LEAVES_ROOT)
            if pc.any(leaves).as_py():
                row = leaves.index(True).as_py()
                message = f"path {locators[row].as_py()!r} leaves the folder; wanted one below it, without '..'"
                raise fail(self._file.where(row), message)
        else:
            locators = numbers
        ids = self._row_text("id", self._id) if self._id else locators
        empty = pa.array(np.full(n, "", object), pa.string())
        group = self._row_text("group", self._group) if self._group else empty
        return [ids, locators, group, self._sides() if self._split else empty]

    def _sides(self) -> pa.Array:
        column = coded(self._row_text("split", self._split))
        sides = split_sides(column.texts)
        for code, name in enumerate(column.texts):
            if name not in sides:
                where = self._file.where(column.row_of(code))
                raise fail(where, f"{self._split} is {name!r}; wanted train, test, val or nothing")
        meant = pa.array([*(sides[name] for name in column.texts), ""], pa.string())
        return meant.take(pa.array(np.where(column.codes < 0, len(sides), column.codes)))

    def _make_labels(self) -> None:
        columns, file = self._columns, self._file
        taken = {self._image, self._id, self._split, self._group, *columns.attributes}
        if columns.labels is None:
            companions = {unknown_of(name) for name in file.columns}
            asked = [n for n in file.table.column_names if n not in taken | _OF_PACKING | companions]
        else:
            asked = list(columns.labels)
        explicit = {*(columns.labels or ()), *columns.lineage, *columns.multi}
        for option in ("labels", "lineage", "multi"):
            for name in getattr(columns, option) or ():
                self._check_there(option, name)
        for name in dict.fromkeys([*asked, *columns.lineage, *columns.multi]):
            if name in _OF_PACKING:
                raise fail(file.path, f"a label column must not be called {name!r}, packing writes one; rename it")
            self._make(name, explicit=name in explicit)
        self._make_attributes()
        if not self._made:
            raise fail(file.path, f"no column can be a label; its columns: {', '.join(file.columns)}")
        for name, allowed in columns.classes.items():
            self._check_classes(name, allowed)

    def _make(self, name: str, *, explicit: bool) -> None:
        made = self._label(name)
        if made is None:
            if not explicit:
                return
            kind = self._file.other.get(name, "numbers with fractions, or too large")
            raise fail(self._file.path, f"column {name!r} holds {kind}; wanted text, true or false, or whole numbers")
        if isinstance(made, Lists):
            self._made[name] = made.array
            companion = unknown_of(name)
            if companion in self._file.columns:
                unknown = self._label(companion, multi=True)
                if not isinstance(unknown, Lists):
                    raise fail(self._file.path, f"column {companion!r} must hold lists, as {name!r} does")
                self._unknown[name] = unknown.array
            return
        self._made[name] = made
        if pa.types.is_dictionary(made.type):
            below = {f"{name}_{depth}": level for depth, level in enumerate(levels(coded(_chunked(made))), 1)}
            if not below.keys() & {*self._file.columns, *self._made}:
                self._made |= below

    def _label(self, name: str, *, multi: bool = False) -> pa.Array | Lists | None:
        """A column as labels; ``None`` where it holds no labels."""
        if name in self._file.other:
            return None
        column, names = self._file.table[name], self._file.class_names.get(name)
        kind = column.type
        if is_listed(kind):
            return lists_of(column, names if pa.types.is_integer(kind.value_type) else None)
        if multi or name in self._columns.multi:
            if not is_text(kind) and not pa.types.is_null(kind):
                raise fail(self._file.path, f"column {name!r} of `multi:` has type {kind}; wanted text or lists")
            return split_lists(coded(column), self._columns.separator)
        if names is not None and pa.types.is_integer(kind):
            return named(column, names)
        if is_text(kind) or pa.types.is_null(kind):
            return label_array(coded(column)) if self._file.delimiter else coded(column).array
        return column.combine_chunks() if pa.types.is_boolean(kind) else whole_numbers(column)

    def _make_attributes(self) -> None:
        names = self._columns.attributes
        if not names:
            return
        if "attribute" in self._made:
            raise fail(self._file.path, "a column is called 'attribute', as the one made by `attributes:`; rename it")
        found = {}
        for name in names:
            self._check_there("attributes", name)
            values = None if name in self._file.other else signs(self._file.table[name])
            if values is None:
                raise self._bad_sign(name)
            found[name] = values
        self._made["attribute"], unknown = attribute_lists(found)
        if unknown is not None:
            self._unknown["attribute"] = unknown

    def _bad_sign(self, name: str) -> SourceError:
        wanted = "wanted -1, 0 or 1 in a column of `attributes:`"
        if name in self._file.other or is_listed(self._file.table[name].type):
            kind = self._file.other.get(name) or self._file.table[name].type
            return fail(self._file.path, f"column {name!r} has type {kind}; {wanted}")
        column = coded(self._file.table[name])
        code, value = next((c, v) for c, v in enumerate(column.texts) if v.lower() not in _SIGNS)
        return fail(self._file.where(column.row_of(code)), f"{name} is {value!r}; {wanted}")

    def _check_classes(self, name: str, allowed: Iterable[object]) -> None:
        if name not in self._made:
            raise fail(
                self._file.path, f"`classes:` names {name!r}, no label column; there are {', '.join(self._made)}"
            )
        wanted = [str(v).lower() if isinstance(v, bool) else str(v) for v in allowed]
        array = self._made[name]
        column = lists_of(_chunked(array)) if pa.types.is_list(array.type) else coded(_chunked(array))
        bad = [code for code, value in enumerate(column.texts) if value not in wanted]
        if bad:
            row, code = min((column.row_of(code), code) for code in bad)
            near = difflib.get_close_matches(column.texts[code], wanted, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"wanted one of {', '.join(wanted[:20])}"
            message = f"{name} is {column.texts[code]!r}, which is not in its class list; {hint}"
            raise fail(self._file.where(row), message)


def _chunked(array: pa.Array) -> pa.ChunkedArray:
    return pa.chunked_array([array])
