"""From a source to shards of images with their annotations, in three steps that any number of workers can share.

`plan_source` decides, without opening an image, which images are packed and on which side of the split each one is.
`pack_shard` reads one slice of the plan: a Parquet table of images. `mark_duplicates` looks at all of them together.

A shard is read as a whole when features are computed, and without its images when tasks are cut, so labels are plain
columns beside the image bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from t2v_core.errors import ConfigError, ImageError, SourceError
from t2v_core.fingerprints import digest_bytes
from t2v_core.images import decode_image, encode_for_store, stored_size
from t2v_core.sources.base import ROW_COLUMNS, Source, SourceInfo, unknown_of

__all__ = [
    "ROWS_IN_GROUP",
    "PackPlan",
    "PackedShard",
    "RejectedImage",
    "mark_duplicates",
    "pack_shard",
    "plan_source",
    "write_parquet_bytes",
]

ROWS_IN_GROUP = 256
"""Rows of a row group of a shard: what is read to get at one image."""

_RESERVED = {*ROW_COLUMNS, "digest", "width", "height", "image", "duplicate_of"}


@dataclass(frozen=True)
class RejectedImage:
    """An image that was left out."""

    image_id: str
    """Its id in the source."""
    reason: str
    """Why, for people."""


@dataclass(frozen=True, eq=False)
class PackPlan:
    """What is to be packed."""

    table: pa.Table
    """image_id (distinct), locator, group and split (never empty), then the label columns; in the source's order."""
    rejects: tuple[RejectedImage, ...]
    """Images left out already: of an empty id, or of one that is there already."""


@dataclass(frozen=True, eq=False)
class PackedShard:
    """A slice of the plan, packed."""

    table: pa.Table
    """image_id, group, split, the label columns, digest, width, height, image; may have no rows."""
    rejects: tuple[RejectedImage, ...]
    """Images that could not be read or decoded."""


def _unit(purpose: str, seed: int, group: str) -> float:
    """A fair draw from [0, 1) that depends on nothing but its arguments."""
    return int(digest_bytes(f"{purpose}\0{seed}\0{group}".encode()), 16) / 2**64


def _checked(table: pa.Table, info: SourceInfo) -> pa.Table:
    """The table, if it is what a source must give; row columns first, then the label columns."""
    columns = list(info.label_columns)
    taken = sorted(_RESERVED.intersection(columns))
    if taken or len(set(columns)) < len(columns):
        raise SourceError(f"source {info.name!r}: label columns {columns} must be distinct and not {taken}")
    wanted = [*ROW_COLUMNS, *columns]
    lacking = [name for name in wanted if name not in table.column_names]
    undeclared = [n for n in table.column_names if n not in wanted and n not in {unknown_of(c) for c in columns}]
    if lacking or undeclared:
        raise SourceError(
            f"source {info.name!r}: its annotations lack the columns {lacking} and have undeclared ones {undeclared}"
        )
    for name in ROW_COLUMNS:
        if not pa.types.is_string(table.schema.field(name).type) or table[name].null_count:
            raise SourceError(f"source {info.name!r}: column {name!r} must hold strings and no nulls")
    for name in table.column_names:
        if not _is_label(table.schema.field(name).type):
            raise SourceError(
                f"source {info.name!r}: column {name!r} has type {table.schema.field(name).type}; "
                "wanted string, bool, int64 or a list of strings"
            )
    unknown = [unknown_of(name) for name in columns if unknown_of(name) in table.column_names]
    return table.select([*wanted, *unknown])


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        kind = kind.value_type
        return bool(pa.types.is_string(kind) or (pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)))
    if pa.types.is_dictionary(kind):
        return bool(pa.types.is_string(kind.value_type))
    return bool(pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_int64(kind))


def _coded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Codes in the order of first appearance, and what they stand for."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _distinct(table: pa.Table) -> tuple[pa.Table, list[RejectedImage]]:
    if len(table) == 0:
        return table, []
    codes, names = _coded(table["image_id"])
    first = codes > np.concatenate([[-1], np.maximum.accumulate(codes)[:-1]])
    named = np.array([bool(name) for name in names])[codes]
    rejects = [
        RejectedImage(names[codes[i]], "duplicate image_id; the first image of that id is kept")
        if named[i]
        else RejectedImage("", "its image_id is empty")
        for i in np.flatnonzero(~(first & named))
    ]
    return table.filter(pa.array(first & named)) if rejects else table, rejects


def _sides(table: pa.Table, source: str, test_share: float, seed: int) -> tuple[pa.Array, NDArray[np.int64], list[str]]:
    """Split of each image, its group's code, and the groups; an image without a split follows the rest of its group."""
    group = pc.if_else(pc.equal(table["group"], ""), table["image_id"], table["group"])
    of, groups = _coded(group)
    given = np.asarray(table["split"].to_numpy(zero_copy_only=False))
    wrong = ~np.isin(given, ["", "train", "test"])
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise SourceError(
            f"source {source!r}: image {table['image_id'][i].as_py()!r} has split {given[i]!r}; "
            "wanted 'train', 'test' or empty"
        )
    test = np.bincount(of[given == "test"], minlength=len(groups)) > 0
    train = np.bincount(of[given == "train"], minlength=len(groups)) > 0
    if (test & train).any():
        name = groups[int(np.flatnonzero(test & train)[0])]
        raise SourceError(f"source {source!r}: group {name!r} is in both train and test; give all its images one split")
    for code in np.flatnonzero(~(test | train)):
        test[code] = _unit("split", seed, groups[code]) < test_share
    return pa.array(np.where(test, "test", "train")[of], pa.string()), of, groups


