"""Scores of experts by their features: each against a case worked by hand, a published value or a dense oracle."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, spearmanr
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits
from sklearn.linear_model import BayesianRidge

from t2v_core.config import ScoringSpec
from t2v_core.errors import ComputeError, DataError, TaskError, UnknownNameError
from t2v_core.heads import fit_head
from t2v_core.library import TaskRows
from t2v_core.transferability import METHODS, Labelled, score
from t2v_core.transferability.block import SCORES, score_block, scores_matrix, train_sample
from t2v_core.transferability.leep import log_expected_prediction, source_probabilities
from t2v_core.transferability.original_head import heads_of_state, original_head

SPEC = ScoringSpec(methods=["logme", "hscore", "leep", "nleep", "parc", "knn", "linear_probe"])


def digits(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    picked = np.random.default_rng(seed).permutation(len(labels))[:n]
    return images[picked], labels[picked]


def classes(n: int, d: int, c: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes; the smaller the spread, the better the features."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % c
    return rng.standard_normal((c, d))[labels] + spread * rng.standard_normal((n, d)), labels


def value(method: str, *args: object, **changes: object) -> float:
    got = score(method, Labelled.of(*args), SPEC.model_copy(update=changes))
    assert got.seconds >= 0
    assert not got.reason
    return got.value


# LogME


def dense_evidence(features: np.ndarray, y: np.ndarray) -> float:
    """max over alpha, beta of log N(y; 0, I / beta + F F' / alpha), by brute force."""
    n = len(y)

    def minus(logs: np.ndarray) -> float:
        alpha, beta = np.exp(logs)
        covariance = np.eye(n) / beta + features @ features.T / alpha
        return -float(multivariate_normal.logpdf(y, np.zeros(n), covariance))

    starts = [(a, b) for a in (-2.0, 2.0, 6.0) for b in (0.0, 3.0)]
    options = {"xatol": 1e-6, "fatol": 1e-9}
    found = [minimize(minus, s, method="Nelder-Mead", bounds=[(-9, 16)] * 2, options=options).fun for s in starts]
    return -min(found)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (25, 60)])
def test_logme_is_the_evidence_of_a_dense_bayesian_regression(n: int, d: int) -> None:
    x, y = classes(n, d, 3, 0.8)
    expected = np.mean([dense_evidence(x, (y == c).astype(float)) for c in range(3)]) / n
    assert value("logme", x, y) == pytest.approx(expected, abs=1e-5)


def test_logme_agrees_with_scikit_learns_evidence() -> None:
    x, y = digits(300)
    expected = []
    for c in range(10):
        zero = {"alpha_1": 0, "alpha_2": 0, "lambda_1": 0, "lambda_2": 0}
        model = BayesianRidge(fit_intercept=False, compute_score=True, max_iter=3000, tol=1e-9, **zero)
        expected.append(model.fit(x, (y == c).astype(float)).scores_[-1])
    assert value("logme", x, y) == pytest.approx(np.mean(expected) / 300, abs=1e-4)


def test_logme_does_not_change_with_the_scale_of_features() -> None:
    x, y = digits(100)
    assert value("logme", 1e3 * x, y) == pytest.approx(value("logme", 1e-3 * x, y), rel=1e-6)


# H-score


@pytest.mark.parametrize(("n", "d"), [(60, 5), (30, 80)])
def test_hscore_is_the_dense_formula_with_scikit_learns_covariance(n: int, d: int) -> None:
    x, y = classes(n, d, 4, 1.0)
    fitted = LedoitWolf().fit(x)
    centred = x - x.mean(0)
    means = np.stack([centred[y == c].mean(0) for c in y])
    between = means.T @ means / n
    expected = (1 - fitted.shrinkage_) * np.trace(np.linalg.inv(fitted.covariance_) @ between)
    assert value("hscore", x, y) == pytest.approx(expected, rel=1e-8)


