"""Where the figures put each task: its place on a map, its rank in a clustering, its colour groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.linalg
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from t2v_core.report_data import ReportData

__all__ = [
    "OTHERS",
    "PALETTE",
    "Arrangement",
    "Clustering",
    "Grouping",
    "arrange",
    "cluster",
    "cosine_distances",
    "dendrogram_path",
    "domain_distances",
    "groupings",
    "map_tasks",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Okabe and Ito's colours, safe for the colour-blind, without black (unreadable on a dark page), then the same hues
# darkened. Groups take turns in four shapes, so colour never carries a group alone.
_HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
_DEEP = ("#004A75", "#946600", "#00614A", "#8C3F69", "#8A3C00", "#2377A3", "#9C9410")
PALETTE = (*_HUES, *_DEEP)
OTHERS = "#8A8F98"


@dataclass(frozen=True, eq=False)
class Grouping:
    """One way to colour the tasks.

    Attributes:
        name: what the tasks are grouped by, e.g. ``"source"``.
        labels: names of the groups, the largest first; ``colors`` and ``counts`` follow it.
        colors: hex colours.
        counts: tasks in each group.
        index: group of each task, ``[T]``.
    """

    name: str
    labels: tuple[str, ...]
    colors: tuple[str, ...]
    counts: tuple[int, ...]
    index: IntArray


@dataclass(frozen=True, eq=False)
class Clustering:
    """An average-linkage clustering.

    Attributes:
        order: tasks from left to right, ``[T]``; neighbours are as close as the tree allows.
        links: scipy's linkage matrix, ``[T - 1, 4]``.
    """

    order: IntArray
    links: FloatArray


@dataclass(frozen=True, eq=False)
class Arrangement:
    """All placements that the figures share.

    Attributes:
        task_map: t-SNE of the task embeddings, ``[T, 2]`` (left of Fig. 1).
        domain_map: t-SNE of the domain embeddings, ``[T, 2]`` (right of Fig. 1).
        clustering: of the symmetric distances (Fig. 2).
        groups: by source, domain, kind and top lineage.
    """

    task_map: FloatArray
    domain_map: FloatArray
    clustering: Clustering
    groups: tuple[Grouping, ...]


def arrange(data: ReportData, seed: int = 0) -> Arrangement:
    """Compute the placements of all figures; the same data and seed give the same bytes."""
    return Arrangement(
        task_map=map_tasks(data.distances, seed),
        domain_map=map_tasks(domain_distances(data), seed),
        clustering=cluster(data.distances),
        groups=groupings(data.tasks),
    )


def domain_distances(data: ReportData) -> FloatArray:
    """Cosine distances of the domain embeddings, ``[T, T]``: the caller's, or computed here."""
    given = data.domain_distances
    return cosine_distances(data.domain_embeddings) if given is None else np.asarray(given, dtype=np.float64)


