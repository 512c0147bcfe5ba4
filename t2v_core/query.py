"""A new dataset from a folder: the query that experts are ranked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from t2v_core.config import EmbeddingSpec
from t2v_core.embedding import TaskEmbedding, embed_features
from t2v_core.errors import ImageError, TaskError
from t2v_core.features import extract_features
from t2v_core.fingerprints import name_rank
from t2v_core.images import decode_image
from t2v_core.probes import Probe
from t2v_core.sources import each_image, open_source

__all__ = ["EmbeddedFolder", "embed_folder"]


@dataclass(frozen=True, eq=False)
class EmbeddedFolder:
    """A folder's embedding, and what was left out of it."""

    embedding: TaskEmbedding
    classes: tuple[str, ...]
    n_images: int
    rejects: tuple[tuple[str, str], ...]
    """(image, reason)"""


def embed_folder(
    path: str,
    probe: Probe,
    spec: EmbeddingSpec,
    *,
    max_per_class: int = 400,
    max_pixels: int = 50_000_000,
    progress: Callable[[str, int, int], None] | None = None,
) -> EmbeddedFolder:
    """Embed a folder with a subfolder of images per class.

    Args:
        path: the folder.
        probe: the network that embeds.
        spec: how.
        max_per_class: at most this many images of a class are read, a sample that depends on their names alone.
        max_pixels: larger images are rejected before they are decoded.
        progress: called with (what, done, in all).

    Raises:
        SourceError: no such folder, or no subfolders.
        TaskError: fewer than two classes with images that can be used.
    """
    source = open_source("folder", path=path)
    raws = sorted(each_image(source), key=lambda r: (str(r.labels["label"]), name_rank(r.image_id)))
    by_class: dict[str, list[np.ndarray]] = {}
    rejects: list[tuple[str, str]] = []
    for done, raw in enumerate(raws, start=1):
        of_class = by_class.setdefault(str(raw.labels["label"]), [])
        if len(of_class) < max_per_class:
            try:
                of_class.append(probe.transform.to_uint8(decode_image(raw.read(), max_pixels=max_pixels)))
            except (ImageError, OSError) as error:
                rejects.append((raw.image_id, str(error)))
        if progress:
            progress("read images", done, len(raws))
    usable = {name: images for name, images in by_class.items() if images}
    if len(usable) < 2:
        first = f"; first problem: {rejects[0][0]}: {rejects[0][1]}" if rejects else ""
        raise TaskError(
            f"{path!r} has {len(usable)} class{'es' if len(usable) != 1 else ''} with usable images "
            f"({len(rejects)} images rejected{first}); wanted a folder with a subfolder of images for each of two or "
            "more classes"
        )
    images = np.stack([image for of_class in usable.values() for image in of_class])
    labels = np.repeat(np.arange(len(usable)), [len(v) for v in usable.values()])
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order]
    features = extract_features(
        probe,
        images,
        batch_size=spec.batch_size,
        progress=(lambda d, n: progress("probe features", d, n)) if progress else None,
    )
    if progress:
        progress("head and Fisher", 0, 1)
    embedding = embed_features(probe, features, labels, lambda rows: images[rows], spec)
    if progress:
        progress("head and Fisher", 1, 1)
    return EmbeddedFolder(embedding, tuple(usable), len(images), tuple(rejects))