def test_hscore_by_hand() -> None:
    """One feature: there is nothing to shrink towards but itself, and the score is the share of variance between.

    Features 0, 2 | 4, 6: overall variance 5, class means -2 and 2 about the mean, variance between 4: 4/5.
    """
    x, y = np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1])
    a = LedoitWolf().fit(x).shrinkage_
    assert value("hscore", x, y) == pytest.approx((1 - a) * 4 / 5)


# LEEP


def test_leep_by_hand() -> None:
    """Two source labels, four images.

    theta = (.8, .2), (.6, .4) of class 0 and (.1, .9), (.5, .5) of class 1. P(z) = (2, 2)/4;
    P(y=0 | z) = 1.4/2, .6/2 and P(y=1 | z) = .6/2, 1.4/2. Expected: .8x.7+.2x.3, .6x.7+.4x.3, .1x.3+.9x.7, .5.
    """
    theta = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.5, 0.5]])
    expected = np.mean(np.log([0.62, 0.54, 0.66, 0.5]))
    assert log_expected_prediction(theta, np.array([0, 0, 1, 1])) == pytest.approx(expected)
    assert value("leep", np.zeros((4, 1)), [5, 5, 7, 7], None, theta) == pytest.approx(expected)


def test_leep_at_its_ends() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert log_expected_prediction(np.eye(3)[labels], labels) == pytest.approx(0)  # the source knows the task
    assert log_expected_prediction(np.ones((6, 1)), labels) == pytest.approx(-math.log(3))  # it knows nothing


def test_source_probabilities_of_several_heads_are_each_heads_share() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3))
    heads = [(rng.standard_normal((2, 3)), rng.standard_normal(2)), (rng.standard_normal((4, 3)), np.zeros(4))]
    theta = source_probabilities(x, heads)
    assert theta.shape == (5, 6)
    assert theta[:, :2].sum(1) == pytest.approx(np.full(5, 0.5))
    logits = x @ heads[0][0].T + heads[0][1]
    assert theta[:, :2] == pytest.approx(np.exp(logits) / np.exp(logits).sum(1, keepdims=True) / 2)
    # A head that says the same of every image changes LEEP to the mean of both heads' predictors, nothing else.
    labels = np.array([0, 1, 0, 1, 1])
    blind = source_probabilities(x, [(np.zeros((3, 3)), np.zeros(3))])
    assert log_expected_prediction(blind, labels) == pytest.approx(np.mean(np.log(np.array([0.4, 0.6])[labels])))


def test_leep_without_a_head_says_so() -> None:
    x, y = digits(40)
    got = score("leep", Labelled.of(x, y))
    assert math.isnan(got.value)
    assert "head is not known" in got.reason


# N-LEEP


def test_nleep_of_separate_clusters_is_nearly_certain_and_of_noise_the_class_frequencies() -> None:
    x, y = classes(120, 8, 3, 0.01)
    assert value("nleep", x, y) == pytest.approx(0, abs=1e-6)
    rng = np.random.default_rng(1)
    noise = value("nleep", rng.standard_normal((400, 5)), np.arange(400) % 2, components=1)
    assert -math.log(2) <= noise < -math.log(2) + 0.05


def test_nleep_with_one_cluster_is_leep_that_knows_nothing() -> None:
    x, y = digits(40)
    expected = np.mean(np.log(np.bincount(y)[y] / 40))
    assert value("nleep", np.ones_like(x), y) == pytest.approx(expected)


# PARC


def test_parc_is_the_published_formula() -> None:
    x, y = digits(60)
    lower = np.tril_indices(60, -1)
    # Rounded, as ten one-hot columns are correlated by -1/9 with a rounding error, and ties must stay ties.
    features, labels = np.round(1 - np.corrcoef(x), 10), np.round(1 - np.corrcoef(np.eye(10)[y]), 10)
    expected = spearmanr(features[lower], labels[lower]).statistic
    assert value("parc", x, y) == pytest.approx(expected, abs=1e-9)


