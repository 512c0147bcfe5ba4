"""TASK2VEC: a task as the filter-wise Fisher information of the probe, with a head trained for the task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from t2v_core.config import EmbeddingSpec, HeadSpec
from t2v_core.errors import DataError, TaskError
from t2v_core.features import extract_features
from t2v_core.fisher import ESTIMATORS, estimate_fisher, prior_weight
from t2v_core.fisher.variational import prior_precision
from t2v_core.heads import HeadFit, fit_head
from t2v_core.images import decode_image
from t2v_core.probes import Probe
from t2v_core.reference_head import fit_reference_head

__all__ = ["Layer", "TaskEmbedding", "canonical_labels", "embed_features", "embed_task", "trivial_embedding"]


@dataclass(frozen=True)
class Layer:
    """Where a layer's filters are in the vector."""

    name: str
    start: int
    stop: int

    @property
    def slice(self) -> slice:
        """``vector[layer.slice]``"""
        return slice(self.start, self.stop)


@dataclass(frozen=True, eq=False)
class TaskEmbedding:
    """A task in the space of a probe's filters.

    ``vector = F + t0 = kappa Lambda``: the filter-wise Fisher information (per sample, mean over images and over each
    filter's weights) plus the trivial embedding ``t0 = kappa lambda^2``, which is what a task with no information gets.
    It is the optimum of the paper's variational objective (Sect. 3.1): at the fixed point with the estimator
    ``variational``, in the limit of small noise with the others. See `t2v_core.fisher.variational`.
    """

    vector: np.ndarray
    """``[P]`` float32, filters in layer order."""
    trivial: np.ndarray
    """``[P]`` float32, t0 of the same probe and beta (and, with ``beta_scale: dataset``, of N)."""
    noise: np.ndarray
    """``[P]`` float32, standard error of `vector` from disjoint groups of images (images and draws)."""
    groups: np.ndarray
    """``[G, P]`` float32, the embedding from each group of images; what intervals of distances are made from."""
    noise_distance: float
    """About how far (d_sym) this embedding would be from one of other images and other draws, from the two halves of
    the groups. NaN where there is one group."""
    domain: np.ndarray
    """``[D]`` float32, the domain embedding: mean features over the training images (C1's first moment)."""
    layers: tuple[Layer, ...]
    probe: str
    """Architecture and digest of the weights."""
    estimator: str
    beta: float
    beta_scale: str
    seed: int
    n_classes: int
    n_images: int
    """Unique images that the Fisher is a mean over."""
    n_passes: int
    exact: bool
    """Whether the sum over labels was exact, and no noise was added."""
    objective: tuple[float, ...]
    """variational: the objective before each pass, nats a sample; empty with the others."""
    converged: bool
    """variational: whether the objective had stopped falling."""
    head_loss: float
    """Cross entropy on the training rows, nats."""
    head_accuracy: float
    head_error: float
    """Balanced error on held-out groups of the training rows; NaN where none could be held out."""
    head_l2: float
    seconds: float
    """Wall time of head and Fisher."""
    images_per_second: float
    """Backward passes of the Fisher, in images, over its wall time."""
    device: str

    @property
    def complexity(self) -> float:
        """L1 norm of the Fisher information (distance from the origin in Fig. 2), prior left out."""
        return float(np.abs(self.vector.astype(np.float64) - self.trivial).sum())


