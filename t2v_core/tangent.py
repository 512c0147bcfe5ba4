r"""Distances from experts to tasks and their gradients, in a basis of few directions: what MODEL2VEC needs at scale.

With ``m = F e^delta``, ``s = (m - t) / (2 (m + t))`` and the sums S1, S2 of `t2v_core.distances`, ``d = 1 - q / r``
with ``q = D/4 - S2`` and ``r^2 = (D/4 + S2)^2 - S1^2``. As ``ds/d delta = m t / (m + t)^2``,

.. math:: \frac{\partial d}{\partial \delta_p} = \frac{m_p t_p}{(m_p + t_p)^2}
    \left( 2 s_p \left[ \frac{1}{r} + \frac{q (D/4 + S_2)}{r^3} \right] - \frac{q S_1}{r^3} \right)

All gradients are ``[E, T, P]``: 20 GiB for 1,502 tasks, 157 experts and 21,008 filters. They lie near few directions,
so they are made an expert at a time and kept as their products with an orthonormal basis Z ``[P, R]``: the leading
right singular vectors of a sample of them. A bias ``delta_i = Z b_i`` in that span has the penalty ``|b_i|^2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from t2v_core.compiled import compiled, on_threads
from t2v_core.distances import symmetric_matrix

__all__ = ["Tangent", "distance_gradients", "first_order_distances", "tangent"]

ROWS = 128
"""Tasks of one block of gradients: 128 rows of 21,008 filters in float32 are 10 MiB."""
SAMPLE = 2048
"""Gradients that the basis is made from."""


def _rows(m: Any, tasks: Any, out: Any) -> None:
    """Gradient of d_sym(m e^delta, t) at delta = 0 for every row of ``tasks``, into ``out``."""
    for i in range(len(tasks)):
        s1, s2, live = 0.0, 0.0, 0.0
        for f in range(len(m)):
            x, y = np.float64(m[f]), np.float64(tasks[i, f])
            total = x + y
            alive = 1.0 if total > 0.0 else 0.0
            s = (x - y) / (2.0 * (total if total > 0.0 else 1.0))
            s1 += s
            s2 += s * s
            live += alive
        q = live / 4 - s2
        r = np.sqrt(max((live / 4 + s2 + s1) * (live / 4 + s2 - s1), 1e-300))
        by_s2, by_s1 = 2.0 * (1.0 / r + q * (live / 4 + s2) / r**3), -q * s1 / r**3
        for f in range(len(m)):
            x, y = np.float64(m[f]), np.float64(tasks[i, f])
            total = x + y
            inverse = 1.0 / (total if total > 0.0 else 1.0)
            s = 0.5 * (x - y) * inverse
            out[i, f] = (x * inverse) * (y * inverse) * (s * by_s2 + by_s1)


def distance_gradients(m: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Gradient of d_sym(m e^delta, t) with respect to delta, at 0, for every task: ``[T, P]`` float32.

    Args:
        m: ``[P]``, not negative.
        tasks: ``[T, P]``, likewise.
    """
    kind = np.float32 if m.dtype == tasks.dtype == np.float32 else np.float64
    m, tasks = np.ascontiguousarray(m, kind), np.ascontiguousarray(tasks, kind)
    out, rows = np.empty(tasks.shape, np.float32), compiled(_rows)
    on_threads(len(tasks), lambda to: rows(m, tasks[to], out[to]))
    return out


@dataclass(frozen=True, eq=False)
class Tangent:
    """d_asym(m_i -> t) to first order in delta_i = Z b_i."""

    base: np.ndarray
    """``[E, P]``, F_i."""
    distances: np.ndarray
    """``[T, E]``, at delta = 0."""
    basis: np.ndarray
    """``[P, R]`` float32, Z; its columns are orthonormal."""
    slopes: np.ndarray
    """``[E, T, R]`` float32: the gradients times Z."""
    captured: float
    """Share of the sampled gradients' squared length that lies in the basis."""

    def vectors(self, b: np.ndarray) -> np.ndarray:
        """m_i of coefficients ``[E, R]``: ``[E, P]``. A log-bias beyond 30 is cut, for float32 to hold them."""
        delta = b.astype(np.float32) @ self.basis.T
        return np.asarray(self.base * np.exp(np.clip(delta, -30, 30)))


