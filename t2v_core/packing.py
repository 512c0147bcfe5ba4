"""From a source to shards of images with their annotations: one Parquet table per shard.

A shard is read as a whole when features are computed, and without its images when tasks are cut, so labels are plain
columns beside the image bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from t2v_core.errors import ConfigError, ImageError, SourceError, StoreError
from t2v_core.fingerprints import digest_bytes
from t2v_core.images import decode_image, encode_for_store, stored_size
from t2v_core.sources.base import LabelValue, RawImage, Source

__all__ = ["PackedShard", "RejectedImage", "pack_source", "read_annotations", "write_parquet_bytes"]

_BEFORE = (("image_id", pa.string()), ("group", pa.string()), ("split", pa.string()), ("digest", pa.string()))
_SIZE = (("width", pa.int32()), ("height", pa.int32()))
_RESERVED = {name for name, _ in (*_BEFORE, *_SIZE)} | {"image"}
_ROWS_PER_GROUP = 256


@dataclass(frozen=True)
class RejectedImage:
    """An image that was left out."""

    image_id: str
    """Its id in the source."""
    reason: str
    """Why, for people."""


@dataclass(frozen=True)
class PackedShard:
    """A run of images in the order of the source."""

    index: int
    """0 for the first shard of a source."""
    table: pa.Table
    """image_id, group, split, digest, width, height, one column per label, image; may have no rows."""
    rejects: tuple[RejectedImage, ...]
    """Images left out since the last shard."""


@dataclass(frozen=True)
class _Planned:
    raw: RawImage
    group: str
    split: str


def _unit(purpose: str, seed: int, group: str) -> float:
    """A fair draw from [0, 1) that depends on nothing but its arguments."""
    return int(digest_bytes(f"{purpose}\0{seed}\0{group}".encode()), 16) / 2**64


def _distinct(raws: Sequence[RawImage]) -> tuple[list[RawImage], list[RejectedImage]]:
    kept: dict[str, RawImage] = {}
    rejects = []
    for raw in raws:
        if not raw.image_id:
            rejects.append(RejectedImage("", "its image_id is empty"))
        elif raw.image_id in kept:
            rejects.append(RejectedImage(raw.image_id, "duplicate image_id; the first image of that id is kept"))
        else:
            kept[raw.image_id] = raw
    return list(kept.values()), rejects


def _given_splits(raws: Sequence[RawImage], source: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for raw in raws:
        if not raw.split:
            continue
        if raw.split not in ("train", "test"):
            raise SourceError(
                f"source {source!r}: image {raw.image_id!r} has split {raw.split!r}; wanted 'train', 'test' or empty"
            )
        group = raw.group or raw.image_id
        if given.setdefault(group, raw.split) != raw.split:
            raise SourceError(
                f"source {source!r}: group {group!r} is in both train and test; give all its images one split"
            )
    return given


def _plan(raws: Sequence[RawImage], source: str, limit: int | None, test_share: float, seed: int) -> list[_Planned]:
    """Choose images and their splits; an image without a split follows the rest of its group."""
    given = _given_splits(raws, source)
    members: dict[str, list[RawImage]] = {}
    for raw in raws:
        members.setdefault(raw.group or raw.image_id, []).append(raw)
    chosen = set(members)
    if limit is not None and limit < len(raws):
        chosen, count = set(), 0
        # Another purpose than the split's: by the same draw, the first groups would all be test groups.
        for group in sorted(members, key=lambda g: (_unit("limit", seed, g), g)):
            if count >= limit:
                break
            chosen.add(group)
            count += len(members[group])
    side = {g: given.get(g) or ("test" if _unit("split", seed, g) < test_share else "train") for g in chosen}
    keyed = ((raw, raw.group or raw.image_id) for raw in raws)
    return [_Planned(raw, group, side[group]) for raw, group in keyed if group in chosen]


def _column_type(name: str, values: Sequence[LabelValue], source: str) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    for kind, arrow in ((str, pa.string()), (bool, pa.bool_()), (int, pa.int64())):
        if kinds <= {kind}:
            return arrow
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise SourceError(f"source {source!r}: label {name!r} has values of type {found}; wanted all str, bool or int")


def _schema(raws: Sequence[RawImage], columns: Sequence[str], source: str) -> pa.Schema:
    taken = sorted(_RESERVED.intersection(columns))
    if taken or len(set(columns)) < len(columns):
        raise SourceError(f"source {source!r}: label columns {list(columns)} must be distinct and not {taken}")
    for raw in raws:
        if not raw.labels.keys() <= set(columns):
            extra = sorted(raw.labels.keys() - set(columns))
            raise SourceError(f"source {source!r}: image {raw.image_id!r} has labels {extra} that are not declared")
    labels = [(name, _column_type(name, [raw.labels.get(name) for raw in raws], source)) for name in columns]
    fixed = [pa.field(name, kind, nullable=False) for name, kind in (*_BEFORE, *_SIZE)]
    fields = [pa.field(name, kind) for name, kind in labels]
    return pa.schema([*fixed, *fields, pa.field("image", pa.binary(), nullable=False)])


def _row(planned: _Planned, image_size: int | None, max_pixels: int) -> Mapping[str, object]:
    original = planned.raw.read()
    image = decode_image(original, max_pixels=max_pixels)
    stored = encode_for_store(image, original, image_size=image_size)
    width, height = stored_size(*image.size, image_size)
    return {
        **planned.raw.labels,
        "image_id": planned.raw.image_id,
        "group": planned.group,
        "split": planned.split,
        "digest": digest_bytes(stored),
        "width": width,
        "height": height,
        "image": stored,
    }


def _table(rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.table(arrays, schema=schema)


def pack_source(
    source: Source,
    *,
    image_size: int | None,
    max_pixels: int,
    limit: int | None,
    test_share: float,
    seed: int,
    shard_rows: int,
) -> Iterator[PackedShard]:
    """Split a source into train and test, and stream its images as tables of one schema.

    Annotations are gathered and checked before the first image is read, so that errors of the source come at the call
    and not in the middle. A bad image is left out and reported; it never stops the rest.

    Args:
        source: what to pack.
        image_size: see `encode_for_store`.
        max_pixels: see `decode_image`.
        limit: keep whole groups, in a seeded order, until there are this many images; ``None`` keeps all.
        test_share: share of the groups that go to test where the source does not say.
        seed: of the split and of ``limit``.
        shard_rows: images per shard; the last may have fewer.

    Returns:
        Shards in the order of the source: at least one, so that rejects always reach the caller.

    Raises:
        ConfigError: an argument is out of range.
        SourceError: no images, a split that is neither train nor test, a group on both sides, or bad labels.
    """
    if shard_rows < 1 or (limit is not None and limit < 1) or not 0 <= test_share <= 1:
        raise ConfigError(
            f"got shard_rows={shard_rows}, limit={limit}, test_share={test_share}; "
            "wanted shard_rows and limit of 1 or more, test_share in 0 to 1"
        )
    if max_pixels < 1 or (image_size is not None and image_size < 1):
        raise ConfigError(f"got image_size={image_size}, max_pixels={max_pixels}; wanted 1 or more")
    info = source.info
    raws, rejects = _distinct(list(source.images()))
    if not raws:
        raise SourceError(f"source {info.name!r} has no images; check its options")
    schema = _schema(raws, info.label_columns, info.name)
    plan = _plan(raws, info.name, limit, test_share, seed)
    return _shards(plan, schema, rejects, image_size, max_pixels, shard_rows)


def _shards(
    plan: Sequence[_Planned],
    schema: pa.Schema,
    rejects: list[RejectedImage],
    image_size: int | None,
    max_pixels: int,
    shard_rows: int,
) -> Iterator[PackedShard]:
    index, rows = 0, []
    for planned in plan:
        try:
            rows.append(_row(planned, image_size, max_pixels))
        except (ImageError, OSError) as error:
            rejects.append(RejectedImage(planned.raw.image_id, str(error)))
        if len(rows) == shard_rows:
            yield PackedShard(index, _table(rows, schema), tuple(rejects))
            index, rows, rejects = index + 1, [], []
    if rows or rejects or index == 0:
        yield PackedShard(index, _table(rows, schema), tuple(rejects))


def write_parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet: zstd, row groups of 256 rows. Same table, same bytes."""
    sink = pa.BufferOutputStream()
    plain = [name for name in table.column_names if name != "image"]
    pq.write_table(
        table,
        sink,
        row_group_size=_ROWS_PER_GROUP,
        compression="zstd",
        use_dictionary=plain,
        write_statistics=plain,
    )
    return bytes(sink.getvalue())


def read_annotations(data: bytes) -> pa.Table:
    """Every column of a packed shard but the images, which are not even decompressed.

    Raises:
        StoreError: not a Parquet file, or a damaged one.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        return file.read(columns=[name for name in file.schema_arrow.names if name != "image"])
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"cannot read a packed shard: {error}; pack the source again") from error
