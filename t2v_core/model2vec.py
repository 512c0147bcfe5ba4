r"""MODEL2VEC: experts and tasks in one space (Sect. 3.4).

An expert is ``m_i = F_i + b_i``: the embedding of the task it was trained on plus a learned model bias, so that the
softmax over experts of ``-gamma d_asym(m_i -> t)`` predicts the best expert for task t.

The bias is written ``m_i = F_i exp(delta_i)``, ``b_i = F_i (exp(delta_i) - 1)``: it keeps m_i positive, whatever the
scale of a filter, and the penalty ``l2/2 mean((gamma delta_i)^2)`` says the same for all filters. Where no task is
known (the generic expert), F_i = 0 and the bias is all there is: it starts from the mean of the other experts, and a
level of its own is added to its distances, for a mean is nearer to most tasks than any single task is.

With P filters and few tasks the problem is solved in its dual. To first order in delta,
``d(m_i -> t) = d(F_i -> t) + J_ti . delta_i``, and with the penalty the best delta_i lies in the span of the J_ti of
the training tasks: ``delta_i = sum_t a_ti J_ti``. What is left is convex in T unknowns an expert, with the Gram
matrices ``K_i = J_i J_i'`` computed once; leaving a task out costs a small solve. Predictions use the exact distance
to m_i, and so does the choice of the penalty.

The dual has T unknowns an expert and T x T numbers of each, too many for hundreds of tasks. There the bias is held in a
basis of R directions that all experts share (`t2v_core.tangent`), the primal problem in R unknowns an expert is solved,
and tasks are left out in folds (`t2v_core.many_tasks`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from t2v_core.config import Model2VecSpec
from t2v_core.distances import symmetric_matrix
from t2v_core.errors import ComputeError, DataError
from t2v_core.leave_out import folds_of_groups
from t2v_core.many_tasks import fit_folds, fit_many
from t2v_core.soft_choice import SoftChoice, choose_penalty, cross_entropy, solve_soft_choice
from t2v_core.tangent import first_order_distances

__all__ = ["Model2Vec", "fit_model2vec", "leave_one_task_out", "target_distribution"]


@dataclass(frozen=True, eq=False)
class Model2Vec:
    """Fitted expert vectors."""

    vectors: np.ndarray
    """``[E, P]`` float64, m_i."""
    gamma: float
    """Inverse temperature of the prediction."""
    alpha: float
    trivial: np.ndarray
    """``[P]``, t0."""
    l2: float
    """The penalty that was chosen."""
    offsets: np.ndarray | None = None
    """``[E]``, added to the distances: the level of experts whose task is not known; see `t2v_core.soft_choice`."""
    base: np.ndarray | None = None
    """``[E, P]``; where it is there, distances are to first order in log(vectors / base): see `t2v_core.many_tasks`."""

    def distances(self, tasks: np.ndarray) -> np.ndarray:
        """d_asym(m_i -> t) with the experts' levels, ``[T, E]``."""
        tasks = np.atleast_2d(tasks)
        offsets = 0.0 if self.offsets is None else self.offsets
        if self.base is not None:
            return first_order_distances(self.vectors, self.base, tasks, self.trivial, self.alpha) + offsets
        complexity = symmetric_matrix(self.vectors, self.trivial[None])[:, 0]
        return np.asarray(symmetric_matrix(tasks, self.vectors) - self.alpha * complexity + offsets)

    def probabilities(self, tasks: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """p(expert is best | task), ``[T, E]``."""
        return _softmax(-self.gamma * self.distances(tasks), candidates)


def _softmax(logits: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    if mask is not None:
        logits = np.where(mask, logits, -np.inf)
    e = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def target_distribution(errors: np.ndarray, candidates: np.ndarray, spec: Model2VecSpec) -> np.ndarray:
    """What the k-way cross entropy predicts, ``[T, E]``, rows sum to one over the candidates.

    ``hard``: the best expert, ties share. ``soft``: softmax of ``-sharpness (error - mean) / std`` of the row.
    """
    known = candidates & np.isfinite(errors)
    if not known.any(1).all():
        raise DataError(f"{int((~known.any(1)).sum())} tasks have no candidate with a known error")
    masked = np.where(known, errors, np.nan)
    if spec.labels == "hard":
        best = np.where(known, masked == np.nanmin(masked, 1, keepdims=True), False)
        return np.asarray(best / best.sum(1, keepdims=True))
    deviation = np.nanstd(masked, 1, keepdims=True)
    z = (masked - np.nanmean(masked, 1, keepdims=True)) / np.where(deviation > 0, deviation, 1.0)
    return _softmax(-spec.sharpness * np.where(known, z, 0.0), known)


def _symmetric_rows(m: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
    """d_sym row by row, ``[T]``, differentiable."""
    total = m + tasks
    alive = total > 0  # a filter that is zero in both says nothing
    s = torch.where(alive, (m - tasks) / (2 * torch.where(alive, total, 1.0)), 0.0)
    d = alive.sum(1).double()
    s1, s2 = s.sum(1), s.square().sum(1)
    r = ((d / 4 + s1 + s2) * (d / 4 - s1 + s2)).clamp_min(1e-300).sqrt()
    return (d * s2 - s1.square()) / (r * (r + d / 4 - s2))


@dataclass(frozen=True, eq=False)
class _Linearised:
    """Distances and their gradients at delta = 0."""

    tasks: np.ndarray  # [T, P]
    base: np.ndarray  # [E, P]
    trivial: np.ndarray  # [P]
    alpha: float
    distances: np.ndarray  # [T, E]
    jacobians: np.ndarray  # [E, T, P] float32, with respect to delta
    grams: np.ndarray  # [E, T, T], divided by nothing
    free: np.ndarray  # [E], experts with an offset


def _check_room(n_tasks: int, n_experts: int, n_filters: int) -> None:
    """Refuse what would be killed for its memory after hours.

    Raises:
        ComputeError: the gradients and Gram matrices do not fit.
    """
    needed = n_experts * n_tasks * (4 * n_filters + 24 * n_tasks)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * there:
        raise ComputeError(
            f"MODEL2VEC for {n_tasks} tasks, {n_experts} experts and {n_filters} filters wants "
            f"{needed / 2**30:.0f} GiB, and this machine has {there / 2**30:.0f}; fit it on fewer tasks or experts "
            "(the paper's meta-tasks have 50), or on a larger machine. All earlier stages are in the store"
        )


def _linearise(
    tasks: np.ndarray, base: np.ndarray, trivial: np.ndarray, alpha: float, free: np.ndarray | None = None
) -> _Linearised:
    _check_room(len(tasks), *base.shape)
    rows = torch.from_numpy(np.ascontiguousarray(tasks, np.float64))
    t0 = torch.from_numpy(np.ascontiguousarray(trivial, np.float64))[None]
    distances = np.empty((len(tasks), len(base)))
    jacobians = np.empty((len(base), len(tasks), base.shape[1]), np.float32)
    grams = np.empty((len(base), len(tasks), len(tasks)))
    for i, m in enumerate(base):
        delta = torch.zeros(rows.shape, dtype=torch.float64, requires_grad=True)
        d = _symmetric_rows(torch.from_numpy(m)[None] * delta.exp(), rows)
        (to_task,) = torch.autograd.grad(d.sum(), delta)
        own = torch.zeros(1, base.shape[1], dtype=torch.float64, requires_grad=True)
        complexity = _symmetric_rows(torch.from_numpy(m)[None] * own.exp(), t0)
        (to_trivial,) = torch.autograd.grad(complexity.sum(), own)
        distances[:, i] = d.detach().numpy() - alpha * float(complexity.detach())
        jacobian = (to_task - alpha * to_trivial).numpy()
        jacobians[i] = jacobian
        grams[i] = jacobian @ jacobian.T
    free = np.zeros(len(base), bool) if free is None else free
    return _Linearised(tasks, base, trivial, alpha, distances, jacobians, grams, free)


@dataclass(frozen=True, eq=False)
class _Part:
    """The dual problem of some tasks; penalties share its eigenvectors."""

    linear: _Linearised
    rows: np.ndarray  # [n]
    target: np.ndarray  # [n, E]
    candidates: np.ndarray  # [n, E]
    values: np.ndarray  # [E, n], eigenvalues of the Gram matrices, none of them zero
    vectors: np.ndarray  # [E, n, n]
    factor: np.ndarray  # [E, n, n], d = d0 + factor @ beta, with delta_i = sqrt(P) J_i' V s^(-1/2) beta_i

    @classmethod
    def of(cls, linear: _Linearised, rows: np.ndarray, target: np.ndarray, candidates: np.ndarray) -> _Part:
        """Those of some rows."""
        s, v = np.linalg.eigh(linear.grams[:, rows[:, None], rows])
        s = np.maximum(s, np.maximum(s.max(1, keepdims=True) * 1e-10, 1e-300))
        factor = v * np.sqrt(s * linear.base.shape[1])[:, None, :]
        return cls(linear, rows, target[rows], candidates[rows], s, v, factor)

    def solve(self, l2: float, start: SoftChoice | None = None) -> SoftChoice:
        """CE + l2/2 |gamma beta|^2, where |beta_i|^2 = mean_p |delta_i|^2."""
        distances = self.linear.distances[self.rows]
        return solve_soft_choice(
            distances, self.factor, self.target, self.candidates, l2, free=self.linear.free, start=start
        )

    def model(self, found: SoftChoice, l2: float) -> Model2Vec:
        """Of a solution: delta_i = sum_t a_ti J_ti, and m_i from that."""
        linear = self.linear
        a = np.matmul(self.vectors, (found.beta / np.sqrt(self.values))[:, :, None])[:, :, 0]
        a *= np.sqrt(linear.base.shape[1])
        delta = np.stack([a[i] @ linear.jacobians[i, self.rows] for i in range(len(linear.base))])
        vectors = linear.base * np.exp(np.clip(delta, -5, 5))
        return Model2Vec(vectors, found.gamma, linear.alpha, linear.trivial, l2, offsets=found.offsets)


def _losses(
    linear: _Linearised,
    rows: np.ndarray,
    held: np.ndarray,
    target: np.ndarray,
    candidates: np.ndarray,
    spec: Model2VecSpec,
) -> np.ndarray:
    """Cross entropy ``[L, held]`` of each penalty by the model of some rows, each fit from the next stronger one.

    By the exact distances, which predictions are made of: a bias that is too long for the linearised ones shows here.
    """
    part, last = _Part.of(linear, rows, target, candidates), None
    out = np.empty((len(spec.l2), len(held)))
    for k in np.argsort(spec.l2)[::-1]:
        last = part.solve(spec.l2[k], last)
        distances = part.model(last, spec.l2[k]).distances(linear.tasks[held])
        out[k] = cross_entropy(-last.gamma * distances, target[held], candidates[held])
    return out


def _fit_rows(
    linear: _Linearised, rows: np.ndarray, target: np.ndarray, candidates: np.ndarray, l2: float
) -> Model2Vec:
    part = _Part.of(linear, rows, target, candidates)
    return part.model(part.solve(l2), l2)


def _prepare(
    tasks: np.ndarray, errors: np.ndarray, base: np.ndarray, candidates: np.ndarray | None, spec: Model2VecSpec
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F_i with the unknown ones filled in, what may be chosen, and which experts have an offset."""
    if tasks.shape[1] != base.shape[1] or errors.shape != (len(tasks), len(base)):
        raise DataError(
            f"got tasks {tasks.shape}, experts {base.shape}, errors {errors.shape}; wanted [T, P], [E, P], [T, E]"
        )
    allowed = np.isfinite(errors) if candidates is None else candidates & np.isfinite(errors)
    if not spec.known:
        return np.tile(tasks.mean(0, dtype=np.float64), (len(base), 1)), allowed, np.ones(len(base), bool)
    known = np.isfinite(base).all(1) & (base > 0).any(1)
    if not known.any():
        raise DataError("no expert has a known task; MODEL2VEC needs at least one F_i, or `known: false`")
    filled = np.array(base, np.float64)
    filled[~known] = base[known].mean(0)
    return filled, allowed, ~known | (spec.prior == "all")


def fit_model2vec(
    tasks: np.ndarray,
    errors: np.ndarray,
    base: np.ndarray,
    trivial: np.ndarray,
    spec: Model2VecSpec | None = None,
    *,
    candidates: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Model2Vec:
    """Fit the model biases on all tasks.

    Args:
        tasks: ``[T, P]`` task embeddings.
        errors: ``[T, E]`` error matrix; NaN where a cell is not known.
        base: ``[E, P]``, F_i of each expert; zeros or NaN where no task is known.
        trivial: ``[P]``, t0.
        spec: settings.
        candidates: ``[T, E]`` bool, experts to choose among (a task's own expert left out, say); default all.
        groups: ``[T]``; where the penalty is chosen, a group is held out as a whole. Default: each task is its own.

    Raises:
        DataError: shapes do not fit, or a task has no candidate.
    """
    spec = spec or Model2VecSpec()
    filled, allowed, free = _prepare(tasks, errors, base, candidates, spec)
    target = target_distribution(errors, allowed, spec)
    group = np.arange(len(tasks)) if groups is None else np.asarray(groups)
    if len(tasks) > spec.exact_tasks:
        vectors, found, l2 = fit_many(tasks, filled, trivial, target, allowed, free, group, spec)
        return Model2Vec(vectors, found.gamma, spec.alpha, trivial, l2, offsets=found.offsets, base=filled)
    linear = _linearise(tasks, filled, trivial, spec.alpha, free)
    folds, l2 = folds_of_groups(group, spec.folds, spec.seed), max(spec.l2)
    if len(spec.l2) > 1 and folds.any():
        losses = np.empty((len(spec.l2), len(tasks)))
        for fold in np.unique(folds):
            held = np.flatnonzero(folds == fold)
            losses[:, held] = _losses(linear, np.flatnonzero(folds != fold), held, target, allowed, spec)
        l2 = choose_penalty(spec.l2, losses, spec.rule)
    return _fit_rows(linear, np.arange(len(tasks)), target, allowed, l2)


def leave_one_task_out(
    tasks: np.ndarray,
    errors: np.ndarray,
    base: np.ndarray,
    trivial: np.ndarray,
    spec: Model2VecSpec | None = None,
    *,
    candidates: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """d_asym(m_i -> t), with levels, ``[T, E]``: of every task by a model that was fitted without it, penalty and all.

    Where there are more than ``spec.exact_tasks`` tasks, they are left out in ``spec.left_out_folds`` folds: each
    distance is by a model that never saw its task, but was fitted on fewer tasks than there are.

    Args:
        tasks: as all before ``groups``, see `fit_model2vec`. At least three. A task without a known error, a new one,
            teaches nothing and gets its distances.
        errors: see there.
        base: see there.
        trivial: see there.
        spec: see there.
        candidates: see there.
        groups: ``[T]``; a task is left out together with all tasks of its group. Default: each is its own.

    Raises:
        DataError: shapes do not fit, or fewer than three tasks or two groups have a candidate.
    """
    spec = spec or Model2VecSpec()
    if len(tasks) < 3:
        raise DataError(f"got {len(tasks)} tasks; leaving one out needs at least three")
    group = np.arange(len(tasks)) if groups is None else np.asarray(groups)
    filled, allowed, free = _prepare(tasks, errors, base, candidates, spec)
    teaches = np.asarray(allowed.any(1))
    if len(np.unique(group[teaches])) < 2:
        raise DataError("all tasks with a known error are of one group; leaving it out leaves nothing to learn from")
    target = np.zeros(errors.shape)
    target[teaches] = target_distribution(errors[teaches], allowed[teaches], spec)
    if len(tasks) > spec.exact_tasks:
        folds = folds_of_groups(group, spec.left_out_folds, spec.seed)
        return fit_folds(tasks, filled, trivial, target, allowed, free, folds, spec)
    linear = _linearise(tasks, filled, trivial, spec.alpha, free)
    folds = folds_of_groups(group, 2 * spec.folds, spec.seed)
    penalties = _penalties_of_folds(linear, folds, teaches, target, allowed, spec)
    out = np.empty(errors.shape)
    for g in np.unique(group):
        out_of_it, (fold, *_) = np.flatnonzero((group != g) & teaches), folds[group == g]
        model = _fit_rows(linear, out_of_it, target, allowed, penalties[fold])
        out[group == g] = model.distances(tasks[group == g])
    return out


def _penalties_of_folds(
    linear: _Linearised,
    folds: np.ndarray,
    teaches: np.ndarray,
    target: np.ndarray,
    candidates: np.ndarray,
    spec: Model2VecSpec,
) -> dict[int, float]:
    """The penalty for the tasks of each fold, by models and tasks of the other folds alone.

    A model without two folds judges each of them for the other.
    """
    names = np.unique(folds).tolist()
    losses = np.full((len(names), len(spec.l2), len(folds)), np.nan)
    for a, b in combinations(names, 2) if len(spec.l2) > 1 else ():
        rows = np.flatnonzero((folds != a) & (folds != b) & teaches)
        held = np.flatnonzero(((folds == a) | (folds == b)) & teaches)
        if len(rows) and len(held):
            made = _losses(linear, rows, held, target, candidates, spec)
            for one, other in ((a, b), (b, a)):
                at = folds[held] == other
                losses[one][:, held[at]] = made[:, at]
    out = {}
    for fold in names:
        known = np.isfinite(losses[fold]).all(0)
        out[fold] = choose_penalty(spec.l2, losses[fold][:, known], spec.rule) if known.any() else max(spec.l2)
    return out
