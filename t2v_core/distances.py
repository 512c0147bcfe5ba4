r"""Distances between task embeddings (Sect. 2 and 3.3).

Symmetric: the cosine distance of ``u = a/(a+b)`` and ``v = b/(a+b)``. With ``s = (a-b) / (2(a+b))``, ``u = 1/2 + s``
and ``v = 1/2 - s``, so two sums are enough, S1 = sum s and S2 = sum s^2 over D filters:

.. math:: u'v = D/4 - S_2, \quad u'u = D/4 + S_1 + S_2, \quad v'v = D/4 - S_1 + S_2

and, from ``u'u v'v - (u'v)^2 = D S2 - S1^2``, without cancellation for near embeddings,

.. math:: d_{sym} = \frac{D S_2 - S_1^2}{r (r + u'v)}, \quad r = \sqrt{u'u\, v'v}

Filters that are zero in both embeddings say nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from t2v_core.errors import ConfigError, DataError, UnknownNameError
from t2v_core.pairs import pair_matrix

__all__ = [
    "asymmetric_distance",
    "cosine_matrix",
    "distance_matrix",
    "symmetric_distance",
    "symmetric_matrix",
    "taxonomic_distance",
    "taxonomic_matrix",
    "transfer_distance",
]

ALPHA = 0.15
"""Weight of complexity in the asymmetric distance: the paper's value for ResNet-34."""

EXACT_BELOW = 50_000_000
"""Pairs times filters from which the compiled loop of `t2v_core.pairs` takes over."""
ALL_ZERO = "two embeddings are zero in every filter; they have no distance"


def _vector(e: Any) -> np.ndarray:
    value = np.asarray(getattr(e, "vector", e))
    if value.dtype != np.float32:  # what records hold; many of them are then not copied
        value = value.astype(np.float64)
    if value.ndim != 1:
        raise DataError(f"got an embedding of shape {value.shape}; wanted one vector [P]")
    return value


def _same_probe(*embeddings: Any) -> None:
    """Embeddings by different weights do not compare, even where their lengths agree.

    Raises:
        DataError: more than one probe.
    """
    probes = sorted({str(e.probe) for e in embeddings if hasattr(e, "probe")})
    if len(probes) > 1:
        raise DataError(f"got embeddings by probes {', '.join(probes)}; only embeddings of the same probe compare")


