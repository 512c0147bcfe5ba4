"""The paper's four datasets in their official layouts, with the odd cases, and the library that is cut from them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import replicas

from t2v_core.config import load_library
from t2v_core.errors import ConfigError, ImageError, SourceError
from t2v_core.images import decode_image
from t2v_core.library import resolve_task
from t2v_core.packing import plan_source
from t2v_core.preview import preview_annotations, preview_library
from t2v_core.sources import each_image, open_source
from t2v_core.sources.cub import taxonomy

MAKERS = {kind: getattr(replicas, f"small_{kind}") for kind in ("cub", "deepfashion", "imaterialist", "inaturalist")}


def change(path: Path, *changes: tuple[str, str]) -> None:
    """Replace the first place of each text."""
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")


def cut(path: Path) -> None:
    """As a download that stopped half-way."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def rows(kind: str, root: Path, **options: Any) -> dict[str, dict[str, Any]]:
    return {r["image_id"]: r for r in open_source(kind, root=str(root), **options).annotations().to_pylist()}


# --- all four -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_no_data_says_what_to_download(kind: str, tmp_path: Path) -> None:
    source = open_source(kind, root=str(tmp_path))
    for asked in (lambda: source.info, source.annotations):
        with pytest.raises(
            SourceError, match=r"is missing; (get|unpack) .*and name (their|its|the) folder with `root:`"
        ):
            asked()


@pytest.mark.parametrize("kind", MAKERS)
def test_annotation_files_alone_are_enough_to_list_tasks(kind: str, tmp_path: Path) -> None:
    root = MAKERS[kind](tmp_path / "data")
    whole = open_source(kind, root=str(root))
    revision, table = whole.info.revision, whole.annotations()
    whole.check_images()
    images = [p for p in sorted(root.rglob("*")) if p.suffix in (".jpg", ".png")]
    kept = {image: image.read_bytes() for image in images[5:8]}
    for image in kept:
        image.unlink()
    with pytest.raises(SourceError, match=rf"3 of {len(images)} images are missing in .*first .*; (get|unpack)"):
        open_source(kind, root=str(root)).check_images()
    assert open_source(kind, root=str(root)).info.revision != revision, "a repaired download is packed again"
    for image, data in kept.items():
        image.write_bytes(data)
    assert open_source(kind, root=str(root)).info.revision == revision
    for image in images:
        image.unlink()
    bare = open_source(kind, root=str(root))
    assert bare.annotations().drop_columns("locator").equals(table.drop_columns("locator"))
    assert bare.info.label_columns == whole.info.label_columns
    with pytest.raises(SourceError, match=f"{len(images)} of {len(images)} images are missing"):
        bare.check_images()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_missing_image_is_skipped_and_a_path_outside_is_not_read(kind: str, tmp_path: Path) -> None:
    source = open_source(kind, root=str(MAKERS[kind](tmp_path / "data")))
    first = next(each_image(source))
    assert decode_image(first.read()).size == (10, 12)
    with pytest.raises(OSError, match="nothing"):
        source.read("nothing.jpg")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    for outside in ("../../secret.jpg", "../secret.jpg", str(tmp_path / "secret.jpg")):
        with pytest.raises(ImageError, match="leaves the folder"):
            source.read(outside)


@pytest.mark.parametrize(
    ("kind", "file", "said"),
    [
        ("cub", "image_class_labels.txt", r"lines for 48 images, none for image .* half unpacked, or half downloaded"),
        ("cub", "train_test_split.txt", r"lines for 48 images"),
        (
            "deepfashion",
            "Anno/list_attr_img.txt",
            r"values of|rows where its first line says 60; it is half downloaded",
        ),
        ("deepfashion", "Anno/list_attr_cloth.txt", r"rows where its first line says 7; it is half downloaded"),
        (
            "deepfashion",
            "Eval/list_eval_partition.txt",
            r"first line says 60; it is half downloaded|wanted a name and a v",
        ),
        ("imaterialist", "train.json", r"not JSON, or cut off after [\d,]+ of [\d,]+ bytes"),
        ("inaturalist", "train2018.json", r"not JSON, or cut off after"),
        ("inaturalist", "categories.json", r"not JSON, or cut off after"),
    ],
)
def test_half_downloaded_files(kind: str, file: str, said: str, tmp_path: Path) -> None:
    root = MAKERS[kind](tmp_path / "data")
    cut(root / file)
    with pytest.raises(SourceError, match=said) as caught:
        open_source(kind, root=str(root)).annotations()
    assert file.rsplit("/", 1)[-1] in str(caught.value)
    assert re.search("; (get|unpack) ", str(caught.value))


