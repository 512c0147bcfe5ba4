"""Sources of one's own data: manifests, torchvision's datasets, datasets that Hugging Face's package saved."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import os
import pickle
import re
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from t2v_core.annotations import Annotations
from t2v_core.errors import ConfigError, ImageError, MissingPackageError, SourceError, UnknownNameError
from t2v_core.images import decode_image, encode_png
from t2v_core.packing import plan_source
from t2v_core.sources import Source, open_source
from t2v_core.sources._columns import Coded, attribute_lists, coded, label_array, levels, lists_of, split_sides
from t2v_core.sources._parquet_images import image_at


def png(seed: int = 0, mode: str = "RGB") -> bytes:
    shape = (8, 8, 3) if mode == "RGB" else (8, 8)
    return encode_png(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def jpeg(seed: int = 0) -> bytes:
    sink = io.BytesIO()
    Image.open(io.BytesIO(png(seed))).save(sink, "JPEG")
    return sink.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def manifest(folder: Path, content: str | bytes, file: str = "list.csv", images: bool = True, **options: Any) -> Source:
    """A CSV, and a PNG for each of a.png to h.png."""
    write(folder / file, content)
    if images:
        for seed, letter in enumerate("abcdefgh"):
            write(folder / f"{letter}.png", png(seed))
    return open_source("manifest", path=str(folder / file), **options)


def column(source: Source, name: str) -> list[Any]:
    values: list[Any] = source.annotations()[name].to_pylist()
    return values


def fails(source: Source, match: str) -> None:
    """The annotations cannot be read, and neither can the info."""
    with pytest.raises(SourceError, match=match):
        source.annotations()
    with pytest.raises(SourceError, match=match):
        _ = source.info


# --- manifest: CSV ------------------------------------------------------------------------------------------------


def test_csv(tmp_path: Path) -> None:
    source = manifest(
        tmp_path,
        "path,split,group,species,wild,legs,code,weight,note\n"
        "a.png,train,g1,cat,true,4,007,1.5,\n"
        "b.png,Training,g1,dog,False,4,12,2,\n"
        'c.png,test,g2,"wren, grey",TRUE,2,,,\n'
        "d.png,,,,,,3,nan,\n",
    )
    info, table = source.info, source.annotations()
    assert (info.name, info.domain, info.licence) == ("list", "photographs", "unknown")
    assert info.label_columns == ("species", "wild", "legs", "code", "note")  # not weight: it has fractions
    assert table.column_names == ["image_id", "locator", "group", "split", *info.label_columns]
    assert column(source, "image_id") == column(source, "locator") == ["a.png", "b.png", "c.png", "d.png"]
    assert column(source, "split") == ["train", "train", "test", ""]
    assert column(source, "group") == ["g1", "g1", "g2", ""]
    assert column(source, "species") == ["cat", "dog", "wren, grey", None]
    assert column(source, "wild") == [True, False, True, None]
    assert column(source, "legs") == [4, 4, 2, None]
    assert column(source, "code") == ["007", "12", None, "3"]
    assert column(source, "note") == [None] * 4
    assert table["wild"].type == pa.bool_()
    assert table["legs"].type == pa.int64()
    assert source.read("b.png") == png(1)
    source.check_images()
    assert len(plan_source(source, limit=None, test_share=0.5, seed=0).table) == 4


def test_spreadsheet_csv(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, blanks after commas, blank lines, an index without a name."""
    source = manifest(tmp_path, b"\xef\xbb\xbf,path, label \r\n0,a.png, cat\r\n\r\n1,b.png,cat \r\n2,c.png,  \r\n")
    assert source.info.label_columns == ("label",)
    assert column(source, "image_id") == ["a.png", "b.png", "c.png"]
    assert column(source, "label") == ["cat", "cat", None]


def test_tsv_and_names(tmp_path: Path) -> None:
    source = manifest(tmp_path, "filename\tlabel\na.png\tx\n", "My List.v2.tsv", domain="maps", licence="CC0")
    assert (source.info.name, source.info.domain, source.info.licence) == ("my-list-v2", "maps", "CC0")
    assert manifest(tmp_path, "filename\tlabel\na.png\tx\n", "l.tsv", name="mine").info.name == "mine"
    assert column(source, "label") == ["x"]


def test_columns_by_option(tmp_path: Path) -> None:
    content = "no,where,fold,plant,a,b,c\n7,a.png,val,p1,x,1,u\n8,b.png,train,p2,y,2,v\n"
    source = manifest(
        tmp_path, content, image="where", id="no", split="fold", group="plant", labels=["b"], lineage=["c", "a"]
    )
    assert source.info.label_columns == ("b", "c", "a")
    assert column(source, "image_id") == ["7", "8"]
    assert column(source, "group") == ["p1", "p2"]
    assert column(source, "split") == ["test", "train"]
    fails(manifest(tmp_path, content, image="wher"), r"list.csv: no column 'wher', .*`image:`.*did you mean 'where'\?")
    fails(
        manifest(tmp_path, content, image="where", labels=["zzz"]), "no column 'zzz', .*`labels:`.*its columns: no, wh"
    )
    fails(manifest(tmp_path, content), "no column path, file, filename, file_name, image; its columns: no, where")
    fails(manifest(tmp_path, content, image="where", id="no", labels=[]), "no column can be a label")


@pytest.mark.parametrize(
    ("splits", "want"),
    [
        (("train", "val"), ("train", "test")),
        (("train", "validation", "test"), ("train", "train", "test")),
        (("TRAINING", "Valid", ""), ("train", "test", "")),
        (("valid", "test"), ("train", "test")),
    ],
)
def test_splits(tmp_path: Path, splits: tuple[str, ...], want: tuple[str, ...]) -> None:
    rows = "".join(f"{letter}.png,x,{split}\n" for letter, split in zip("abc", splits, strict=False))
    assert tuple(column(manifest(tmp_path, f"path,label,split\n{rows}"), "split")) == want


def test_a_split_of_another_name_has_its_line(tmp_path: Path) -> None:
    content = 'path,note,split\na.png,"two\nlines",train\n\nb.png,x,holdout\n'
    fails(manifest(tmp_path, content), "list.csv:5: split is 'holdout'; wanted train, test, val or nothing")


def test_lineage_paths(tmp_path: Path) -> None:
    content = (
        "path,kind,url,date\na.png,animal/bird/wren,http://x/y,n/a\nb.png,animal/cat,http://x/z,\nc.png,stone,,today\n"
    )
    source = manifest(tmp_path, content)
    assert source.info.label_columns == ("kind", "kind_1", "kind_2", "kind_3", "url", "date", "date_1", "date_2")
    assert column(source, "kind_1") == ["animal", "animal", "stone"]
    assert column(source, "kind_2") == ["animal/bird", "animal/cat", None]
    assert column(source, "kind_3") == ["animal/bird/wren", None, None]
    few = manifest(tmp_path, "path,kind\na.png,a/b\nb.png,c\nc.png,d\n")
    assert few.info.label_columns == ("kind",)
    taken = manifest(tmp_path, "path,kind,kind_2\na.png,a/b,x\n")
    assert taken.info.label_columns == ("kind", "kind_2")
    assert column(taken, "kind_2") == ["x"]


def test_levels_of_odd_paths() -> None:
    def of(*values: str) -> list[list[str | None]]:
        return [level.to_pylist() for level in levels(coded(pa.chunked_array([pa.array(values)])))]

    assert of("a/b", "c") == [["a", "c"], ["a/b", None]]
    assert of("a//b", "/a", "b/") == []  # an empty level
    assert of("/".join("abcdefghijklmnopqrst"), "a/b") == []  # a path, but not of a taxonomy
    assert of("fruit/orange", "colour/orange")[1] == ["fruit/orange", "colour/orange"]


