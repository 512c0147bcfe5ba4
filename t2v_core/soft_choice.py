r"""The problem that every fit of MODEL2VEC ends in: which biases make the softmax of distances predict the best expert.

To first order in the bias, the logit of expert i on task t is ``-gamma (d0_ti + x_ti . beta_i)`` with R unknowns an
expert. What is penalised is ``v = gamma beta``, what the bias does to the logits. Then the problem is convex in
(gamma, v), and how far a bias may go does not hang on how much the distances themselves are worth: with ``|beta|^2``,
tasks could only be allowed a bias by a large gamma, which made the predictions of all experts too sure.

Where no task of an expert is known, d0 says nothing of its level: there the distance has an offset of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

__all__ = ["SoftChoice", "choose_penalty", "cross_entropy", "solve_soft_choice"]

START = 10.0
"""gamma to begin from, and where its prior is largest."""
PRIOR = 0.02
"""Of gamma: ``0.02 (u - 1 - log u)`` with u = gamma / 10: convex, and ``0.01 (log u)^2`` near u = 1."""


@dataclass(frozen=True, eq=False)
class SoftChoice:
    """A solution."""

    beta: np.ndarray
    """``[E, R]``."""
    gamma: float
    """Inverse temperature."""
    offsets: np.ndarray
    """``[E]``, added to the distances; zero where none was free."""


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
    start: SoftChoice | None = None,
    steps: int = 2000,
    tolerance: float = 1e-8,
) -> SoftChoice:
    """Minimise cross entropy + ``l2/2 |v|^2`` + weak priors on gamma and the offsets; v = gamma beta.

    The logit of expert i on task t is ``-gamma d0_ti - scale x_ti . v_i - o_i``. o_i is zero unless ``free``, and has
    a standard normal prior, which counts as one task of the n.

    It takes few steps where the columns of each expert's slopes are orthogonal.

    Args:
        distances: ``[n, E]``, d0.
        slopes: ``[E, n, R]``; products with it are in its precision.
        target: ``[n, E]``, rows sum to one over the candidates.
        candidates: ``[n, E]`` bool.
        l2: penalty.
        free: ``[E]`` bool, experts with an offset.
        scale: of the slopes.
        start: another solution.
        steps: of the solver, at most.
        tolerance: relative decrease of the objective by a step to stop at.
    """
    (n, e), r = distances.shape, slopes.shape[2]
    kind, hidden = slopes.dtype.type, ~candidates
    # The solver's unknowns are v / unit, o and log(gamma) / its unit: all with a curvature of about one. The logarithm
    # keeps gamma positive, and has no minimum that gamma has not.
    curvature = (scale**2 / n) * np.einsum("enr,enr->er", slopes, slopes, dtype=np.float64)
    unit = 1.0 / np.sqrt(l2 + curvature * target.mean(0)[:, None])
    seen = np.where(candidates, distances, np.nan)
    gamma_unit = 1.0 / np.sqrt(START**2 * np.nanmean(np.nanvar(seen, 1)) + PRIOR)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        v, offset = flat[: e * r].reshape(e, r) * unit, np.where(free, flat[e * r : -1], 0.0)
        u = np.exp(flat[-1] * gamma_unit)
        gamma = START * u
        moved = np.matmul(slopes, (scale * v).astype(kind)[:, :, None])[:, :, 0].T
        logits = np.where(hidden, -np.inf, -gamma * distances - moved - offset)
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        z = p.sum(1, keepdims=True)
        residual = (p / z - target) / n
        loss = -(target * np.where(hidden, 0.0, logits - np.log(z))).sum() / n
        gradient = np.empty_like(flat)
        back = scale * np.matmul((-residual).T.astype(kind)[:, None, :], slopes)[:, 0]
        gradient[: e * r] = ((back + l2 * v) * unit).reshape(-1)
        gradient[e * r : -1] = np.where(free, offset / n - residual.sum(0), 0.0)
        by_gamma = -(residual * np.where(hidden, 0.0, distances)).sum()
        gradient[-1] = gamma_unit * (PRIOR * (u - 1.0) + gamma * by_gamma)
        loss += 0.5 * l2 * np.square(v).sum() + PRIOR * (u - 1.0 - np.log(u))
        return float(loss + 0.5 * np.square(offset).sum() / n), gradient

    begin = np.zeros(e * r + e + 1)
    if start is not None:
        begin[: e * r] = (start.gamma * start.beta / unit).reshape(-1)
        begin[e * r :] = np.append(start.gamma * start.offsets, np.log(start.gamma / START) / gamma_unit)
    options = {"maxiter": steps, "ftol": tolerance, "gtol": 1e-9}
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", options=options).x
    gamma = START * float(np.exp(found[-1] * gamma_unit))
    v, offsets = found[: e * r].reshape(e, r) * unit, np.where(free, found[e * r : -1], 0.0)
    return SoftChoice(v / gamma, gamma, offsets / gamma)