@pytest.mark.parametrize(
    ("kind", "file", "old", "new", "said"),
    [
        ("cub", "images.txt", "1 001", "1 ../001", "images.txt: image 1 has the path '../001.*leaves the folder"),
        ("cub", "classes.txt", "002.Laysan_Albatross", "002.Laysan", r"classes.txt:2: '002.Laysan' is no class of CUB"),
        ("cub", "image_class_labels.txt", "5 2", "5 99", r"labels.txt:5: class 99 is not in classes.txt \(12 classes\)"),
        ("cub", "train_test_split.txt", "3 1", "3 2", "split.txt:3: got '2'; wanted 1"),
        ("cub", "images.txt", "7 002", "7", "images.txt:7: got '7"),
        ("cub", "image_class_labels.txt", "5 2\n", "5 2\n5 3\n", "labels.txt:6: id 5 has two values, '2' and '3'"),
        ("deepfashion", "Anno/list_attr_img.txt", "img/Cloth_0/img_00000003", "/img/Cloth_0/img_00000003", "leaves the"),
        ("deepfashion", "Anno/list_attr_cloth.txt", "no. 1                4", "no. 1                9", "no place"),
        ("deepfashion", "Eval/list_eval_partition.txt", " test", " tset", "is of 'tset'; wanted train, val or test"),
        ("deepfashion", "Anno/list_attr_img.txt", "60\n", "", r"list_attr_img.txt:1: got 'image_name"),
        ("deepfashion", "Anno/list_category_img.txt", " 7\n", " 77\n", "is of category 77; wanted 1 to 50"),
        ("imaterialist", "train.json", '"labelId":["', '"labelId":["229","', "annotation 1 has the label '229'; wanted 1"),
        ("imaterialist", "train.json", '"imageId":"2"', '"imageId":"two"', "has imageId or image_id 'two'; wanted a number"),
        ("imaterialist", "train.json", '"labelId":[', '"labels":[', "annotation 1 has labelId None"),
        ("imaterialist", "iMat_fashion_2018_label_map_228.csv", "\n7,", "\n8,", "label_map_228.csv:9: label 8"),
        ("imaterialist", "iMat_fashion_2018_label_map_228.csv", "labelName", "name", "csv:1: no column labelName"),
        ("inaturalist", "train2018.json", '"category_id":1}', '"category_id":88}', r"is of category 88, which is none of the"),
        ("inaturalist", "train2018.json", "train_val2018/0", "../train_val2018/0", "image 1 has the path '../train_val"),
        ("inaturalist", "categories.json", '"order": "O1"', '"ord": "O1"', r"category 4 .* has no order; it is of another y"),
        ("inaturalist", "categories.json", '"id": 1,', '"id": 0,', "category 2 has the id 0 of another one"),
        ("inaturalist", "categories.json", '"kingdom": "K1"', '"kingdom": "F0.0"', "the lineages go in a ring: "),
    ],
)  # fmt: skip
def test_annotations_that_are_wrong_are_named_with_their_place(
    kind: str, file: str, old: str, new: str, said: str, tmp_path: Path
) -> None:
    root = MAKERS[kind](tmp_path / "data")
    if said == "no place":
        path = root / file
        path.write_text(re.sub(r"(no\. 1 +)\d", r"\g<1>9", path.read_text()))
        said = "list_attr_cloth.txt:4: attribute type '9'; wanted 1 to 5"
    elif "ring" in said:
        # F0.0 stands below K0; now it stands above F1.0, and F1.0 above K0.
        change(root / file, (old, new), ('"kingdom": "K0"', '"kingdom": "F1.0"'))
    else:
        change(root / file, (old, new))
    with pytest.raises(SourceError, match=said):
        open_source(kind, root=str(root)).annotations()


# --- CUB ----------------------------------------------------------------------------------------------------------


