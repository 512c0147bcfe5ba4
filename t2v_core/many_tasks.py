"""MODEL2VEC for hundreds of tasks: the primal problem in a basis of few directions, tasks left out in folds.

The unknowns are R numbers an expert, gamma, and the levels of experts whose task is not known. The objective is that of
the exact solution (`t2v_core.soft_choice`), with the penalty ``l2/2 mean_p |gamma delta_i|^2``. Many tasks allow a bias
that moves filters by factors of ten and more, where the distance to first order is not the distance any more. What was
fitted is what is used: predictions are to first order too. Each penalty starts from the solution of the next stronger
one; the slopes of each expert are turned so that their columns are orthogonal, which spares most of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t2v_core.compiled import on_threads
from t2v_core.config import Model2VecSpec
from t2v_core.leave_out import folds_of_groups
from t2v_core.soft_choice import SoftChoice, choose_penalty, cross_entropy, solve_soft_choice
from t2v_core.tangent import Tangent, tangent

__all__ = ["fit_folds", "fit_many"]


@dataclass(frozen=True, eq=False)
class _Problem:
    """All tasks, linearised; each expert's slopes in the eigenvectors of their Gram matrix."""

    line: Tangent
    vectors: np.ndarray  # [E, R, R]
    target: np.ndarray
    candidates: np.ndarray
    free: np.ndarray

    @classmethod
    def of(cls, line: Tangent, target: np.ndarray, candidates: np.ndarray, free: np.ndarray) -> _Problem:
        """Turns the slopes in place: there may be a gigabyte of them."""
        e, _, r = line.slopes.shape
        vectors = np.empty((e, r, r), np.float32)

        def turn(experts: slice) -> None:
            for x, v in zip(line.slopes[experts], vectors[experts], strict=True):
                v[:] = np.linalg.eigh((x.T @ x).astype(np.float64))[1]
                x[:] = x @ v

        on_threads(e, turn)
        return cls(line, vectors, target, candidates, free)

    @property
    def scale(self) -> float:
        """With b = sqrt(P) beta, the mean square of delta_i is |beta_i|^2."""
        return float(np.sqrt(len(self.line.basis)))

    def solve(self, rows: np.ndarray, penalties: Sequence[float], start: SoftChoice | None = None) -> list[SoftChoice]:
        """By some rows: each penalty from the solution of the one before, the first from ``start``."""
        slopes, out = np.ascontiguousarray(self.line.slopes[:, rows]), []
        parts = self.line.distances[rows], slopes, self.target[rows], self.candidates[rows]
        for l2 in penalties:
            # Products are in float32, whose rounding a tighter tolerance would chase.
            start = solve_soft_choice(*parts, l2, free=self.free, scale=self.scale, start=start, tolerance=1e-6)
            out.append(start)
        return out

    def distances(self, rows: np.ndarray, found: SoftChoice) -> np.ndarray:
        """To first order, ``[n, E]``."""
        b = (found.beta * self.scale).astype(np.float32)
        moved = np.matmul(self.line.slopes[:, rows], b[:, :, None])[:, :, 0].T
        return np.asarray(self.line.distances[rows] + moved + found.offsets)

    def vectors_of(self, found: SoftChoice) -> np.ndarray:
        """m_i, ``[E, P]``."""
        return self.line.vectors(np.matmul(self.vectors, found.beta[:, :, None])[:, :, 0] * self.scale)

    def chosen_l2(
        self, folds: list[tuple[np.ndarray, np.ndarray]], spec: Model2VecSpec
    ) -> tuple[float, SoftChoice | None]:
        """The penalty by (rows to fit on, rows to judge by), and the last fold's solution with it, to start from.

        The strongest where there is nothing to choose or nothing to choose by.
        """
        folds = [fold for fold in folds if all(map(len, fold))]
        if len(spec.l2) == 1 or not folds:
            return max(spec.l2), None
        downwards = sorted(spec.l2, reverse=True)
        losses: list[list[np.ndarray]] = [[] for _ in downwards]
        for train, held in folds:
            path = self.solve(train, downwards)
            for row, found in zip(losses, path, strict=True):
                logits = -found.gamma * self.distances(held, found)
                row.append(cross_entropy(logits, self.target[held], self.candidates[held]))
        l2 = choose_penalty(tuple(downwards), np.array([np.concatenate(row) for row in losses]), spec.rule)
        return l2, path[downwards.index(l2)]


def fit_many(
    tasks: np.ndarray,
    base: np.ndarray,
    trivial: np.ndarray,
    target: np.ndarray,
    candidates: np.ndarray,
    free: np.ndarray,
    groups: np.ndarray,
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
        groups: ``[T]``; a group is held out as a whole.
        spec: settings.
    """
    line = tangent(tasks, base, trivial, spec.alpha, rank=spec.rank, seed=spec.seed)
    problem = _Problem.of(line, target, candidates, free)
    folds = folds_of_groups(groups, spec.folds, spec.seed)
    split = [(np.flatnonzero(folds != f), np.flatnonzero(folds == f)) for f in np.unique(folds)]
    l2, start = problem.chosen_l2(split, spec)
    (found,) = problem.solve(np.arange(len(tasks)), [l2], start)
    return problem.vectors_of(found), found, l2


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
    problem = _Problem.of(line, target, candidates, free)
    names, out = np.unique(folds), np.empty(target.shape)
    teaches = candidates.any(1)
    for k, fold in enumerate(names):
        train = teaches & (folds != fold)
        held = train & (folds == names[(k + 1) % len(names)])
        l2, start = problem.chosen_l2([(np.flatnonzero(train & ~held), np.flatnonzero(held))], spec)
        (found,) = problem.solve(np.flatnonzero(train), [l2], start)
        out[folds == fold] = problem.distances(np.flatnonzero(folds == fold), found)
    return out
