"""Which (image, class) pairs a Monte Carlo estimate runs a backward pass for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t2v_core.errors import ComputeError

__all__ = ["Draws", "check_importance", "importance_draws", "model_draws", "systematic"]


@dataclass(frozen=True)
class Draws:
    """M distinct (image, class) pairs with their weights: F = sum_m weight_m || sqrt(p_c) dz/dw . a_c ||^2."""

    images: np.ndarray
    """``[M]`` int64, ascending."""
    classes: np.ndarray
    """``[M]`` int64."""
    weights: np.ndarray
    """``[M]`` float64; includes the 1/N of the mean over images and the multiplicity of repeated draws."""
    early_weights: np.ndarray
    """``[M]`` float64: the weights for the early layers, which a share of the draws goes on to; 0 for the others."""
    n_draws: int
    """Draws asked for; repeated pairs cost one pass."""


def _collect(pairs: np.ndarray, weight_of: np.ndarray, n_classes: int, n_draws: int, early: np.ndarray) -> Draws:
    """Distinct pairs of all draws; ``early [m]`` are the draws' weights for the early layers, in units of their own."""
    unique, inverse, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    early_counts = np.bincount(inverse, weights=early, minlength=len(unique))
    value = weight_of[unique]
    return Draws(unique // n_classes, unique % n_classes, counts * value, early_counts * value, n_draws)


def check_importance(importance: np.ndarray) -> None:
    """Refuse importances that are not finite, or whose sum is not.

    Raises:
        ComputeError: they are not.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = importance.sum(dtype=np.float64)
    if not np.isfinite(total):
        raise ComputeError("the head's predictions are not finite; look for a diverged head or huge features")


def systematic(probabilities: np.ndarray, n_draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) ``[m]`` of m cells, drawn with ``probabilities [N, C]`` at equal steps from a random offset.

    Rows are in random order and the cells of a row adjacent, so that the draws spread over rows.
    """
    n, c = probabilities.shape
    order = rng.permutation(n)
    cumulated = np.cumsum(probabilities[order].reshape(-1))
    points = (np.arange(n_draws) + rng.random()) / n_draws * cumulated[-1]
    picked = np.searchsorted(cumulated, points, side="right").clip(max=n * c - 1)
    return order[picked // c], picked % c


def importance_draws(
    importance: np.ndarray, n_draws: int, seed: int, uniform_share: float = 0.05, early_share: float = 1.0
) -> Draws:
    """Unbiased importance sampling of the sum over images and classes, drawn systematically.

    ``pi = 0.95 lambda / sum(lambda) + 0.05 uniform`` over the pairs with ``lambda > 0``; one uniform offset picks
    ``n_draws`` equally spaced points of the cumulated pi, images in random order, the classes of an image adjacent,
    so that the draws spread over images. A draw of pair (n, c) weighs ``1 / (N m pi)``.

    Args:
        importance: lambda ``[N, C]``, see `t2v_core.fisher.cotangents.importance`.
        n_draws: m.
        seed: of the order and the offset.
        uniform_share: share of the uniform part, which bounds the weights.
        early_share: share of the draws that go on to the early layers: every k-th, ``k = round(1 / early_share)``,
            from a random one on, each weighing k times as much there.
    """
    n, c = importance.shape
    rng = np.random.default_rng(seed)
    check_importance(importance)
    value = np.maximum(importance.astype(np.float64), 0.0)
    total, positive = value.sum(), value > 0
    if total <= 0:
        return Draws(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0), n_draws)
    pi = (1 - uniform_share) * value / total + uniform_share * positive / positive.sum()
    images, classes = systematic(pi, n_draws, rng)
    with np.errstate(divide="ignore"):
        weight_of = np.where(positive, 1.0 / (n * n_draws * pi), 0.0).reshape(-1)
    every = max(1, round(1 / early_share))
    early = np.where(np.arange(n_draws) % every == rng.integers(every), float(every), 0.0)
    return _collect(images * c + classes, weight_of, c, n_draws, early)


def model_draws(probabilities: np.ndarray, n_draws: int, seed: int) -> Draws:
    """Labels drawn from the model, y ~ p_w(y|x), images in turn (each ``n_draws / N`` times, to within one).

    A draw of (n, y) estimates ``E_y ||a_y . dz/dw||^2``; since the pass uses ``sqrt(p_y) a_y`` it weighs
    ``1 / (m p_y)``.
    """
    n, c = probabilities.shape
    rng = np.random.default_rng(seed)
    images = rng.permutation(n)[np.arange(n_draws) % n]
    cumulated = np.cumsum(probabilities.astype(np.float64), axis=1)
    cumulated /= cumulated[:, -1:]
    classes = (rng.random(n_draws)[:, None] > cumulated[images]).sum(1).clip(max=c - 1)
    with np.errstate(divide="ignore"):
        weight_of = np.where(probabilities > 0, 1.0 / (n_draws * probabilities.astype(np.float64)), 0.0).reshape(-1)
    return _collect(images * c + classes, weight_of, c, n_draws, np.ones(n_draws))
