"""Packing: one schema, no leakage, no image lost without a word, the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t2v_core.errors import ConfigError, ImageError, SourceError
from t2v_core.fingerprints import digest_bytes
from t2v_core.images import decode_image, encode_png
from t2v_core.packing import (
    PackedShard,
    RejectedImage,
    mark_duplicates,
    pack_shard,
    plan_source,
    write_parquet_bytes,
)
from t2v_core.sources.base import RawImage, Row, SourceInfo, annotation_table, unknown_of


@dataclass
class FakeSource:
    raws: Sequence[RawImage]
    columns: tuple[str, ...] = ("kind",)

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(name="fake", domain="noise", revision="1", label_columns=self.columns)

    def annotations(self) -> pa.Table:
        rows = [Row(r.image_id, r.labels, str(i), r.group, r.split) for i, r in enumerate(self.raws)]
        return annotation_table(rows, self.columns, "fake")

    def read(self, locator: str) -> bytes:
        return self.raws[int(locator)].read()

    def check_images(self) -> None: ...


def png(seed: int = 0, side: int = 12) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def raw(image_id: str, *, data: bytes | None = None, group: str = "", split: str = "", **labels: Any) -> RawImage:
    content = png() if data is None else data
    return RawImage(image_id, lambda: content, labels, group=group, split=split)


def failing(image_id: str, error: Exception) -> RawImage:
    def read() -> bytes:
        raise error

    return RawImage(image_id, read)


def pack(
    raws: Sequence[RawImage],
    columns: tuple[str, ...] = ("kind",),
    *,
    limit: int | None = None,
    test_share: float = 0.3,
    seed: int = 0,
    image_size: int | None = None,
    max_pixels: int = 10_000,
    shard_rows: int = 1000,
) -> list[PackedShard]:
    """All shards; what the plan rejects is put before what the first shard rejects."""
    source = FakeSource(raws, columns)
    plan = plan_source(source, limit=limit, test_share=test_share, seed=seed)
    shards = [
        pack_shard(source, plan.table.slice(at, shard_rows), image_size=image_size, max_pixels=max_pixels)
        for at in range(0, max(1, len(plan.table)), shard_rows)
    ]
    return [PackedShard(shards[0].table, plan.rejects + shards[0].rejects), *shards[1:]]


def rows(shards: Sequence[PackedShard]) -> list[dict[str, Any]]:
    return [row for shard in shards for row in shard.table.to_pylist()]


def grouped(groups: int, members: int = 3) -> list[RawImage]:
    return [raw(f"{g}-{m}", group=f"g{g}", kind="a") for g in range(groups) for m in range(members)]


def test_columns_and_values() -> None:
    data = png(1, 20)
    [row] = rows(pack([raw("a", data=data, kind="cat", group="g", split="test")], image_size=10))
    stored = row.pop("image")
    assert decode_image(stored).size == (10, 10)
    assert row == {
        "image_id": "a",
        "group": "g",
        "split": "test",
        "digest": digest_bytes(stored),
        "width": 10,
        "height": 10,
        "kind": "cat",
    }


def test_an_image_without_a_group_is_its_own() -> None:
    assert [row["group"] for row in rows(pack([raw("a"), raw("b")]))] == ["a", "b"]


def test_label_types_hold_for_every_shard() -> None:
    raws = [raw("a"), raw("b", word="x", flag=True, number=3), raw("c", word="y", flag=False, number=-1)]
    shards = pack(raws, ("word", "flag", "number", "empty"), shard_rows=1)
    assert len(shards) == 3
    assert len({str(shard.table.schema) for shard in shards}) == 1
    schema = shards[0].table.schema
    kinds = [schema.field(name).type for name in ("word", "flag", "number", "empty")]
    assert kinds == [pa.string(), pa.bool_(), pa.int64(), pa.string()]
    assert [row["flag"] for row in rows(shards)] == [None, True, False]
    assert not schema.field("image").nullable
    assert schema.field("word").nullable


@pytest.mark.parametrize("values", [("x", 1), (True, 1), ("x", False), (1.5,), (np.int64(1),)])
def test_mixed_or_foreign_label_types_are_errors(values: tuple[object, ...]) -> None:
    with pytest.raises(SourceError, match="label 'kind' has values of type"):
        pack([raw(str(i), kind=value) for i, value in enumerate(values)])


@pytest.mark.parametrize("columns", [("image",), ("split",), ("kind", "kind")])
def test_label_names_that_cannot_be_columns(columns: tuple[str, ...]) -> None:
    with pytest.raises(SourceError, match="label columns"):
        pack([raw("a")], columns)


def test_undeclared_labels_are_errors() -> None:
    with pytest.raises(SourceError, match=r"image 'a' has labels \['colour'\]"):
        pack([raw("a", colour="red")])


def test_one_bad_image_never_stops_the_rest() -> None:
    raws = [
        raw("good-1"),
        raw("empty", data=b""),
        raw("text", data=b"hello"),
        raw("cut", data=png()[:100]),
        raw("huge", data=png(side=101)),
        failing("gone", FileNotFoundError("no such file: gone.png")),
        failing("undrawable", ImageError("cannot draw it")),
        raw("good-2"),
    ]
    [shard] = pack(raws)
    assert shard.table["image_id"].to_pylist() == ["good-1", "good-2"]
    reasons = {reject.image_id: reject.reason for reject in shard.rejects}
    assert list(reasons) == ["empty", "text", "cut", "huge", "gone", "undrawable"]
    assert "0 bytes" in reasons["empty"]
    assert "not an image" in reasons["text"]
    assert "truncated" in reasons["cut"]
    assert "101x101" in reasons["huge"]
    assert "gone.png" in reasons["gone"]
    assert reasons["undrawable"] == "cannot draw it"


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        pack([failing("a", ZeroDivisionError())])


def test_rejects_reach_the_consumer_without_any_image() -> None:
    [shard] = pack([raw("a", data=b"")], shard_rows=1)
    assert shard.table.num_rows == 0
    assert [reject.image_id for reject in shard.rejects] == ["a"]
    assert shard.table.schema == pack([raw("b")])[0].table.schema
    last = pack([raw("a"), raw("b", data=b"")], shard_rows=1)[-1]
    assert (last.table.num_rows, len(last.rejects)) == (0, 1)


def test_duplicate_and_empty_ids() -> None:
    [shard] = pack([raw("a", data=png(1)), raw("a", data=png(2)), raw("", data=png(3))])
    assert shard.table["image"].to_pylist() == [png(1)]
    assert shard.rejects == (
        RejectedImage("a", "duplicate image_id; the first image of that id is kept"),
        RejectedImage("", "its image_id is empty"),
    )


@pytest.mark.parametrize("shard_rows", [1, 2, 5, 7, 100])
def test_shards_do_not_change_the_images(shard_rows: int) -> None:
    raws = grouped(5, 2)
    shards = pack(raws, shard_rows=shard_rows)
    assert len(shards) == -(-10 // shard_rows)
    assert all(shard.table.num_rows == shard_rows for shard in shards[:-1])
    assert rows(shards) == rows(pack(raws))
    assert [row["image_id"] for row in rows(shards)] == [r.image_id for r in raws]


def test_a_shard_reads_its_own_images_and_the_plan_reads_none() -> None:
    read: list[str] = []

    def reader(name: str) -> Callable[[], bytes]:
        def go() -> bytes:
            read.append(name)
            return png()

        return go

    source = FakeSource([RawImage(name, reader(name)) for name in "abcd"])
    plan = plan_source(source, limit=None, test_share=0, seed=0)
    assert read == []
    pack_shard(source, plan.table.slice(2, 2), image_size=8, max_pixels=999)
    assert read == ["c", "d"]


def test_lists_of_values_and_undecided_ones() -> None:
    columns = ("tag", unknown_of("tag"))
    raws = [raw("a", tag=("x", "y")), raw("b", tag=(), tag__unknown=("x",)), raw("c")]
    source = FakeSource(raws, columns)
    info = SourceInfo(name="fake", domain="noise", revision="1", label_columns=("tag",))
    declared = type("Declared", (FakeSource,), {"info": info})(raws, columns)
    plan = plan_source(declared, limit=None, test_share=0, seed=0)
    shard = pack_shard(declared, plan.table, image_size=None, max_pixels=999)
    assert shard.table["tag"].to_pylist() == [["x", "y"], [], None]
    assert shard.table["tag__unknown"].to_pylist() == [None, ["x"], None]
    back = pq.read_table(pa.BufferReader(write_parquet_bytes(shard.table)))
    assert back.equals(shard.table)
    coded = source.annotations()
    at = coded.column_names.index("tag")
    lists = coded["tag"].combine_chunks()
    values = pa.ListArray.from_arrays(lists.offsets, lists.values.dictionary_encode(), mask=lists.is_null())
    coded = coded.set_column(at, "tag", values)
    dictionaries = type("Coded", (type(declared),), {"annotations": lambda self: coded})(raws, columns)
    again = pack_shard(
        dictionaries,
        plan_source(dictionaries, limit=None, test_share=0, seed=0).table,
        image_size=None,
        max_pixels=999,
    )
    assert again.table.equals(shard.table)


def test_the_same_picture_twice_is_marked() -> None:
    raws = [raw("a", data=png(1)), raw("b", data=png(2)), raw("c", data=png(1)), raw("d", data=png(1))]
    shards = pack(raws, shard_rows=2)
    table = mark_duplicates(pa.concat_tables([shard.table.drop_columns("image") for shard in shards]))
    assert table["duplicate_of"].to_pylist() == ["", "", "a", "a"]
    assert mark_duplicates(table.slice(0, 0).drop_columns("duplicate_of"))["duplicate_of"].to_pylist() == []


def test_tables_that_a_source_must_not_give() -> None:
    def source(**columns: Any) -> FakeSource:
        base = {"image_id": ["a"], "locator": ["a"], "group": [""], "split": [""], "kind": ["x"]}
        table = pa.table({k: v for k, v in {**base, **columns}.items() if v is not None})
        return type("Odd", (FakeSource,), {"annotations": lambda self: table})([])

    for wrong, message in (
        (source(kind=None), r"lack the columns \['kind'\]"),
        (source(colour=["red"]), r"undeclared ones \['colour'\]"),
        (source(group=pa.array([None], pa.string())), "'group' must hold strings and no nulls"),
        (source(image_id=[3]), "'image_id' must hold strings"),
        (source(kind=[1.5]), "'kind' has type double"),
        (source(kind=[[1]]), "'kind' has type list"),
    ):
        with pytest.raises(SourceError, match=message):
            plan_source(wrong, limit=None, test_share=0.3, seed=0)


def test_split_is_by_group_fair_and_stable() -> None:
    packed = rows(pack(grouped(600)))
    sides: dict[str, set[str]] = {}
    for row in packed:
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    test = {group for group, side in sides.items() if side == {"test"}}
    assert 0.24 < len(test) / 600 < 0.36
    again = {row["group"]: row["split"] for row in rows(pack(grouped(900)[::-1]))}
    assert all(again[group] == "test" for group in test)
    other = {row["group"] for row in rows(pack(grouped(600), seed=1)) if row["split"] == "test"}
    assert 0.2 < len(test & other) / len(test) < 0.4


@pytest.mark.parametrize(("share", "side"), [(0.0, {"train"}), (1.0, {"test"})])
def test_shares_at_the_ends(share: float, side: set[str]) -> None:
    assert {row["split"] for row in rows(pack(grouped(50), test_share=share))} == side


def test_given_splits_win() -> None:
    raws = [raw("a", split="test"), raw("b", split="train"), raw("c", group="g"), raw("d", group="g", split="test")]
    for share in (0.0, 1.0):
        assert [row["split"] for row in rows(pack(raws, test_share=share))] == ["test", "train", "test", "test"]


def test_bad_splits_are_errors_at_the_call() -> None:
    for raws, message in (
        ([raw("a", group="owl", split="train"), raw("b", group="owl", split="test")], "group 'owl' is in both"),
        ([raw("a", split="val")], "image 'a' has split 'val'"),
        ([], "has no images"),
    ):
        with pytest.raises(SourceError, match=message):
            plan_source(FakeSource(raws), limit=None, test_share=0.3, seed=0)


@pytest.mark.parametrize("limit", [1, 3, 10, 100, 299, 300, 301])
def test_limit_keeps_whole_groups(limit: int) -> None:
    raws = grouped(100)
    packed = rows(pack(raws, limit=limit))
    counts: dict[str, int] = {}
    for row in packed:
        counts[row["group"]] = counts.get(row["group"], 0) + 1
    assert set(counts.values()) == {3}
    assert len(packed) == min(300, -(-limit // 3) * 3)
    full = {row["image_id"]: row for row in rows(pack(raws))}
    assert all(full[row["image_id"]] == row for row in packed)
    assert [row["image_id"] for row in packed] == [name for name in full if name in {r["image_id"] for r in packed}]


def test_limit_is_a_fair_sample_of_both_splits() -> None:
    packed = rows(pack(grouped(1000, 1), limit=300))
    assert 0.2 < np.mean([row["split"] == "test" for row in packed]) < 0.4
    groups = [int(row["group"][1:]) for row in packed]
    assert 400 < np.mean(groups) < 600
    assert groups != [int(row["group"][1:]) for row in rows(pack(grouped(1000, 1), limit=300, seed=1))]


@pytest.mark.parametrize(
    "wrong",
    [{"limit": 0}, {"test_share": 1.1}, {"test_share": -0.1}, {"image_size": 0}, {"max_pixels": 0}],
)
def test_arguments_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="wanted"):
        pack([raw("a")], **wrong)


def test_parquet_round_trip_is_deterministic() -> None:
    raws = [raw(f"i{i}", data=png(i), kind=f"k{i % 3}" if i % 5 else None) for i in range(300)]
    [shard] = pack(raws)
    data = write_parquet_bytes(shard.table)
    assert data == write_parquet_bytes(pack(raws)[0].table)
    file = pq.ParquetFile(pa.BufferReader(data))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [256, 44]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.read().equals(shard.table)


def test_an_empty_shard_can_be_written() -> None:
    [shard] = pack([raw("a", data=b"")])
    assert pq.read_table(pa.BufferReader(write_parquet_bytes(shard.table))).num_rows == 0