def test_multi(tmp_path: Path) -> None:
    content = "path,tags,size\na.png,red| round |red,1\nb.png,|,2\nc.png,,3\nd.png,blue,4\n"
    source = manifest(tmp_path, content, multi=["tags"])
    assert column(source, "tags") == [["red", "round"], [], None, ["blue"]]
    known = Annotations("x", "x", source.annotations()).column("tags").known
    assert known.tolist() == [True, True, False, True]
    other = manifest(tmp_path, content.replace("|", ";"), multi=["tags"], separator=";")
    assert column(other, "tags") == column(source, "tags")
    assert other.info.revision != source.info.revision
    fails(manifest(tmp_path, content, multi=["tagz"]), "`multi:` names; did you mean 'tags'")


def test_attributes(tmp_path: Path) -> None:
    content = "path,label,hat,beard\na.png,x,1,-1\nb.png,y,0,1\nc.png,x,,\nd.png,y,-1,-1\n"
    source = manifest(tmp_path, content, attributes=["hat", "beard"])
    assert source.info.label_columns == ("label", "attribute")
    assert column(source, "attribute") == [["hat"], ["beard"], None, []]
    assert column(source, "attribute__unknown") == [[], ["hat"], None, []]
    annotations = Annotations("x", "x", plan_source(source, limit=None, test_share=0.5, seed=0).table)
    assert annotations.unknown("attribute", ["hat"]).tolist() == [False, True, False, False]
    binary = manifest(tmp_path, content.replace("-1", "0"), attributes=["hat", "beard"])
    assert column(binary, "attribute") == [["hat"], ["beard"], None, []]
    assert "attribute__unknown" not in binary.annotations().column_names  # 0 is no, and a row is known or not
    floats = manifest(tmp_path, content.replace(",0,", ",0.0,"), attributes=["hat", "beard"])
    assert column(floats, "attribute__unknown") == column(source, "attribute__unknown")
    bad = manifest(tmp_path, content.replace("y,0,1", "y,2,1"), attributes=["hat", "beard"])
    fails(bad, "list.csv:3: hat is '2'; wanted -1, 0 or 1")
    named = "path,attribute,hat\na.png,x,1\n"
    fails(manifest(tmp_path, named, attributes=["hat"]), "called 'attribute'.*rename")
    assert column(manifest(tmp_path, content), "hat") == [1, 0, None, -1]  # plain numbers, unless they are named


def test_attribute_lists_agree_with_loops() -> None:
    rng = np.random.default_rng(0)
    for low in (-1, 0):
        columns = {f"a{i}": rng.choice([low, 0, 1, -2], 200).astype(np.int8) for i in range(5)}
        has, unknown = attribute_lists(columns)
        assert unknown is not None
        for row, (yes, maybe) in enumerate(zip(has.to_pylist(), unknown.to_pylist(), strict=True)):
            values = {name: int(values[row]) for name, values in columns.items()}
            if set(values.values()) == {-2}:
                assert yes is None
                continue
            assert yes == [name for name, value in values.items() if value == 1]
            assert maybe == [n for n, value in values.items() if value == -2 or (value == 0 and low == -1)]


def test_classes(tmp_path: Path) -> None:
    content = "path,label,n,ok,tags\na.png,cat,1,true,u|v\nb.png,dgo,2,false,w\n"
    assert column(manifest(tmp_path, content, classes={"label": ["cat", "dgo"]}), "label") == ["cat", "dgo"]
    assert manifest(tmp_path, content, classes={"n": [1, 2], "ok": [True, False]}).info.label_columns
    wrong = manifest(tmp_path, content, classes={"label": ["cat", "dog"]})
    fails(wrong, r"list.csv:3: label is 'dgo', which is not in its class list; did you mean 'dog'\?")
    fails(manifest(tmp_path, content, classes={"n": [1]}), "list.csv:3: n is '2'")
    fails(manifest(tmp_path, content, classes={"tags": ["u", "w"]}, multi=["tags"]), "list.csv:2: tags is 'v'")
    fails(manifest(tmp_path, content, classes={"zzz": ["u"]}), "`classes:` names 'zzz', no label column")


def test_taxonomy(tmp_path: Path) -> None:
    content = "path,tags\na.png,wren|cat\nb.png,stone\n"

    def of(lines: str) -> Source:
        taxonomy = write(tmp_path / "tree.csv", f"value,parent\n{lines}")
        return manifest(tmp_path, content, multi=["tags"], taxonomy={"tags": str(taxonomy)})

    source = of("wren,bird\nbird,animal\ncat,animal\nanimal,\n")
    assert source.info.taxonomy == {
        "tags": {"wren": ("animal", "bird"), "bird": ("animal",), "cat": ("animal",), "animal": ()}
    }
    assert of("wren,animal\nanimal,\n").info.revision != source.info.revision
    fails(of("a,\nwren,bird\nbird,owl\nowl,wren\n"), "tree.csv:3: the parents go in a ring: wren < bird < owl < wren")
    fails(of("wren,wren\n"), "tree.csv:2: the parents go in a ring: wren < wren")
    fails(of("wren,bird\n"), "tree.csv:2: parent 'bird' of 'wren' has no line of its own; add one")
    fails(of("a,\nb,\nwren,a\n\nwren,b\n"), "tree.csv:6: 'wren' has two parents, 'b' here and 'a' in line 4; keep one")
    fails(of("a,\nwren,a,b\n"), "tree.csv:3: got 'wren,a,b'")
    write(tmp_path / "tree.csv", "parent,value\na,b\n")
    odd = manifest(tmp_path, content, multi=["tags"], taxonomy={"tags": str(tmp_path / "tree.csv")})
    fails(odd, "tree.csv:1: columns 'parent,value'; wanted the header value,parent")
    fails(manifest(tmp_path, content, taxonomy={"tag": str(tmp_path / "tree.csv")}), "names 'tag', no label column")
    gone = manifest(tmp_path, content, taxonomy={"tags": str(tmp_path / "none.csv")})
    fails(gone, "none.csv: cannot read it: No such file")


def test_a_deep_taxonomy_is_no_matter(tmp_path: Path) -> None:
    lines = "".join(f"v{i},{f'v{i - 1}' if i else ''}\n" for i in reversed(range(3000)))
    write(tmp_path / "tree.csv", f"value,parent\n{lines}")
    source = manifest(tmp_path, "path,label\na.png,v2999\n", taxonomy={"label": str(tmp_path / "tree.csv")})
    assert source.info.taxonomy["label"]["v2999"] == tuple(f"v{i}" for i in range(2999))


@pytest.mark.parametrize(
    "path", ["../x.png", "/etc/x.png", "a/../../x.png", "a/..", "C:\\x.png", "..\\x.png", "\\\\host\\x.png"]
)
def test_paths_stay_below_the_root(tmp_path: Path, path: str) -> None:
    fails(manifest(tmp_path, f"path,label\na.png,x\n{path},y\n"), r"list.csv:3: path '.*' leaves the folder")


def test_names_that_only_look_like_climbing(tmp_path: Path) -> None:
    source = manifest(tmp_path, "path,label\n..a.png,x\nb..,x\n./a.png,y\n", images=False)
    for name in ("..a.png", "b..", "a.png"):
        write(tmp_path / name, png())
    source.check_images()
    assert source.read("./a.png") == png()


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "secret.png", png())
    source = manifest(tmp_path / "data", "path,label\nlink.png,x\n", images=False)
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImageError, match="link out of"):
        source.read("link.png")


def test_missing_images(tmp_path: Path) -> None:
    names = [f"sub/{i:03d}.png" for i in range(200)]
    content = "path,label\n" + "".join(f"{name},x\n" for name in names)
    source = manifest(tmp_path, content, images=False)
    bare = source.info.revision
    assert len(source.annotations()) == 200  # before any image is there
    with pytest.raises(SourceError, match=r"200 of 200 images are missing in .*, first sub/000.png; unpack .* `root:`"):
        source.check_images()
    for name in names[2:]:
        write(tmp_path / "sub" / Path(name).name, png())
    (tmp_path / "sub" / "001.png").mkdir()  # a folder is no image
    nearly = open_source("manifest", path=tmp_path / "list.csv")
    nearly.check_images()  # 1% may be missing
    (tmp_path / "sub" / "002.png").unlink()
    with pytest.raises(SourceError, match="3 of 200 images are missing in .*, first sub/000.png"):
        open_source("manifest", path=tmp_path / "list.csv").check_images()
    (tmp_path / "sub" / "001.png").rmdir()
    for name in names:
        write(tmp_path / name, png())
    whole = open_source("manifest", path=tmp_path / "list.csv")
    whole.check_images()
    assert len({bare, nearly.info.revision, whole.info.revision}) == 3


