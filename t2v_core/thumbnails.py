"""A few small images of each task, side by side in one WebP strip: what the report shows of its data."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from t2v_core.errors import ConfigError
from t2v_core.library import TaskRows

__all__ = ["Thumbnail", "ThumbnailSize", "make_thumbnail", "pick_images", "thumbnail_size"]

_GROUND = (255, 255, 255)
_QUALITY = 70


@dataclass(frozen=True)
class ThumbnailSize:
    """How many images of a task are shown, and how large."""

    images: int
    """Images of each task."""
    pixels: int
    """Side of each, in pixels."""


@dataclass(frozen=True)
class Thumbnail:
    """A strip of images of one task."""

    strip: bytes
    """WebP, ``pixels`` high and ``len(names) * pixels`` wide."""
    pixels: int
    names: tuple[str, ...]
    """Class of each image, from left to right."""


def thumbnail_size(n_tasks: int) -> ThumbnailSize:
    """Fewer and smaller images the more tasks there are, so that all strips of a library stay below about 5 MB."""
    for most, images, pixels in ((150, 8, 64), (500, 6, 56)):
        if n_tasks <= most:
            return ThumbnailSize(images, pixels)
    return ThumbnailSize(4, 44)


def pick_images(rows: TaskRows, n: int) -> list[tuple[int, int]]:
    """Which images of a task to show: ``(row in the source, class)``, training images, by class.

    The classes are visited in turn; where there are more of them than ``n``, evenly spaced ones. Of a class the images
    with the lowest row numbers are taken: they lie together in the packed source, so few parts of it are read.

    Args:
        rows: of the task.
        n: images wanted; fewer where the task has fewer.

    Raises:
        ConfigError: ``n`` is below 1.
    """
    if n < 1:
        raise ConfigError(f"got {n} images of a task; wanted 1 or more")
    numbers, labels, _ = rows.part(test=False)
    if len(numbers) == 0:
        numbers, labels = rows.rows, rows.labels
    present = np.unique(labels)
    if len(present) > n:
        present = present[np.linspace(0, len(present) - 1, n).round().astype(int)]
    waiting = {int(c): np.sort(numbers[labels == c]).tolist() for c in present}
    picked: list[tuple[int, int]] = []
    while len(picked) < n and any(waiting.values()):
        for c, left in waiting.items():
            if left and len(picked) < n:
                picked.append((int(left.pop(0)), c))
    return sorted(picked, key=lambda item: item[1])  # images of a class stand together


def make_thumbnail(images: Sequence[Image.Image], names: Sequence[str], pixels: int) -> Thumbnail:
    """Put images side by side; each is fitted into a square on white, none is cut.

    Args:
        images: RGB.
        names: class of each.
        pixels: side of a square.

    Raises:
        ConfigError: no images, or not one name for each.
    """
    if not images or len(images) != len(names):
        raise ConfigError(f"got {len(images)} images and {len(names)} names; wanted one name for each of 1 or more")
    strip = Image.new("RGB", (pixels * len(images), pixels), _GROUND)
    for k, image in enumerate(images):
        fitted = ImageOps.contain(image.convert("RGB"), (pixels, pixels), Image.Resampling.LANCZOS)
        strip.paste(fitted, (k * pixels + (pixels - fitted.width) // 2, (pixels - fitted.height) // 2))
    out = io.BytesIO()
    strip.save(out, "WEBP", quality=_QUALITY, method=6)
    return Thumbnail(out.getvalue(), pixels, tuple(names))
