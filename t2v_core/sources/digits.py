"""Handwritten digits, 8 x 8 pixels: ships with scikit-learn, so it is there without any download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from t2v_core.images import encode_png
from t2v_core.sources.base import RawImage, SourceInfo

__all__ = ["DigitsSource"]


@dataclass(frozen=True, kw_only=True)
class DigitsSource:
    """1,797 digits of the UCI set "Optical Recognition of Handwritten Digits"."""

    @property
    def info(self) -> SourceInfo:
        """The data are part of scikit-learn and have never changed."""
        return SourceInfo(
            name="digits",
            domain="digits",
            revision="1",
            licence="CC BY 4.0",
            homepage="https://archive.ics.uci.edu/dataset/80",
            label_columns=("digit",),
        )

    def images(self) -> Iterator[RawImage]:
        """In the order of the set; 0 is black, 16 (the strongest ink) is white."""
        from sklearn.datasets import load_digits

        data = load_digits()
        pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
        for index, (image, digit) in enumerate(zip(pixels, data.target, strict=True)):
            yield RawImage(f"{index:04d}", partial(encode_png, image), {"digit": str(digit)})
