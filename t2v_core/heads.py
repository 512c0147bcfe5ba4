"""Heads on cached features: L2-regularised multinomial logistic regression, to a stated tolerance.

A head's confidence sets the scale of the Fisher information, so it must be neither under-trained nor certain of
noise: the objective is convex, solved until the gradient is below a tolerance, and its L2 strength is chosen by the
cross entropy on groups of images held out inside the training split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from t2v_core.config import HeadSpec
from t2v_core.errors import ComputeError, TaskError

__all__ = ["HeadFit", "balanced_error", "fit_head", "predict", "validation_mask"]


@dataclass(frozen=True, eq=False)
class HeadFit:
    """A trained head, for raw (not standardised) features."""

    weight: np.ndarray
    """``[C, D]`` float64."""
    bias: np.ndarray
    """``[C]`` float64."""
    l2: float
    """The strength that was chosen."""
    loss: float
    """Cross entropy on the training rows, nats, without the penalty."""
    accuracy: float
    """On the training rows."""
    held_out_loss: float
    """Cross entropy on the held-out groups at the chosen strength, nats; NaN where none could be held out."""
    held_out_error: float
    """Balanced error there; NaN where none could be held out."""
    iterations: int
    converged: bool


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def predict(features: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Most probable class of each row, ``[N]``."""
    return np.asarray((features @ weight.T + bias).argmax(1))


def balanced_error(labels: np.ndarray, predicted: np.ndarray, n_classes: int) -> float:
    """Mean over classes of the class's error; classes without rows do not count."""
    wrong = (labels != predicted).astype(np.float64)
    counts = np.bincount(labels, minlength=n_classes)
    per_class = np.bincount(labels, weights=wrong, minlength=n_classes)
    present = counts > 0
    return float((per_class[present] / counts[present]).mean())


def row_weights(labels: np.ndarray, n_classes: int, balance: bool) -> np.ndarray:
    """Weights that sum to one."""
    if not balance:
        return np.full(len(labels), 1.0 / len(labels))
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    present = counts > 0
    return np.asarray(1.0 / (counts[labels] * present.sum()))


