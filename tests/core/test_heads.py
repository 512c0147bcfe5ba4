"""Heads against scikit-learn's logistic regression, which solves the same convex problem."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from t2v_core.config import HeadSpec
from t2v_core.errors import ComputeError, TaskError
from t2v_core.heads import HeadFit, balanced_error, fit_head, predict, validation_mask

TIGHT = {"tolerance": 1e-7, "max_iterations": 5000}


def problem(n: int, d: int, c: int, *, seed: int = 0, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes of unequal sizes; features of very different scales, far from the origin."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate(
        [np.arange(c).repeat(2), rng.choice(c, n - 2 * c, p=np.arange(1, c + 1) / (c * (c + 1) / 2))]
    )
    rng.shuffle(labels)
    centres = signal * rng.normal(size=(c, d))
    features = centres[labels] + 2 * rng.normal(size=(n, d))
    return features * np.geomspace(0.1, 10, d) + 50, labels


def row_weights(labels: np.ndarray, balance: bool) -> np.ndarray:
    counts = np.bincount(labels)
    w = 1.0 / counts[labels] if balance else np.ones(len(labels))
    return w / w.sum()


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def scaled(features: np.ndarray, labels: np.ndarray, balance: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """The documented normalisation: centred, root mean squared length one."""
    mean = row_weights(labels, balance) @ features
    x = features - mean
    scale = np.sqrt((x**2).sum(1).mean())
    return x / scale, mean, scale


def reference(x: np.ndarray, labels: np.ndarray, l2: float, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum of ``sum_n w_n CE_n + l2/2 |W|^2``: scikit-learn's C sum_n w_n CE_n + |W|^2/2 at C = 1/l2.

    Of two classes scikit-learn knows one weight vector w = w_1 - w_0, and |W|^2 = |w|^2 / 2.
    """
    two = labels.max() == 1
    model = LogisticRegression(C=(2 if two else 1) / l2, tol=1e-10, max_iter=20000).fit(
        x, labels, sample_weight=weights
    )
    if two:
        return np.concatenate([-model.coef_, model.coef_]) / 2, np.array([-1, 1]) * model.intercept_ / 2
    return model.coef_, model.intercept_ - model.intercept_.mean()


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("l2", [1e-3, 1e-1])
@pytest.mark.parametrize(("n", "d", "c"), [(200, 12, 4), (200, 12, 2), (40, 90, 3), (40, 90, 2), (30, 30, 3)])
def test_same_optimum_as_scikit_learn(n: int, d: int, c: int, l2: float, balance: bool) -> None:
    features, labels = problem(n, d, c)
    fit = fit_head(features, labels, HeadSpec(l2=(l2,), balance=balance, **TIGHT))
    x, mean, scale = scaled(features, labels, balance)
    weight, bias = reference(x, labels, l2, row_weights(labels, balance))
    assert fit.converged
    assert fit.l2 == l2
    assert np.abs(fit.weight * scale - weight).max() < 1e-4 * np.abs(weight).max()
    got = fit.bias + fit.weight @ mean
    assert np.abs(got - got.mean() - bias).max() < 1e-4
    wanted = softmax(x @ weight.T + bias)
    p = softmax(features @ fit.weight.T + fit.bias)
    assert np.abs(p - wanted).max() < 1e-4
    assert fit.loss == pytest.approx(-np.log(wanted[np.arange(n), labels]).mean(), abs=1e-4)
    assert fit.accuracy == (wanted.argmax(1) == labels).mean()
    assert np.array_equal(predict(features, fit.weight, fit.bias), wanted.argmax(1))


def conditioned_gradient(fit: HeadFit, features: np.ndarray, labels: np.ndarray) -> float:
    """Largest entry of the objective's gradient, each eigendirection divided by the root of s/2 + l2."""
    w = row_weights(labels, True)
    x, mean, scale = scaled(features, labels, True)
    residual = (softmax(features @ fit.weight.T + fit.bias) - np.eye(len(fit.bias))[labels]) * w[:, None]
    spectrum, basis = np.linalg.eigh((x * w[:, None]).T @ x)
    gradient = (residual.T @ x + fit.l2 * fit.weight * scale) @ basis / np.sqrt(spectrum / 2 + fit.l2)
    return float(max(np.abs(gradient).max(), np.abs(residual.sum(0)).max() * np.sqrt(2)))