def test_backslashes_and_rows_without_a_path(tmp_path: Path) -> None:
    source = manifest(tmp_path, "path,label\nsub\\a.png,x\n", images=False)
    with pytest.raises(SourceError, match=r"the paths have backslashes, write them with /"):
        source.check_images()
    rows = "".join(f"{letter}.png,x\n" for letter in "abcdefgh") * 20
    blank = manifest(tmp_path, f"path,label\n{rows},y\n")
    blank.check_images()
    assert [r.reason for r in plan_source(blank, limit=None, test_share=0.5, seed=0).rejects][
        -1
    ] == "its image_id is empty"
    with pytest.raises(ImageError):
        blank.read("")


def test_root_and_ids(tmp_path: Path) -> None:
    write(tmp_path / "images" / "x.png", png(5))
    content = "image_id,path,label\n00012,x.png,a\n00012,x.png,b\n"
    source = manifest(tmp_path, content, root=str(tmp_path / "images"))
    source.check_images()
    assert column(source, "image_id") == ["00012", "00012"]  # as written; packing reports the second
    assert source.read("x.png") == png(5)


def test_what_packing_writes_is_no_label(tmp_path: Path) -> None:
    content = "path,width,height,digest,label\na.png,8,8,00,x\n"
    assert manifest(tmp_path, content).info.label_columns == ("label",)
    fails(manifest(tmp_path, content, labels=["width"]), "must not be called 'width', packing writes one; rename it")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"list.csv: the file is empty \(0 bytes\)"),
        (b" \n\n", r"list.csv: the file is empty \(3 bytes\)"),
        (b"path,label\n", "list.csv: it has columns and no rows"),
        (b"path;label\na.png;x\n", r"list.csv:1: one column only, 'path;label'; it has semicolons; wanted commas"),
        (
            b"path\tlabel\na.png\tx\n",
            "one column only, .*; it has tabs; wanted commas between columns; save it with commas as .csv, or",
        ),
        (b"path,label,label\na.png,x,y\n", "list.csv:1: two columns are named 'label'; rename one"),
        (b"path,label,label \na.png,x,y\n", "two columns are named 'label'"),
        (b"path,label\na.png,x\nb.png,caf\xe9\n", r"list.csv:3: not UTF-8: byte 0xe9; save the file as UTF-8"),
        (b"path,lab\xe9l\na.png,x\n", r"list.csv:1: not UTF-8: byte 0xe9"),
        (b"path,label\na.png,x\nb.png,x,y\nc.png,x\n", "list.csv:3: 3 values, wanted 2 as in the header; quote"),
        (b'path,label\na.png,"x\ny"\n\nb.png\n', "list.csv:5: 1 values, wanted 2 .*; the last line: the file is cut"),
        (b'path,label\na.png,x\nb.png,"y\nc.png,z\n', "list.csv:3: unexpected end of data: a quote that is not closed"),
        ("path,label\na.png,x\n".encode("utf-16"), "text in UTF-16; save it as UTF-8"),
        ("path,label\na.png,x\n".encode("utf-16-le"), "zero bytes: UTF-16"),
        (b"PK\x03\x04rest", "a ZIP archive or a spreadsheet; save the table as CSV"),
        (b"\x1f\x8b\x08rest", "compressed with gzip; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"PAR1 and then nothing", "damaged Parquet, or cut short"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, match: str) -> None:
    fails(manifest(tmp_path, content), match)


def test_no_such_file(tmp_path: Path) -> None:
    fails(open_source("manifest", path=tmp_path / "none.csv"), "none.csv: cannot read it: No such file or directory")
    fails(open_source("manifest", path=tmp_path), "cannot read it: Is a directory; wanted a CSV or Parquet file")
    fails(manifest(tmp_path, "path,label\na,b\n", "x.parquet"), "x.parquet: not Parquet: it begins with b'path,lab'")


def test_an_inner_quote_is_only_a_quote(tmp_path: Path) -> None:
    assert column(manifest(tmp_path, 'path,label\na.png,5" disk\n'), "label") == ['5" disk']


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labels": "label"}, "labels is 'label'; wanted a list of different column names"),
        ({"multi": ["a", "a"]}, "multi is .* wanted a list of different"),
        ({"lineage": [1]}, "lineage is "),
        ({"separator": ""}, "separator is ''; wanted a mark"),
        ({"classes": ["a"]}, "classes is .*; wanted a mapping of column to a list"),
        ({"classes": {"a": "b"}}, "wanted a mapping of column to a list of values"),
        ({"taxonomy": "x.csv"}, "taxonomy is 'x.csv'; wanted a mapping of column to a CSV file"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        open_source("manifest", path="x.csv", **options)


def test_revision_is_of_content_and_options(tmp_path: Path) -> None:
    content = "path,a,b\na.png,x,y\n"
    source = manifest(tmp_path / "one", content)
    same = manifest(tmp_path / "two", content, name="other", domain="maps")
    assert source.info.revision == same.info.revision
    assert manifest(tmp_path / "three", content, labels=["a"]).info.revision != source.info.revision
    assert manifest(tmp_path / "four", content.replace("x", "z")).info.revision != source.info.revision


# --- manifest: Parquet --------------------------------------------------------------------------------------------


def parquet(
    path: Path, columns: dict[str, Any], rows: int = 2, metadata: bytes | None = None, **options: Any
) -> Source:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, path, row_group_size=rows)
    return open_source("manifest", path=str(path), **options)


def test_parquet_types(tmp_path: Path) -> None:
    columns = {
        "path": ["a.png", "b.png", "c.png"],
        "text": pa.array(["1", "", None]),
        "coded": pa.array(["u", "v", "u"]).dictionary_encode(),
        "large": pa.array(["u", "v/w", "x/y"], pa.large_string()),
        "flag": [True, None, False],
        "small": pa.array([1, 2, None], pa.int8()),
        "whole": [1.0, float("nan"), 3.0],
        "part": [1.5, 2.0, 3.0],
        "tags": [["x", "y", "x"], [], None],
        "tags__unknown": [[], ["x"], []],
        "numbers": pa.array([[1], [2, 3], None], pa.large_list(pa.int32())),
        "none": pa.nulls(3),
        "when": pa.array([0, 1, 2], pa.timestamp("s")),
        "box": [{"x": 1}] * 3,
        "huge": pa.array([2**64 - 1, 0, 0], pa.uint64()),
        "__index_level_0__": [0, 1, 2],
    }
    source = parquet(tmp_path / "list.parquet", columns)
    assert source.info.label_columns == (
        *("text", "coded", "large", "large_1", "large_2", "flag", "small", "whole", "tags", "numbers", "none"),
    )
    assert column(source, "text") == ["1", None, None]
    assert column(source, "large_1") == ["u", "v", "x"]
    assert column(source, "whole") == [1, None, 3]
    assert column(source, "tags") == [["x", "y"], [], None]
    assert column(source, "tags__unknown") == [[], ["x"], []]
    assert column(source, "numbers") == [["1"], ["2", "3"], None]
    assert column(source, "none") == [None] * 3
    assert len(plan_source(source, limit=None, test_share=0.5, seed=0).table) == 3
    for name in ("part", "when", "box", "huge"):
        fails(parquet(tmp_path / "l.parquet", columns, labels=[name]), f"column '{name}' holds .*; wanted text")
    fails(parquet(tmp_path / "l.parquet", columns, labels=["text"], split="text"), "l.parquet: row 1: text is '1'")
    fails(parquet(tmp_path / "l.parquet", columns, group="tags"), r"column 'tags' \(group\) has type list")
    fails(parquet(tmp_path / "l.parquet", columns, image="flag", id="box"), r"column 'box' \(id\) has type struct")


def test_parquet_paths_and_rows(tmp_path: Path) -> None:
    columns = {"file": ["a.png", "../b.png"], "label": ["x", "y"]}
    fails(parquet(tmp_path / "list.parquet", columns), r"list.parquet: row 2: path '../b.png' leaves the folder")


def test_parquet_bytes_are_read_by_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [png(i) for i in range(7)]
    images[5] = None  # type: ignore[call-overload]
    source = parquet(tmp_path / "l.parquet", {"image": images, "label": list("abcabca")}, rows=3)
    assert column(source, "image_id") == column(source, "locator") == [str(i) for i in range(7)]
    assert source.info.label_columns == ("label",)
    source.check_images()
    read: list[int] = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **kw: (read.append(i), original(self, i, **kw))[1]
    )
    worker = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own bytes
    assert "_content" not in vars(worker)
    assert [worker.read(str(i)) for i in (0, 1, 2, 4, 3, 6)] == [png(i) for i in (0, 1, 2, 4, 3, 6)]
    assert read == [0, 1, 2]  # each once
    assert open_source("manifest", path=tmp_path / "l.parquet").read("6") == png(6)
    assert read == [0, 1, 2]  # the process keeps the file and its last group
    with pytest.raises(ImageError, match="row 6 holds no image"):
        worker.read("5")
    with pytest.raises(ImageError, match="there is no row 8; the file has 7"):
        worker.read("7")
    parquet(tmp_path / "l.parquet", {"image": [png(9)] * 7, "label": list("abcabca")}, rows=3)
    os.utime(tmp_path / "l.parquet", ns=(1, 1))
    assert worker.read("6") == png(9)  # not the file that was open