def test_parc_by_hand() -> None:
    """Four images, two of each class, one cross pair nearer than the pairs within: ranks 2.5, 2.5 | 1, 4.5, 4.5, 6."""
    angles = np.radians([0, 40, 70, 110])  # within: 40 and 40 degrees; across: 70, 110, 30, 70
    # Two features would be centred to +-1: take three orthogonal to the ones vector's plane.
    plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
    x = np.stack([np.cos(angles), np.sin(angles)], 1) @ plane
    ranks, apart = np.array([2.5, 4.5, 6, 1, 4.5, 2.5]), np.array([0, 1, 1, 1, 1, 0])
    assert value("parc", x, [0, 0, 1, 1]) == pytest.approx(np.corrcoef(ranks, apart)[0, 1])


# k-NN


def test_knn_leaves_the_whole_group_out() -> None:
    """Pairs of the same picture: each image's nearest other one is its twin, which must not vote."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((30, 10)), 2, axis=0)
    labels, groups = np.repeat(rng.permutation(30) % 2, 2), np.repeat(np.arange(30), 2)
    assert value("knn", x, labels, None, None, k=1) == 1.0
    assert value("knn", x, labels, groups, None, k=1) < 0.8


def test_knn_by_hand() -> None:
    """On a circle at 0, 10, 25 | 183, 195 degrees and one of the second class at 21, which its neighbours outvote."""
    angles = np.radians([0, 10, 25, 183, 195, 21])
    x = np.stack([np.cos(angles), np.sin(angles)], 1)
    x = np.concatenate([x, -x])  # the mean is zero: centring changes nothing
    y = np.array([0, 0, 0, 1, 1, 1] * 2)
    y[6:] = 1 - y[6:]
    groups = np.arange(12)
    expected = []
    for i in range(12):
        d = 1 - x @ x[i]
        d[i] = 9
        near = np.argsort(d, kind="stable")[:3]
        votes = np.bincount(y[near], weights=1 / d[near], minlength=2)
        expected.append(votes.argmax() == y[i])
    correct = np.array(expected)
    by_class = np.mean([correct[y == c].mean() for c in (0, 1)])
    assert value("knn", x, y, groups, None, k=3) == pytest.approx(by_class)


def test_one_group_can_teach_nothing() -> None:
    x, y = digits(20)
    assert value("knn", x, y, np.zeros(20)) == 0.0
    assert math.isnan(score("linear_probe", Labelled.of(x, y, np.zeros(20))).value)


# linear probe


def test_linear_probe_is_the_heads_held_out_loss() -> None:
    x, y = digits(120)
    assert value("linear_probe", x, y) == -fit_head(x, y, SPEC.head).held_out_loss


# All of them


@pytest.mark.parametrize("method", list(METHODS))
def test_better_features_score_higher(method: str) -> None:
    scores = []
    for spread in (0.3, 1.5, 6.0):
        x, y = classes(90, 12, 3, spread)
        head = fit_head(x, y, SPEC.head)
        theta = source_probabilities(x, [(head.weight, head.bias)])
        scores.append(value(method, x, y, None, theta))
    assert scores[0] > scores[1] > scores[2]


@pytest.mark.parametrize("method", list(METHODS))
def test_names_of_labels_and_order_of_images_do_not_matter(method: str) -> None:
    x, y = digits(80)
    theta = source_probabilities(x, [(np.random.default_rng(0).standard_normal((4, 64)) / 20, np.zeros(4))])
    first = value(method, x, y, None, theta)
    assert value(method, x, y, None, theta) == first  # the same again, to the bit
    names = np.array(["j", "i", "h", "g", "f", "e", "d", "c", "b", "a"])
    order = np.arange(80) if method in ("nleep", "linear_probe") else np.random.default_rng(1).permutation(80)
    # A seeded start of the mixture, and the seeded groups held out, depend on the order of the images.
    assert value(method, x[order], names[y][order], order, theta[order]) == pytest.approx(first, abs=2e-3)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "leep"])
def test_equal_features_are_no_error(method: str) -> None:
    got = score(method, Labelled.of(np.ones((24, 6)), np.arange(24) % 2))
    assert math.isfinite(got.value)


def test_what_cannot_be_scored() -> None:
    x, y = digits(20)
    with pytest.raises(TaskError, match="two classes, got 1"):
        Labelled.of(x, np.zeros(20))
    with pytest.raises(ComputeError, match="1 of 20 feature rows"):
        Labelled.of(np.where(np.arange(20)[:, None] == 3, np.nan, x), y)
    with pytest.raises(DataError, match=r"\[N, D\]"):
        Labelled.of(x, y[:5])
    with pytest.raises(DataError, match="sum to one"):
        Labelled.of(x, y, None, np.ones((20, 2)))
    with pytest.raises(UnknownNameError, match="did you mean 'logme'"):
        score("logm", Labelled.of(x, y))


def test_the_config_names_all_methods() -> None:
    (inner,) = get_args(ScoringSpec.model_fields["methods"].annotation)
    assert set(get_args(inner)) == set(METHODS)


# Blocks


def rows_of(labels: np.ndarray, test: np.ndarray) -> TaskRows:
    return TaskRows(np.arange(len(labels)), labels, test, np.arange(len(labels)))


def test_a_block_scores_the_train_split_only() -> None:
    x, y = digits(200)
    test = np.arange(200) >= 120
    task = rows_of(y, test)
    spec = SPEC.model_copy(update={"methods": ["logme", "knn"], "max_images": 50})
    rows, labels, _ = train_sample(task, spec)
    assert len(rows) == 50
    assert not test[rows].any()
    assert np.ptp(np.bincount(labels)) <= 1  # as even as can be
    spoiled = np.where(test[:, None], 1e6, x)
    table = score_block("e", x, [], [("t", task)], spec)
    assert table.schema == SCORES
    assert table["score"].to_pylist() == score_block("e", spoiled, [], [("t", task)], spec)["score"].to_pylist()
    assert table["n_images"].to_pylist() == [50, 50]
    assert table["score"].to_pylist()[0] == value("logme", x[rows], labels)


def test_a_task_that_cannot_be_scored_takes_no_other_along() -> None:
    x, y = digits(60)
    one, good = rows_of(np.zeros(60, int), np.zeros(60, bool)), rows_of(y, np.zeros(60, bool))
    spec = SPEC.model_copy(update={"methods": ["parc", "leep"]})
    rows = score_block("e", x, [], [("one", one), ("good", good)], spec).to_pylist()
    assert ["two classes" in r["reason"] for r in rows] == [True, True, False, False]
    assert "head is not known" in rows[3]["reason"]
    found = scores_matrix(score_block("e", x, [], [("good", good)], spec), ["x", "good"], ["generic", "e"])
    assert list(found) == ["LEEP", "PARC"]  # by title, in the registry's order
    assert found["PARC"][1, 1] == -rows[2]["score"]
    assert np.isnan(found["PARC"][0]).all()
    assert np.isnan(found["LEEP"]).all()


# Original heads


def test_the_head_that_came_with_the_weights() -> None:
    from t2v_core.architectures import architecture_of, build_network

    assert original_head("resnet18", "random", 32) == []
    network = build_network("resnet18", "random", 5)
    state, name = network.state_dict(), architecture_of("resnet18").head
    [(weight, bias)] = original_head("resnet18", state, 32)
    assert weight.tolist() == state[f"{name}.weight"].tolist()
    assert bias.tolist() == state[f"{name}.bias"].tolist()
    # A file without the head's tensors: what the network was built with is no head of an expert.
    assert original_head("resnet18", {k: v for k, v in state.items() if not k.startswith(name)}, 32) == []


def test_heads_that_an_expert_was_trained_with() -> None:
    state = {
        "s/b.weight": np.ones((2, 3)),
        "s/b.bias": np.zeros(2),
        "s/a=1.weight": np.zeros((4, 3)),
        "s/a=1.bias": np.ones(4),
    }
    heads = heads_of_state(state)
    assert [w.shape for w, _ in heads] == [(4, 3), (2, 3)]
    assert [float(b.sum()) for _, b in heads] == [4.0, 0.0]
