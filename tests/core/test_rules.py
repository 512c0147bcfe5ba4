"""Rules over columns of several values, pairs, the largest tasks, and whole libraries from annotations alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from t2v_core.annotations import Annotations, LabelColumn
from t2v_core.config import LibrarySpec, PipelineConfig, SourceSpec, TaskRule, load_library
from t2v_core.errors import ConfigError, UnknownNameError
from t2v_core.images import encode_png
from t2v_core.library import REST, SkippedTask, Task, TaskLibrary, compare_libraries, resolve_task
from t2v_core.preview import default_rules, preview_annotations, preview_library
from t2v_core.rules import build_library


def table(n: int, **columns: Any) -> pa.Table:
    """So many images; every third run of six is in the test split."""
    names = [f"i{i:04d}" for i in range(n)]
    split = ["test" if i // 6 % 3 == 0 else "train" for i in range(n)]
    return pa.table({"image_id": names, "group": names, "split": split, "digest": names, **columns})


def annotations(n: int, taxonomy: Any = None, **columns: Any) -> Annotations:
    return Annotations("s", "noise", table(n, **columns), taxonomy or {})


def library(a: Annotations, *rules: dict[str, Any], **settings: Any) -> TaskLibrary:
    spec = LibrarySpec(
        rules=[TaskRule(**{"source": "s", "label": "tag", **r}) for r in rules],
        **{"min_train": 2, "min_test": 1, "max_ratio": 100, **settings},
    )
    return build_library(spec, {"s": a})


def members(a: Annotations, task: Task) -> dict[str, set[int]]:
    rows = resolve_task(task.spec, a)
    return {name: set(rows.rows[rows.labels == c].tolist()) for c, name in enumerate(task.spec.classes)}


TAGS = [["x", "y"], ["x"], [], None, ["y"], ["z", "x"]] * 10
"""Of six images three have x, two y; one has nothing, and of one nothing is known."""


def test_one_task_a_value_of_a_list_column() -> None:
    a = annotations(60, tag=pa.array(TAGS, pa.list_(pa.string())))
    tasks = {t.task_id: t for t in library(a, {"kind": "one_vs_rest"}).tasks}
    assert list(tasks) == ["s/tag=x", "s/tag=y", "s/tag=z"]  # the most frequent first
    got = members(a, tasks["s/tag=x"])
    assert got["x"] == {i for i in range(60) if i % 6 in (0, 1, 5)}
    assert got[REST] == {i for i in range(60) if i % 6 in (2, 4)}  # an empty list is a no, a missing one is nothing


def test_undecided_values_are_on_neither_side() -> None:
    unknown = [["z"], [], ["x"], None, [], []] * 10
    a = annotations(
        60, tag=pa.array(TAGS, pa.list_(pa.string())), tag__unknown=pa.array(unknown, pa.list_(pa.string()))
    )
    assert a.label_names == ("tag",)
    x, _, z = library(a, {"kind": "one_vs_rest"}).tasks
    assert members(a, x)[REST] == {i for i in range(60) if i % 6 == 4}
    assert members(a, z)[REST] == {i for i in range(60) if i % 6 in (1, 2, 4)}


def test_dictionaries_are_plain_values() -> None:
    lists = pa.array(TAGS, pa.list_(pa.string()))
    coded = pa.ListArray.from_arrays(
        pa.array(lists.offsets), lists.values.dictionary_encode(), mask=pa.array(lists.is_null())
    )
    words = pa.array([None if i % 5 == 0 else f"w{i % 3}" for i in range(60)])
    plain = annotations(60, tag=lists, word=words)
    dictionaries = annotations(60, tag=coded, word=words.dictionary_encode())
    for name in ("tag", "word"):
        one, two = plain.column(name), dictionaries.column(name)
        assert one.values == two.values
        np.testing.assert_array_equal(one.rows, two.rows)
        np.testing.assert_array_equal(one.starts, two.starts)
        np.testing.assert_array_equal(one.known, two.known)
    rules = ({"kind": "one_vs_rest"}, {"label": "word"})
    assert [t.fingerprint for t in library(plain, *rules).tasks] == [
        t.fingerprint for t in library(dictionaries, *rules).tasks
    ]


def test_label_column_by_hand() -> None:
    column = LabelColumn.of(pa.chunked_array([["b", "a", None], ["", "b"]]))
    assert column.values == ("a", "b")
    assert column.rows.tolist() == [1, 0, 4]
    assert column.starts.tolist() == [0, 1, 3]
    assert column.codes.tolist() == [1, 0, -1, -1, 1]
    assert column.known.tolist() == [True, True, False, False, True]
    assert column.counted(np.array([True, True, True, True, False])) == [("a", 1), ("b", 1)]
    assert column.mask(["b", "nothing"]).tolist() == [True, False, False, False, True]
    empty = LabelColumn.of(pa.chunked_array([pa.array([None, None], pa.list_(pa.string()))]))
    assert (empty.values, empty.known.tolist(), empty.multi) == ((), [False, False], True)


def test_images_of_two_classes_are_in_no_group_of_values() -> None:
    a = annotations(60, tag=pa.array(TAGS, pa.list_(pa.string())))
    [task] = library(a, {"kind": "grouped", "name": "g", "groups": {"ex": ["x"], "why": ["y"]}}).tasks
    got = members(a, task)
    assert got == {"ex": {i for i in range(60) if i % 6 in (1, 5)}, "why": {i for i in range(60) if i % 6 == 4}}


def test_pairs() -> None:
    kinds = ["a"] * 30 + ["b"] * 20 + ["c"] * 10
    a = annotations(60, tag=kinds, half=["low", "high"] * 30)
    tasks = library(a, {"kind": "pairs"}).tasks
    assert [t.task_id for t in tasks] == ["s/tag=a+b", "s/tag=a+c", "s/tag=b+c"]
    assert all(t.spec.kind == "binary" for t in tasks)
    assert members(a, tasks[2]) == {"b": set(range(30, 50)), "c": set(range(50, 60))}
    inside = library(a, {"kind": "pairs", "within": "half", "values": ["a", "c"]}).tasks
    assert [t.task_id for t in inside] == ["s/half=high/tag=a+c", "s/half=low/tag=a+c"]


def test_the_largest_are_kept_and_the_rest_is_said() -> None:
    order = ["big"] * 36 + ["mid"] * 16 + ["small"] * 8
    a = annotations(60, tag=["a", "b"] * 30, order=order)
    made = library(a, {"within": "order", "largest": 2})
    assert [t.task_id for t in made.tasks] == ["s/order=big/tag", "s/order=mid/tag"]
    assert made.skipped == (SkippedTask("s/order=small/tag", "not among the 2 largest of its rule"),)
    one = library(a, {"kind": "one_vs_rest", "label": "order", "largest": 1})
    assert [t.task_id for t in one.tasks] == ["s/order=big"]


def test_most_images_in_all() -> None:
    """The largest classes are cut down first: of 18, 14 and 4 train images, 30 in all are 13, 13 and 4."""
    kinds = ["a"] * 30 + ["b"] * 20 + ["c"] * 10
    a = annotations(60, tag=kinds)
    [whole] = library(a, {}).tasks
    assert whole.train_counts == (18, 14, 4)
    [task] = library(a, {}, max_images=30).tasks
    assert task.train_counts == (13, 13, 4)
    assert task.test_counts == whole.test_counts == (12, 6, 6)
    [task] = library(a, {"max_images": 9}).tasks
    assert (task.train_counts, task.test_counts) == ((3, 3, 3), (3, 3, 3))
    made = library(a, {"max_images": 4})
    assert not made.tasks
    assert "max_images 4 leave a class of 1 train" in made.skipped[0].reason


def test_places_in_the_taxonomy() -> None:
    a = annotations(60, tag=[f"t{i % 4}" for i in range(60)], order=["o", "p"] * 30, world=["w"] * 60)
    [task] = library(a, {"lineage": ["world", "order"]}).tasks
    assert dict(zip(task.spec.classes, task.spec.class_lineage, strict=True)) == {
        "t0": ("w", "o", "t0"),
        "t1": ("w", "p", "t1"),
        "t2": ("w", "o", "t2"),
        "t3": ("w", "p", "t3"),
    }
    assert task.spec.lineage == ("w",)
    other = library(a, {"lineage": ["world"]}).tasks[0]
    assert other.fingerprint == task.fingerprint, "another taxonomy is no other task"
    stated = annotations(60, {"tag": {"x": ("shape",), "y": ("colour",)}}, tag=pa.array(TAGS, pa.list_(pa.string())))
    x, y, z = library(stated, {"kind": "one_vs_rest", "lineage": ["tag"]}).tasks
    assert [t.spec.lineage for t in (x, y, z)] == [("shape",), ("colour",), ()]
    assert x.spec.class_lineage == (("shape", "x"), ())


def test_second_copies_are_in_no_task() -> None:
    copies = ["i0000" if i in (2, 4) else "" for i in range(60)]
    a = annotations(60, tag=["a", "b"] * 30, duplicate_of=copies)
    [task] = library(a, {}).tasks
    assert members(a, task)["a"] == set(range(0, 60, 2)) - {2, 4}


def test_what_became_of_a_library() -> None:
    kinds = ["a", "b", "c"] * 20
    old = library(annotations(60, tag=kinds), {"kind": "pairs", "values": ["a", "b"]}, {"kind": "one_vs_rest"})
    new = library(annotations(60, tag=["a", "b", "d"] * 20), {"kind": "one_vs_rest"})
    assert compare_libraries(old, new) == {
        "new": ["s/tag=d"],
        "changed": [],  # the rest is of the same images, whatever they are called
        "removed": ["s/tag=a+b", "s/tag=c"],
    }
    other = library(annotations(60, tag=["a", "b", "b"] * 20), {"kind": "one_vs_rest"})
    assert compare_libraries(new, other) == {"new": [], "changed": ["s/tag=b"], "removed": ["s/tag=d"]}
    assert compare_libraries(old, old) == {"new": [], "changed": [], "removed": []}


def folder(root: Path, classes: str = "abc", images: int = 12) -> Path:
    for c in classes:
        (root / c).mkdir(parents=True)
        for i in range(images):
            pixels = np.random.default_rng([ord(c), i]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            (root / c / f"{i}.png").write_bytes(encode_png(pixels))
    return root


def test_a_library_from_annotations_alone(tmp_path: Path) -> None:
    sources = [
        SourceSpec(name="s", kind="folder", options={"path": str(folder(tmp_path / "s"))}),
        SourceSpec(name="gone", kind="folder", options={"path": str(tmp_path / "nowhere")}),
    ]
    rules = [TaskRule(source="s", label="label"), TaskRule(source="gone", label="label")]
    told: list[tuple[str, int]] = []
    preview = preview_library(
        sources, LibrarySpec(rules=rules, min_train=2, min_test=1), lambda *what: told.append(what)
    )
    assert [t.task_id for t in preview.library.tasks] == ["s/label"]
    assert preview.images == {"s": 36}
    [(name, reason)] = preview.absent
    assert name == "gone"
    assert "nowhere is not a folder" in reason
    assert told == [("s", 0), ("s", 1), ("gone", 0)]


def test_default_rules(tmp_path: Path) -> None:
    a = preview_annotations(SourceSpec(name="s", kind="folder", options={"path": str(folder(tmp_path / "s"))}))
    assert [r.label for r in default_rules(a)] == ["label"]
    odd = annotations(
        60,
        flag=[True, False] * 30,
        one=["same"] * 60,
        name=[f"n{i}" for i in range(60)],
        tag=pa.array(TAGS, pa.list_(pa.string())),
        place=[f"{'pq'[i % 2]}/r{i % 4}" for i in range(60)],
        place_1=["p", "q"] * 30,
        place_2=[f"r{i % 4}" for i in range(60)],
    )
    got = {r.label: (r.kind, r.within) for r in default_rules(odd)}
    assert got == {
        "flag": ("multiclass", ""),
        "tag": ("one_vs_rest", ""),
        "place_1": ("multiclass", ""),
        "place_2": ("multiclass", "place_1"),
    }
    with pytest.raises(ConfigError, match=r"no column that a task can be cut by \(columns: one\)"):
        default_rules(annotations(60, one=["same"] * 60))


def test_libraries_by_name_and_by_file(tmp_path: Path) -> None:
    paper = load_library("paper", "/data")
    assert sum(paper.expected.values()) == 1460
    assert {s.options["root"] for s in paper.sources} == {
        "/data/inat2018",
        "/data/CUB_200_2011",
        "/data/imaterialist",
        "/data/deepfashion",
    }
    with pytest.raises(UnknownNameError, match="unknown library 'papre'; did you mean 'paper'"):
        load_library("papre")
    content = {
        "name": "mine",
        "sources": [{"name": "s", "kind": "folder", "options": {"path": "{data}/s"}}],
        "library": {"rules": [{"source": "s", "label": "label"}]},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    assert load_library(str(path), "here").sources[0].options == {"path": "here/s"}
    path.write_text(yaml.safe_dump({**content, "rules": []}))
    with pytest.raises(ConfigError, match="unknown key 'rules'"):
        load_library(str(path))


def test_a_pipeline_uses_a_library(tmp_path: Path) -> None:
    own = {"rules": [{"source": "digits", "label": "digit"}], "min_train": 5}
    config = PipelineConfig.model_validate(
        {"name": "p", "use": "paper", "data": "d", "sources": [{"name": "digits"}], "library": own}
    )
    assert [s.name for s in config.sources] == ["inat2018", "cub", "imaterialist", "deepfashion", "digits"]
    assert (config.library.min_train, config.library.max_ratio) == (5, 3.0)
    assert config.library.rules[-1].source == "digits"
    assert config.sources[0].options["root"] == "d/inat2018"
    again = PipelineConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
