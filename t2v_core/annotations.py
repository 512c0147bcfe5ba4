"""A source's annotation table as tasks query it: coded columns, random order, no images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from t2v_core.errors import ConfigError
from t2v_core.fingerprints import name_rank
from t2v_core.sources.base import unknown_of

__all__ = ["Annotations", "LabelColumn"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_ROWS = ("image_id", "group", "split", "digest", "duplicate_of", "width", "height", "locator")


@dataclass(frozen=True, eq=False)
class LabelColumn:
    """One label column, by value: which rows have it. A row has one value, none, or (in a list column) any number."""

    values: tuple[str, ...]
    """Distinct values as text, sorted; booleans are ``false`` and ``true``."""
    rows: NDArray[np.int32]
    """Rows that have a value, those of the first value first, ascending within a value."""
    starts: Ints
    """``[V + 1]``: rows of value v are ``rows[starts[v]:starts[v + 1]]``."""
    known: Bools
    """``[N]``: whether the column says anything about a row; for a list column, an empty list does."""
    multi: bool
    """Whether a row may have several values."""

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> LabelColumn:
        """Code one column: string, bool, integer, or a list of strings; dictionaries of these too."""
        kind, n = column.type, len(column)
        if not pa.types.is_list(kind):
            array = _text(column).combine_chunks()
            rows = np.arange(n, dtype=np.int32)
            codes, values, valid = _coded(array)
            valid &= codes >= 0
            return cls._sorted(values, rows[valid], codes[valid], valid, multi=False)
        lists = column.combine_chunks()
        known = ~np.asarray(lists.is_null().to_numpy(zero_copy_only=False), bool)
        lengths = np.where(known, np.nan_to_num(lists.value_lengths().to_numpy(zero_copy_only=False)), 0)
        codes, values, valid = _coded(lists.flatten())
        rows = np.repeat(np.arange(n, dtype=np.int32), lengths.astype(np.int64))
        return cls._sorted(values, rows[valid], codes[valid], known, multi=True)

    @classmethod
    def _sorted(
        cls, values: Sequence[str], rows: NDArray[np.int32], codes: NDArray[np.int32], known: Bools, *, multi: bool
    ) -> LabelColumn:
        order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes, minlength=len(values))
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(tuple(values), rows[order], starts, known, multi)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {value: code for code, value in enumerate(self.values)}

    @cached_property
    def codes(self) -> NDArray[np.int32]:
        """``[N]``: the code of each row's value (a row of several: one of them), -1 for none."""
        codes = np.full(len(self.known), -1, np.int32)
        codes[self.rows] = np.repeat(np.arange(len(self.values), dtype=np.int32), np.diff(self.starts))
        return codes

    def rows_of(self, value: str) -> NDArray[np.int32]:
        """Rows that have a value, ascending; none where the column does not know it."""
        code = self._index.get(value)
        return self.rows[:0] if code is None else self.rows[self.starts[code] : self.starts[code + 1]]

    def mask(self, values: Iterable[str]) -> Bools:
        """``[N]``: which rows have one of the values."""
        out = np.zeros(len(self.known), bool)
        for value in values:
            out[self.rows_of(value)] = True
        return out

    def counts(self, inside: Bools) -> Ints:
        """``[V]``: rows inside of each value."""
        return np.diff(np.concatenate([[0], np.cumsum(inside[self.rows])])[self.starts])

    def counted(self, inside: Bools) -> list[tuple[str, int]]:
        """Values that rows inside have, with their counts: the most frequent first, then by name."""
        counts = self.counts(inside)
        order = np.lexsort((np.arange(len(counts)), -counts))
        return [(self.values[v], int(counts[v])) for v in order if counts[v]]


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
        return column
    return column.cast(pa.string())  # booleans become "true" and "false"


