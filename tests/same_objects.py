"""Are two stores' objects the same, but for how long they took to make?"""

from __future__ import annotations

from flows._store import Store

__all__ = ["same"]

WALL_TIME = ("seconds", "images_per_second", "features_seconds")


def same(one: Store, two: Store, key: str) -> bool:
    """Equal bytes, but for how long it took."""
    if key.endswith(".parquet"):
        tables = [s.read_table(key) for s in (one, two)]
        tables = [t.drop_columns([c for c in WALL_TIME if c in t.column_names]) for t in tables]
        return bool(tables[0].equals(tables[1]))
    if key.endswith(".json"):
        records = [{k: v for k, v in s.read_json(key).items() if k not in WALL_TIME} for s in (one, two)]
        return bool(records[0] == records[1])
    return one.read(key) == two.read(key)
