"""MODEL2VEC for hundreds of tasks: the primal problem in a basis of few directions, tasks left out in folds.

The unknowns are R numbers an expert, gamma, and the levels of experts whose task is not known. The objective is that of
the exact solution (`t2v_core.soft_choice`), with the penalty ``l2/2 mean_p |delta_i|^2``. Many tasks allow a bias that
moves filters by factors of ten and more, where the distance to first order is not the distance any more. What was
fitted is what is used: predictions are to first order too. Each penalty starts from the solution of the next stronger
one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t2v_core.config import Model2VecSpec
from t2v_core.soft_choice import SoftChoice, choose_penalty, cross_entropy, solve_soft_choice
from t2v_core.tangent import Tangent, tangent

__all__ = ["fit_folds", "fit_many"]


@dataclass(frozen=True, eq=False)
class _Problem:
    """All tasks, linearised."""

    line: Tangent
    target: np.ndarray
    candidates: np.ndarray
    free: np.ndarray

    def solve(self, rows: np.ndarray, l2: float, start: SoftChoice | None = None) -> SoftChoice:
        """With b = sqrt(P) beta the penalty is l2/2 |beta|^2."""
        return solve_soft_choice(
            self.line.distances[rows],
            np.ascontiguousarray(self.line.slopes[:, rows]),
            self.target[rows],
            self.candidates[rows],
            l2,
            free=self.free,
            scale=float(np.sqrt(len(self.line.basis))),
            start=None if start is None else start.unknowns,
            # Products are in float32, whose rounding a tighter tolerance would chase.
            steps=100,
            tolerance=1e-5,
        )

    def final(self, rows: np.ndarray, l2: float) -> SoftChoice:
        """By way of a stronger penalty."""
        return self.solve(rows, l2, self.solve(rows, max(10 * l2, 1e-2)))

    def distances(self, rows: np.ndarray, found: SoftChoice) -> np.ndarray:
        """To first order, ``[n, E]``."""
        b = (found.beta * np.sqrt(len(self.line.basis))).astype(np.float32)
        moved = np.matmul(self.line.slopes[:, rows], b[:, :, None])[:, :, 0].T
        return np.asarray(self.line.distances[rows] + moved + found.offsets)

    def path(self, train: np.ndarray, held: np.ndarray, spec: Model2VecSpec) -> np.ndarray:
        """Losses ``[L, held]`` of all penalties, from the strongest down until one is worse than the one before."""
        losses = np.full((len(spec.l2_many), len(held)), np.nan)
        found, last = None, np.inf
        for k in np.argsort(spec.l2_many)[::-1]:
            found = self.solve(train, spec.l2_many[k], found)
            logits = -found.gamma * self.distances(held, found)
            losses[k] = cross_entropy(logits, self.target[held], self.candidates[held])
            if losses[k].mean() > last:
                break
            last = losses[k].mean()
        return losses


def fit_many(
    tasks: np.ndarray,
    base: np.ndarray,
    trivial: np.ndarray,
    target: np.ndarray,
    candidates: np.ndarray,
    free: np.ndarray,
    spec: Model2VecSpec,
) -> tuple[np.ndarray, SoftChoice, float]:
    """Expert vectors ``[E, P]``, the solution and its penalty, chosen on one fold in ``spec.folds`` held out in turn.

    Args:
        tasks: ``[T, P]``.
        base: ``[E, P]``, none of them zero.
        trivial: ``[P]``, t0.
        target: ``[T, E]``.
        candidates: ``[T, E]`` bool.
        free: ``[E]`` bool, experts with an offset.
        spec: settings.
    """
    line = tangent(tasks, base, trivial, spec.alpha, rank=spec.rank, seed=spec.seed)
    problem = _Problem(line, target, candidates, free)
    folds = np.random.default_rng(spec.seed).permutation(len(tasks)) % spec.folds
    l2 = float(spec.l2_many[0])
    if len(spec.l2_many) > 1:
        losses = np.full((len(spec.l2_many), len(tasks)), np.nan)
        for fold in range(spec.folds):
            held = np.flatnonzero(folds == fold)
            losses[:, held] = problem.path(np.flatnonzero(folds != fold), held, spec)
        l2 = choose_penalty(spec.l2_many, losses, spec.rule)
    found = problem.final(np.arange(len(tasks)), l2)
    return line.vectors(found.beta * np.sqrt(len(line.basis))), found, l2


def fit_folds(
    tasks: np.ndarray,
    base: np.ndarray,
    trivial: np.ndarray,
    target: np.ndarray,
    candidates: np.ndarray,
    free: np.ndarray,
    folds: np.ndarray,
    spec: Model2VecSpec,
) -> np.ndarray:
    """d_asym(m_i -> t), with levels and to first order, ``[T, E]``: of each fold's tasks by a model without the fold.

    The penalty of a fold is chosen on the next fold, by models that saw neither.

    Args:
        tasks: as all before ``folds``, see `fit_many`; a task without candidates teaches nothing.
        base: see there.
        trivial: see there.
        target: see there.
        candidates: see there.
        free: see there.
        folds: ``[T]``.
        spec: settings.
    """
    line = tangent(tasks, base, trivial, spec.alpha, rank=spec.rank, seed=spec.seed)
    problem = _Problem(line, target, candidates, free)
    names, out = np.unique(folds), np.empty(target.shape)
    teaches = candidates.any(1)
    for k, fold in enumerate(names):
        train, l2 = teaches & (folds != fold), float(spec.l2_many[0])
        held = train & (folds == names[(k + 1) % len(names)])
        if len(spec.l2_many) > 1 and held.any() and (train & ~held).any():
            losses = problem.path(np.flatnonzero(train & ~held), np.flatnonzero(held), spec)
            l2 = choose_penalty(spec.l2_many, losses, spec.rule)
        out[folds == fold] = problem.distances(np.flatnonzero(folds == fold), problem.final(np.flatnonzero(train), l2))
    return out
