"""Experts: which there are, by rules over a library."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from t2v_core.config import ExpertRule, ExpertsSpec, TrainingSpec
from t2v_core.errors import ConfigError
from t2v_core.experts import GENERIC, expert_rules, expert_specs
from t2v_core.library import Task, TaskSpec
from t2v_core.probes import Probe, load_probe

NAME, SIZE = "efficientnet_lite0", 32
SHORT = TrainingSpec(steps=4, batch_size=16)


@cache
def probe() -> Probe:
    return load_probe(NAME, image_size=SIZE)


TASKS = {"a/x": "f1", "a/y": "f2", "b/x": "f3", "b/k=v/z": "f4"}


def specs(*rules: tuple[str, list[str]]) -> tuple[dict[str, tuple[str, ...]], list[tuple[str, str]]]:
    made, unmatched = expert_specs([ExpertRule(name=n, tasks=t) for n, t in rules], TASKS, probe(), SHORT)
    return {s.name: s.tasks for s in made}, unmatched


def test_patterns() -> None:
    made, unmatched = specs(("one", ["b/x"]), ("all-a", ["a/*"]), ("xs", ["*/x", "a/x"]), ("deep", ["b/k=v/?"]))
    assert made == {
        GENERIC: (),
        "one": ("b/x",),
        "all-a": ("a/x", "a/y"),
        "xs": ("a/x", "b/x"),
        "deep": ("b/k=v/z",),
    }
    assert next(iter(made)) == GENERIC
    assert unmatched == []


def test_rules_without_a_task_are_told() -> None:
    made, unmatched = specs(("none", ["c/*", "A/x"]), ("one", ["a/x"]))
    assert list(made) == [GENERIC, "one"]
    assert unmatched == [("none", "no task of the library matches c/*, A/x")]


def test_specs_say_what_an_expert_is_made_of() -> None:
    made, _ = expert_specs([ExpertRule(name="e", tasks=["a/*"])], TASKS, probe(), SHORT)
    generic, expert = made
    assert (generic.training, generic.task_fingerprints) == (None, ())
    assert (expert.training, expert.task_fingerprints) == (SHORT, ("f1", "f2"))
    for spec in made:
        assert (spec.architecture, spec.parent, spec.image_size) == (NAME, probe().digest, SIZE)


def cut(task_id: str, n: int, lineage: tuple[str, ...] = ()) -> Task:
    spec = TaskSpec(
        task_id=task_id, source=task_id.split("/")[0], domain="d", kind="binary", label="l", classes=("a", "b"),
        values=(("a",), ("b",)), lineage=lineage, max_per_class=9, max_ratio=3, seed=0,
    )  # fmt: skip
    return Task(spec, (n, n), (1, 1), f"f-{task_id}")


LIBRARY = [
    cut("s/x", 10, ("bird", "owl")), cut("s/y", 30, ("bird",)), cut("s/z", 20, ("cat",)), cut("t/x", 25, ("bird",)),
    cut("t/[odd]", 40),
]  # fmt: skip


def test_experts_of_the_largest_tasks() -> None:
    spec = ExpertsSpec.model_validate(
        {"rules": [{"name": "mine", "tasks": ["s/x"]}], "collections": [{"tasks": "*", "largest": 3}]}
    )
    rules = expert_rules(spec, LIBRARY)
    assert [(r.name, r.tasks) for r in rules] == [
        ("mine", ["s/x"]),
        ("t__-odd", ["t/[[]odd]"]),
        ("s__y", ["s/y"]),
        ("t__x", ["t/x"]),
    ]
    specs, unmatched = expert_specs(rules, {t.task_id: t.fingerprint for t in LIBRARY}, probe(), TrainingSpec())
    assert [s.tasks for s in specs] == [(), ("s/x",), ("t/[odd]",), ("s/y",), ("t/x",)]
    assert not unmatched


def test_experts_of_related_tasks() -> None:
    def names(**collection: Any) -> dict[str, list[str]]:
        spec = ExpertsSpec.model_validate(
            {"collections": [{"tasks": "*", "by": "lineage", "largest": 9, **collection}]}
        )
        return {r.name: r.tasks for r in expert_rules(spec, LIBRARY)}

    assert names() == {"s__bird": ["s/y", "s/x"], "t__bird": ["t/x"], "s__cat": ["s/z"]}
    assert names(depth=2) == {"s__bird__owl": ["s/x"]}
    assert names(max_tasks=1, largest=2) == {"s__bird": ["s/y"], "t__bird": ["t/x"]}
    assert names(tasks="t/*") == {"t__bird": ["t/x"]}


def test_two_experts_of_one_name() -> None:
    spec = ExpertsSpec.model_validate({"collections": [{"tasks": "s/*", "largest": 1}, {"tasks": "*/y", "largest": 1}]})
    with pytest.raises(ConfigError, match="two experts are called 's__y'; narrow a pattern"):
        expert_rules(spec, LIBRARY)
