"""Columns of any table as label columns: coded values, numbers told from text, lists, levels of a path, attributes.

What the sources of one's own data share. Everything is done on whole columns, so a million rows take seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from t2v_core.errors import ConfigError

__all__ = [
    "Coded",
    "Lists",
    "attribute_lists",
    "check_names",
    "coded",
    "is_listed",
    "is_text",
    "label_array",
    "levels",
    "lists_of",
    "named",
    "signs",
    "slug",
    "split_lists",
    "split_sides",
    "text",
    "whole_numbers",
]

Ints = NDArray[np.int64]
Codes = NDArray[np.int32]
Bools = NDArray[np.bool_]

_SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    "test": "test",
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    "": "",
}
_WHOLE = r"^(0|-?[1-9][0-9]*)$"
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_MOST_LEVELS = 16


def slug(name: str) -> str:
    """A name in lower case with dashes; empty where nothing of it is left."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def split_sides(names: Sequence[str]) -> dict[str, str]:
    """What names of splits mean: ``train``, ``test`` or empty; a name that means none of these is left out.

    In any case of letters; ``training`` is train. ``val``, ``valid`` and ``validation`` are the test split where no
    name means test, else they belong to train: a test split that is published stays the one that is judged on.
    """
    meant = {name: _SIDES[name.strip().lower()] for name in names if name.strip().lower() in _SIDES}
    validation = "train" if "test" in meant.values() else "test"
    return {name: validation if side == "validation" else side for name, side in meant.items()}


@dataclass(frozen=True, eq=False)
class Coded:
    """A column of text: which value each row has."""

    codes: Codes
    """``[N]``: index into the values, -1 for none."""
    values: pa.Array
    """Distinct strings, none empty, with no white space around them."""

    @cached_property
    def texts(self) -> list[str]:
        """The values for Python."""
        texts: list[str] = self.values.to_pylist()
        return texts

    @property
    def array(self) -> pa.Array:
        """As a dictionary-encoded column."""
        return pa.DictionaryArray.from_arrays(pa.array(self.codes, mask=self.codes < 0), self.values)

    def row_of(self, code: int) -> int:
        """The first row of a value."""
        return int(np.argmax(self.codes == code))