def test_cub_taxonomy_is_whole() -> None:
    places = taxonomy()
    assert [name[:4] for name in places] == [f"{i:03d}." for i in range(1, 201)]
    assert len({name[4:] for name in places}) == 200
    assert all(all(place.values()) for place in places.values())
    assert all(place["species"].split()[0] == place["genus"] for place in places.values())
    assert len({place["species"] for place in places.values()}) == 200
    for low, high in (("genus", "family"), ("family", "order")):
        above: dict[str, set[str]] = {}
        for place in places.values():
            above.setdefault(place[low], set()).add(place[high])
        assert all(len(names) == 1 for names in above.values()), (low, high)
    orders = Counter(place["order"] for place in places.values())
    several = {o for o, n in orders.items() if n > 1}
    assert several - {"Passeriformes"} == {
        "Procellariiformes", "Cuculiformes", "Charadriiformes", "Caprimulgiformes", "Pelecaniformes", "Piciformes",
        "Anseriformes", "Podicipediformes", "Apodiformes", "Coraciiformes",
    }  # fmt: skip
    families = Counter(place["family"] for place in places.values() if place["order"] == "Passeriformes")
    assert {f for f, n in families.items() if n > 1} == {
        "Icteridae", "Cardinalidae", "Mimidae", "Parulidae", "Emberizidae", "Corvidae", "Fringillidae", "Tyrannidae",
        "Laniidae", "Passeridae", "Hirundinidae", "Thraupidae", "Vireonidae", "Bombycillidae", "Troglodytidae",
    }  # fmt: skip


def test_cub_rows(tmp_path: Path) -> None:
    root = replicas.small_cub(tmp_path / "CUB_200_2011")
    got = rows("cub", tmp_path)  # the folder above it
    assert len(got) == 48
    row = got["012.Yellow_headed_Blackbird/Yellow_headed_Blackbird_0001_1.jpg"]
    assert (row["order"], row["family"], row["genus"]) == ("Passeriformes", "Icteridae", "Xanthocephalus")
    assert row["species"] == "012.Yellow_headed_Blackbird"
    assert Counter(r["split"] for r in got.values()) == {"train": 24, "test": 24}
    assert got == rows("cub", root)


def test_cub_crop(tmp_path: Path) -> None:
    root = replicas.small_cub(tmp_path)
    whole, part = open_source("cub", root=str(root)), open_source("cub", root=str(root), crop=True)
    assert whole.info.revision != part.info.revision
    one, two = next(each_image(whole)), next(each_image(part))
    picture = np.asarray(decode_image(one.read()))
    np.testing.assert_array_equal(np.asarray(decode_image(two.read())), picture[1:7, 2:7])
    change(root / "bounding_boxes.txt", ("1 2.0 1.0 5.0 6.0", "1 20.0 1.0 5.0 6.0"), ("2 2.0", "2 two"))
    odd = list(each_image(open_source("cub", root=str(root), crop=True)))
    with pytest.raises(ImageError, match="lies outside the image of 10x12"):
        odd[0].read()
    with pytest.raises(ImageError, match="wanted x, y, width and height"):
        odd[1].read()


def test_cub_library(tmp_path: Path) -> None:
    """All 200 classes: the paper's 25 tasks, ten orders and fifteen families."""
    library = load_library("paper", str(tmp_path))
    replicas.full_cub(tmp_path / "CUB_200_2011")
    source = next(s for s in library.sources if s.name == "cub")
    rules = [r for r in library.library.rules if r.source == "cub"]
    preview = preview_library([source], library.library.model_copy(update={"rules": rules}))
    tasks = preview.library.tasks
    assert len(tasks) == library.expected["cub"] == 25
    assert sum(t.task_id.startswith("cub/order=") for t in tasks) == 10
    assert sum(t.task_id.startswith("cub/family=") for t in tasks) == 15
    wrens = next(t for t in tasks if t.task_id == "cub/family=Troglodytidae/species")
    assert wrens.spec.lineage == ("Passeriformes", "Troglodytidae")
    assert wrens.spec.class_lineage[0][:2] == ("Passeriformes", "Troglodytidae")
    assert len(wrens.spec.classes) == 7


