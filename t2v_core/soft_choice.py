"""The problem that every fit of MODEL2VEC ends in: which biases make the softmax of distances predict the best expert.

Distances are ``d0 + X beta`` with R unknowns an expert. Where no task of an expert is known, d0 says nothing of its
level: there the distance has an offset of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, minimize

__all__ = ["SoftChoice", "choose_penalty", "cross_entropy", "solve_soft_choice"]

START = np.log(10.0)
"""log gamma to begin from, and the centre of its prior."""


@dataclass(frozen=True, eq=False)
class SoftChoice:
    """A solution."""

    beta: np.ndarray
    """``[E, R]``."""
    gamma: float
    """Inverse temperature."""
    offsets: np.ndarray
    """``[E]``, added to the distances; zero where none was free."""
    unknowns: np.ndarray
    """The solver's own, to start another penalty from."""


def cross_entropy(logits: np.ndarray, target: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Of each task, ``[T]``."""
    masked = np.where(candidates, logits, -np.inf)
    top = masked.max(1, keepdims=True)
    e = np.exp(masked - top)
    return np.asarray(-(target * np.log(np.maximum(e / e.sum(1, keepdims=True), 1e-12))).sum(1))


def choose_penalty(penalties: tuple[float, ...], losses: np.ndarray, rule: str) -> float:
    """By the held-out losses ``[L, T]`` of the penalties; NaN: not tried.

    ``one_se``: the strongest penalty whose mean loss is above the lowest by less than a standard error of the paired
    difference.
    """
    mean = np.where(np.isfinite(losses).all(1), losses.sum(1), np.inf)
    best = int(np.argmin(mean))
    if rule == "one_se":
        for k in np.argsort(penalties)[::-1]:
            difference = losses[k] - losses[best]
            if difference.mean() <= difference.std() / np.sqrt(len(difference)):
                return float(penalties[k])
    return float(penalties[best])


def solve_soft_choice(
    distances: np.ndarray,
    slopes: np.ndarray,
    target: np.ndarray,
    candidates: np.ndarray,
    l2: float,
    *,
    free: np.ndarray,
    scale: float = 1.0,
    start: np.ndarray | None = None,
    steps: int = 2000,
    tolerance: float = 1e-6,
) -> SoftChoice:
    """Minimise cross entropy + ``l2/2 |beta|^2`` + a weak prior on gamma + that of the offsets.

    The logit of expert i on task t is ``-gamma (d0_ti + scale x_ti . beta_i) - o_i``. o_i is zero unless ``free``, and
    has a standard normal prior, which counts as one task of the n.

    Args:
        distances: ``[n, E]``, d0.
        slopes: ``[E, n, R]``; products with it are in its precision.
        target: ``[n, E]``, rows sum to one over the candidates.
        candidates: ``[n, E]`` bool.
        l2: penalty.
        free: ``[E]`` bool, experts with an offset.
        scale: of the slopes.
        start: unknowns of another solution.
        steps: of the solver, at most.
        tolerance: largest entry of the gradient to stop at.
    """
    (n, e), r = distances.shape, slopes.shape[2]
    # The solver's unknowns are beta / unit: a strong penalty's curvature would stop it before the others have moved.
    unit = 1.0 / np.sqrt(max(l2, 1.0))
    factor, l2 = slopes.dtype.type(scale * unit), l2 * unit**2

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        beta, offset, log_gamma = flat[: e * r].reshape(e, r), np.where(free, flat[e * r : -1], 0.0), flat[-1]
        gamma = np.exp(log_gamma)
        moved = distances + np.matmul(slopes, factor * beta.astype(slopes.dtype)[:, :, None])[:, :, 0].T
        scaled = -gamma * moved
        masked = np.where(candidates, scaled - offset, -np.inf)
        top = masked.max(1, keepdims=True)
        exp = np.exp(masked - top)
        z = exp.sum(1, keepdims=True)
        log_p = np.where(candidates, masked - top - np.log(z), 0.0)
        residual = (exp / z - target) / n
        off = log_gamma - START
        gradient = np.empty_like(flat)
        back = np.matmul((-gamma * residual).T.astype(slopes.dtype)[:, None, :], slopes)[:, 0]
        gradient[: e * r] = (factor * back + l2 * beta).reshape(-1)
        gradient[e * r : -1] = np.where(free, offset / n - residual.sum(0), 0.0)
        gradient[-1] = (residual * np.where(candidates, scaled, 0.0)).sum() + 0.02 * off
        loss = -(target * log_p).sum() / n + 0.5 * l2 * np.square(beta).sum() + 0.01 * off**2
        return float(loss + 0.5 * np.square(offset).sum() / n), gradient

    units = np.append(np.full(e * r, unit), np.ones(e + 1))
    begin = np.append(np.zeros(e * r + e), START) if start is None else start / units
    # Where distances say little a step may ask for any gamma: beyond e^15 its exponential overflows.
    bound = np.append(np.full(len(begin) - 1, np.inf), 15.0)
    options = {"maxiter": steps, "gtol": tolerance}
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=Bounds(-bound, bound), options=options)
    x = found.x * units
    gamma = float(np.exp(x[-1]))
    return SoftChoice(x[: e * r].reshape(e, r), gamma, np.where(free, x[e * r : -1], 0.0) / gamma, x)
