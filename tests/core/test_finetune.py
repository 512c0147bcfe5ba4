"""Fine-tuning: what a short one changes and leaves, and that it goes on from a checkpoint to the same bytes."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from t2v_core.config import HeadSpec, TrainingSpec
from t2v_core.errors import ComputeError, ConfigError, WeightsError
from t2v_core.features import extract_features
from t2v_core.finetune import FrozenNorms, State, TrainedExpert, TrainingData, even_sample, train_expert, transfer_run
from t2v_core.probes import Probe, build_network, load_probe

NAME, SIZE = "efficientnet_lite0", 32
SHORT = TrainingSpec(
    steps=4, batch_size=16, learning_rate=1e-3, shift=2, optimiser="adamw", schedule="cosine", weight_decay=1e-2
)
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
    return train_expert(probe(), data() if tasks is None else tasks, spec, head=HEAD)


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
    train_expert(probe(), data()[:1], SHORT, head=HEAD, progress=lambda *x: seen.append(x))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_data_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one task"):
        train(tasks=())


def test_divergence_names_the_step_and_the_mend() -> None:
    with pytest.raises(ComputeError, match=r"the loss is \w+ at step \d+ of 6; lower experts.training.learning_rate"):
        train(TrainingSpec(steps=6, batch_size=8, learning_rate=1e20, shift=0))


class Killed(Exception):
    """What stops a training in these tests."""


def stopped(spec: TrainingSpec, at: int) -> State:
    """The last checkpoint of a training that was stopped after a step."""
    kept: list[State] = []

    def progress(done: int, _: int) -> None:
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        train_expert(probe(), data(), spec, head=HEAD, save=kept.append, progress=progress)
    return kept[-1]


@pytest.mark.parametrize("changes", [{}, {"optimiser": "sgd", "schedule": "step"}, {"validation_share": 0.3}], ids=str)
def test_a_stopped_training_goes_on_to_the_same_bytes(changes: dict[str, object]) -> None:
    spec = SHORT.model_copy(update={"steps": 7, "checkpoint_every": 2, "look_every": 2, **changes})
    whole = train(spec)
    state = stopped(spec, at=5)
    assert len(state["losses"]) == 4
    seen: list[int] = []
    resumed = train_expert(probe(), data(), spec, head=HEAD, resume=state, progress=lambda done, _: seen.append(done))
    assert seen == [5, 6, 7]
    for part in ("state", "heads"):
        one, two = getattr(whole, part), getattr(resumed, part)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one)
    assert (resumed.first_loss, resumed.last_loss, resumed.best_step) == (
        whole.first_loss,
        whole.last_loss,
        whole.best_step,
    )


def test_how_often_checkpoints_are_written_changes_nothing() -> None:
    kept: list[State] = []
    spec = SHORT.model_copy(update={"checkpoint_every": 1})
    again = train_expert(probe(), data(), spec, head=HEAD, save=kept.append)
    assert len(kept) == 3  # none after the last step
    assert all(torch.equal(v, again.state[k]) for k, v in short().state.items())


@pytest.mark.parametrize("damage", ["another training", "half", "empty"])
def test_a_checkpoint_that_does_not_fit_is_refused(damage: str) -> None:
    spec = SHORT.model_copy(update={"checkpoint_every": 2})
    state = dict(stopped(spec, at=3))
    if damage == "another training":
        tasks = data()[1:]
    else:
        tasks = data()
        state = {k: v for k, v in state.items() if damage == "half" and k.startswith("now/heads")}
    with pytest.raises(WeightsError, match="of another training, or damaged"):
        train_expert(probe(), tasks, spec, head=HEAD, resume=state)


def test_early_stop_keeps_the_best_weights() -> None:
    """With a rate that ruins the network the first look is the best one, and training ends two looks later."""
    spec = TrainingSpec(
        steps=40, batch_size=16, learning_rate=0.5, shift=0, validation_share=0.4, look_every=1, patience=3
    )
    start = TrainingSpec(steps=1, batch_size=16, learning_rate=0.5, shift=0, validation_share=0.4, look_every=1)
    stopped_early, first = train(spec, data()[1:]), train(start, data()[1:])
    assert stopped_early.steps == stopped_early.best_step + 3 < 40
    assert np.isfinite(stopped_early.held_out_loss)
    if stopped_early.best_step == 1:
        assert all(torch.equal(v, stopped_early.state[k]) for k, v in first.state.items())
    assert np.isnan(train().held_out_loss)


def test_held_out_images_do_not_train() -> None:
    """Other pixels in what is held out change the loss there, and no weight."""
    task = data()[1]
    groups = np.arange(len(task.labels)) // 4
    spec = TrainingSpec(steps=2, batch_size=16, shift=0, validation_share=0.3, look_every=2, patience=9)
    from t2v_core.heads import validation_mask

    held = validation_mask(task.labels, groups, 0.3, spec.seed)
    assert 0.2 < held.mean() < 0.45
    images, features = task.images.copy(), task.features.copy()
    images[held], features[held] = 0, 0.0
    one = train(spec, (TrainingData("d/parity", task.images, task.labels, task.features, groups),))
    two = train(spec, (TrainingData("d/parity", images, task.labels, features, groups),))
    assert all(torch.equal(v, two.state[k]) for k, v in one.state.items())
    assert one.held_out_loss != two.held_out_loss


def test_epochs_count_the_images_of_all_tasks() -> None:
    spec = TrainingSpec(epochs=0.5, batch_size=16, shift=0)
    assert train(spec).steps == round(0.5 * 160 / 16)
    assert train(spec, data()[:1]).steps == round(0.5 * 80 / 16)


def test_schedules_by_hand() -> None:
    from t2v_core.finetune import _rate

    step = TrainingSpec()
    assert [_rate(step, s, 60) for s in (0, 39, 40, 59)] == [1.0, 1.0, 0.1, 0.1]
    cosine = TrainingSpec(schedule="cosine")
    assert _rate(cosine, 0, 100) == pytest.approx(0.1)
    assert _rate(cosine, 49, 100) == pytest.approx(0.5 + 1e-3)
    assert _rate(cosine, 99, 100) == pytest.approx(1e-3)


def test_folding_anew_is_the_same_function_and_has_the_same_gradients() -> None:
    network = FrozenNorms(probe().to(torch.float64))
    apart = copy.deepcopy(network.trained)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    direction = torch.randn(3, probe().n_features, generator=generator, dtype=torch.float64)
    assert len(probe().folded) == 49
    for run in (network, apart):
        (run(images) * direction).sum().backward()
    assert torch.allclose(network(images), apart(images), rtol=1e-10, atol=1e-10)
    for (name, one), two in zip(network.trained.named_parameters(), apart.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.allclose(one.grad, two.grad, rtol=1e-8, atol=1e-9 * float(two.grad.abs().max())), name


def test_an_even_sample_takes_turns_among_the_classes() -> None:
    labels = np.array([0] * 20 + [1] * 3 + [2] * 7)
    five = even_sample(labels, 5, seed=0)
    assert sorted(np.bincount(labels[five])) == [1, 2, 2]
    twelve = even_sample(labels, 12, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[twelve]), [5, 3, 4])
    assert set(five) <= set(twelve)
    assert list(twelve) == sorted(set(twelve))
    assert not np.array_equal(twelve, even_sample(labels, 12, seed=1))
    np.testing.assert_array_equal(even_sample(labels, 0, seed=0), np.arange(30))
    np.testing.assert_array_equal(even_sample(labels, 99, seed=0), np.arange(30))


def test_a_run_that_does_not_move_has_the_errors_of_the_frozen_start() -> None:
    task = data()[0]
    train, test = np.arange(0, 80, 2), np.arange(1, 80, 2)
    half = TrainingData(task.task_id, task.images[train], task.labels[train], task.features[train])
    still = TrainingSpec(steps=1, batch_size=4, learning_rate=1e-12, shift=0, weight_decay=0)
    run = transfer_run(probe(), half, task.images[test], task.labels[test], still, head=HEAD)
    assert run.error == run.frozen_error
    assert run.balanced_error == run.frozen_balanced_error
    assert (run.n_train, run.n_test, run.steps) == (40, 40, 1)
    assert 0 < run.frozen_error < 0.9


def test_fine_tuning_all_layers_learns_what_a_head_cannot() -> None:
    """Judged on its own train images: a strong L2 keeps the head from them, and the layers bring them apart."""
    task = data()[1]
    spec = SHORT.model_copy(update={"steps": 30, "batch_size": 32, "shift": 0})
    weak = HeadSpec(l2=(1.0,))
    run = transfer_run(probe(), task, task.images, task.labels, spec, head=weak)
    assert run.error < run.frozen_error