@dataclass(frozen=True, eq=False)
class Rotated:
    """Centred features in the eigenbasis of their weighted covariance: ``x = r V'`` and ``r' diag(w) r = diag(s)``.

    The Hessian of the cross entropy is at most ``diag(s) / 2`` there (Boehning's bound), so that scaling coordinate j
    by ``(s_j / 2 + l2)^(-1/2)`` conditions the problem for every L2 strength, from one decomposition. Where there are
    fewer rows than features, the decomposition is of the rows' Gram matrix, and nothing is lost: the optimal weights
    lie in the span of the rows.
    """

    given: np.ndarray  # [N, D] features where there are more rows than features, else [N, R], r
    spectrum: np.ndarray  # [R], s
    back: np.ndarray  # [R, D], V'
    turned: bool  # whether `given` is r

    @classmethod
    def of(cls, x: np.ndarray, weights: np.ndarray) -> Rotated:
        root = np.sqrt(weights)[:, None]
        y = root * x
        wide = x.shape[0] < x.shape[1]
        spectrum, basis = np.linalg.eigh(y @ y.T if wide else y.T @ y)
        keep = spectrum > 1e-10 * max(float(spectrum[-1]), 1e-300)
        spectrum, basis = spectrum[keep], basis[:, keep]
        if wide:
            return cls(basis * np.sqrt(spectrum) / root, spectrum, (basis / np.sqrt(spectrum)).T @ y, True)
        return cls(x, spectrum, basis.T, False)

    @property
    def rows(self) -> np.ndarray:
        """r, ``[N, R]``."""
        return self.given if self.turned else np.asarray(self.given @ self.back.T)

    def part(self, keep: np.ndarray) -> Rotated:
        """Some rows, in the same coordinates."""
        return Rotated(self.given[keep], self.spectrum, self.back, self.turned)

    def logits(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """``r W' + b``, ``[N, C]``. Where r was never formed, the weights are turned: they are fewer."""
        return np.asarray(self.given @ (weight if self.turned else weight @ self.back).T + bias)

    def weight_gradient(self, residual: np.ndarray) -> np.ndarray:
        """``residual' r``, ``[C, R]``."""
        found = residual.T @ self.given
        return np.asarray(found if self.turned else found @ self.back.T)


@dataclass(frozen=True, eq=False)
class _Solution:
    weight: np.ndarray  # [C, R] in rotated coordinates
    bias: np.ndarray  # [C]
    iterations: int
    converged: bool


def _solve(
    data: Rotated, weights: np.ndarray, labels: np.ndarray, l2: float, start: _Solution, spec: HeadSpec
) -> _Solution:
    """Minimise ``sum_n w_n CE_n + l2/2 ||W||^2`` over W and b; the bias is not penalised."""
    c, r = len(start.bias), len(data.spectrum)
    scale = np.concatenate([1.0 / np.sqrt(data.spectrum / 2 + l2), [np.sqrt(2.0)]])
    penalty = np.concatenate([l2 * scale[:r] ** 2, [0.0]])
    rows = np.arange(len(labels))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        u = flat.reshape(c, r + 1)
        w = u * scale
        log_p = _log_softmax(data.logits(w[:, :r], w[:, r]))
        loss = -(weights * log_p[rows, labels]).sum() + 0.5 * (penalty * u * u).sum()
        residual = np.exp(log_p)
        residual[rows, labels] -= 1.0
        residual *= weights[:, None]
        gradient = np.concatenate([data.weight_gradient(residual), residual.sum(0)[:, None]], axis=1) * scale
        return float(loss), (gradient + penalty * u).reshape(-1)

    u0 = np.concatenate([start.weight, start.bias[:, None]], axis=1) / scale
    result = minimize(
        objective,
        u0.reshape(-1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": spec.max_iterations, "gtol": spec.tolerance, "ftol": 0.0, "maxcor": 20},
    )
    if not np.isfinite(result.fun):
        raise ComputeError("the head's loss is not finite; look for features that are not finite")
    solved = result.x.reshape(c, r + 1) * scale
    converged = bool(np.abs(result.jac).max() <= spec.tolerance * 1.0001)
    return _Solution(solved[:, :r], solved[:, r], int(result.nit), converged)


def _zero(data: Rotated, n_classes: int) -> _Solution:
    return _Solution(np.zeros((n_classes, len(data.spectrum))), np.zeros(n_classes), 0, False)


def validation_mask(labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows to hold out: whole groups, about ``share`` of them, every class on both sides where it has two groups.

    Groups are taken in a seeded order, first one for each class, the rarest first, then any, as long as every class
    keeps rows to train on. All false where no group can be held out.
    """
    unique, inverse = np.unique(groups, return_inverse=True)
    counts = np.bincount(labels)
    per_group = np.bincount(inverse * len(counts) + labels, minlength=len(unique) * len(counts))
    per_group = per_group.reshape(len(unique), len(counts))
    held = np.zeros(len(unique), bool)
    held_counts = np.zeros_like(counts)
    order = np.random.default_rng(seed).permutation(len(unique))

    def can(groups: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Which groups leave every class of theirs rows to train on, where ``before`` is held already."""
        return np.asarray(((before + per_group[groups] < counts) | (per_group[groups] == 0)).all(1))

    def take(groups: np.ndarray) -> None:
        held[groups] = True
        held_counts[:] += per_group[groups].sum(0)

    for c in np.argsort(counts, kind="stable"):
        if counts[c] and not held_counts[c]:
            of_class = order[(per_group[order, c] > 0) & ~held[order]]
            take(of_class[can(of_class, held_counts)][:1])
    # Groups one by one, as long as they can be taken; here all at once up to the first that cannot, which never can.
    while (wanted := int(np.ceil(share * len(unique))) - int(held.sum())) > 0:
        left = order[~held[order]]
        left = left[can(left, held_counts)][:wanted]
        if len(left) == 0:
            break
        before = held_counts + np.cumsum(per_group[left], 0) - per_group[left]
        fits = can(left, before)
        take(left if fits.all() else left[: int(fits.argmin())])
    return np.asarray(held[inverse])


def fit_head(
    features: np.ndarray,
    labels: np.ndarray,
    spec: HeadSpec | None = None,
    *,
    groups: np.ndarray | None = None,
    n_classes: int | None = None,
) -> HeadFit:
    """Train a head on fixed features.

    The features are centred and divided by their root mean squared length, so that the L2 strengths of the spec mean
    the same for every extractor; the head returned is for the raw features.

    Args:
        features: ``[N, D]``.
        labels: ``[N]`` integers in ``[0, C)``.
        spec: L2 strengths, tolerance, balancing; default `HeadSpec()`.
        groups: ``[N]`` of any type; rows of a group are held out together. Default: each row alone.
        n_classes: C, where it is more than the largest label + 1.

    Raises:
        TaskError: fewer than two classes.
        ComputeError: features not finite.
    """
    spec = spec or HeadSpec()
    labels = np.asarray(labels, dtype=np.int64)
    present = np.unique(labels)
    if len(present) < 2:
        raise TaskError(f"a head needs at least two classes, got {len(present)} in {len(labels)} rows")
    c = n_classes or int(labels.max()) + 1
    raw = np.asarray(features, dtype=np.float64)
    if not np.isfinite(raw).all():
        raise ComputeError(f"{int((~np.isfinite(raw)).any(1).sum())} of {len(raw)} feature rows are not finite")
    weights = row_weights(labels, c, spec.balance)
    mean = weights @ raw
    x = raw - mean
    scale = float(np.sqrt(np.square(x).sum(1).mean()))
    if scale <= 1e-7 * float(np.linalg.norm(mean)):  # equal features: what is left is rounding, and no signal
        x, scale = np.zeros_like(x), 1.0
    x /= scale
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)

    # One decomposition serves the fits on the inner rows too: their covariance is nearly that of all rows.
    data = Rotated.of(x, weights)
    held_loss = held_error = float("nan")
    strengths = sorted(spec.l2, reverse=True)
    chosen = strengths[0]
    held = validation_mask(labels, groups, spec.validation_share, spec.seed)
    if held.any() and len(np.unique(labels[~held])) >= 2:
        inner_weights = row_weights(labels[~held], c, spec.balance)
        inside, outside = data.part(~held), data.part(held)
        held_weights = row_weights(labels[held], c, spec.balance)
        warm = _zero(data, c)
        best = np.inf
        for l2 in strengths:
            warm = _solve(inside, inner_weights, labels[~held], l2, warm, spec)
            log_p = _log_softmax(outside.logits(warm.weight, warm.bias))
            loss = float(-(held_weights * log_p[np.arange(len(log_p)), labels[held]]).sum())
            if loss >= best:
                break  # the held-out loss is unimodal in the strength, up to noise: weaker ones overfit more
            best, chosen, held_loss = loss, l2, loss
            held_error = balanced_error(labels[held], log_p.argmax(1), c)
    solution = _solve(data, weights, labels, chosen, _zero(data, c), spec)
    weight = solution.weight @ data.back / scale
    bias = solution.bias - weight @ mean
    log_p = _log_softmax(raw @ weight.T + bias)
    return HeadFit(
        weight=weight,
        bias=bias,
        l2=chosen,
        loss=float(-log_p[np.arange(len(labels)), labels].mean()),
        accuracy=float((log_p.argmax(1) == labels).mean()),
        held_out_loss=held_loss,
        held_out_error=held_error,
        iterations=solution.iterations,
        converged=solution.converged,
    )