def _check(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all() or (values < 0).any():
        raise DataError(f"{what} has values that are negative or not finite; a Fisher information has neither")


def symmetric_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """d_sym of every row of ``a`` ``[A, P]`` and of ``b`` ``[B, P]``: ``[A, B]`` float64, in [0, 1].

    Raises:
        DataError: another number of filters, negative or non-finite values, or a pair with no filter above zero.
    """
    return _symmetric(np.atleast_2d(a), np.atleast_2d(b))


def _symmetric(a: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """`symmetric_matrix`; None for ``a`` itself, whose zero diagonal is then exact."""
    if b is not None and a.shape[1] != b.shape[1]:
        raise DataError(
            f"got embeddings of {a.shape[1]} and {b.shape[1]} filters; only embeddings of the same probe compare"
        )
    _check(a, "an embedding")
    if b is not None:
        _check(b, "an embedding")
    n_rows = len(a) if b is None else len(b)
    if len(a) * n_rows * a.shape[1] >= EXACT_BELOW:
        out = pair_matrix(a, b)
        if np.isnan(out).any():
            raise DataError(ALL_ZERO)
        return out
    b = a if b is None else b
    return _plain(a, b)


def _plain(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`symmetric_matrix` in float64, a row of ``a`` at a time; slow where there are many rows."""
    left, right = (
        torch.from_numpy(np.ascontiguousarray(a, np.float64)),
        torch.from_numpy(np.ascontiguousarray(b, np.float64)),
    )
    out = torch.empty(len(left), len(right), dtype=torch.float64)
    for i, row in enumerate(left):
        total = row + right
        dead = total == 0
        s = torch.where(dead, 0.0, (row - right) / (2 * torch.where(dead, 1.0, total)))
        d = (~dead).sum(1).double()
        if (d == 0).any():
            raise DataError(ALL_ZERO)
        s1, s2 = s.sum(1), s.square().sum(1)
        r = ((d / 4 + s1 + s2) * (d / 4 - s1 + s2)).clamp_min(0).sqrt()
        numerator = (d * s2 - s1.square()).clamp_min(0)
        out[i] = torch.where(r > 0, numerator / (r * (r + d / 4 - s2)).clamp_min(1e-300), 1.0)
    return np.asarray(out.numpy())


def symmetric_distance(a: Any, b: Any) -> float:
    """d_sym of two embeddings (Sect. 3.3), in [0, 1]: 0 for equal ones, 1 where no filter is shared.

    Args:
        a: a `TaskEmbedding` or a vector ``[P]``.
        b: likewise, of the same probe.

    Raises:
        DataError: embeddings of different probes, or not finite.
    """
    _same_probe(a, b)
    return float(symmetric_matrix(_vector(a)[None], _vector(b)[None])[0, 0])


def _trivial_of(e: Any, trivial: Any) -> np.ndarray:
    if trivial is not None:
        return _vector(trivial)
    if hasattr(e, "trivial"):
        return _vector(e.trivial)
    raise ConfigError("the asymmetric distance of plain vectors needs trivial=, the trivial embedding t0 of the probe")


def asymmetric_distance(source: Any, target: Any, alpha: float = ALPHA, *, trivial: Any = None) -> float:
    """d_asym(source -> target) = d_sym(source, target) - alpha d_sym(source, t0) (Sect. 3.3). May be negative.

    Args:
        source: the expert's task; complex sources come nearer.
        target: the task to solve.
        alpha: weight of the source's complexity.
        trivial: t0; default: the source's own ``trivial``.

    Raises:
        ConfigError: plain vectors without ``trivial``.
        DataError: embeddings of different probes, or not finite.
    """
    t0 = _trivial_of(source, trivial)
    return symmetric_distance(source, target) - alpha * symmetric_distance(source, t0)


def cosine_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine distance of every row of ``a`` and of ``b``, ``[A, B]``; for domain embeddings."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    y = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-300)
    return np.asarray(np.clip(1.0 - x @ y.T, 0.0, 2.0))


def distance_matrix(
    embeddings: Sequence[Any] | np.ndarray,
    kind: str = "symmetric",
    *,
    alpha: float = ALPHA,
    trivial: Any = None,
) -> np.ndarray:
    """All pairwise distances, ``[T, T]`` float64.

    Args:
        embeddings: T `TaskEmbedding`, or vectors ``[T, P]``.
        kind: ``symmetric``; ``asymmetric`` (row = source, column = target); ``domain`` (cosine distance of the domain
            embeddings, or of the rows given).
        alpha: for ``asymmetric``.
        trivial: t0 for ``asymmetric`` of plain vectors.

    Raises:
        UnknownNameError: no such kind.
    """
    if kind not in ("symmetric", "asymmetric", "domain"):
        raise UnknownNameError("distance", kind, ["symmetric", "asymmetric", "domain"])
    _same_probe(*embeddings)
    rows = [_vector(getattr(e, "domain", e) if kind == "domain" else e) for e in embeddings]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1:
        raise DataError(f"got embeddings of {lengths} filters; only embeddings of the same probe compare")
    vectors = np.stack(rows)
    if kind == "domain":
        return cosine_matrix(vectors, vectors)
    d = _symmetric(vectors, None)
    if kind == "symmetric":
        return np.asarray((d + d.T) / 2)
    t0 = _trivial_of(embeddings[0], trivial)
    return np.asarray(d - alpha * symmetric_matrix(vectors, t0[None]))


def taxonomic_distance(a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> int:
    """D_tax(ta, tb) = min over pairs of classes of d(i, j) (Sect. 2), d = levels up to the common ancestor.

    Args:
        a: the lineage of each class of one task, from the root down.
        b: of the other. All lineages of equal length (an ultrametric tree).

    Raises:
        DataError: no classes, or lineages of different lengths.
    """
    lengths = {len(x) for x in (*a, *b)}
    if not a or not b or len(lengths) != 1:
        raise DataError(f"got lineages of lengths {sorted(lengths)}; wanted at least one a task, all of one length")
    depth = lengths.pop()

    def common(x: Sequence[str], y: Sequence[str]) -> int:
        shared = 0
        for p, q in zip(x, y, strict=True):
            if p != q:
                break
            shared += 1
        return shared

    return min(depth - common(x, y) for x in a for y in b)


def taxonomic_matrix(tasks: Sequence[Sequence[Sequence[str]]]) -> NDArray[np.float64]:
    """D_tax between all tasks: min over pairs of their classes of the levels up to the common ancestor (Sect. 2).

    Taxonomies of several sources are joined where their names meet: a lineage that begins with a name that stands
    inside another lineage is hung below it. For lineages of different lengths a pair counts the levels of the longer.

    Args:
        tasks: the lineages of each task's classes, from the root down, the class itself last; empty lineages (a class
            of all other values) do not count.

    Returns:
        ``[T, T]``, 0 where two tasks share a class; NaN in the rows and columns of a task without any lineage.

    Raises:
        DataError: a name stands below itself, once the taxonomies are joined.
    """
    joined = [[tuple(c) for c in classes if c] for classes in tasks]
    above = _above({c for classes in joined for c in classes})
    joined = [[(*above.get(c[0], ()), *c) for c in classes] for classes in joined]
    # For each prefix, the tasks below it with the length of their shortest lineage there. The levels up from two
    # lineages to a prefix they share are never fewer than up to their last common ancestor, which is one of them.
    below: dict[tuple[str, ...], dict[int, int]] = {(): {}}
    for t, classes in enumerate(joined):
        for c in classes:
            for depth in range(len(c) + 1):
                found = below.setdefault(c[:depth], {})
                found[t] = min(found.get(t, len(c)), len(c))
    out = np.full((len(tasks), len(tasks)), np.inf)
    for prefix, found in below.items():
        rows = np.fromiter(found, np.int64, len(found))
        lengths = np.fromiter(found.values(), np.int64, len(found))
        where = np.ix_(rows, rows)
        out[where] = np.minimum(out[where], np.maximum.outer(lengths, lengths) - len(prefix))
    out[np.isinf(out)] = np.nan
    return out


def _above(lineages: set[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """For the root of each taxonomy, what stands above that name in another one."""
    roots = {c[0] for c in lineages}
    above: dict[str, tuple[str, ...]] = {}
    for c in sorted(lineages):
        for depth, name in enumerate(c):
            if depth and name in roots and len(above.get(name, ())) < depth:
                above[name] = c[:depth]
    for root in above:
        seen, name = {root}, root
        while name in above:
            name = above[name][0]
            if name in seen:
                raise DataError(f"{root!r} stands below itself: taxonomies name it both above and below {name!r}")
            seen.add(name)
    return {root: _whole(root, above) for root in above}


def _whole(root: str, above: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    path = above[root]
    return (*_whole(path[0], above), *path) if path[0] in above else path


def transfer_distance(transferred: Sequence[float], direct: Sequence[float]) -> float:
    """D_ft(ta -> tb) = (E[l_ab] - E[l_b]) / E[l_b] (Sect. 2), expectations over training runs.

    Args:
        transferred: test errors on b when training starts from a solution to a.
        direct: test errors on b when training starts from the fixed initialisation.

    Raises:
        DataError: no runs, or a mean direct error of zero.
    """
    if len(transferred) == 0 or len(direct) == 0 or np.mean(direct) <= 0:
        raise DataError("wanted at least one run of each and a direct error above zero")
    return float((np.mean(transferred) - np.mean(direct)) / np.mean(direct))