def cosine_distances(vectors: npt.NDArray[np.floating]) -> FloatArray:
    """Cosine distances ``[T, T]`` of rows ``[T, D]``; a row of zeros is at distance 1 from every other."""
    rows = np.nan_to_num(np.asarray(vectors, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    with threadpool_limits(1):
        return _proper(1.0 - unit @ unit.T)


def map_tasks(distances: npt.NDArray[np.floating], seed: int = 0) -> FloatArray:
    """Place tasks on a plane by t-SNE of their distances.

    It starts from classical scaling, not from noise, so the overall layout means something and seeds hardly matter.
    Fewer than five tasks have no neighbourhoods to preserve: classical scaling alone is returned.

    Args:
        distances: ``[T, T]``; values that are not finite count as the largest distance.
        seed: of the tiny jitter that separates identical tasks.

    Returns:
        Positions ``[T, 2]``.
    """
    proper = _proper(distances)
    n_tasks = len(proper)
    with threadpool_limits(1):  # the order of a parallel sum would change the map from run to run
        start = _classical_scaling(proper)
        if n_tasks < 5:
            return start
        spread = float(start.std())
        start = start / spread * 1e-4 if spread > 0 else start
        start = start + np.random.default_rng(seed).normal(scale=1e-6, size=start.shape)
        model = TSNE(
            metric="precomputed",
            init=start.astype(np.float32),
            perplexity=min(30.0, max(1.5, (n_tasks - 1) / 8)),
            random_state=seed,
        )
        return np.asarray(model.fit_transform(proper), dtype=np.float64)


def cluster(distances: npt.NDArray[np.floating]) -> Clustering:
    """Average linkage of ``[T, T]`` distances, leaves in optimal order."""
    proper = _proper(distances)
    if len(proper) < 2:
        return Clustering(np.arange(len(proper), dtype=np.int64), np.zeros((0, 4)))
    links = hierarchy.linkage(squareform(proper, checks=False), method="average", optimal_ordering=True)
    return Clustering(np.asarray(hierarchy.leaves_list(links), dtype=np.int64), np.asarray(links, dtype=np.float64))


def dendrogram_path(clustering: Clustering) -> tuple[list[float | None], list[float | None]]:
    """The tree as one broken line ``(x, height)``; ``None`` lifts the pen.

    scipy's own ``dendrogram`` recurses as deep as the tree, which a chain of 1,500 tasks does not survive.
    """
    n_tasks = len(clustering.order)
    place = np.empty(2 * n_tasks - 1 if n_tasks else 0)
    height = np.zeros_like(place)
    place[clustering.order] = np.arange(n_tasks)
    xs: list[float | None] = []
    ys: list[float | None] = []
    for step, link in enumerate(clustering.links):
        left, right, top = int(link[0]), int(link[1]), float(link[2])
        xs += [place[left].item(), place[left].item(), place[right].item(), place[right].item(), None]
        ys += [height[left].item(), top, top, height[right].item(), None]
        place[n_tasks + step] = (place[left] + place[right]) / 2
        height[n_tasks + step] = top
    return xs, ys


def groupings(tasks: pd.DataFrame) -> tuple[Grouping, ...]:
    """The four ways the map can be coloured: source, domain, kind, and the top of the lineage."""
    tops = [_top(lineage) for lineage in tasks["lineage"]]
    columns: list[tuple[str, Iterable[Any]]] = [(name, tasks[name]) for name in ("source", "domain", "kind")]
    return tuple(_group(name, values) for name, values in [*columns, ("lineage", tops)])


def _group(name: str, values: Iterable[Any]) -> Grouping:
    """Number the values, most frequent first; those past the palette share one grey group."""
    texts = ["(none)" if value is None or value != value or value == "" else str(value) for value in values]
    ranked = sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0]))
    shown = ranked if len(ranked) <= len(PALETTE) else ranked[: len(PALETTE) - 1]
    number = {label: k for k, (label, _) in enumerate(shown)}
    labels, counts = [label for label, _ in shown], [count for _, count in shown]
    colors = list(PALETTE[: len(shown)])
    if len(shown) < len(ranked):
        labels.append(f"{len(ranked) - len(shown)} smaller groups")
        counts.append(sum(count for _, count in ranked[len(shown) :]))
        colors.append(OTHERS)
    index = np.array([number.get(text, len(shown)) for text in texts], dtype=np.int64)
    return Grouping(name, tuple(labels), tuple(colors), tuple(counts), index)


def _top(lineage: Sequence[str] | None) -> str:
    """First name of a lineage; Parquet gives it as an array, a folder source may have none."""
    return str(lineage[0]) if isinstance(lineage, (list, tuple, np.ndarray)) and len(lineage) else ""


def _proper(distances: npt.NDArray[np.floating]) -> FloatArray:
    """A finite, symmetric, non-negative matrix with a zero diagonal."""
    proper = np.array(distances, dtype=np.float64)
    finite = np.isfinite(proper)
    proper[~finite] = proper[finite].max(initial=0.0) or 1.0
    proper = np.clip((proper + proper.T) / 2, 0.0, None)
    np.fill_diagonal(proper, 0.0)
    return proper


def _classical_scaling(distances: FloatArray) -> FloatArray:
    """Torgerson's scaling to two dimensions: the leading eigenvectors of the centred squared distances."""
    n_tasks = len(distances)
    if n_tasks < 2:
        return np.zeros((n_tasks, 2))
    squared = distances**2
    gram = -0.5 * (squared - squared.mean(axis=0) - squared.mean(axis=1, keepdims=True) + squared.mean())
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=[n_tasks - 2, n_tasks - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    heads = vectors[np.abs(vectors).argmax(axis=0), [0, 1]]
    return np.asarray(vectors * np.where(heads < 0, -1.0, 1.0) * np.sqrt(np.clip(values, 0.0, None)), dtype=np.float64)
