"""Predicted errors: against fits that really leave a task out, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from t2v_core.errors import DataError
from t2v_core.prediction import COVERAGE, ErrorModel, fit_error_model


def library(t: int = 60, e: int = 6, seed: int = 0, noise: float = 0.03) -> tuple[np.ndarray, ...]:
    """Errors that are what the model says, and noise: hardness, distance within the task, an effect of the expert."""
    rng = np.random.default_rng(seed)
    head, distances = rng.uniform(0.02, 0.4, t), rng.uniform(0.1, 0.6, (t, e))
    within = distances - distances.mean(1, keepdims=True)
    y = 0.1 + 0.8 * np.arcsin(np.sqrt(head))[:, None] + 0.3 * within + 0.05 * rng.standard_normal(e)
    errors = np.sin(np.clip(y + noise * rng.standard_normal((t, e)), 0, np.pi / 2)) ** 2
    own = np.zeros((t, e), bool)
    own[np.arange(e), np.arange(e)] = True
    return errors, own, distances, head


def fitted(*args: np.ndarray, uses_head: bool = True) -> ErrorModel:
    model = fit_error_model(*args, uses_head=uses_head)
    assert model is not None
    return model


def test_residuals_are_those_of_fits_without_the_task() -> None:
    """The closed form against 12 real fits: the largest miss of all, and the median, are the same."""
    errors, own, distances, head = library(t=12)
    misses = []
    for t in range(12):
        rest = np.arange(12) != t
        other = fitted(errors[rest], own[rest], distances[rest], head[rest])
        predicted, _, _ = other.predict(head[t], distances[t])
        y = [np.arcsin(np.sqrt(v)) for v in (errors[t], predicted)]
        misses.append(np.abs(y[0] - y[1])[~own[t]])
    # Standardised by 11 tasks instead of 12, the penalty means a little less or more.
    got = fitted(errors, own, distances, head).misses
    assert got[[0, 50, 100]] == pytest.approx(np.quantile(np.concatenate(misses), [0, 0.5, 1]), abs=2e-3)


def test_it_finds_what_made_the_errors() -> None:
    errors, own, distances, head = library(t=400, noise=0.0)
    model = fitted(errors, own, distances, head)
    predicted, low, high = model.predict(head[0], distances[0])
    assert predicted == pytest.approx(errors[0], abs=5e-3)
    assert ((low <= predicted) & (predicted <= high)).all()


def test_intervals_hold_what_they_promise_on_new_tasks() -> None:
    errors, own, distances, head = library(t=300, seed=1)
    model = fitted(errors[:100], own[:100], distances[:100], head[:100])
    inside = []
    for t in range(100, 300):
        _, low, high = model.predict(head[t], distances[t])
        inside.append((low <= errors[t]) & (errors[t] <= high))
    assert np.mean(inside) == pytest.approx(COVERAGE, abs=0.04)
    assert model.summary[1] == pytest.approx(COVERAGE, abs=0.04)


def test_a_cell_of_ones_own_changes_nothing() -> None:
    errors, own, distances, head = library()
    spoiled = np.where(own, 1.0, errors)
    assert fitted(spoiled, own, distances, head).tensors()["weights"] == pytest.approx(
        fitted(errors, own, distances, head).weights
    )


def test_which_is_better_is_certain_far_apart_and_even_close_by() -> None:
    errors, own, distances, head = library(noise=0.01)
    distances[:, 0], distances[:, 1] = 0.1, 0.6
    errors[:, 0], errors[:, 1] = 0.05, 0.5
    model = fitted(errors, own, distances, head)
    better = model.better(0.2, distances[0], 0)
    assert better[0] == 0.5
    assert better[1] < 0.02
    assert model.better(0.2, distances[0], 1)[0] > 0.98


def test_order_of_experts_does_not_matter() -> None:
    errors, own, distances, head = library()
    order = np.random.default_rng(0).permutation(6)
    a, b = fitted(errors, own, distances, head), fitted(errors[:, order], own[:, order], distances[:, order], head)
    assert a.predict(0.1, distances[0])[0][order] == pytest.approx(b.predict(0.1, distances[0][order])[0])


def test_tasks_without_a_head_error_are_left_out_and_unknown_experts_are_predicted_too() -> None:
    errors, own, distances, head = library()
    distances[:, 0] = np.nan
    head[:10] = np.nan
    model = fitted(errors, own, distances, head)
    assert model.summary[0] == 50
    assert np.isfinite(model.predict(0.1, distances[0])[0]).all()
    assert fit_error_model(errors, own, distances, np.full(60, np.nan), uses_head=True) is None


def test_through_tensors_and_in_words() -> None:
    errors, own, distances, head = library()
    model = fitted(errors, own, distances, head, uses_head=False)
    back = ErrorModel.of_tensors(model.tensors())
    assert back.predict(3.0, distances[0])[0].tolist() == model.predict(3.0, distances[0])[0].tolist()
    assert "the embedding's norm" in back.sentence()
    assert "60 tasks" in fitted(errors, own, distances, head).sentence()


def test_shapes_that_do_not_fit() -> None:
    errors, own, distances, head = library()
    with pytest.raises(DataError, match=r"three times \[T, E\]"):
        fit_error_model(errors, own, distances[:, :2], head, uses_head=True)