# --- iNaturalist --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [2017, 2018, 2019, 2021])
def test_inaturalist_years(year: int, tmp_path: Path) -> None:
    root = replicas.small_inaturalist(tmp_path, year)
    source = open_source("inaturalist", root=str(root), year=year)
    assert source.info.name == f"inat{year}"
    lineage = ("supercategory",) if year == 2017 else ("kingdom", "phylum", "class", "order", "family", "genus")
    assert source.info.label_columns == (*lineage, "species")
    got = rows("inaturalist", root, year=year)
    assert Counter(r["split"] for r in got.values()) == {"train": sum(range(4, 14)), "test": 30}
    name = f"train_val{year}/9/0000085.jpg"
    assert got[name]["species"] == "Spécies 3 3"
    if year != 2017:
        assert [got[name][rank] for rank in lineage] == ["K3", "P3.3", "C3.3.3", "O3", "F3.0", "G3.1"]
    source.check_images()


def test_inaturalist_options() -> None:
    with pytest.raises(ConfigError, match="year 2020; wanted one of 2017, 2018, 2019, 2021"):
        open_source("inaturalist", root="x", year=2020)


def test_inaturalist_images_without_a_label_and_images_listed_twice(tmp_path: Path) -> None:
    root = replicas.small_inaturalist(tmp_path)
    path = root / "train2018.json"
    content = json.loads(path.read_text())
    bare = content["annotations"].pop(0)["image_id"]
    content["images"].append(content["images"][7])
    path.write_text(json.dumps(content))
    source = open_source("inaturalist", root=str(root))
    table = source.annotations()
    nameless = next(i["file_name"] for i in content["images"] if i["id"] == bare)
    row = next(r for r in table.to_pylist() if r["image_id"] == nameless)
    assert {row[c] for c in source.info.label_columns} == {None}
    plan = plan_source(source, limit=None, test_share=0.4, seed=0)
    assert len(plan.table) == len(table) - 1
    assert [r.image_id for r in plan.rejects] == [content["images"][7]["file_name"]]


def test_inaturalist_tasks_are_orders_of_several_species_the_largest_first(tmp_path: Path) -> None:
    library = load_library("paper", str(tmp_path))
    replicas.small_inaturalist(tmp_path / "inat2018")
    source = next(s for s in library.sources if s.name == "inat2018")
    [rule] = [r for r in library.library.rules if r.source == "inat2018"]
    preview = preview_library([source], library.library.model_copy(update={"rules": [rule]}))
    assert [t.task_id for t in preview.library.tasks] == [
        "inat2018/order=O3/species",
        "inat2018/order=O0/species",
        "inat2018/order=O1/species",
    ]
    [skipped] = preview.library.skipped
    assert skipped.task_id == "inat2018/order=O2/species"
    assert "one class only" in skipped.reason
    two = preview_library(
        [source], library.library.model_copy(update={"rules": [rule.model_copy(update={"largest": 2})]})
    )
    assert [t.task_id for t in two.library.tasks] == ["inat2018/order=O3/species", "inat2018/order=O0/species"]
    assert ("inat2018/order=O1/species", "not among the 2 largest of its rule") in [
        (s.task_id, s.reason) for s in two.library.skipped
    ]
    task = preview.library.tasks[0]
    assert task.spec.lineage == ("K3", "P3.3", "C3.3.3", "O3", "F3.0")  # one family, two genera
    assert task.spec.class_lineage[0][-1].startswith("Spécies 3")
    assert len(task.spec.class_lineage[0]) == 7


# --- iMaterialist -------------------------------------------------------------------------------------------------


def test_imaterialist_spellings_and_names(tmp_path: Path) -> None:
    one = rows("imaterialist", replicas.small_imaterialist(tmp_path / "one", names=False))
    two = rows("imaterialist", replicas.small_imaterialist(tmp_path / "two", names=False, official=False))
    named = rows("imaterialist", replicas.small_imaterialist(tmp_path / "three"))
    assert one == two
    assert set(one) == {f"train/{i}" for i in range(1, 41)} | {f"validation/{i}" for i in range(1, 21)}
    assert one["validation/3"]["locator"] == "validation/3.png"
    assert one["train/1"]["split"] == "train"
    assert one["validation/1"]["split"] == "test"
    values = {v for row in one.values() for v in row["label"]}
    assert values <= {str(i) for i in range(1, 229)}
    number = one["train/1"]["label"][0]
    assert named["train/1"]["label"][0].endswith(f"label {number}") or number in ("8", "9")
    info = open_source("imaterialist", root=str(tmp_path / "three")).info
    places = info.taxonomy["label"]
    assert len(places) == 228
    assert len(set(places.values())) == 8
    assert places["Gender/Solid"] == ("Gender",)
    assert places["group 1/Solid"] == ("group 1",)
    assert not open_source("imaterialist", root=str(tmp_path / "one")).info.taxonomy