@pytest.mark.parametrize(("n", "d"), [(200, 12), (40, 90)])
def test_converged_says_that_the_gradient_is_below_the_tolerance(n: int, d: int) -> None:
    features, labels = problem(n, d, 3)
    for tolerance in (1e-2, 1e-4, 1e-6):
        fit = fit_head(features, labels, HeadSpec(l2=(1e-2,), tolerance=tolerance, max_iterations=1000))
        assert fit.converged
        assert conditioned_gradient(fit, features, labels) <= 1.001 * tolerance
    short = fit_head(features, labels, HeadSpec(l2=(1e-2,), tolerance=1e-6, max_iterations=2))
    assert not short.converged
    assert short.iterations == 2
    assert conditioned_gradient(short, features, labels) > 1e-6


def test_few_iterations_are_enough_for_badly_scaled_features() -> None:
    features, labels = problem(300, 40, 4)
    stretched = features * np.geomspace(1e-3, 1e3, 40)
    fit = fit_head(stretched, labels, HeadSpec(l2=(1e-4,)))
    assert fit.converged
    assert fit.iterations < 60


def test_balancing_makes_copies_of_a_class_not_matter() -> None:
    features, labels = problem(120, 8, 3)
    extra = np.flatnonzero(labels == 1).repeat(3)
    more, more_labels = np.concatenate([features, features[extra]]), np.concatenate([labels, labels[extra]])
    x, _, scale = scaled(features, labels, True)
    for balance in (True, False):
        spec = HeadSpec(l2=(1e-2,), balance=balance, **TIGHT)
        one = fit_head(features, labels, spec)
        # The scale is that of the rows, so that l2 in raw units is l2 scale^2: undo it.
        _, _, more_scale = scaled(more, more_labels, True)
        same = spec.model_copy(update={"l2": (1e-2 * scale**2 / more_scale**2,)})
        other = fit_head(more, more_labels, same)
        close = np.abs(one.weight - other.weight).max() < 1e-5 * np.abs(one.weight).max()
        assert close == balance


@pytest.mark.parametrize(("signal", "wanted"), [(0.0, None), (1.0, None), (8.0, 1e-4)])
def test_strength_with_the_lowest_held_out_loss(signal: float, wanted: float | None) -> None:
    features, labels = problem(160, 10, 3, signal=signal)
    spec = HeadSpec(**TIGHT)
    fit = fit_head(features, labels, spec)
    held = validation_mask(labels, np.arange(160), spec.validation_share, spec.seed)
    x, _, _ = scaled(features, labels, True)
    losses, errors = {}, {}
    for l2 in spec.l2:
        weight, bias = reference(x[~held], labels[~held], l2, row_weights(labels[~held], True))
        p = softmax(x[held] @ weight.T + bias)
        losses[l2] = -(row_weights(labels[held], True) * np.log(p[np.arange(held.sum()), labels[held]])).sum()
        errors[l2] = balanced_error(labels[held], p.argmax(1), 3)
    best = min(losses, key=lambda k: losses[k])
    assert fit.l2 == best
    assert wanted is None or best == wanted
    assert fit.held_out_loss == pytest.approx(losses[best], rel=1e-4)
    assert fit.held_out_error == pytest.approx(errors[best])


def test_groups_keep_copies_from_the_validation() -> None:
    """Each image four times, labels of noise: with groups nothing generalises, without them memory looks like skill."""
    rng = np.random.default_rng(0)
    features, labels, groups = rng.normal(size=(60, 80)).repeat(4, 0), rng.integers(0, 2, 60).repeat(4), np.arange(60)
    features += 0.01 * rng.normal(size=features.shape)
    spec = HeadSpec(l2=(1e-4, 1e-2, 1.0))
    assert fit_head(features, labels, spec, groups=groups.repeat(4)).l2 == 1.0
    assert fit_head(features, labels, spec).l2 == 1e-4


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_never_split_and_every_class_keeps_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, rng.integers(3, 40), 100)
    labels = rng.choice(3, 100, p=[0.85, 0.1, 0.05])
    share = float(rng.uniform(0.1, 0.6))
    held = validation_mask(labels, groups, share, seed)
    assert not set(groups[held]) & set(groups[~held])
    assert set(labels[~held]) == set(labels)
    n_groups = len(np.unique(groups))
    assert len(np.unique(groups[held])) <= np.ceil(share * n_groups)
    assert np.array_equal(held, validation_mask(labels, groups, share, seed))


