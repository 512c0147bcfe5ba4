"""Tasks as queries on a source: which images, which labels, and what is said of those that cannot be made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from t2v_core.annotations import Annotations
from t2v_core.config import LibrarySpec, TaskRule
from t2v_core.errors import ConfigError, DataError, TaskError
from t2v_core.library import TaskLibrary, TaskSpec, resolve_task
from t2v_core.packing import plan_source
from t2v_core.rules import build_library
from t2v_core.sources.base import Row, SourceInfo, annotation_table


def table(counts: dict[Any, tuple[int, int]], column: str = "kind", **same: Any) -> pd.DataFrame:
    """So many train and test images of each value."""
    rows = [
        {"image_id": f"{''.join(map(str, same.values()))}{value}-{split}-{i}", "split": split, column: value, **same}
        for value, numbers in counts.items()
        for split, n in zip(("train", "test"), numbers, strict=True)
        for i in range(n)
    ]
    frame = pd.DataFrame(rows, columns=["image_id", "split", column, *same])
    return frame.assign(group=frame["image_id"], digest="d" + frame["image_id"])


def annotations(*frames: pd.DataFrame) -> Annotations:
    frame = pd.concat(frames, ignore_index=True).assign(group=lambda f: f["group"].astype(str))
    return Annotations("s", "noise", pa.Table.from_pandas(frame, preserve_index=False))


def library(a: Annotations, *rules: dict[str, Any], **settings: Any) -> TaskLibrary:
    spec = LibrarySpec(
        rules=[TaskRule(**{"source": "s", "label": "kind", **r}) for r in rules],
        **{"min_train": 2, "min_test": 1, **settings},
    )
    return build_library(spec, {"s": a})


def ids(spec: TaskSpec, a: Annotations) -> list[str]:
    return np.array(a.table["image_id"].to_pylist())[resolve_task(spec, a).rows].tolist()


def test_multiclass() -> None:
    a = annotations(table({"cat": (5, 3), "dog": (6, 4), "": (9, 9), "owl": (5, 3)}))
    [task] = library(a, {}).tasks
    assert task.task_id == "s/kind"
    assert (task.spec.kind, task.spec.source, task.spec.domain) == ("multiclass", "s", "noise")
    assert task.spec.classes == ("dog", "cat", "owl")  # the most frequent first, then by name
    assert (task.train_counts, task.test_counts) == ((6, 5, 5), (4, 3, 3))
    rows = resolve_task(task.spec, a)
    assert len(set(rows.rows)) == len(rows.rows) == 26
    for row, label, test, group in zip(rows.rows, rows.labels, rows.test, rows.groups, strict=True):
        image = a.table.to_pandas().iloc[row]
        assert image["kind"] == task.spec.classes[label]
        assert (image["split"] == "test") == test
        assert image["group"] == group
    train_rows, train_labels, _ = rows.part(test=False)
    assert np.bincount(train_labels).tolist() == [6, 5, 5]
    assert set(train_rows) | set(rows.part(test=True)[0]) == set(rows.rows)


def test_rows_are_not_sorted_by_class() -> None:
    a = annotations(table({"a": (50, 5), "b": (50, 5)}))
    rows = resolve_task(library(a, {}).tasks[0].spec, a)
    assert 5 < rows.labels[:30].sum() < 25


def test_one_vs_rest() -> None:
    a = annotations(table({"a": (4, 2), "b": (5, 2), "c": (4, 2), "": (9, 9), None: (3, 3)}))
    tasks = library(a, {"kind": "one_vs_rest", "values": ["c", "a"]}).tasks
    assert [t.task_id for t in tasks] == ["s/kind=a", "s/kind=c"]
    for task in tasks:
        assert task.spec.kind == "binary"
        assert task.spec.classes == (task.task_id[-1], "rest")
        assert task.train_counts == (4, 9)  # the rest: the other values, but no images without a value
        rows = resolve_task(task.spec, a)
        assert set(np.array(a.table["kind"].to_pylist())[rows.rows[rows.labels == 0]]) == {task.task_id[-1]}
        assert set(np.array(a.table["kind"].to_pylist())[rows.rows[rows.labels == 1]]) == {"a", "b", "c"} - {
            task.task_id[-1]
        }


def test_grouped() -> None:
    a = annotations(table({str(d): (2, 1) for d in range(6)}))
    rule = {"kind": "grouped", "name": "parity", "groups": {"even": ["0", "2"], "odd": ["1", "3", "5"]}}
    [task] = library(a, rule).tasks
    assert (task.task_id, task.spec.kind, task.spec.classes) == ("s/parity", "binary", ("even", "odd"))
    assert (task.train_counts, task.test_counts) == ((4, 6), (2, 3))
    three = {"kind": "grouped", "name": "three", "groups": {"x": ["0"], "y": ["1"], "z": ["2", "3"]}}
    assert library(a, three).tasks[0].spec.kind == "multiclass"


def test_within_where_and_lineage() -> None:
    a = annotations(
        table({"cat": (4, 2), "dog": (4, 2)}, order="mammal", size="big"),
        table({"owl": (3, 2), "jay": (3, 2)}, order="bird", size="big"),
        table({"cat": (5, 5), "owl": (5, 5)}, order="toy", size="small"),
        table({"lone": (9, 9)}, order="", size="big"),
    )
    rule = {"within": "order", "where": {"size": ["big"]}, "lineage": ["size", "order", "kind"]}
    tasks = library(a, rule).tasks
    assert [t.task_id for t in tasks] == ["s/order=mammal/kind", "s/order=bird/kind"]
    assert [t.spec.lineage for t in tasks] == [("big", "mammal"), ("big", "bird")]  # kind differs inside
    assert tasks[0].spec.classes == ("cat", "dog")
    assert tasks[0].train_counts == (4, 4)  # no toy cats
    rest = library(a, {"kind": "one_vs_rest", "within": "order", "values": ["cat"]}).tasks
    assert [(t.task_id, t.train_counts) for t in rest] == [
        ("s/order=toy/kind=cat", (5, 5)),
        ("s/order=mammal/kind=cat", (4, 4)),
    ]
    filtered = library(a, {"where": {"order": ["mammal", "toy"]}}).tasks[0]
    assert filtered.task_id == "s/order=mammal,toy/kind"
    assert dict(zip(filtered.spec.classes, filtered.train_counts, strict=True)) == {"cat": 9, "dog": 4, "owl": 5}


def test_small_classes_are_left_out_and_the_rest_is_not_capped_by_them() -> None:
    a = annotations(table({"a": (20, 8), "b": (20, 8), "few": (2, 8), "no test": (20, 0), "one": (1, 0)}))
    made = library(a, {}, min_train=5, min_test=2, max_ratio=1.5)
    [task] = made.tasks
    assert task.spec.classes == ("a", "b")
    assert task.spec.kind == "binary"
    assert (task.train_counts, task.test_counts) == ((20, 20), (8, 8))
    assert made.skipped == ()


def test_a_rule_may_ask_for_less_than_the_library() -> None:
    a = annotations(table({"a": (3, 1), "b": (3, 1)}))
    assert not library(a, {}, min_train=5, min_test=2).tasks
    assert len(library(a, {"min_train": 3, "min_test": 1}, min_train=5, min_test=2).tasks) == 1


@pytest.mark.parametrize(
    ("counts", "rule", "reason"),
    [
        ({"a": (9, 9)}, {}, "one class only ('a'); a task needs two"),
        ({"a": (9, 9), "b": (1, 0)}, {}, "1 of 2 classes have 2 train and 1 test images (too small: b 1/0)"),
        ({"a": (9, 0), "b": (9, 0)}, {}, "0 of 2 classes have 2 train and 1 test images (too small: a 9/0, b 9/0)"),
        ({"a": (0, 9), "b": (0, 9)}, {}, "0 of 2 classes"),
        ({"a": (9, 9), "b": (9, 9)}, {"values": ["c"]}, "no image fits; check the rule's where, within and values"),
        ({"a": (9, 9), "b": (9, 9)}, {"where": {"split": ["val"]}}, "no image fits"),
        ({"a": (9, 9)}, {"kind": "one_vs_rest"}, "(too small: rest 0/0)"),
        (
            {"a": (9, 9), "b": (9, 9)},
            {"kind": "grouped", "name": "g", "groups": {"x": ["a"], "y": ["z"]}},
            "(too small: y 0/0)",
        ),
    ],
)
def test_what_cannot_be_made_is_listed_with_the_reason(
    counts: dict[Any, tuple[int, int]], rule: dict[str, Any], reason: str
) -> None:
    made = library(annotations(table(counts)), rule)
    assert not made.tasks
    [skipped] = made.skipped
    assert skipped.task_id.startswith("s/")
    assert reason in skipped.reason


def test_one_bad_task_does_not_stop_the_others() -> None:
    a = annotations(table({"a": (9, 9), "b": (9, 9)}, order="x"), table({"c": (9, 9)}, order="y"))
    made = library(a, {"within": "order"})
    assert [t.task_id for t in made.tasks] == ["s/order=x/kind"]
    assert [s.task_id for s in made.skipped] == ["s/order=y/kind"]


@pytest.mark.parametrize("rule", [{"values": ["catt"]}, {"where": {"split": ["val"]}}])
def test_values_that_do_not_exist_are_told(rule: dict[str, Any]) -> None:
    a = annotations(table({"cat": (9, 9), "dog": (9, 9)}))
    assert library(a, {"kind": "one_vs_rest", **rule}).skipped


def test_caps_by_hand() -> None:
    a = annotations(table({"a": (100, 40), "b": (50, 40), "c": (10, 6)}))
    [task] = library(a, {}, max_ratio=3.0, max_per_class=20).tasks
    assert (task.train_counts, task.test_counts) == ((20, 20, 10), (18, 18, 6))
    [task] = library(a, {}, max_ratio=2.5).tasks
    assert (task.train_counts, task.test_counts) == ((25, 25, 10), (15, 15, 6))
    [task] = library(a, {}, max_classes=2).tasks
    assert task.spec.classes == ("a", "b")
    [rest] = library(a, {"kind": "one_vs_rest", "values": ["c"]}, max_ratio=1.0).tasks
    assert (rest.train_counts, rest.test_counts) == ((10, 10), (6, 6))


def test_sample_is_a_function_of_ids_and_seed_alone() -> None:
    frame = table({"a": (60, 20), "b": (60, 20)})
    specs = [library(annotations(frame), {}, max_per_class=15, seed=s).tasks[0].spec for s in (0, 0, 1)]
    picks = [ids(s, annotations(frame)) for s in specs]
    assert picks[0] == picks[1]
    assert set(picks[0]) != set(picks[2])
    shuffled = frame.sample(frac=1, random_state=0)
    assert ids(specs[0], annotations(shuffled)) == picks[0]
    assert 15 < sum(i.endswith(tuple("02468")) for i in picks[0]) < 45  # no run of the table's head


def test_new_images_disturb_the_sample_only_where_they_are_picked() -> None:
    frame = table({"a": (60, 20), "b": (60, 20)})
    old = annotations(frame)
    new = annotations(frame, table({"a": (6, 2), "b": (6, 2)}, new="x"))
    spec = library(old, {}, max_per_class=15).tasks[0].spec
    before, after = ids(spec, old), ids(spec, new)
    known = set(frame["image_id"])
    kept = [i for i in after if i in known]
    assert kept == [i for i in before if i in set(kept)]  # none that was not picked before, and in the same order
    assert len(before) - len(kept) == len(after) - len(kept) <= 16
    assert 0 < len(after) - len(kept) < 12


def fingerprint(frame: pd.DataFrame, **settings: Any) -> str:
    return library(annotations(frame), {}, **settings).tasks[0].fingerprint


def changed(frame: pd.DataFrame, column: str, value: Any, row: int = 0) -> pd.DataFrame:
    out = frame.copy()
    out.loc[row, column] = value
    return out


def test_fingerprint_follows_what_the_task_is_made_of() -> None:
    frame = table({"a": (9, 5), "b": (9, 5), "": (3, 3)}, extra="e")
    one = fingerprint(frame)
    assert one == fingerprint(frame.copy())
    assert one == fingerprint(frame.sample(frac=1, random_state=0)), "the order of the rows"
    assert one == fingerprint(changed(frame, "extra", "other")), "a column that the task does not ask for"
    assert one == fingerprint(changed(frame, "digest", "other", row=len(frame) - 1)), "an image outside the task"
    others = {
        "an image": fingerprint(changed(frame, "digest", "other")),
        "a label": fingerprint(changed(frame, "kind", "b")),
        "a split": fingerprint(changed(frame, "split", "test")),
        "one image less": fingerprint(frame.drop(0)),
        "a cap": fingerprint(frame, max_per_class=8),
        "the seed": fingerprint(frame, seed=1),
    }
    assert len({one, *others.values()}) == 1 + len(others), others


def test_fingerprint_follows_the_groups() -> None:
    frame = table({"a": (9, 5), "b": (9, 5)})
    assert fingerprint(frame) != fingerprint(frame.assign(group=frame["split"]))


class Families:
    """Families of four images; the source says nothing of a split."""

    info = SourceInfo(name="s", domain="noise", revision="1", label_columns=("kind",))

    def annotations(self) -> pa.Table:
        rows = [Row(f"i{i}", {"kind": "ab"[i % 2]}, group=f"family {i // 4}") for i in range(160)]
        return annotation_table(rows, ("kind",), "s")

    def read(self, locator: str) -> bytes:
        raise OSError(locator)

    def check_images(self) -> None: ...


def test_no_family_is_on_both_sides() -> None:
    a = Annotations("s", "noise", plan_source(Families(), limit=None, test_share=0.4, seed=0).table)
    [task] = library(a, {}).tasks
    rows = resolve_task(task.spec, a)
    train, test = (set(rows.part(test=t)[2]) for t in (False, True))
    assert len(train) > 10
    assert len(test) > 5
    assert not train & test


def test_values_are_compared_as_text() -> None:
    frame = table({True: (4, 2), False: (5, 2)})
    assert library(annotations(frame), {}).tasks[0].spec.classes == ("false", "true")
    frame = table({3: (4, 2), 12: (5, 2)})
    [task] = library(annotations(frame), {"values": ["3", "12"]}).tasks
    assert task.train_counts == (5, 4)


@pytest.mark.parametrize(
    "rule", [{"label": "colour"}, {"within": "colour"}, {"where": {"colour": ["red"]}}, {"lineage": ["colour"]}]
)
def test_unknown_column_lists_the_known(rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="source 's' has no column 'colour'; its columns: kind"):
        library(annotations(table({"a": (9, 9), "b": (9, 9)})), rule)


def test_two_tasks_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two rules make a task 's/kind'; give one of them another `name`"):
        library(annotations(table({"a": (9, 9), "b": (9, 9)})), {}, {})


def test_a_query_without_rows_is_a_task_error() -> None:
    a = annotations(table({"a": (9, 9), "b": (9, 9)}))
    spec = library(a, {}).tasks[0].spec.model_copy(update={"where": (("kind", ("z",)),)})
    with pytest.raises(TaskError, match="s/kind: no image fits"):
        resolve_task(spec, a)


def test_sources_that_are_not_there_are_passed_over() -> None:
    spec = LibrarySpec(rules=[TaskRule(source="gone", label="x")])
    assert build_library(spec, {}) == TaskLibrary(())


def test_manifest_round_trip() -> None:
    a = annotations(table({"a": (9, 9), "b": (9, 9), "c": (5, 5)}, order="x"))
    made = library(a, {"lineage": ["order"]}, {"kind": "one_vs_rest"})
    manifest = made.to_table()
    assert TaskLibrary.from_table(manifest, made.skipped) == made
    row = manifest.to_pylist()[0]
    assert (row["task_id"], row["n_classes"], row["n_train"], row["n_test"]) == ("s/kind", 3, 23, 23)
    assert made["s/kind=b"].spec.classes == ("b", "rest")
    assert list(made.by_source()) == ["s"]
    assert made.by_source()["s"] == list(made.tasks)
    with pytest.raises(KeyError):
        made["s/nothing"]
    with pytest.raises(DataError, match=r"lacks columns \['fingerprint', 'spec'\]"):
        TaskLibrary.from_table(manifest.drop_columns(["fingerprint", "spec"]))
