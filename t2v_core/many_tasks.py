"""MODEL2VEC for hundreds of tasks: the primal problem in a basis of few directions, tasks left out in folds.

The unknowns are R numbers an expert and gamma. The objective is that of the exact solution: cross entropy, the penalty
``l2/2 mean_p |delta_i|^2``, and a weak prior on gamma. Many tasks allow a bias that moves filters by factors of ten and
more, where the distance to first order is not the distance any more. What was fitted is what is used: predictions are
to first order too. Each penalty starts from the solution of the next stronger one.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from t2v_core.config import Model2VecSpec
from t2v_core.tangent import Tangent, tangent

__all__ = ["choose_penalty", "cross_entropy", "fit_folds", "fit_many", "solve_tangent"]

START = np.log(10.0)
"""log gamma to begin from, and the centre of its prior."""


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


def solve_tangent(
    distances: np.ndarray,
    slopes: np.ndarray,
    target: np.ndarray,
    candidates: np.ndarray,
    l2: float,
    n_filters: int,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Coefficients b ``[E, R]`` with delta_i = Z b_i, gamma, and the solver's own unknowns to start another one from.

    Args:
        distances: ``[T, E]`` at delta = 0.
        slopes: ``[E, T, R]`` float32.
        target: ``[T, E]``, rows sum to one over the candidates.
        candidates: ``[T, E]`` bool.
        l2: penalty.
        n_filters: P.
        start: unknowns of another solution.
    """
    e, n, r = slopes.shape
    root = np.float32(np.sqrt(n_filters))  # b = sqrt(P) beta makes the penalty l2/2 |beta|^2

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        beta, log_gamma = flat[:-1].reshape(e, r), flat[-1]
        gamma = np.exp(log_gamma)
        moved = distances + np.matmul(slopes, root * beta.astype(np.float32)[:, :, None])[:, :, 0].T
        masked = np.where(candidates, -gamma * moved, -np.inf)
        top = masked.max(1, keepdims=True)
        exp = np.exp(masked - top)
        z = exp.sum(1, keepdims=True)
        log_p = np.where(candidates, masked - top - np.log(z), 0.0)
        residual = (exp / z - target) / n
        off = log_gamma - START
        gradient = np.empty_like(flat)
        back = np.matmul((-gamma * residual).T.astype(np.float32)[:, None, :], slopes)[:, 0]
        gradient[:-1] = (root * back + l2 * beta).reshape(-1)
        gradient[-1] = (residual * np.where(candidates, masked, 0.0)).sum() + 0.02 * off
        loss = -(target * log_p).sum() / n + 0.5 * l2 * np.square(beta).sum() + 0.01 * off**2
        return float(loss), gradient

    begin = np.append(np.zeros(e * r), START) if start is None else start
    # Products are in float32, whose rounding a tighter tolerance would chase.
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": 100, "gtol": 1e-5})
    return found.x[:-1].reshape(e, r) * float(root), float(np.exp(found.x[-1])), found.x


def _moved(line: Tangent, rows: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Linearised distances of some tasks, ``[n, E]``."""
    return np.asarray(
        line.distances[rows] + np.matmul(line.slopes[:, rows], b.astype(np.float32)[:, :, None])[:, :, 0].T
    )


def _path(
    line: Tangent, train: np.ndarray, held: np.ndarray, target: np.ndarray, candidates: np.ndarray, spec: Model2VecSpec
) -> np.ndarray:
    """Losses ``[L, held]`` of all penalties, from the strongest down until one is worse than the one before."""
    losses = np.full((len(spec.l2_many), len(held)), np.nan)
    slopes, start, last = np.ascontiguousarray(line.slopes[:, train]), None, np.inf
    for k in np.argsort(spec.l2_many)[::-1]:
        b, gamma, start = solve_tangent(
            line.distances[train], slopes, target[train], candidates[train], spec.l2_many[k], len(line.basis), start
        )
        losses[k] = cross_entropy(-gamma * _moved(line, held, b), target[held], candidates[held])
        if losses[k].mean() > last:
            break
        last = losses[k].mean()
    return losses


def _solution(
    line: Tangent, rows: np.ndarray, target: np.ndarray, candidates: np.ndarray, l2: float
) -> tuple[np.ndarray, float]:
    slopes = np.ascontiguousarray(line.slopes[:, rows])
    args = (line.distances[rows], slopes, target[rows], candidates[rows])
    _, _, start = solve_tangent(*args, max(10 * l2, 1e-2), len(line.basis))
    b, gamma, _ = solve_tangent(*args, l2, len(line.basis), start)
    return b, gamma


def fit_many(
    tasks: np.ndarray,
    base: np.ndarray,
    trivial: np.ndarray,
    target: np.ndarray,
    candidates: np.ndarray,
    spec: Model2VecSpec,
) -> tuple[np.ndarray, float, float]:
    """Expert vectors ``[E, P]``, gamma and the penalty, chosen on one fold in ``spec.folds`` that is held out in turn.

    Args:
        tasks: ``[T, P]``.
        base: ``[E, P]``, none of them zero.
        trivial: ``[P]``, t0.
        target: ``[T, E]``.
        candidates: ``[T, E]`` bool.
        spec: settings.
    """
    line = tangent(tasks, base, trivial, spec.alpha, rank=spec.rank, seed=spec.seed)
    folds = np.random.default_rng(spec.seed).permutation(len(tasks)) % spec.folds
    l2 = float(spec.l2_many[0])
    if len(spec.l2_many) > 1:
        losses = np.full((len(spec.l2_many), len(tasks)), np.nan)
        for fold in range(spec.folds):
            held = np.flatnonzero(folds == fold)
            losses[:, held] = _path(line, np.flatnonzero(folds != fold), held, target, candidates, spec)
        l2 = choose_penalty(spec.l2_many, losses, spec.rule)
    b, gamma = _solution(line, np.arange(len(tasks)), target, candidates, l2)
    return line.vectors(b), gamma, l2


def fit_folds(
    tasks: np.ndarray,
    base: np.ndarray,
    trivial: np.ndarray,
    target: np.ndarray,
    candidates: np.ndarray,
    folds: np.ndarray,
    spec: Model2VecSpec,
) -> np.ndarray:
    """d_asym(m_i -> t), to first order, ``[T, E]`` of each fold's tasks, from a model that was fitted without the fold.

    The penalty of a fold is chosen on the next fold, by models that saw neither.

    Args:
        tasks: as all before ``folds``, see `fit_many`; a task without candidates teaches nothing.
        base: see there.
        trivial: see there.
        target: see there.
        candidates: see there.
        folds: ``[T]``.
        spec: settings.
    """
    line = tangent(tasks, base, trivial, spec.alpha, rank=spec.rank, seed=spec.seed)
    names, out = np.unique(folds), np.empty(target.shape)
    teaches = candidates.any(1)
    for k, fold in enumerate(names):
        train, l2 = teaches & (folds != fold), float(spec.l2_many[0])
        held = train & (folds == names[(k + 1) % len(names)])
        if len(spec.l2_many) > 1 and held.any() and (train & ~held).any():
            losses = _path(line, np.flatnonzero(train & ~held), np.flatnonzero(held), target, candidates, spec)
            l2 = choose_penalty(spec.l2_many, losses, spec.rule)
        b, _ = _solution(line, np.flatnonzero(train), target, candidates, l2)
        out[folds == fold] = _moved(line, np.flatnonzero(folds == fold), b)
    return out
