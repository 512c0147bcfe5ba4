"""Experts: which there are, and what a short fine-tuning changes and leaves."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from t2v_core.config import ExpertRule, ExpertsSpec, HeadSpec, TrainingSpec
from t2v_core.errors import ComputeError, ConfigError
from t2v_core.experts import GENERIC, TrainedExpert, TrainingData, expert_rules, expert_specs, train_expert
from t2v_core.features import extract_features
from t2v_core.library import Task, TaskSpec
from t2v_core.probes import Probe, build_network, load_probe

NAME, SIZE = "efficientnet_lite0", 32
SHORT = TrainingSpec(steps=4, batch_size=16, learning_rate=1e-3, shift=2)
HEAD = HeadSpec(l2=(1e-1,))


@cache
def probe() -> Probe:
    return load_probe(NAME, image_size=SIZE)


@cache
def data() -> tuple[TrainingData, ...]:
    digits = load_digits()
    pixels = (digits.images[:80] * (255 / 16)).astype(np.uint8)
    images = np.stack([probe().transform.to_uint8(Image.fromarray(x)) for x in pixels])
    features = extract_features(probe(), images)
    target = digits.target[:80]
    return tuple(
        TrainingData(name, images, labels.astype(np.int64), features)
        for name, labels in (("d/digit", target), ("d/parity", target % 2))
    )


def train(spec: TrainingSpec = SHORT, tasks: tuple[TrainingData, ...] | None = None) -> TrainedExpert:
    return train_expert(build_network(NAME), probe(), data() if tasks is None else tasks, spec, head=HEAD)


@cache
def short() -> TrainedExpert:
    return train()


def test_same_seed_same_bytes() -> None:
    again = train()
    assert again.state.keys() == short().state.keys()
    for key, value in short().state.items():
        assert torch.equal(again.state[key], value), key
    for key, value in short().heads.items():
        assert torch.equal(again.heads[key], value), key
    assert again.last_loss == short().last_loss
    other = train(SHORT.model_copy(update={"seed": 1}))
    assert not torch.equal(other.state["conv_stem.weight"], short().state["conv_stem.weight"])


def test_training_moves_every_weight_but_no_batchnorm_statistics() -> None:
    start = build_network(NAME).state_dict()
    statistics = 0
    for key, value in short().state.items():
        is_statistic = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        statistics += is_statistic
        assert torch.equal(value, start[key]) == is_statistic, key
    assert statistics == 3 * 49


def test_state_has_no_head_and_loads_as_a_probe() -> None:
    names = {k for k in build_network(NAME).state_dict() if not k.startswith("classifier.")}
    assert set(short().state) == names
    expert = load_probe(NAME, short().state, image_size=SIZE)
    assert expert.digest != probe().digest
    assert expert.digest == load_probe(NAME, short().state, seed=9, image_size=SIZE).digest  # the head is no part
    network = build_network(NAME)
    network.load_state_dict({**network.state_dict(), **short().state})
    network.classifier = nn.Identity()
    images = data()[0].images[:8]
    with torch.no_grad():
        wanted = network(probe().transform.to_tensor(images)).numpy()
    got = extract_features(expert, images)
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.abs(got - data()[0].features[:8]).max() > 1e-2 * np.abs(wanted).max()


def test_heads_of_all_tasks_are_kept_by_name() -> None:
    shapes = {k: tuple(v.shape) for k, v in short().heads.items()}
    assert shapes == {
        "d/digit.weight": (10, 1280),
        "d/digit.bias": (10,),
        "d/parity.weight": (2, 1280),
        "d/parity.bias": (2,),
    }


def test_loss_falls() -> None:
    longer = train(SHORT.model_copy(update={"steps": 20, "batch_size": 32}), data()[:1])
    assert longer.last_loss < 0.8 * longer.first_loss


def test_training_starts_from_fitted_heads() -> None:
    """Without a shift, the first loss is about that of the heads on the start's features, far below chance."""
    one = train(TrainingSpec(steps=1, batch_size=64, shift=0, learning_rate=1e-12), data()[1:])
    assert one.first_loss == one.last_loss
    assert one.first_loss < 0.8 * np.log(2)


def test_probe_is_left_as_it_was() -> None:
    before = {k: v.clone() for k, v in probe().network.state_dict().items()}
    train()
    assert all(torch.equal(v, before[k]) for k, v in probe().network.state_dict().items())


def test_progress_counts_steps() -> None:
    seen: list[tuple[int, int]] = []
    train_expert(build_network(NAME), probe(), data()[:1], SHORT, head=HEAD, progress=lambda *x: seen.append(x))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_data_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one task"):
        train(tasks=())


def test_divergence_names_the_step_and_the_mend() -> None:
    with pytest.raises(ComputeError, match=r"not finite at step \d+; lower training.learning_rate"):
        train(TrainingSpec(steps=6, batch_size=8, learning_rate=1e20, shift=0))


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
    with pytest.raises(ConfigError, match="two rules make an expert 's__y'; narrow a pattern"):
        expert_rules(spec, LIBRARY)
