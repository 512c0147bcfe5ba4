r"""d_sym layer by layer, with weights by the other tasks' errors: a metric in place of one number a filter.

Late layers have most filters and dominate d_sym. Here the distance is ``sum_l w_l d_l`` with d_l the d_sym of the
filters of one block of layers, and w from a non-negative least-squares fit of centred errors on centred distances, for
each fold of groups over the cells of the other folds. No expert prior enters.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from t2v_core.distances import symmetric_matrix
from t2v_core.leave_out import folds_of_groups
from t2v_core.selectors.method import Cost, Method
from t2v_core.selectors.problem import Problem
from t2v_core.selectors.scaled import scaled

__all__ = ["METHOD", "block_slices"]

FOLDS = 10
BLOCKS = 8
"""Blocks of neighbouring layers, as many layers in each as may be."""


def block_slices(problem: Problem) -> list[slice]:
    """Filters of each block, ``BLOCKS`` at most; empty layers are left out."""
    layers = [layer for layer in problem.layers if layer.stop > layer.start]
    blocks = [[layers[i] for i in part] for part in np.array_split(np.arange(len(layers)), BLOCKS) if len(part)]
    return [slice(block[0].start, block[-1].stop) for block in blocks]


def _centred(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    known = cells & np.isfinite(values)
    mean = np.where(known, values, 0.0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    return np.asarray(np.where(known, values - mean, 0.0))


def _score(problem: Problem) -> np.ndarray | None:
    if not problem.layers:
        return None
    distances = []
    for part in block_slices(problem):
        d = np.full(problem.errors.shape, np.nan)
        # On its own scale, a block says where in it the information is; the whole embedding's size is left to none.
        own, other = scaled(problem.tasks[:, part]), scaled(problem.experts[problem.known, part])
        d[:, problem.known] = symmetric_matrix(own, other)
        distances.append(d)
    cells = problem.usable & problem.known
    features = np.stack([_centred(d, cells) for d in distances])
    folds, out = folds_of_groups(problem.groups, FOLDS, problem.seed), np.full(problem.errors.shape, np.nan)
    for fold in np.unique(folds):
        train = cells & (folds != fold)[:, None]
        x, y = features[:, train].T, problem.centred[train]
        gram = np.linalg.cholesky(x.T @ x + 1e-9 * max(len(x), 1) * np.eye(x.shape[1]))
        weights, _ = nnls(gram.T, np.linalg.solve(gram, x.T @ y))
        if not weights.any():
            weights = np.ones(len(distances))
        at = np.flatnonzero(folds == fold)
        out[at] = sum(w * d[at] for w, d in zip(weights, distances, strict=True))
    return out


METHOD = Method(
    "TASK2VEC, layer weights",
    _score,
    "d_sym by blocks of layers, weights by the other tasks",
    "ours",
    Cost(probe_passes=2),
)