def canonical_labels(labels: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Classes numbered by first appearance, ``[N]`` int64: the same for every permutation of the labels' names."""
    seen: dict[Any, int] = {}
    values = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    return np.array([seen.setdefault(v, len(seen)) for v in values], dtype=np.int64)


def trivial_embedding(probe: Probe, spec: EmbeddingSpec | float, n_images: int = 1) -> np.ndarray:
    """t0 ``[P]``: ``kappa lambda^2``, with ``lambda^2 = 1 / mean squared weight`` of each filter's layer; what a
    constant loss gives.

    Args:
        probe: the network.
        spec: ``beta`` and ``beta_scale``; or beta alone, for one sample.
        n_images: N, for ``beta_scale: dataset``.
    """
    spec = spec if isinstance(spec, EmbeddingSpec) else EmbeddingSpec(beta=spec)
    return np.asarray((prior_weight(spec, n_images) * prior_precision(probe)).numpy().astype(np.float32))


def _fisher_rows(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most ``limit`` rows, ascending; every class keeps its share, and at least one row."""
    if len(labels) <= limit:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels))
    for c in np.unique(labels):
        of_class = order[labels[order] == c]
        rank[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
        rank[of_class[0]] = -1.0  # every class first
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def embed_features(
    probe: Probe,
    features: np.ndarray,
    labels: np.ndarray,
    load_images: Callable[[np.ndarray], np.ndarray],
    spec: EmbeddingSpec | None = None,
    *,
    groups: np.ndarray | None = None,
) -> TaskEmbedding:
    """Embed a task whose probe features are known.

    Args:
        probe: the network that embeds.
        features: ``[N, D]`` of the training images.
        labels: ``[N]``, of any kind; only which rows share a label matters.
        load_images: row indices ``[M]`` to images ``[M, H, W, 3]`` uint8 of the probe's size.
        spec: estimator, budgets, prior, head.
        groups: ``[N]``; rows of a group are held out together when the head's L2 is chosen.

    Raises:
        TaskError: fewer than two classes.
        UnknownNameError: no such estimator.
        ComputeError: a result that is not finite.
    """
    spec = spec or EmbeddingSpec()
    ESTIMATORS[spec.estimator]
    began = time.perf_counter()
    numbered = canonical_labels(labels)
    if spec.estimator == "reference":
        head = fit_reference_head(features, numbered, seed=spec.seed)
    else:
        head = fit_head(features, numbered, spec.head, groups=groups)
    rows = _fisher_rows(numbered, spec.max_images, spec.seed)
    images = load_images(rows)
    return _finish(probe, features, numbered, rows, head, images, spec, began)


def _finish(
    probe: Probe,
    features: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    head: HeadFit,
    images: np.ndarray,
    spec: EmbeddingSpec,
    began: float,
) -> TaskEmbedding:
    started = time.perf_counter()
    estimate = estimate_fisher(
        probe,
        (torch.as_tensor(head.weight), torch.as_tensor(head.bias)),
        probe.transform.to_tensor(images, dtype=probe.dtype),
        labels=labels[rows],
        features=features[rows],
        spec=spec,
    )
    fisher_seconds = time.perf_counter() - started
    t0 = trivial_embedding(probe, spec, len(rows))
    groups = estimate.groups.numpy()
    noise = groups.std(0, ddof=1) / np.sqrt(len(groups)) if len(groups) > 1 else np.full(groups.shape[1], np.nan)
    return TaskEmbedding(
        vector=(estimate.filters.numpy() + t0).astype(np.float32),
        trivial=t0,
        noise=noise.astype(np.float32),
        groups=(groups + t0).astype(np.float32),
        noise_distance=_noise_distance(groups + t0),
        domain=np.asarray(features, dtype=np.float64).mean(0).astype(np.float32),
        layers=tuple(Layer(u.name, u.start, u.stop) for u in probe.units),
        probe=f"{probe.name}:{probe.digest}",
        estimator=spec.estimator,
        beta=spec.beta,
        beta_scale=spec.beta_scale,
        seed=spec.seed,
        n_classes=int(labels.max()) + 1,
        n_images=estimate.n_images,
        n_passes=estimate.n_passes,
        exact=estimate.exact,
        objective=estimate.objective,
        converged=estimate.converged,
        head_loss=head.loss,
        head_accuracy=head.accuracy,
        head_error=head.held_out_error,
        head_l2=head.l2,
        seconds=time.perf_counter() - began,
        images_per_second=estimate.n_passes / max(fisher_seconds, 1e-9),
        device=str(probe.device),
    )


def _noise_distance(groups: np.ndarray) -> float:
    """``var((a - b) / (a + b))`` over filters, a and b the means of the even and of the odd groups.

    To second order d_sym of near embeddings is twice that variance; and each half has twice the variance of the whole,
    so that two repeats of the whole are half as far apart as the halves are.
    """
    if len(groups) < 2:
        return float("nan")
    a, b = groups[0::2].mean(0), groups[1::2].mean(0)
    live = a + b > 0
    return float(((a - b)[live] / (a + b)[live]).var()) if live.any() else float("nan")


def _as_uint8(probe: Probe, image: Any) -> np.ndarray:
    """One image of a user's dataset, as the probe wants it: PIL, encoded bytes, ``[H, W, 3]`` or ``[3, H, W]``."""
    from PIL import Image

    if isinstance(image, bytes):
        image = decode_image(image)
    if isinstance(image, Image.Image):
        return probe.transform.to_uint8(image.convert("RGB"))
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise DataError(f"got an image of shape {array.shape}; wanted PIL, bytes, [H, W], [H, W, 3] or [3, H, W]")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            raise DataError(f"got a {array.dtype} image with values that are not finite; wanted uint8 or [0, 1]")
        if array.min() < 0 or array.max() > 1:
            raise DataError(
                f"got a {array.dtype} image with values in [{array.min():.3g}, {array.max():.3g}]; "
                "wanted uint8 or [0, 1]; "
                "give images before normalisation, the probe normalises them"
            )
        array = np.round(array * 255).astype(np.uint8)
    return probe.transform.to_uint8(Image.fromarray(np.ascontiguousarray(array)))


def embed_task(
    probe: Probe,
    dataset: Any,
    estimator: str | None = None,
    seed: int | None = None,
    *,
    spec: EmbeddingSpec | None = None,
    head: HeadSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TaskEmbedding:
    """Embed a task: train a head on the probe's features, then take the filter-wise Fisher information.

    Args:
        probe: from `load_probe` or `probe_from_module`.
        dataset: any map-style dataset of (image, label), or a pair of arrays (images, labels). Images: PIL, encoded
            bytes, uint8 or floats in [0, 1]; not yet normalised, and without random augmentation. The images that
            enter the Fisher are read a second time. Labels: anything
            hashable; their names and order do not matter.
        estimator: ``variational``, ``montecarlo``, ``exact``, ..., in place of the spec's; the default is
            ``variational``.
        seed: of all draws, in place of the spec's; the default is 0. The same seed gives the same bytes.
        spec: all other settings.
        head: head settings, in place of the spec's.
        progress: called with (images done, images in all) while features are made.

    Raises:
        UnknownNameError: no such estimator.
        TaskError: no images, or fewer than two classes.
        DataError: images of a wrong shape or range.
    """
    given = {"estimator": estimator, "seed": seed, "head": head}
    settings = (spec or EmbeddingSpec()).model_copy(update={k: v for k, v in given.items() if v is not None})
    ESTIMATORS[settings.estimator]
    if isinstance(dataset, tuple) and len(dataset) == 2:
        if len(dataset[0]) != len(dataset[1]):
            raise DataError(f"got {len(dataset[0])} images and {len(dataset[1])} labels; wanted one label an image")
        dataset = _Arrays(*dataset)
    n = len(dataset)
    if n == 0:
        raise TaskError("the dataset is empty; wanted at least two classes of images")
    # One batch of images is held at a time, and later those that enter the Fisher: memory does not grow with them all.
    parts: list[np.ndarray] = []
    labels: list[Any] = []
    for start in range(0, n, settings.batch_size):
        pairs = [dataset[i] for i in range(start, min(start + settings.batch_size, n))]
        labels += [label.item() if hasattr(label, "item") else label for _, label in pairs]
        batch = np.stack([_as_uint8(probe, image) for image, _ in pairs])
        parts.append(extract_features(probe, batch, batch_size=settings.batch_size))
        if progress:
            progress(len(labels), n)

    def load(rows: np.ndarray) -> np.ndarray:
        return np.stack([_as_uint8(probe, dataset[int(i)][0]) for i in rows])

    return embed_features(probe, np.concatenate(parts), canonical_labels(labels), load, settings)


class _Arrays:
    """A pair of arrays as a map-style dataset."""

    def __init__(self, images: Any, labels: Any) -> None:
        self._images, self._labels = images, np.asarray(labels).tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self._images[i], self._labels[i]
