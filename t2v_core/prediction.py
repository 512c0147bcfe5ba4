r"""What error an expert will have on a new task, and by how much that may be wrong.

A ridge regression over the cells of the error matrix (an expert's own tasks left out), on ``y = arcsin sqrt(error)``,
which has about the same noise everywhere:

``y_te = a + b h_t + c (d_te - mean_e d_te) + e mean_e d_te + u_e``

with h the head's error that the probe itself had on held-out images while the task was embedded (the complexity, where
it is not known), d = d_sym(F_e, t), and u an effect of the expert, shrunk. Distance within a task and distance of the
task are kept apart: far tasks are hard for all experts, and that says nothing of which one to take.

Each task is left out in turn, with all of its cells, to see how far predictions miss. With ``H_t`` the block of the hat
matrix of its rows, the residuals of a fit without it are ``(I - H_t)^-1 r_t``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from t2v_core.errors import DataError

__all__ = ["ErrorModel", "fit_error_model"]

COVERAGE = 0.9
"""Share of cells of left-out tasks that intervals hold."""
_PENALTY = 0.1
_EXPERT_PENALTY = 1.0
_GRID = np.linspace(0, 1, 101)
_EXPERTS = 60
"""At most so many experts enter the pairs of a task."""


def _scale(error: np.ndarray) -> np.ndarray:
    return np.asarray(np.arcsin(np.sqrt(np.clip(error, 0.0, 1.0))))


def _error(value: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(np.sin(np.clip(value, 0.0, np.pi / 2))))


def _columns(hardness: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """``[T, E, 3]``: hardness, distance within the task (0 where it is unknown), mean distance of the task."""
    known = np.isfinite(distances)
    mean = np.where(known, distances, 0).sum(1) / np.maximum(known.sum(1), 1)
    within = np.where(known, distances - mean[:, None], 0.0)
    wide = np.broadcast_to
    return np.stack([wide(hardness[:, None], within.shape), within, wide(mean[:, None], within.shape)], axis=-1)


@dataclass(frozen=True, eq=False)
class ErrorModel:
    """A fitted regression, with how far it missed on tasks that it had not seen."""

    weights: np.ndarray
    """``[4]``: intercept, hardness, distance within the task, mean distance of the task; on standardised columns."""
    centre: np.ndarray
    """``[3]``"""
    spread: np.ndarray
    """``[3]``"""
    experts: np.ndarray
    """``[E]``, u_e."""
    misses: np.ndarray
    """``[101]``, quantiles of the absolute residuals on left-out tasks."""
    pair_misses: np.ndarray
    """``[101]``, quantiles of the absolute difference of two experts' residuals on one left-out task."""
    summary: np.ndarray
    """``[4]``: tasks, share of their cells inside intervals made from the other tasks, median absolute miss of an
    error, and whether hardness is the head's error (1) or the log of the complexity (0)."""

    @property
    def uses_head(self) -> bool:
        """Whether it wants the head's error."""
        return bool(self.summary[3])

    def predict(self, hardness: float, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicted error of each expert, ``[E]``, and the ends of its interval.

        Args:
            hardness: the head's error, or the complexity.
            distances: ``[E]``, d_sym(F_e, t); NaN where F_e is not known.
        """
        middle, half = self._middle(hardness, distances), self._quantile()
        return _error(middle), _error(middle - half), _error(middle + half)

    def better(self, hardness: float, distances: np.ndarray, first: int) -> np.ndarray:
        """Probability that each expert has a lower error than ``first``, ``[E]``; one half for itself.

        By how often two experts' predictions on a left-out task missed by more than they are apart here.
        """
        middle = self._middle(hardness, distances)
        gap = middle - middle[first]
        beyond = 1 - np.interp(np.abs(gap), self.pair_misses, _GRID)
        return np.asarray(np.where(gap >= 0, beyond / 2, 1 - beyond / 2))

    def sentence(self) -> str:
        """How it was calibrated, in words."""
        n, held, miss, _ = self.summary
        by = "the head's error while embedding" if self.uses_head else "the embedding's norm"
        return (
            f"Predicted errors: regression on {by} and on distances over {int(n)} tasks. With each task left out in "
            f"turn, half of the errors were missed by less than {100 * miss:.1f} points, and {held:.0%} were inside "
            f"their {COVERAGE:.0%} intervals."
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """For a file."""
        return {name: np.asarray(value, np.float64) for name, value in vars(self).items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, np.ndarray]) -> ErrorModel:
        """Back from a file."""
        return cls(**{name: tensors[name] for name in cls.__dataclass_fields__})

    def _middle(self, hardness: float, distances: np.ndarray) -> np.ndarray:
        x = _columns(np.array([self._hardness(hardness)]), np.asarray(distances, np.float64)[None])[0]
        return np.asarray(self.weights[0] + (x - self.centre) / self.spread @ self.weights[1:] + self.experts)

    def _hardness(self, value: float) -> float:
        return float(_scale(np.array(value))) if self.uses_head else float(np.log(max(value, 1e-300)))

    def _quantile(self) -> float:
        """Of the absolute residuals, with the correction for a finite number of tasks."""
        n = max(self.summary[0], 1)
        return float(np.interp(min(1.0, np.ceil((n + 1) * COVERAGE) / n), _GRID, self.misses))


def _left_out(
    design: np.ndarray, y: np.ndarray, task: np.ndarray, penalty: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the whole fit, and each row's residual by a fit without its task."""
    inverse = np.linalg.inv(design.T @ design + np.diag(penalty))
    coefficients = inverse @ design.T @ y
    residual = y - design @ coefficients
    out = np.empty_like(residual)
    starts = np.flatnonzero(np.r_[True, task[1:] != task[:-1]])
    for rows in np.split(np.arange(len(y)), starts[1:]):
        block = design[rows]
        out[rows] = np.linalg.solve(np.eye(len(rows)) - block @ inverse @ block.T, residual[rows])
    return coefficients, out


def _pairs(residual: np.ndarray, task: np.ndarray) -> np.ndarray:
    """Absolute differences of residuals within each task."""
    found = []
    for t in np.unique(task):
        r = np.random.default_rng(0).permutation(residual[task == t])[:_EXPERTS]
        found.append(np.abs(r[:, None] - r[None])[np.triu_indices(len(r), 1)])
    return np.concatenate(found)


def _held(residual: np.ndarray, task: np.ndarray) -> float:
    """Share of cells inside an interval that was made from the other tasks' residuals."""
    size = np.abs(residual)
    ordered, ids = np.sort(size), np.unique(task)
    n = len(ids) - 1
    level = min(1.0, np.ceil((n + 1) * COVERAGE) / n)
    inside = []
    for t in ids:
        own = np.sort(size[task == t])
        # The quantile of all without this task's own: a cell is passed over for each own one below.
        rank = int(np.ceil(level * (len(ordered) - len(own)))) - 1
        others = np.delete(ordered, np.searchsorted(ordered, own)) if len(ids) < 200 else ordered
        inside.append(float((own <= others[min(rank, len(others) - 1)]).mean()))
    return float(np.mean(inside))


def fit_error_model(
    errors: np.ndarray, own: np.ndarray, distances: np.ndarray, hardness: np.ndarray, *, uses_head: bool
) -> ErrorModel | None:
    """Fit, and see how far it misses with each task left out; None where there are fewer than three tasks.

    Args:
        errors: ``[T, E]``; NaN where a cell is not known.
        own: ``[T, E]`` bool; an expert's error on a task of its own is left out.
        distances: ``[T, E]``, d_sym(F_e, t); NaN where F_e is not known.
        hardness: ``[T]``: head's error, or complexity; NaN where it is not known, and the task is left out.
        uses_head: which of the two it is.

    Raises:
        DataError: shapes do not fit.
    """
    if not errors.shape == own.shape == distances.shape or hardness.shape != (len(errors),):
        raise DataError(
            f"got errors {errors.shape}, own {own.shape}, distances {distances.shape}, hardness {hardness.shape}; "
            "wanted three times [T, E], and [T]"
        )
    use = np.isfinite(errors) & ~own & np.isfinite(hardness)[:, None]
    task, expert = np.nonzero(use)
    if len(np.unique(task)) < 3:
        return None
    value = np.where(np.isfinite(hardness), hardness, 0.0)
    x = _columns(_scale(value) if uses_head else np.log(np.maximum(value, 1e-300)), distances)[use]
    y = _scale(errors)[use]
    centre, spread = x.mean(0), np.maximum(x.std(0), 1e-9)
    design = np.concatenate([np.ones((len(y), 1)), (x - centre) / spread, np.eye(errors.shape[1])[expert]], axis=1)
    penalty = np.r_[1e-9, np.full(3, _PENALTY), np.full(errors.shape[1], _EXPERT_PENALTY)]
    coefficients, residual = _left_out(design, y, task, penalty)
    miss = np.abs(_error(y - residual) - errors[use])
    return ErrorModel(
        weights=coefficients[:4],
        centre=centre,
        spread=spread,
        experts=coefficients[4:],
        misses=np.quantile(np.abs(residual), _GRID),
        pair_misses=np.quantile(_pairs(residual, task), _GRID),
        summary=np.array([len(np.unique(task)), _held(residual, task), np.median(miss), uses_head], np.float64),
    )