def test_parquet_of_hugging_face(tmp_path: Path) -> None:
    write(tmp_path / "inside.png", png(3))
    structs = [
        {"bytes": png(0), "path": "x.png"},
        {"bytes": None, "path": "inside.png"},
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": None, "path": None},
    ]
    features = b"""{"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type":
        "ClassLabel"}, "tags": {"feature": {"names": ["u", "v"], "_type": "ClassLabel"}, "_type": "List"}}}}"""
    columns = {"image": structs, "label": [1, 0, -1, None], "tags": [[1, 0], [], None, [1, 1]]}
    source = parquet(tmp_path / "l.parquet", columns, metadata=features)
    assert column(source, "label") == ["dog", "cat", None, None]
    assert column(source, "tags") == [["v", "u"], [], None, ["v"]]
    assert source.read("0") == png(0)
    assert source.read("1") == png(3)
    with pytest.raises(ImageError, match="leaves the folder"):
        source.read("2")
    with pytest.raises(ImageError, match="holds no image"):
        source.read("3")
    for odd in (b"[]", b"{", b'{"info": {"features": 3}}', b'{"info": {"features": {"label": 3}}}'):
        assert column(parquet(tmp_path / "o.parquet", columns, metadata=odd), "label") == [1, 0, -1, None]


def test_a_row_group_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parquet(tmp_path / "l.parquet", {"image": [png(0), png(1)], "label": ["a", "b"]})
    monkeypatch.setattr("t2v_core.sources.manifest.LARGEST_ROW_GROUP", 100)
    with pytest.raises(SourceError, match="row group of 2 images and .* at most 1,000 rows in a row group"):
        source.check_images()


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table([["a.png"], ["x"], ["y"]], names=["path", "label", "label"]), path)
    fails(open_source("manifest", path=path), "l.parquet: two columns are named 'label'")
    fails(parquet(path, {"path": pa.array([], pa.string()), "label": pa.array([], pa.string())}), "columns and no rows")
    parquet(path, {"path": [f"{i}.png" for i in range(999)], "label": ["x"] * 999})
    write(path, path.read_bytes()[:-200])
    fails(open_source("manifest", path=path), "damaged Parquet, or cut short: .*; fetch or write it again")
    source = parquet(path, {"image": [png(0), png(1)], "label": ["a", "b"]}, rows=1)
    data = path.read_bytes()
    assert source.read("0") == png(0)
    write(path, data[:4] + b"\xff" * 20 + data[24:])
    os.utime(path, ns=(1, 1))
    with pytest.raises((ImageError, OSError)):  # that image is lost, not the source
        source.read("0")
    assert image_at(path, "image", 1) == png(1)


def test_columns_of_many_chunks() -> None:
    """Dictionaries that differ from chunk to chunk, sliced arrays, nulls."""
    chunks = [pa.array(["b", None, " a"]), pa.array(["x", "a", "", "c"]).slice(1), pa.array([], pa.string())]
    for kind in (pa.string(), pa.dictionary(pa.int32(), pa.string())):
        found = coded(pa.chunked_array([chunk.cast(kind) for chunk in chunks]))
        assert found.array.to_pylist() == ["b", None, "a", "a", None, "c"]
        assert found.row_of(found.texts.index("a")) == 2
    lists = pa.chunked_array([pa.array([["z"], ["b", "a", "b"], None]).slice(1), pa.array([[], ["a", None, ""]])])
    found_lists = lists_of(lists)
    assert found_lists.array.to_pylist() == [["b", "a"], None, [], ["a"]]
    assert found_lists.row_of(found_lists.texts.index("a")) == 0
    assert found_lists.row_of(found_lists.texts.index("b")) == 0


def test_what_text_spells() -> None:
    def of(*values: str | None) -> Any:
        made = label_array(coded(pa.chunked_array([pa.array(values, pa.string())])))
        return None if made is None else made.to_pylist()

    assert of("True", "false", None) == [True, False, None]
    assert of("1", "-2", "0") == [1, -2, 0]
    assert of("1.0", "2", "nan") == [1, 2, None]
    assert of("1.5", "2") is None
    assert of("01", "2") == ["01", "2"]
    assert of("1", "true") == ["1", "true"]
    assert of("nan", "x") == ["nan", "x"]
    assert of("nan") == ["nan"]
    assert of("99999999999999999999", "1") == ["99999999999999999999", "1"]
    assert of(None, "") == [None, None]
    assert of() == []


def test_split_names() -> None:
    assert split_sides(["train", "dev"]) == {"train": "train"}
    assert split_sides([" Test ", "VAL"]) == {" Test ": "test", "VAL": "train"}


def test_codes_are_of_rows() -> None:
    found = Coded(np.array([1, 0, -1, 1], np.int32), pa.array(["u", "v"]))
    assert found.array.to_pylist() == ["v", "u", None, "v"]


# --- torchvision --------------------------------------------------------------------------------------------------


def idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_mnist(root: Path, name: str = "MNIST", train: int = 20, test: int = 10) -> None:
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write(root / name / "raw" / f"{prefix}-images-idx3-ubyte", idx(pixels))
        write(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", idx(np.arange(count, dtype=np.uint8) % 10))


def tv(dataset: str, root: Path | None = None, **options: Any) -> Source:
    return open_source(
        "torchvision", dataset=dataset, root=None if root is None else str(root), options=options or None
    )


def splits(source: Source) -> dict[str, int]:
    found = column(source, "split")
    return {split: found.count(split) for split in sorted(set(found))}


def sums(path: Path) -> str:
    from torchvision.datasets.utils import calculate_md5

    return str(calculate_md5(path))


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_torchvision_idx_files(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path, name)
    source = tv(name, tmp_path)
    info = source.info
    assert (info.name, info.label_columns, info.licence) == (name.lower(), ("label",), "unknown")
    assert splits(source) == {"test": 10, "train": 20}
    assert len(set(column(source, "image_id"))) == 30
    assert set(column(source, "label")) == set(getattr(importlib.import_module("torchvision.datasets"), name).classes)
    want = np.random.default_rng(10).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    locator = column(source, "locator")[-1]
    for reader in (source, pickle.loads(pickle.dumps(source)), tv(name, tmp_path)):  # noqa: S301 - our own bytes
        assert np.array_equal(np.asarray(decode_image(reader.read(locator)))[..., 0], want[9])
    source.check_images()
    write_mnist(tmp_path / "again", name)
    assert tv(name, tmp_path / "again").info.revision == info.revision
    write_mnist(tmp_path, name, train=21)
    assert tv(name, tmp_path).info.revision != info.revision


def test_torchvision_half_downloaded(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    write(images, whole[:-100])
    fails(
        tv("MNIST", tmp_path), r"MNIST \(train\) cannot be opened: RuntimeError.*torchvision.datasets.MNIST\(root='.*'"
    )
    write(images, idx(np.zeros((19, 28, 28), np.uint8)))
    fails(tv("MNIST", tmp_path), "MNIST has 19 images, 20 labels: half downloaded, or of two versions")
    images.unlink()
    line = rf"import torchvision; torchvision.datasets.MNIST\(root='{tmp_path}', train=True, download=True\)"
    fails(tv("MNIST", tmp_path), line)
    fails(tv("MNIST", tmp_path / "none"), "none is not a folder; .*train=True, download=True")
    assert not (tmp_path / "none").exists()


def test_torchvision_emnist_wants_its_split(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EMNIST needs `options:` with split"):
        tv("EMNIST", tmp_path)
    for part, count in (("train", 6), ("test", 4)):
        images = np.zeros((count, 28, 28), np.uint8)
        write(tmp_path / "EMNIST" / "raw" / f"emnist-letters-{part}-images-idx3-ubyte", idx(images))
        labels = 1 + np.arange(count, dtype=np.uint8)
        write(tmp_path / "EMNIST" / "raw" / f"emnist-letters-{part}-labels-idx1-ubyte", idx(labels))
    source = tv("EMNIST", tmp_path, split="letters")
    assert splits(source) == {"test": 4, "train": 6}
    assert column(source, "label")[:3] == ["a", "b", "c"]
    fails(tv("EMNIST", tmp_path, split="digits"), r"EMNIST\(root='.*', split='digits', train=True, download=True\)")


def test_torchvision_qmnist(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("test", 4)):
        raw = tmp_path / "QMNIST" / "raw"
        write(raw / f"qmnist-{part}-images-idx3-ubyte", idx(np.zeros((count, 28, 28), np.uint8)))
        numbers = np.stack([np.arange(count), *[np.full(count, 99)] * 7], 1).astype(">i4")
        head = bytes((0, 0, 12, 2)) + count.to_bytes(4, "big") + (8).to_bytes(4, "big")
        write(raw / f"qmnist-{part}-labels-idx2-int", head + numbers.tobytes())
    assert column(tv("QMNIST", tmp_path), "label")[-1] == "3 - three"
    assert splits(tv("QMNIST", tmp_path, what="test")) == {"": 4}


def test_torchvision_image_folder(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "b.jpg", jpeg(1))
    write(tmp_path / "cat" / "a 100%.png", png(0))
    write(tmp_path / "dog" / "deep" / "c.png", png(2))
    with open(os.fsencode(tmp_path) + b"/dog/\xff.png", "wb") as file:
        file.write(png(3))
    source = tv("ImageFolder", tmp_path)
    assert column(source, "image_id") == ["cat/a 100%.png", "cat/b.jpg", "dog/deep/c.png", "dog/\\xff.png"]
    assert column(source, "label") == ["cat", "cat", "dog", "dog"]
    assert splits(source) == {"": 4}
    images = [pickle.loads(pickle.dumps(source)).read(place) for place in column(source, "locator")]  # noqa: S301
    assert images == [png(0), jpeg(1), png(2), png(3)]  # as they are, not encoded again
    source.check_images()
    with pytest.raises(ImageError, match="leaves the folder"):
        source.read("file:../x.png")
    fails(tv("ImageFolder", tmp_path / "cat"), "class folder.*torchvision does not download it")


def write_flowers(root: Path, monkeypatch: pytest.MonkeyPatch, n: int = 12) -> None:
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    base = root / "flowers-102"
    for i in range(1, n + 1):
        write(base / "jpg" / f"image_{i:05d}.jpg", jpeg(i))
    savemat(base / "imagelabels.mat", {"labels": np.arange(n)[None] % 3 + 1})
    ids = np.arange(1, n + 1)
    savemat(base / "setid.mat", {"trnid": ids[None, :4], "valid": ids[None, 4:6], "tstid": ids[None, 6:]})
    files = {**Flowers102._file_dict}
    for key in ("label", "setid"):
        name = files[key][0]
        files[key] = (name, sums(base / name))
    monkeypatch.setattr(Flowers102, "_file_dict", files)


def test_torchvision_flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts: validation joins train where there is a test part."""
    write_flowers(tmp_path, monkeypatch)
    source = tv("Flowers102", tmp_path)
    assert splits(source) == {"test": 6, "train": 6}
    assert column(source, "image_id")[0] == "flowers-102/jpg/image_00001.jpg"
    assert column(source, "label")[:3] == ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]
    assert source.read(column(source, "locator")[0]) == jpeg(1)
    assert splits(tv("Flowers102", tmp_path, split="test")) == {"": 6}
    before = source.info.revision
    (tmp_path / "flowers-102" / "jpg" / "image_00003.jpg").unlink()
    lossy = tv("Flowers102", tmp_path)
    assert lossy.info.revision != before
    with pytest.raises(
        SourceError, match=r"1 of 12 images are missing in .*, first flowers-102/jpg/image_00003.jpg; remove"
    ):
        lossy.check_images()
    write(tmp_path / "flowers-102" / "setid.mat", b"cut short")
    fails(tv("Flowers102", tmp_path), r"not found or corrupted.*Flowers102\(root='.*', split='train', download=True\)")


def test_torchvision_pets(tmp_path: Path) -> None:
    """`trainval` and `test`; names of the classes are those of a part."""
    base = tmp_path / "oxford-iiit-pet"
    for part, names in (("trainval", ("Abyssinian_1 1 1 1", "beagle_2 2 2 1")), ("test", ("beagle_9 2 2 1",))):
        write(base / "annotations" / f"{part}.txt", "".join(f"{name}\n" for name in names))
    for name in ("Abyssinian_1", "beagle_2", "beagle_9"):
        write(base / "images" / f"{name}.jpg", jpeg())
    source = tv("OxfordIIITPet", tmp_path)
    assert splits(source) == {"test": 1, "train": 2}
    assert column(source, "label")[:2] == ["Abyssinian", "Beagle"]
    with pytest.raises(ConfigError, match="leave 'target_types' out of `options`: labels are read as they lie"):
        tv("OxfordIIITPet", tmp_path, target_types="segmentation")


def write_celeba(root: Path, monkeypatch: pytest.MonkeyPatch, n: int = 6) -> None:
    from torchvision.datasets import CelebA

    base, names = root / "celeba", [f"{i:06d}.jpg" for i in range(1, n + 1)]
    for i, name in enumerate(names):
        write(base / "img_align_celeba" / name, jpeg(i))

    def lines(values: list[str], *head: str) -> str:
        return "".join(f"{line}\n" for line in (*head, *(f"{a} {b}" for a, b in zip(names, values, strict=True))))

    write(
        base / "list_attr_celeba.txt",
        lines([" 1 -1", "-1 -1", " 1  1", "-1  1", "1 -1", "-1 1"], str(n), "Smiling Hat "),
    )
    write(base / "list_eval_partition.txt", lines(list("001122")))
    write(base / "identity_CelebA.txt", lines(list("123456")))
    write(base / "list_bbox_celeba.txt", lines(["1 2 3 4"] * n, str(n), "image_id x_1 y_1 width height"))
    write(base / "list_landmarks_align_celeba.txt", lines([" ".join(["1"] * 10)] * n, str(n), " ".join("l" * 10)))
    listed = [(key, old if name.endswith(".zip") else sums(base / name), name) for key, old, name in CelebA.file_list]
    monkeypatch.setattr(CelebA, "file_list", listed)


def test_torchvision_celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_celeba(tmp_path, monkeypatch)
    source = tv("CelebA", tmp_path)
    assert source.info.label_columns == ("attribute",)
    assert column(source, "attribute") == [["Smiling"], [], ["Smiling"], ["Hat"], ["Smiling", "Hat"], ["Hat"]]
    assert splits(source) == {"test": 2, "train": 4}
    assert column(source, "image_id")[3:] == [f"celeba/img_align_celeba/00000{i}.jpg" for i in (6, 3, 4)]
    assert source.read(column(source, "locator")[5]) == jpeg(3)
    assert len(plan_source(source, limit=None, test_share=0.5, seed=0).table) == 6


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    base = root / CIFAR10.base_folder

    def listed(files: list[list[str]]) -> list[list[str]]:
        out = []
        for seed, (name, _) in enumerate(files):
            data = np.random.default_rng(seed).integers(0, 256, (4, 3072), dtype=np.uint8)
            write(base / name, pickle.dumps({"data": data, "labels": [0, 1, 2, 9]}))
            out.append([name, sums(base / name)])
        return out

    monkeypatch.setattr(CIFAR10, "train_list", listed(CIFAR10.train_list))
    monkeypatch.setattr(CIFAR10, "test_list", listed(CIFAR10.test_list))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    write(base / "batches.meta", pickle.dumps({"label_names": names}))
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums(base / "batches.meta")})


def test_torchvision_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    source = tv("CIFAR10", tmp_path)
    assert splits(source) == {"test": 4, "train": 20}
    assert column(source, "label")[:4] == ["airplane", "automobile", "bird", "truck"]
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)[1].reshape(3, 32, 32)
    assert np.array_equal(np.asarray(decode_image(source.read("item:train:1"))), pixels.transpose(1, 2, 0))


class _Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_torchvision_unpickles_nothing_unverified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CIFAR whose files are not the published ones is refused before a pickle is opened."""
    write_cifar(tmp_path, monkeypatch)
    mark, base = tmp_path / "exploded", tmp_path / "cifar-10-batches-py"
    assert len(tv("CIFAR10", tmp_path).annotations()) == 24
    for name in ("data_batch_3", "batches.meta", "test_batch"):
        kept = (base / name).read_bytes()
        write(base / name, pickle.dumps(_Bomb(str(mark))))
        fails(tv("CIFAR10", tmp_path), "not found or corrupted")
        assert not mark.exists()
        write(base / name, kept)
    pickle.loads(pickle.dumps(_Bomb(str(mark))))  # noqa: S301 - the bomb works
    assert mark.exists()


def test_torchvision_refuses_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, match in {
        "LSUN": "unpickles a cache file .* any code",
        "LSUNClass": "unpickles a cache file",
        "UCF101": "holds videos",
        "LFWPairs": "holds pairs of images",
        "DatasetFolder": "needs a loader written in Python; take ImageFolder",
    }.items():
        with pytest.raises(ConfigError, match=match):
            tv(name, Path())
    with pytest.raises(UnknownNameError, match="unknown dataset of torchvision 'Flower102'; did you mean 'Flowers102'"):
        tv("Flower102", Path())
    for name in ("wrap_dataset_for_transforms_v2", "utils", "__name__", "os"):  # no class of the list
        with pytest.raises(UnknownNameError):
            tv(name, Path())
    from torchvision.datasets import dtd

    monkeypatch.setattr(dtd, "pickle", pickle, raising=False)  # a newer torchvision
    with pytest.raises(ConfigError, match="DTD cannot be a source: it may unpickle files that nothing verifies"):
        tv("DTD", Path())


def test_torchvision_unpickles_where_we_think() -> None:
    """Of the installed classes, only CIFAR and LSUN unpickle; `torch.load` is always held to weights."""
    datasets = importlib.import_module("torchvision.datasets")
    modules = {
        sys.modules[getattr(datasets, n).__module__] for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))
    }
    assert len(modules) > 30
    unpickling = set()
    for module in modules:
        source = inspect.getsource(module)
        if re.search(r"pickle\.loads?\(|allow_pickle=True", source):
            unpickling.add(module.__name__.rpartition(".")[2])
        for call in re.findall(r"torch\.load\(.*", source):
            assert "weights_only=True" in call
    assert unpickling == {"cifar", "lsun"}
    assert inspect.getsource(datasets.CIFAR10.__init__).index("_check_integrity") < inspect.getsource(
        datasets.CIFAR10.__init__
    ).index("pickle.load")


@pytest.mark.parametrize(
    ("dataset", "options", "match"),
    [
        ("MNIST", {"download": True}, "leave 'download' out of `options`: t2v never downloads"),
        ("MNIST", {"root": "x"}, "leave 'root' out of `options`: it is an option of its own"),
        ("ImageFolder", {"loader": "x"}, "leave 'loader' out of `options`: it is Python code"),
        ("MNIST", {"trains": True}, "MNIST has no option 'trains'; known: train"),
        ("FakeData", {"x": 1}, "FakeData has no option 'x'; known: image_size, num_classes, random_offset, size"),
    ],
)
def test_torchvision_bad_options(tmp_path: Path, dataset: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        open_source("torchvision", dataset=dataset, root=tmp_path, options=options)


def test_torchvision_needs_a_root() -> None:
    with pytest.raises(ConfigError, match="MNIST needs `root:`"):
        tv("MNIST")
    with pytest.raises(ConfigError, match="options is 3; wanted a mapping"):
        open_source("torchvision", dataset="FakeData", options=3)


def test_torchvision_fake_data_is_decoded_for_its_labels() -> None:
    source = tv("FakeData", size=12, image_size=[3, 8, 8], num_classes=3)
    assert splits(source) == {"": 12}
    assert set(column(source, "label")) <= {"0", "1", "2"}
    assert len(set(column(source, "label"))) > 1
    assert decode_image(source.read(column(source, "locator")[3])).size == (8, 8)
    again = tv("FakeData", size=12, image_size=[3, 8, 8], num_classes=3)
    assert again.info.revision == source.info.revision
    assert again.read("item::3") == source.read("item::3")
    assert (
        tv("FakeData", size=12, image_size=[3, 8, 8], num_classes=3, random_offset=5).info.revision
        != source.info.revision
    )


def test_torchvision_split_without_labels_is_left_out(tmp_path: Path) -> None:
    """CLEVR's test part has no labels, so its validation part is the test split."""
    base = tmp_path / "clevr" / "CLEVR_v1.0"
    for part, count in (("train", 3), ("val", 2), ("test", 2)):
        for i in range(count):
            write(base / "images" / part / f"CLEVR_{part}_{i}.png", png(i))
        scenes = ", ".join(
            f'{{"image_filename": "CLEVR_{part}_{i}.png", "objects": {[0] * (i + 3)}}}' for i in range(count)
        )
        write(base / "scenes" / f"CLEVR_{part}_scenes.json", f'{{"scenes": [{scenes}]}}')
    source = tv("CLEVRClassification", tmp_path)
    assert splits(source) == {"test": 2, "train": 3}
    assert column(source, "label") == ["3", "4", "5", "3", "4"]


def test_torchvision_arrays_without_a_list_of_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FER2013

    base = tmp_path / "fer2013"
    pixels = " ".join(["7"] * 48 * 48)
    write(base / "train.csv", "emotion,pixels\n" + "".join(f"{i % 3},{pixels}\n" for i in range(5)))
    write(base / "test.csv", f"pixels\n{pixels}\n")
    files = {
        key: (name, sums(base / name)) if key in ("train", "test") else (name, md5)
        for key, (name, md5) in FER2013._RESOURCES.items()
    }
    monkeypatch.setattr(FER2013, "_RESOURCES", files)
    source = tv("FER2013", tmp_path)
    assert splits(source) == {"": 5}  # the published test part has no labels
    assert column(source, "label") == ["0", "1", "2", "0", "1"]
    assert np.asarray(decode_image(source.read("item:train:4"))).mean() == 7


def test_torchvision_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    listed = {}
    for part, count in (("train", 5), ("test", 3), ("extra", 2)):
        url, name, _ = SVHN.split_list[part]
        savemat(
            tmp_path / name, {"X": np.full((32, 32, 3, count), count, np.uint8), "y": np.arange(1, count + 1)[:, None]}
        )
        listed[part] = [url, name, sums(tmp_path / name)]
    monkeypatch.setattr(SVHN, "split_list", listed)
    source = tv("SVHN", tmp_path)
    assert splits(source) == {"test": 3, "train": 5}
    assert column(source, "label") == ["1", "2", "3", "4", "5", "1", "2", "3"]
    assert np.asarray(decode_image(source.read("item:test:0"))).mean() == 3
    (tmp_path / listed["test"][1]).unlink()
    fails(tv("SVHN", tmp_path), r"SVHN \(test\) .*split='test', download=True\); or read one part alone")
    assert splits(tv("SVHN", tmp_path, split="train")) == {"": 5}


def test_torchvision_folders_in_layouts_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Omniglot

    def labels(name: str, **options: Any) -> dict[str, str]:
        source = tv(name, tmp_path, **options)
        assert all(source.read(place) in pictures for place in column(source, "locator"))
        source.check_images()
        return dict(zip(column(source, "image_id"), column(source, "label"), strict=True))

    pictures = {png(0), png(1), jpeg(0), jpeg(1)}
    for name, folder in (("caltech101", "101_ObjectCategories"), ("caltech256", "256_ObjectCategories")):
        for category in ("BACKGROUND_Google", "ant", "bee"):
            for i in (1, 2):
                number = {"BACKGROUND_Google": 1, "ant": 2, "bee": 3}[category]
                file = f"image_{i:04d}.jpg" if name == "caltech101" else f"{number:03d}_{i:04d}.jpg"
                write(tmp_path / name / folder / category / file, jpeg(i - 1))
    assert labels("Caltech101") == {
        f"caltech101/101_ObjectCategories/{name}/image_000{i}.jpg": name for name in ("ant", "bee") for i in (1, 2)
    }
    assert labels("Caltech256")["caltech256/256_ObjectCategories/bee/003_0002.jpg"] == "bee"
    species = ["00000_Animalia_a_b_c_d_e_f", "00001_Plantae_a_b_c_d_e_f"]
    for name in species:
        for file in ("z.jpg", "a.jpg"):
            write(tmp_path / "2021_valid" / name / file, jpeg(0))
    assert list(labels("INaturalist", version="2021_valid").items()) == [
        (f"2021_valid/{name}/{file}", name) for name in species for file in ("a.jpg", "z.jpg")
    ]
    for character in ("Latin/character01", "Latin/character02"):
        write(tmp_path / "omniglot-py" / "images_background" / character / "1.png", png(0))
    write(tmp_path / "omniglot-py" / "images_background.zip", b"x")
    zips = {"images_background": sums(tmp_path / "omniglot-py" / "images_background.zip")}
    monkeypatch.setattr(Omniglot, "zips_md5", zips)
    assert labels("Omniglot")["omniglot-py/images_background/Latin/character02/1.png"] == "Latin/character02"
    for part in ("train", "val", "test"):
        write(tmp_path / "dtd" / "dtd" / "labels" / f"{part}1.txt", f"banded/{part}.jpg\n")
        write(tmp_path / "dtd" / "dtd" / "images" / "banded" / f"{part}.jpg", jpeg(0))
    assert len(labels("DTD")) == 3
    for number in ("00000", "00014"):
        write(tmp_path / "gtsrb" / "GTSRB" / "Training" / number / "1.ppm", png(0))
    write(tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "9.ppm", png(0))
    write(tmp_path / "gtsrb" / "GT-final_test.csv", "Filename;ClassId\n9.ppm;1\n")
    assert splits(tv("GTSRB", tmp_path)) == {"test": 1, "train": 2}
    assert list(labels("GTSRB").values()) == ["0", "1", "1"]


def test_torchvision_classes_of_several_names() -> None:
    """ImageNet has tuples of names, and two cranes."""
    from t2v_core.sources._torchvision import class_names

    class Dataset:
        classes = (("tench", "Tinca tinca"), ("crane",), ("crane",))

    assert class_names(Dataset()) == ["tench, Tinca tinca", "crane (1)", "crane (2)"]


def test_torchvision_targets_that_are_no_classes(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "Kitti" / "raw" / "training" / "image_2" / f"{i}.png", png())
        write(tmp_path / "Kitti" / "raw" / "training" / "label_2" / f"{i}.txt", "Car 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n")
        write(tmp_path / "Kitti" / "raw" / "testing" / "image_2" / f"{i}.png", png())
    fails(tv("Kitti", tmp_path), "the targets of Kitti are no class numbers, the first is")
    annotation = "<annotation><filename>a.jpg</filename><object><name>cat</name></object></annotation>"
    base = tmp_path / "VOCdevkit" / "VOC2012"
    write(base / "JPEGImages" / "a.jpg", jpeg())
    write(base / "Annotations" / "a.xml", annotation)
    write(base / "ImageSets" / "Main" / "train.txt", "a\n")
    fails(tv("VOCDetection", tmp_path), "the targets of VOCDetection are no class numbers")


def test_torchvision_missing_package(tmp_path: Path) -> None:
    if importlib.util.find_spec("h5py") is not None:
        pytest.skip("h5py is installed")
    with pytest.raises(MissingPackageError, match="PCAM needs another package: h5py is not found"):
        tv("PCAM", tmp_path).annotations()


# --- Hugging Face -------------------------------------------------------------------------------------------------


def features() -> Any:
    d = importlib.import_module("datasets")
    return d.Features(
        {
            "image": d.Image(),
            "label": d.ClassLabel(names=["cat", "dog"]),
            "tags": d.List(d.ClassLabel(names=["u", "v", "w"])),
            "place": d.Value("string"),
            "wild": d.Value("bool"),
            "legs": d.Value("int32"),
            "weight": d.Value("float32"),
            "box": {"x": d.Value("int32")},
            "words": d.List(d.Value("string")),
        }
    )


ROWS: dict[str, list[Any]] = {
    "label": [0, 1, None, -1],
    "tags": [[0, 1, 1], [], None, [2]],
    "place": ["x", "", None, "y"],
    "wild": [True, None, False, True],
    "legs": [4, 2, None, 4],
    "weight": [0.5] * 4,
    "box": [{"x": 1}] * 4,
    "words": [["p", "q"], None, [], ["p"]],
}


def hf_dataset(seed: int = 0, images: list[Any] | None = None) -> Any:
    datasets = importlib.import_module("datasets")
    images = images or [{"bytes": png(seed + i), "path": None} for i in range(4)]
    return datasets.Dataset.from_dict({"image": images, **ROWS}, features=features())


def save_huggingface(folder: Path, **parts: Any) -> None:
    """A DatasetDict of a few images."""
    datasets = importlib.import_module("datasets")
    datasets.DatasetDict(parts or {"train": hf_dataset(), "validation": hf_dataset(10)}).save_to_disk(str(folder))


def hf(path: Path, **options: Any) -> Source:
    return open_source("huggingface", path=str(path), **options)


needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")


@needs_datasets
def test_huggingface(tmp_path: Path) -> None:
    save_huggingface(tmp_path / "My Pets")
    source = hf(tmp_path / "My Pets", domain="pets", licence="CC0")
    info = source.info
    assert (info.name, info.domain, info.licence) == ("my-pets", "pets", "CC0")
    assert info.label_columns == ("label", "tags", "place", "wild", "legs")
    assert column(source, "image_id") == [f"{split}/{i}" for split in ("train", "validation") for i in range(4)]
    assert column(source, "split") == ["train"] * 4 + ["test"] * 4
    assert column(source, "label")[:4] == ["cat", "dog", None, None]
    assert column(source, "tags")[:4] == [["u", "v"], [], None, ["w"]]
    assert column(source, "place")[:4] == ["x", None, None, "y"]
    assert column(source, "wild")[:4] == [True, None, False, True]
    assert column(source, "legs")[:4] == [4, 2, None, 4]
    source.check_images()
    worker = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own bytes
    assert [worker.read(f"validation/{i}") for i in (3, 0)] == [png(13), png(10)]
    assert len(plan_source(source, limit=None, test_share=0.5, seed=0).table) == 8


@needs_datasets
def test_huggingface_reads_without_decoding(tmp_path: Path) -> None:
    """What is not an image comes back as it is: packing rejects it, the source stands."""
    images = [{"bytes": data, "path": None} for data in (b"no image", jpeg(1), png(2), b"")]
    hf_dataset(images=images).save_to_disk(str(tmp_path))
    source = hf(tmp_path)
    assert [source.read(str(i)) for i in range(4)] == [b"no image", jpeg(1), png(2), b""]
    assert splits(source) == {"": 4}
    hf_dataset(images=images).with_format("torch").save_to_disk(str(tmp_path / "torch"))
    assert hf(tmp_path / "torch").read("1") == jpeg(1)
    for locator in ("9", "train/0"):
        with pytest.raises(ImageError, match="cannot be read"):
            source.read(locator)


@needs_datasets
def test_huggingface_labels_and_image_by_option(tmp_path: Path) -> None:
    hf_dataset().rename_column("image", "photo").save_to_disk(str(tmp_path))
    source = hf(tmp_path, image="photo", labels=["words", "label"])
    assert source.info.label_columns == ("words", "label")
    assert column(source, "words") == [["p", "q"], None, [], ["p"]]
    fails(hf(tmp_path, labels=["weight"]), "column 'weight' cannot be a label, it is Value")
    fails(hf(tmp_path, labels=["box"]), "column 'box' cannot be a label")
    fails(hf(tmp_path, labels=["photo"]), "column 'photo' cannot be a label, it is Image")
    fails(hf(tmp_path, labels=["zzz"]), r"no column 'zzz'; its columns: photo \(Image\), label \(ClassLabel\)")
    fails(hf(tmp_path, image="label"), "column 'label' of .* is no column of type Image")
    hf_dataset().select_columns(["label"]).save_to_disk(str(tmp_path / "bare"))
    fails(hf(tmp_path / "bare"), "has no column of type Image; .*cast_column")
    hf_dataset().select_columns(["image", "weight"]).save_to_disk(str(tmp_path / "no"))
    fails(hf(tmp_path / "no"), "no column of .* can be a label")
    hf_dataset().rename_column("legs", "width").save_to_disk(str(tmp_path / "w"))
    assert "width" not in hf(tmp_path / "w").info.label_columns
    fails(hf(tmp_path / "w", labels=["width"]), "a name that packing uses; rename")


@needs_datasets
def test_huggingface_revision_is_of_the_fingerprints(tmp_path: Path) -> None:
    save_huggingface(tmp_path / "one")
    save_huggingface(tmp_path / "two", train=hf_dataset(), validation=hf_dataset(20))
    one, two = hf(tmp_path / "one").info, hf(tmp_path / "two").info
    assert one.revision == hf(tmp_path / "one").info.revision != two.revision
    assert hf(tmp_path / "one", labels=["label"]).info.revision != one.revision


@needs_datasets
def test_huggingface_splits(tmp_path: Path) -> None:
    save_huggingface(tmp_path / "a", train=hf_dataset(), test=hf_dataset(), validation=hf_dataset())
    assert splits(hf(tmp_path / "a")) == {"test": 4, "train": 8}
    save_huggingface(tmp_path / "b", train=hf_dataset(), extra=hf_dataset())
    fails_annotations = pytest.raises(SourceError, match="has the split 'extra'; wanted train, test or validation")
    with fails_annotations:
        hf(tmp_path / "b").annotations()
    assert splits(hf(tmp_path / "b" / "extra")) == {"": 4}  # the way out that the message names
    save_huggingface(tmp_path / "c", train=hf_dataset(), test=hf_dataset().remove_columns("legs"))
    fails(hf(tmp_path / "c"), "the splits differ in the columns legs")


@needs_datasets
def test_huggingface_files_elsewhere_are_not_read(tmp_path: Path) -> None:
    """A row may name a file by its path; only files in the folder are read."""
    write(tmp_path / "secret.png", png(7))
    paths = [str(tmp_path / "secret.png"), "../secret.png", "inside.png", None]
    table = hf_dataset().data.table
    column_of_paths = pa.array([{"bytes": None, "path": path} for path in paths], table.schema.field("image").type)
    ds = importlib.import_module("datasets").Dataset(table.set_column(0, table.schema.field("image"), column_of_paths))
    folder = tmp_path / "data"
    hf_dataset().save_to_disk(str(folder))
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, ds.data.schema) as out,
    ):
        out.write_table(ds.data.table)
    write(folder / "inside.png", png(3))
    source = hf(folder)
    assert source.read("2") == png(3)
    for row in (0, 1):
        with pytest.raises(ImageError, match="leaves the folder"):
            source.read(str(row))
    with pytest.raises(ImageError, match="holds no image"):
        source.read("3")
    with pytest.raises(
        SourceError, match="3 of 4 images are missing in .*, first /0; it holds paths of files elsewhere"
    ):
        source.check_images()