def _coded(array: pa.Array) -> tuple[NDArray[np.int32], list[str], Bools]:
    """Codes into sorted distinct values; the empty text is no value."""
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    names = np.array(array.dictionary.to_pylist() or [""], object)
    unique, place = np.unique(names.astype(str), return_inverse=True)
    valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)
    codes = np.asarray(array.indices.fill_null(0).to_numpy(zero_copy_only=False)).astype(np.int32)
    codes = place.astype(np.int32)[codes] if len(codes) else codes
    present = np.zeros(len(unique), bool)
    present[codes[valid]] = True
    present &= unique != ""
    renumbered = np.where(present, np.cumsum(present) - 1, -1).astype(np.int32)
    codes = renumbered[codes] if len(codes) else codes
    return codes, [str(v) for v in unique[present]], valid & (codes >= 0)


@dataclass(frozen=True, eq=False)
class Annotations:
    """A source's annotation table, without the images."""

    source: str
    domain: str
    table: pa.Table
    """One row an image, in the order of the shards: image_id, group, split, digest, and the label columns.

    Rows whose ``duplicate_of`` is not empty are in no task."""
    taxonomy: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """See `SourceInfo.taxonomy`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_coded", {})
        object.__setattr__(self, "_orders", {})

    def __len__(self) -> int:
        return len(self.table)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The columns that tasks may be cut by."""
        companions = {unknown_of(name) for name in self.table.column_names}
        return tuple(n for n in self.table.column_names if n not in _ROWS and n not in companions)

    def column(self, name: str) -> LabelColumn:
        """One label column, coded once.

        Raises:
            ConfigError: no such column.
        """
        if name not in self.table.column_names:
            raise ConfigError(
                f"source {self.source!r} has no column {name!r}; its columns: {', '.join(self.label_names)}"
            )
        coded: dict[str, LabelColumn] = self._coded  # type: ignore[attr-defined]
        if name not in coded:
            coded[name] = LabelColumn.of(self.table[name])
        return coded[name]

    def unknown(self, name: str, values: Iterable[str]) -> Bools:
        """``[N]``: rows for which one of the values of a list column is undecided."""
        companion = unknown_of(name)
        if companion not in self.table.column_names:
            return np.zeros(len(self), bool)
        return self.column(companion).mask(values)

    @cached_property
    def usable(self) -> Bools:
        """``[N]``: rows that are not a second copy of another image."""
        if "duplicate_of" not in self.table.column_names:
            return np.ones(len(self), bool)
        return np.asarray(self.table["duplicate_of"].to_numpy() == "", bool)

    @cached_property
    def test(self) -> Bools:
        """``[N]``: rows of the test split."""
        return np.asarray(self.table["split"].to_numpy() == "test", bool)

    @cached_property
    def groups(self) -> NDArray[np.object_]:
        """``[N]``: names of the groups."""
        return np.asarray(self.table["group"].to_numpy(), object)

    @cached_property
    def group_ranks(self) -> NDArray[np.uint64]:
        """``[N]``: a hash of each group's name."""
        return _ranks(self.table["group"])

    @cached_property
    def image_ranks(self) -> NDArray[np.uint64]:
        """``[N]``: a random rank that depends on an image's id alone, so that new images disturb no sample."""
        return _ranks(self.table["image_id"])

    @cached_property
    def contents(self) -> NDArray[np.bytes_]:
        """``[N]``: digest of each image's stored bytes; of its id where nothing is packed yet."""
        if "digest" not in self.table.column_names:
            return np.array([b"%016x" % rank for rank in self.image_ranks.tolist()], "S16")
        return np.array(self.table["digest"].to_pylist(), "S16")

    def order(self, seed: int) -> tuple[Ints, Ints]:
        """Train rows and test rows, each in a random order of its own; copies are left out."""
        orders: dict[int, tuple[Ints, Ints]] = self._orders  # type: ignore[attr-defined]
        if seed not in orders:
            key = self.image_ranks ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
            order = np.argsort(key, kind="stable")
            order = order[self.usable[order]]
            orders[seed] = (order[~self.test[order]], order[self.test[order]])
        return orders[seed]


def _ranks(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    return np.array([name_rank(name) for name in column.to_pylist()], np.uint64)
