"""Handwritten digits, 8 x 8 pixels: ships with scikit-learn, so it is there without any download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from t2v_core.images import encode_png
from t2v_core.sources.base import Row, SourceInfo, annotation_table

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

    @cached_property
    def _data(self) -> Any:
        from sklearn.datasets import load_digits

        return load_digits()

    def annotations(self) -> pa.Table:
        """In the order of the set."""
        rows = (Row(f"{index:04d}", {"digit": str(digit)}) for index, digit in enumerate(self._data.target))
        return annotation_table(rows, ("digit",), "digits")

    def read(self, locator: str) -> bytes:
        """One digit; 0 is black, 16 (the strongest ink) is white."""
        return encode_png(np.rint(self._data.images[int(locator)] * (255 / 16)).astype(np.uint8))

    def check_images(self) -> None:
        """They are part of the package."""
