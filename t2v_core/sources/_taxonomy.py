"""A taxonomy of label values from a CSV of ``value,parent``."""

from __future__ import annotations

from pathlib import Path

from t2v_core.sources._manifest_file import csv_rows, fail, read_bytes

__all__ = ["read_taxonomy"]


def read_taxonomy(path: Path) -> tuple[dict[str, tuple[str, ...]], bytes]:
    """Each value's place, from the root down to its parent, and the bytes of the file.

    The file has a header and the columns ``value`` and ``parent``; the parent of a root is empty.

    Raises:
        SourceError: a cycle, a parent that has no line of its own, a value with two parents, or no such file.
    """
    data = read_bytes(path)
    records = csv_rows(data, path)
    line, header = next(records)
    if [name.strip() for name in header] != ["value", "parent"]:
        raise fail(f"{path}:{line}", f"columns {','.join(header)!r:.80}; wanted the header value,parent")
    parents: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, record in records:
        value, parent, *more = [*map(str.strip, record), "", ""]
        if any(more) or not value:
            raise fail(
                f"{path}:{line}", f"got {','.join(record)!r:.80}; wanted a value and its parent, empty for a root"
            )
        if parents.setdefault(value, parent) != parent:
            raise fail(
                f"{path}:{line}",
                f"{value!r} has two parents, {parent or 'none'!r} here and {parents[value] or 'none'!r} in line "
                f"{lines[value]}; keep one",
            )
        lines.setdefault(value, line)
    places: dict[str, tuple[str, ...]] = {}
    for value in parents:
        above: list[str] = []
        at = value
        while parents[at] and at not in places:
            if parents[at] not in parents:
                raise fail(f"{path}:{lines[at]}", f"parent {parents[at]!r} of {at!r} has no line of its own; add one")
            above.append(at)
            at = parents[at]
            if at in above:
                ring = [*above[above.index(at) :], at]
                raise fail(f"{path}:{lines[value]}", f"the parents go in a ring: {' < '.join(ring)}; break it")
        places.setdefault(at, ())
        for child in reversed(above):
            places[child] = (*places[parents[child]], parents[child])
    return places, data