def test_imaterialist_tasks(tmp_path: Path) -> None:
    replicas.small_imaterialist(tmp_path / "imaterialist")
    path = tmp_path / "imaterialist" / "train.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:-1]  # nothing is known of image 40
    path.write_text(json.dumps(content))
    library = load_library("paper", str(tmp_path))
    source = next(s for s in library.sources if s.name == "imaterialist")
    rules = [r for r in library.library.rules if r.source == "imaterialist"]
    annotations = preview_annotations(source)
    spec = library.library.model_copy(update={"rules": rules, "max_ratio": 100.0})
    preview = preview_library([source], spec)
    task = preview.library.tasks[0]
    assert task.spec.lineage == (task.spec.classes[0].split("/")[0],)
    got = resolve_task(task.spec, annotations)
    table = annotations.table.to_pylist()
    wanted = {i for i, row in enumerate(table) if row["label"] is not None}
    assert set(got.rows.tolist()) == wanted
    assert table[39]["label"] is None
    for row, label in zip(got.rows, got.labels, strict=True):
        assert (task.spec.values[0][0] in table[row]["label"]) == (label == 0)


# --- DeepFashion --------------------------------------------------------------------------------------------------


def test_deepfashion_rows_are_those_of_the_text(tmp_path: Path) -> None:
    root = replicas.small_deepfashion(tmp_path, n=60, attributes=9)
    path = root / "Anno" / "list_attr_img.txt"
    lines = path.read_text().splitlines()
    lines[5] = re.sub(r"(-1|1|0)( +(-1|1|0)){2}$", "0  0 -1", lines[5])
    path.write_text("\n".join(lines) + "\n")
    got = rows("deepfashion", root)
    names = [f"attribute no. {a}" for a in range(9)]
    names[3] = "attribute no. 2#2"
    assert len(got) == 60
    for line in lines[2:]:
        name, *states = line.split()
        row = got[name]
        assert row["attribute"] == [n for n, s in zip(names, states, strict=True) if s == "1"]
        assert row["attribute__unknown"] == [n for n, s in zip(names, states, strict=True) if s == "0"]
    assert got["img/Cloth_0/img_00000004.jpg"]["attribute__unknown"][-2:] == names[6:8]
    assert (got["img/Cloth_0/img_00000002.jpg"]["category"], got["img/Cloth_0/img_00000002.jpg"]["clothes_type"]) == (
        "Kind1",
        "lower",
    )
    partition = dict(line.split() for line in (root / "Eval" / "list_eval_partition.txt").read_text().splitlines()[2:])
    assert set(partition.values()) == {"train", "val", "test"}
    assert all(row["split"] == ("test" if partition[i] == "test" else "train") for i, row in got.items())
    taxonomy = open_source("deepfashion", root=str(root)).info.taxonomy["attribute"]
    assert taxonomy[names[0]] == ("texture",)
    assert taxonomy["attribute no. 2#2"] == ("part",)


def test_deepfashion_in_the_coarse_folder_and_with_images_beside(tmp_path: Path) -> None:
    root = replicas.small_deepfashion(tmp_path)
    before = rows("deepfashion", root)
    (root / "Anno").rename(root / "Anno_coarse")
    (root / "Img" / "img").rename(root / "img")
    source = open_source("deepfashion", root=str(root))
    source.check_images()
    assert rows("deepfashion", root) == before


@pytest.mark.parametrize(
    "change_line", [lambda s: s + " 1", lambda s: s[:-2] + " 2", lambda s: s + "-", lambda s: s + " x"]
)
def test_deepfashion_lines_that_are_not_right(change_line: Callable[[str], str], tmp_path: Path) -> None:
    root = replicas.small_deepfashion(tmp_path)
    path = root / "Anno" / "list_attr_img.txt"
    lines = path.read_text().splitlines()
    lines[9] = change_line(lines[9])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(
        SourceError, match=r"list_attr_img.txt:10: \d+ values of 'img/Cloth_0/img_00000008.jpg'; wanted 7"
    ):
        open_source("deepfashion", root=str(root)).annotations()
