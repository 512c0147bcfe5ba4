"""A new dataset from a folder: the query that experts are ranked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from t2v_core.config import EmbeddingSpec
from t2v_core.embedding import TaskEmbedding, embed_features
from t2v_core.errors import ImageError, TaskError
from t2v_core.features import extract_features
from t2v_core.fingerprints import digest_bytes, name_rank
from t2v_core.images import ImageTransform, decode_image
from t2v_core.probes import Probe
from t2v_core.sources import RawImage, each_image, open_source

__all__ = ["EmbeddedFolder", "FolderImages", "embed_folder", "embed_images", "read_folder"]

_AHEAD = 64
"""Images that are read and decoded at once."""


@dataclass(frozen=True, eq=False)
class FolderImages:
    """A folder's images as one network wants them, and what was left out."""

    path: str
    transform: ImageTransform
    images: np.ndarray
    """``[N, S, S, 3]`` uint8, in a fixed random order."""
    labels: np.ndarray
    """``[N]`` integers, places in `classes`."""
    groups: np.ndarray
    """``[N]`` of texts: files with the same bytes are in one group."""
    test: np.ndarray
    """``[N]`` bool: the folder itself has them under ``test`` or ``val``."""
    classes: tuple[str, ...]
    rejects: tuple[tuple[str, str], ...]
    """(image, reason)"""


@dataclass(frozen=True, eq=False)
class EmbeddedFolder:
    """A folder's embedding, and what was left out of it."""

    embedding: TaskEmbedding
    classes: tuple[str, ...]
    n_images: int
    rejects: tuple[tuple[str, str], ...]
    """(image, reason)"""


def read_folder(
    path: str,
    transform: ImageTransform,
    *,
    max_per_class: int = 400,
    max_pixels: int = 50_000_000,
    progress: Callable[[str, int, int], None] | None = None,
) -> FolderImages:
    """Read a folder with a subfolder of images per class.

    Args:
        path: the folder.
        transform: what the images are brought to.
        max_per_class: at most this many images of a class are read, a sample that depends on their names alone.
        max_pixels: larger images are rejected before they are decoded.
        progress: called with (what, done, in all).

    Raises:
        SourceError: no such folder, or no subfolders.
        TaskError: fewer than two classes with images that can be used.
    """
    source = open_source("folder", path=path)
    raws = sorted(each_image(source), key=lambda r: (str(r.labels["label"]), name_rank(r.image_id)))
    by_class: dict[str, list[tuple[np.ndarray, str, bool]]] = {}
    rejects: list[tuple[str, str]] = []

    def decoded(raw: RawImage) -> tuple[np.ndarray, str, bool] | str:
        try:
            data = raw.read()
            pixels = transform.to_uint8(decode_image(data, max_pixels=max_pixels))
        except (ImageError, OSError) as error:
            return str(error)
        return pixels, raw.group or digest_bytes(data), raw.split == "test"

    left, done = iter(raws), 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # decoders let go of the interpreter's lock
        while part := list(islice(left, _AHEAD)):
            # A class that is full may be overshot here; what is too much is thrown away below.
            wanted = [r for r in part if len(by_class.setdefault(str(r.labels["label"]), [])) < max_per_class]
            for raw, result in zip(wanted, pool.map(decoded, wanted), strict=True):
                of_class = by_class[str(raw.labels["label"])]
                if isinstance(result, str):
                    rejects.append((raw.image_id, result))
                elif len(of_class) < max_per_class:
                    of_class.append(result)
            done += len(part)
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
    found = [image for of_class in usable.values() for image in of_class]
    labels = np.repeat(np.arange(len(usable)), [len(v) for v in usable.values()])
    order = np.random.default_rng(0).permutation(len(labels))
    return FolderImages(
        path=path,
        transform=transform,
        images=np.stack([found[i][0] for i in order]),
        labels=labels[order],
        groups=np.array([found[i][1] for i in order]),
        test=np.array([found[i][2] for i in order], bool),
        classes=tuple(usable),
        rejects=tuple(rejects),
    )


def embed_images(
    folder: FolderImages,
    probe: Probe,
    spec: EmbeddingSpec,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> EmbeddedFolder:
    """Embed a folder's images, which were read as the probe wants them.

    Args:
        folder: read with the probe's transform.
        probe: the network that embeds.
        spec: how.
        progress: called with (what, done, in all).
    """
    images, labels = folder.images, folder.labels
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
    return EmbeddedFolder(embedding, folder.classes, len(images), folder.rejects)


def embed_folder(
    path: str,
    probe: Probe,
    spec: EmbeddingSpec,
    *,
    max_per_class: int = 400,
    max_pixels: int = 50_000_000,
    progress: Callable[[str, int, int], None] | None = None,
) -> EmbeddedFolder:
    """Embed a folder with a subfolder of images per class; `read_folder` and `embed_images` in one."""
    folder = read_folder(path, probe.transform, max_per_class=max_per_class, max_pixels=max_pixels, progress=progress)
    return embed_images(folder, probe, spec, progress=progress)
