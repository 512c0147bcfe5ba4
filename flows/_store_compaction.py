"""Compaction: many small objects (units) gathered into the one Parquet object that people read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows._store_errors import telling
from t2v_core.errors import StoreError

if TYPE_CHECKING:
    from flows._store import Store

__all__ = ["compact", "parsed"]

_UNIT = "unit"
_READERS = 16


def compact(store: Store, unit_prefix: str, dataset_key: str, decode: Callable[[bytes], pa.Table]) -> int:
    """`flows._store.Store.compact`, which says what it does."""
    folder = unit_prefix.rstrip("/")
    store.path(folder), store.path(dataset_key)  # valid keys
    if dataset_key.startswith(f"{folder}/"):
        raise StoreError(f"dataset {dataset_key!r} lies among its units in {folder!r}; give it another folder")
    units = store.list(folder)
    known = _dataset(store, dataset_key)
    held = set() if known is None else set(known[_UNIT].unique().to_pylist())
    added = _decoded(store, [unit for unit in units if unit not in held], decode)
    if known is not None:
        if held <= set(units) and not any(table.num_rows for table in added.values()):
            return int(known.num_rows)
        added = {dataset_key: known.filter(pc.is_in(known[_UNIT], pa.array(units, pa.string()))), **added}
    if not added:
        return 0
    rows = _stacked(added)
    rows = rows.take(pc.sort_indices(rows[_UNIT]))  # stable: rows of one unit keep their order
    store.replace(dataset_key, store.table_bytes(rows))
    return int(rows.num_rows)


def parsed(data: bytes) -> pa.Table:
    """A Parquet object's bytes as a table."""
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read()


def _dataset(store: Store, key: str) -> pa.Table | None:
    """The dataset so far; None where there is none, or one that no compaction wrote: then it is built anew."""
    if not store.exists(key):
        return None
    data = store.read(key)
    try:
        table = parsed(data)
    except pa.ArrowException:
        return None
    return table if _UNIT in table.column_names else None


def _decoded(store: Store, units: list[str], decode: Callable[[bytes], pa.Table]) -> dict[str, pa.Table]:
    tables: dict[str, pa.Table] = {}
    with ThreadPoolExecutor(_READERS) as pool:  # small objects: the time goes in round trips
        for unit, data in zip(units, pool.map(store.read, units), strict=True):
            with telling(store.url, "decode", unit):
                table = decode(data)
                if _UNIT in table.column_names:
                    raise ValueError(f"it has a column {_UNIT!r}, which is kept for its key")
                # pandas' schema metadata of the first unit would speak for all
                table = table.replace_schema_metadata(None)
                tables[unit] = table.append_column(_UNIT, pa.array([unit] * table.num_rows, pa.string()))
    return tables


def _stacked(tables: dict[str, pa.Table]) -> pa.Table:
    """All rows under one schema that holds them all.

    Raises:
        StoreError: naming the first table whose types go with none of those before it.
    """
    options = {"promote_options": "permissive"}
    try:
        return pa.concat_tables(tables.values(), **options)
    except pa.ArrowException as error:
        schema = None
        for key, table in tables.items():
            try:
                schema = pa.unify_schemas([table.schema if schema is None else schema, table.schema], **options)
            except pa.ArrowException as cause:
                raise StoreError(
                    f"the columns of {key!r} do not go with those before it ({cause}); delete it, or compact units of "
                    "one kind only"
                ) from cause
        raise StoreError(f"cannot join {len(tables)} tables: {error}") from error