@needs_datasets
def test_huggingface_damaged_folders(tmp_path: Path) -> None:
    fails(
        hf(tmp_path / "none"),
        "cannot read .*dataset_dict.json: No such file.*wanted .* to be a folder that save_to_disk",
    )
    save_huggingface(tmp_path / "d")
    folder = tmp_path / "d" / "train"
    arrow, state, about = (folder / name for name in ("data-00000-of-00001.arrow", "state.json", "dataset_info.json"))
    kept = {path: path.read_bytes() for path in (arrow, state, about)}
    for path, cut, match in (
        (arrow, 40, "cannot load .*train: .*; save the dataset again"),
        (arrow, -700, "cannot load .*train: OSError: Expected to be able to read"),
        (state, 30, "state.json is not JSON, or cut short"),
        (about, 30, "cannot load .*train: "),
    ):
        write(path, kept[path][:cut])
        fails(hf(tmp_path / "d"), match)
        write(path, kept[path])
    arrow.unlink()
    fails(hf(tmp_path / "d"), "data-00000-of-00001.arrow is missing, of 1 files")
    write(state, kept[state].replace(b"data-00000", b"../../data-00000"))
    fails(hf(tmp_path / "d"), "state.json: path '../../data-00000.*leaves the folder")
    write(tmp_path / "d" / "dataset_dict.json", '{"splits": ["../x"]}')
    fails(hf(tmp_path / "d"), "dataset_dict.json: path '../x' leaves the folder")
    write(tmp_path / "d" / "dataset_dict.json", '{"splits": "train"}')
    fails(hf(tmp_path / "d"), "dataset_dict.json names no splits")
    write(tmp_path / "d" / "dataset_dict.json", "[]")
    fails(hf(tmp_path / "d"), "holds list, wanted a mapping")
    hf_dataset().select([]).save_to_disk(str(tmp_path / "empty"))
    fails(hf(tmp_path / "empty"), "empty has no rows")


@needs_datasets
def test_huggingface_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_huggingface(tmp_path / "d")
    write(tmp_path / "d" / "d.py", "raise SystemExit('remote code ran')")

    def refuse(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    source = hf(tmp_path / "d")
    assert source.info.name == "d"
    assert source.read("train/0") == png(0)
    fails(hf(Path("hf://datasets/x/y")), "dataset_dict.json: No such file")


def test_huggingface_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "state.json", "{}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"needs the package datasets; pip install 't2v\[huggingface\]'"):
        _ = hf(tmp_path).info