def _limited(of: NDArray[np.int64], groups: Sequence[str], limit: int, seed: int) -> NDArray[np.bool_]:
    """Whole groups in a random order of their own until there are enough images."""
    members = np.bincount(of, minlength=len(groups))
    # Another purpose than the split's: by the same draw, the first groups would all be test groups.
    order = sorted(range(len(groups)), key=lambda g: (_unit("limit", seed, groups[g]), groups[g]))
    before = np.cumsum(members[order]) - members[order]
    chosen = np.zeros(len(groups), bool)
    chosen[np.array(order)[before < limit]] = True
    return chosen[of]


def plan_source(source: Source, *, limit: int | None, test_share: float, seed: int) -> PackPlan:
    """Choose images and their splits; no image is opened.

    Args:
        source: what to pack.
        limit: keep whole groups, in a seeded order, until there are this many images; ``None`` keeps all.
        test_share: share of the groups that go to test where the source does not say.
        seed: of the split and of ``limit``.

    Raises:
        ConfigError: an argument is out of range.
        SourceError: no images, a split that is neither train nor test, a group on both sides, or bad labels.
    """
    if (limit is not None and limit < 1) or not 0 <= test_share <= 1:
        raise ConfigError(
            f"got limit={limit}, test_share={test_share}; wanted a limit of 1 or more, test_share in 0 to 1"
        )
    info = source.info
    table, rejects = _distinct(_checked(source.annotations(), info))
    if len(table) == 0:
        raise SourceError(f"source {info.name!r} has no images; check its options")
    split, of, groups = _sides(table, info.name, test_share, seed)
    table = table.set_column(table.column_names.index("split"), pa.field("split", pa.string()), split)
    names = pa.array(np.array(groups, object)[of], pa.string())
    table = table.set_column(table.column_names.index("group"), pa.field("group", pa.string()), names)
    if limit is not None and limit < len(table):
        table = table.filter(pa.array(_limited(of, groups, limit, seed)))
    return PackPlan(table, tuple(rejects))


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """Without dictionaries, which differ from shard to shard."""
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    if pa.types.is_list(array.type):
        return array.cast(pa.list_(pa.string()))
    return array


def _packed(source: Source, locator: str, image_size: int | None, max_pixels: int) -> Mapping[str, object]:
    original = source.read(locator)
    image = decode_image(original, max_pixels=max_pixels)
    stored = encode_for_store(image, original, image_size=image_size)
    width, height = stored_size(*image.size, image_size)
    return {"digest": digest_bytes(stored), "width": width, "height": height, "image": stored}


def pack_shard(source: Source, planned: pa.Table, *, image_size: int | None, max_pixels: int) -> PackedShard:
    """Read a slice of a plan. A bad image is left out and reported; it never stops the rest.

    Args:
        source: where the images are.
        planned: rows of `PackPlan.table`.
        image_size: see `encode_for_store`.
        max_pixels: see `decode_image`.

    Raises:
        ConfigError: an argument is out of range.
    """
    if max_pixels < 1 or (image_size is not None and image_size < 1):
        raise ConfigError(f"got image_size={image_size}, max_pixels={max_pixels}; wanted 1 or more")
    kept: list[int] = []
    images: list[Mapping[str, object]] = []
    rejects = []
    locators, names = planned["locator"].to_pylist(), planned["image_id"].to_pylist()
    for i, (name, locator) in enumerate(zip(names, locators, strict=True)):
        try:
            images.append(_packed(source, locator, image_size, max_pixels))
            kept.append(i)
        except (ImageError, OSError) as error:
            rejects.append(RejectedImage(name, str(error)))
    rows = planned.drop_columns(["locator"]).take(pa.array(kept, pa.int64()))
    arrays = [_plain(rows[name]) for name in rows.column_names]
    fields = [
        pa.field(name, array.type, nullable=name not in ROW_COLUMNS)
        for name, array in zip(rows.column_names, arrays, strict=True)
    ]
    added = (("digest", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("image", pa.binary()))
    for name, kind in added:
        fields.append(pa.field(name, kind, nullable=False))
        arrays.append(pa.array([image[name] for image in images], kind))
    return PackedShard(pa.table(arrays, schema=pa.schema(fields)), tuple(rejects))


def mark_duplicates(annotations: pa.Table) -> pa.Table:
    """Add the column ``duplicate_of``: the id of the first image of the same stored bytes, empty for that one itself.

    A picture that comes twice would be in train and in test, or in two classes; tasks leave the later ones out.

    Args:
        annotations: rows of all shards of a source, in their order.
    """
    codes, _ = _coded(annotations["digest"])
    first = np.full(int(codes.max(initial=-1)) + 1, -1, np.int64)
    rows = np.arange(len(codes))
    first[codes[::-1]] = rows[::-1]
    original = first[codes]
    ids = annotations["image_id"].to_numpy(zero_copy_only=False)
    same = np.where(original == rows, "", ids[original]) if len(codes) else np.empty(0, object)
    return annotations.append_column(
        pa.field("duplicate_of", pa.string(), nullable=False), pa.array(same.astype(object), pa.string())
    )


def write_parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet: zstd, row groups of `ROWS_IN_GROUP` rows with statistics. Same table, same bytes."""
    sink = pa.BufferOutputStream()
    plain = [path for path in _leaves(table.schema) if path != "image"]
    pq.write_table(
        table,
        sink,
        row_group_size=ROWS_IN_GROUP,
        compression="zstd",
        use_dictionary=plain,
        write_statistics=plain,
    )
    return bytes(sink.getvalue())


def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the columns as Parquet calls them."""
    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]
