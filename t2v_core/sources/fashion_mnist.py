"""Fashion-MNIST, 70,000 clothes of 28 x 28 pixels, from the four idx files as they are published."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from t2v_core.errors import SourceError
from t2v_core.fingerprints import digest_bytes, fingerprint
from t2v_core.images import encode_png
from t2v_core.sources.base import Row, SourceInfo, annotation_table

__all__ = ["ITEMS", "FashionMnistSource"]

ITEMS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
"""The classes, in the order of their numbers."""

_PLACES = ("/usr/share/datasets/fashion-mnist", "~/.cache/t2v/fashion-mnist")
_PREFIX = {"train": "train", "test": "t10k"}


class _Part(NamedTuple):
    split: str
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class FashionMnistSource:
    """60,000 training and 10,000 test images."""

    root: str | Path | None = None
    """Folder with the idx files, or torchvision's root above them; by default the usual places are tried."""

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        folder = _find(self.root)
        return tuple(_part(folder, split) for split in _PREFIX)

    @cached_property
    def info(self) -> SourceInfo:
        """What is known of the files; reads them all to tell their revision.

        Raises:
            SourceError: the files are not there, or not what they should be.
        """
        digests = [digest_bytes(part.images.tobytes() + part.labels.tobytes()) for part in self._parts]
        return SourceInfo(
            name="fashion_mnist",
            domain="clothes",
            revision=fingerprint(digests),
            licence="MIT",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            label_columns=("item",),
        )

    def annotations(self) -> pa.Table:
        """Training images, then test images, in the order of the files.

        Raises:
            SourceError: the files are not there, or not what they should be.
        """
        rows = (
            Row(f"{split}-{index:05d}", {"item": ITEMS[label]}, split=split)
            for split, _, labels in self._parts
            for index, label in enumerate(labels)
        )
        return annotation_table(rows, ("item",), "fashion_mnist")

    def read(self, locator: str) -> bytes:
        """One image, white on black."""
        split, _, index = locator.partition("-")
        return encode_png(next(part for part in self._parts if part.split == split).images[int(index)])

    def check_images(self) -> None:
        """They were read to tell the revision."""


def _find(root: str | Path | None) -> Path:
    places = [Path(place).expanduser() for place in (_PLACES if root is None else (root,))]
    for place in places:
        for folder in (place, place / "FashionMNIST" / "raw"):
            if _file(folder, "train-images-idx3-ubyte") is not None:
                return folder
    raise SourceError(
        f"fashion_mnist: no train-images-idx3-ubyte[.gz] in {', '.join(map(str, places))}; install the Debian package "
        "dataset-fashion-mnist, or download it with torchvision.datasets.FashionMNIST(ROOT, download=True), "
        "and name another folder with the option `root:`"
    )


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _part(folder: Path, split: str) -> _Part:
    images = _read_idx(folder, f"{_PREFIX[split]}-images-idx3-ubyte", axes=3)
    labels = _read_idx(folder, f"{_PREFIX[split]}-labels-idx1-ubyte", axes=1)
    if len(images) != len(labels) or not len(labels) or labels.max() >= len(ITEMS):
        top = labels.max() if len(labels) else "none"
        raise SourceError(
            f"fashion_mnist: {len(images)} {split} images, {len(labels)} labels, largest label {top}; "
            f"wanted a label of 0 to {len(ITEMS) - 1} per image. Fetch the files again"
        )
    return _Part(split, images, labels)


def _read_idx(folder: Path, name: str, axes: int) -> NDArray[np.uint8]:
    """An array of bytes in idx format: 0, 0, type 8, number of axes; big-endian sizes; data."""
    path = _file(folder, name)
    if path is None:
        raise SourceError(f"fashion_mnist: {name}[.gz] is missing in {folder}; fetch all four files")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"fashion_mnist: cannot read {path}: {error}; fetch the file again") from error
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    if data[:4] != bytes((0, 0, 8, axes)) or len(data) != start + math.prod(shape):
        raise SourceError(f"fashion_mnist: {path} is not an idx file of {axes} axes, or truncated; fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