def first_order_distances(
    vectors: np.ndarray, base: np.ndarray, tasks: np.ndarray, trivial: np.ndarray, alpha: float
) -> np.ndarray:
    """d_asym(m_i -> t) to first order in delta_i = log(m_i / F_i), ``[T, E]``.

    Args:
        vectors: ``[E, P]``, m_i.
        base: ``[E, P]``, F_i.
        tasks: ``[T, P]``.
        trivial: ``[P]``, t0.
        alpha: weight of complexity.
    """
    out = symmetric_matrix(tasks, base) - alpha * symmetric_matrix(base, trivial[None])[:, 0]
    for i, (m, f) in enumerate(zip(vectors, base, strict=True)):
        delta = np.log(np.where(f > 0, m, 1.0) / np.where(f > 0, f, 1.0))
        own = float(distance_gradients(f, trivial[None])[0] @ delta)
        out[:, i] += distance_gradients(f, tasks) @ delta - alpha * own
    return np.asarray(out)


def _basis(tasks: np.ndarray, base: np.ndarray, trivial: np.ndarray, alpha: float, rank: int, seed: int) -> Any:
    """Z and the share it holds of a sample of gradients, drawn evenly over pairs of expert and task."""
    n_experts, n_tasks = len(base), len(tasks)
    drawn = np.random.default_rng(seed).permutation(n_experts * n_tasks)[: max(SAMPLE, 4 * rank)]
    sample = np.empty((len(drawn), tasks.shape[1]), np.float32)
    for i in np.unique(drawn // n_tasks):
        at = np.flatnonzero(drawn // n_tasks == i)
        sample[at] = distance_gradients(base[i], tasks[drawn[at] % n_tasks])
        sample[at] -= alpha * distance_gradients(base[i], trivial[None])
    rank = min(rank, *sample.shape)
    if sample.shape[0] <= sample.shape[1]:
        s, v = np.linalg.eigh((sample @ sample.T).astype(np.float64))
        z = sample.T @ v[:, -rank:].astype(np.float32)
    else:
        s, v = np.linalg.eigh((sample.T @ sample).astype(np.float64))
        z = v[:, -rank:].astype(np.float32)
    q, _ = np.linalg.qr(z)
    total = max(float(s.sum()), 1e-300)
    return np.ascontiguousarray(q), float(s[-rank:].sum() / total)


def tangent(
    tasks: np.ndarray, base: np.ndarray, trivial: np.ndarray, alpha: float, *, rank: int, seed: int = 0
) -> Tangent:
    """Linearise all distances in a shared basis.

    Args:
        tasks: ``[T, P]``.
        base: ``[E, P]``, F_i, none of them zero.
        trivial: ``[P]``, t0.
        alpha: weight of complexity.
        rank: R, directions to keep; fewer where there are fewer gradients or filters.
        seed: of the sample that the basis is made from.
    """
    x, f = np.ascontiguousarray(tasks, np.float32), np.ascontiguousarray(base, np.float32)
    t0 = np.ascontiguousarray(trivial, np.float32)
    basis, captured = _basis(x, f, t0, alpha, rank, seed)
    slopes = np.empty((len(f), len(x), basis.shape[1]), np.float32)
    for i, m in enumerate(f):
        own = alpha * (distance_gradients(m, t0[None])[0] @ basis)
        for start in range(0, len(x), ROWS):
            to = slice(start, start + ROWS)
            slopes[i, to] = distance_gradients(m, x[to]) @ basis - own
    distances = symmetric_matrix(x, f) - alpha * symmetric_matrix(f, t0[None])[:, 0]
    return Tangent(np.asarray(base, np.float64), distances, basis, slopes, captured)