@dataclass(frozen=True, eq=False)
class Lists:
    """A column of lists of text."""

    array: pa.Array
    """``[N]`` lists of dictionary-encoded text; null where nothing is known of a row. No value twice in a list."""
    texts: list[str]
    """The values."""

    def row_of(self, code: int) -> int:
        """The first row of a value."""
        lengths = self.array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        at = int(np.argmax(self.array.flatten().indices.to_numpy(zero_copy_only=False) == code))
        return int(np.searchsorted(np.cumsum(lengths), at, side="right"))


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds strings, in any of Arrow's ways."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_listed(kind: pa.DataType) -> bool:
    """Whether a type holds lists of strings, booleans or whole numbers."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    of = kind.value_type
    return bool(is_text(of) or pa.types.is_integer(of) or pa.types.is_boolean(of))


def text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A plain column as strings, nulls kept."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string())


def coded(column: pa.ChunkedArray) -> Coded:
    """A plain column as codes; null, empty and white space alone are no value."""
    encoded = text(column).combine_chunks().dictionary_encode()
    found = pc.utf8_trim_whitespace(encoded.dictionary).dictionary_encode()
    values = found.dictionary
    kept = np.asarray(pc.not_equal(values, "").to_numpy(zero_copy_only=False), bool)
    new = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    # One more entry, so that -1, a null, finds -1.
    of = np.append(new[found.indices.to_numpy(zero_copy_only=False)] if len(found) else new[:0], np.int32(-1))
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return Coded(of[codes].astype(np.int32), values.filter(pa.array(kept)))


def _all_match(values: pa.Array, pattern: str) -> bool:
    return bool(len(values)) and bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def whole_numbers(column: pa.ChunkedArray) -> pa.Array | None:
    """Numbers as int64 where none has a fraction, ``None`` where one has; not-a-number is null."""
    array = column.combine_chunks()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid:  # a fraction, or too large
        return None


def _spread(column: Coded, of_values: pa.Array) -> pa.Array:
    return of_values.take(pa.array(column.codes, mask=column.codes < 0))


def label_array(column: Coded) -> pa.Array | None:
    """A column of text as what it spells, bool, int64 or text; ``None`` for numbers with fractions: no labels.

    ``007`` is text: as a number it would lose its zeros.
    """
    lower = pc.utf8_lower(column.values)
    if len(lower) and set(lower.to_pylist()[:3]) <= {"true", "false"} and _all_match(lower, "^(true|false)$"):
        return _spread(column, pc.equal(lower, "true"))
    numbers = pc.if_else(pc.equal(lower, "nan"), pa.scalar(None, pa.string()), column.values)
    if numbers.null_count < len(numbers) and _all_match(numbers, _NUMBER):
        try:
            exact = numbers.cast(pa.int64()) if _all_match(numbers, _WHOLE) else None
            whole = exact if exact is not None else whole_numbers(pa.chunked_array([numbers.cast(pa.float64())]))
        except pa.ArrowInvalid:  # digits beyond 64 bits: a name
            return column.array
        return None if whole is None else _spread(column, whole)
    return column.array


def named(column: pa.ChunkedArray, names: Sequence[str]) -> pa.Array:
    """Numbers of classes as their names; a number without a name, such as -1, is null."""
    numbers = column.combine_chunks().cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    codes = np.where((numbers >= 0) & (numbers < len(names)), numbers, -1).astype(np.int32)
    # Names may repeat; codes of the first of equal names.
    return coded(pa.chunked_array([Coded(codes, pa.array(list(names), pa.string())).array])).array


def _of_rows(rows: Ints, column: Coded, known: Bools) -> Lists:
    """Lists of the values that stand in ascending ``rows``; second ones in a row are dropped."""
    valid = column.codes >= 0
    rows, codes = rows[valid], column.codes[valid]
    keys = rows * max(1, len(column.values)) + codes
    _, first = np.unique(keys, return_index=True)
    if len(first) < len(keys):
        first.sort()
        rows, codes = rows[first], codes[first]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(known)))]).astype(np.int32)
    items = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), column.values)
    mask = pa.array(~known) if not known.all() else None
    return Lists(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, mask=mask), column.texts)


def lists_of(column: pa.ChunkedArray, names: Sequence[str] | None = None) -> Lists:
    """A column of lists, null ones kept; with ``names``, of numbers of classes."""
    array = column.combine_chunks()
    known = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    items = pa.chunked_array([array.flatten()])
    if names is not None:
        items = pa.chunked_array([named(items, names)])
    return _of_rows(np.repeat(np.arange(len(array)), lengths), coded(items), known)


def split_lists(column: Coded, separator: str) -> Lists:
    """Text such as ``red|round`` as lists; no text is a null list, a separator alone an empty one."""
    parts = lists_of(pa.chunked_array([pc.split_pattern(column.values, separator)]))
    return Lists(_spread(column, parts.array), parts.texts)


def levels(column: Coded) -> list[pa.Array]:
    """The levels of lineage paths such as ``animal/bird/wren``: ``animal``, then ``animal/bird``, ``animal/bird/wren``.

    A level is named by its whole path, as ``orange`` below ``fruit`` is not ``orange`` below ``colour``. A row that
    ends above a level has null there. No levels where fewer than half of the distinct values have two, or where one
    is a web address.
    """
    paths = [value.split("/") for value in column.texts]
    deep = [path if all(part.strip() for part in path) else [] for path in paths]
    most = max(map(len, deep), default=0)
    is_path = 2 * sum(len(path) > 1 for path in deep) >= len(paths) and 1 < most <= _MOST_LEVELS
    if not is_path or any("://" in value for value in column.texts):
        return []
    out = []
    for depth in range(1, most + 1):
        heads = pa.array(["/".join(path[:depth]) if len(path) >= depth else None for path in deep], pa.string())
        out.append(coded(pa.chunked_array([_spread(column, heads)])).array)
    return out


def signs(column: pa.ChunkedArray) -> NDArray[np.int8] | None:
    """``[N]``: -1, 0 or 1, and -2 for null; ``None`` where the column holds anything else."""
    array: pa.Array | None
    if is_text(column.type):
        array = label_array(coded(column))
    elif pa.types.is_boolean(column.type):
        array = column.combine_chunks()
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        array = whole_numbers(column)
    else:
        array = None
    if array is None or pa.types.is_dictionary(array.type):
        return np.full(len(column), -2, np.int8) if array is not None and array.null_count == len(array) else None
    numbers = array.cast(pa.int64()).fill_null(-2).to_numpy(zero_copy_only=False)
    known = numbers[np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)]
    return numbers.astype(np.int8) if len(known) == 0 or (known.min() >= -1 and known.max() <= 1) else None


def attribute_lists(columns: Mapping[str, NDArray[np.int8]]) -> tuple[pa.Array, pa.Array | None]:
    """One list column of the attributes that an image has, and one of those that are undecided.

    Args:
        columns: attribute to `signs`. 1 is yes. Where -1 occurs in any of them, -1 is no and 0 is undecided;
            otherwise 0 is no. Null is undecided.

    Returns:
        Lists of names, null where every attribute of an image is; and the undecided ones, ``None`` where nothing is.
    """
    names = pa.array(list(columns), pa.string())
    known = np.any([column != -2 for column in columns.values()], axis=0)
    undecided = {-2, 0} if any((column == -1).any() for column in columns.values()) else {-2}

    def gathered(wanted: set[int], mask: Bools) -> pa.Array:
        found = [np.flatnonzero(np.isin(column, list(wanted)) & mask) for column in columns.values()]
        rows = np.concatenate(found)
        codes = np.repeat(np.arange(len(found), dtype=np.int32), [len(rows) for rows in found])
        order = np.argsort(rows, kind="stable")
        return _of_rows(rows[order], Coded(codes[order], names), mask).array

    unknown = gathered(undecided, known)
    return gathered({1}, known), unknown if len(unknown.flatten()) else None


def check_names(kind: str, option: str, value: object) -> tuple[str, ...]:
    """An option that lists names.

    Raises:
        ConfigError: it is not a list of different names.
    """
    listed = isinstance(value, (list, tuple)) and all(isinstance(name, str) and name for name in value)
    if not isinstance(value, (list, tuple)) or not listed or len(set(value)) < len(value):
        raise ConfigError(f"source {kind!r}: {option} is {value!r}; wanted a list of different column names")
    return tuple(value)