def test_share_of_rows_is_held_out_where_all_is_plain() -> None:
    labels = np.arange(100) % 2
    held = validation_mask(labels, np.arange(100), 0.3, 0)
    assert held.sum() == 30
    assert not np.array_equal(held, validation_mask(labels, np.arange(100), 0.3, 1))


def test_nothing_to_hold_out_takes_the_strongest() -> None:
    features, labels = problem(40, 5, 2)
    fit = fit_head(features, labels, groups=labels)
    assert fit.l2 == 1e-1
    assert np.isnan(fit.held_out_loss)
    assert np.isnan(fit.held_out_error)


def test_permuted_classes_permute_the_head() -> None:
    features, labels = problem(150, 10, 4)
    order = np.array([2, 0, 3, 1])
    spec = HeadSpec(**TIGHT)
    one, other = fit_head(features, labels, spec), fit_head(features, order[labels], spec)
    assert one.l2 == other.l2
    assert np.abs(other.weight[order] - one.weight).max() < 1e-6 * np.abs(one.weight).max()
    assert other.loss == pytest.approx(one.loss, rel=1e-8)


def test_scale_and_place_of_the_features_do_not_matter() -> None:
    """l2 means the same for every extractor."""
    features, labels = problem(150, 10, 3)
    spec = HeadSpec(**TIGHT)
    one, other = fit_head(features, labels, spec), fit_head(1000 * features - 7, labels, spec)
    assert one.l2 == other.l2
    assert np.allclose(other.weight * 1000, one.weight, rtol=1e-5, atol=1e-8)


def test_a_class_without_training_rows_gets_a_row() -> None:
    features, labels = problem(60, 5, 3)
    fit = fit_head(features, labels, HeadSpec(l2=(1e-2,)), n_classes=5)
    assert fit.weight.shape == (5, 5)
    assert set(predict(features, fit.weight, fit.bias)) <= {0, 1, 2}


def test_same_input_same_bytes_and_input_untouched() -> None:
    features, labels = problem(80, 30, 3)
    kept = features.copy()
    one, other = fit_head(features, labels), fit_head(features.astype(np.float64), labels)
    assert one.weight.tobytes() == other.weight.tobytes()
    assert np.array_equal(features, kept)


def test_balanced_error_by_hand() -> None:
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    assert balanced_error(labels, predicted, 2) == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert balanced_error(labels, predicted, 5) == pytest.approx((1 / 4 + 1 / 2) / 2)


def test_one_class_is_an_error() -> None:
    with pytest.raises(TaskError, match="at least two classes, got 1 in 6 rows"):
        fit_head(np.zeros((6, 2)), np.full(6, 3))


def test_features_that_are_not_finite() -> None:
    features, labels = problem(20, 4, 2)
    features[[3, 5], 1] = np.inf, np.nan
    with pytest.raises(ComputeError, match="2 of 20 feature rows are not finite"):
        fit_head(features, labels)


@pytest.mark.parametrize("balance", [True, pytest.param(False)])
def test_equal_features_give_a_head_of_zeros(balance: bool) -> None:
    """Rounding in the mean must not be blown up to features: weights of 1e12 were seen without balancing."""
    row = np.random.default_rng(0).normal(size=(1, 12)).astype(np.float32)
    labels = np.repeat([0, 1], [13, 7])
    fit = fit_head(row.repeat(20, 0), labels, HeadSpec(balance=balance))
    assert np.abs(fit.weight).max() < 1e-3
    share = np.array([13, 7]) / 20
    assert fit.loss == pytest.approx(np.log(2) if balance else -(share * np.log(share)).sum(), rel=1e-3)
