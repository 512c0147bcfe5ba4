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


def _row_weights(labels: np.ndarray, n_classes: int, balance: bool) -> np.ndarray:
    """Weights that sum to one."""
    if not balance:
        return np.full(len(labels), 1.0 / len(labels))
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    present = counts > 0
    return np.asarray(1.0 / (counts[labels] * present.sum()))


@dataclass(frozen=True)
class _Solution:
    parameters: np.ndarray  # [C, D + 1], the bias last
    iterations: int
    converged: bool


def _solve(
    x: np.ndarray, labels: np.ndarray, n_classes: int, l2: float, start: np.ndarray, spec: HeadSpec
) -> _Solution:
    """Minimise ``sum_n w_n CE_n + l2/2 ||W||^2`` over ``[W, b]``; the bias is not penalised."""
    n, d = x.shape
    weights = _row_weights(labels, n_classes, spec.balance)
    rows = np.arange(n)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(n_classes, d + 1)
        weight = parameters[:, :d]
        log_p = _log_softmax(x @ weight.T + parameters[:, d])
        loss = -(weights * log_p[rows, labels]).sum() + 0.5 * l2 * np.square(weight).sum()
        residual = np.exp(log_p)
        residual[rows, labels] -= 1.0
        residual *= weights[:, None]
        gradient = np.empty_like(parameters)
        gradient[:, :d] = residual.T @ x + l2 * weight
        gradient[:, d] = residual.sum(0)
        return float(loss), gradient.reshape(-1)

    result = minimize(
        objective,
        start.reshape(-1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": spec.max_iterations, "gtol": spec.tolerance, "ftol": 0.0, "maxcor": 20},
    )
    if not np.isfinite(result.fun):
        raise ComputeError("the head's loss is not finite; look for features that are not finite")
    gradient = np.abs(objective(result.x)[1]).max()
    return _Solution(result.x.reshape(n_classes, d + 1), int(result.nit), bool(gradient <= spec.tolerance * 1.0001))


def validation_mask(labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows to hold out: whole groups, about ``share`` of them, every class on both sides.

    Groups are taken in a seeded order and added while each class keeps rows to train on. All false where no group
    can be held out.
    """
    unique, inverse = np.unique(groups, return_inverse=True)
    counts = np.bincount(labels)
    held = np.zeros(len(unique), bool)
    held_counts = np.zeros_like(counts)
    for g in np.random.default_rng(seed).permutation(len(unique)):
        if held.sum() >= share * len(unique):
            break
        of_group = np.bincount(labels[inverse == g], minlength=len(counts))
        if np.all((held_counts + of_group < counts) | (of_group == 0)):
            held[g] = True
            held_counts += of_group
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
    mean = raw.mean(0)
    x = raw - mean
    scale = float(np.sqrt(np.square(x).sum(1).mean())) or 1.0
    x /= scale
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)

    held_loss = held_error = float("nan")
    strengths = sorted(spec.l2, reverse=True)
    chosen = strengths[0]
    held = validation_mask(labels, groups, spec.validation_share, spec.seed)
    start = np.zeros((c, x.shape[1] + 1))
    if held.any() and len(np.unique(labels[~held])) >= 2:
        held_weights = _row_weights(labels[held], c, spec.balance)
        best = np.inf
        warm = start
        for l2 in strengths:
            warm = _solve(x[~held], labels[~held], c, l2, warm, spec).parameters
            log_p = _log_softmax(x[held] @ warm[:, :-1].T + warm[:, -1])
            loss = float(-(held_weights * log_p[np.arange(len(log_p)), labels[held]]).sum())
            if loss < best:
                best, chosen, start = loss, l2, warm
                held_loss = loss
                held_error = balanced_error(labels[held], log_p.argmax(1), c)
            else:
                break  # the held-out loss is unimodal in the strength, up to noise: weaker ones overfit more
    solution = _solve(x, labels, c, chosen, start, spec)
    weight = solution.parameters[:, :-1] / scale
    bias = solution.parameters[:, -1] - weight @ mean
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
