"""Any image classification dataset of torchvision.datasets that is on this machine."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from t2v_core.errors import ConfigError, ImageError, SourceError
from t2v_core.fingerprints import fingerprint
from t2v_core.sources._columns import attribute_lists, coded, slug, split_sides
from t2v_core.sources._missing import check_missing, digest_of, missing_files
from t2v_core.sources._torchvision import DatasetClass, class_names, image_paths, targets
from t2v_core.sources.base import ROW_COLUMNS, SourceInfo, read_file

__all__ = ["TorchvisionSource"]

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass(frozen=True, eq=False)
class _Part:
    """One split of a dataset."""

    name: str
    """As torchvision calls it."""
    ids: list[str]
    locators: list[str]
    paths: list[str]
    """Below the root; none where images are in arrays."""
    labels: pa.Array
    """``[N]``: names of classes, or lists of attributes."""
    digest: str
    """Of images that are in arrays."""


@dataclass(frozen=True, eq=False)
class _Content:
    table: pa.Table
    digests: list[str]
    paths: list[str]
    missing: list[str]


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource:
    """A dataset by the name of its class; nothing is ever downloaded.

    Train and test splits follow the constructor: ``train=True`` and ``False``, or ``split`` with train (or trainval,
    train-standard), test, and val or valid. A validation part is the test split where there is no labelled test part,
    else it is added to train. A class with neither parameter, or with one fixed in ``options``, is one part without a
    split. A part without a single label is left out.

    The labels are the column ``label``: names of the classes where the dataset has them, else their numbers. CelebA
    has ``attribute`` in its place, a list of the attributes of a face.

    Images that are files are read as they are; those in arrays become PNGs. A dataset that keeps no list of its labels
    (PCAM, FakeData) is decoded once to get them.

    Pickles can run any code, so of the classes that unpickle only CIFAR10 and CIFAR100 are allowed: their constructors
    check the MD5 sum of every file before they unpickle one, and refuse other files. LSUN, which unpickles a cache file
    unchecked, is refused, and so is any class of a newer torchvision whose module imports ``pickle``. ``torch.load`` is
    called by MNIST (old ``processed`` files) and ImageNet (``meta.bin``) with ``weights_only=True``. ImageNet's
    constructor unpacks archives that it finds in the root.
    """

    dataset: str
    """Class in torchvision.datasets, such as ``Flowers102``."""
    root: str | Path | None = None
    """The folder that the class gets as its ``root``."""
    name: str | None = None
    """Name of the source; by default the class's, in lower case."""
    domain: str = "photographs"
    """What the images look like, in a word."""
    licence: str = "unknown"
    """Licence of the images."""
    options: Mapping[str, object] | None = None
    """Further arguments of the constructor, such as ``{split: letters}`` of EMNIST; no transforms."""

    def __post_init__(self) -> None:
        if self.options is not None and not isinstance(self.options, Mapping):
            raise ConfigError(f"source 'torchvision': options is {self.options!r}; wanted a mapping")
        _ = self._class

    def __getstate__(self) -> dict[str, Any]:
        """The options alone: what was read stays in its process."""
        return {option.name: getattr(self, option.name) for option in fields(self)}

    @cached_property
    def _class(self) -> DatasetClass:
        root = None if self.root is None else os.path.abspath(os.path.expanduser(self.root))
        return DatasetClass(self.dataset, root, dict(self.options or {}))

    @property
    def _root(self) -> Path:
        return Path(self._class.root or ".")

    @cached_property
    def _opened(self) -> dict[str, Any]:
        """Parts that keep images in arrays, by name."""
        return {}

    @cached_property
    def _content(self) -> _Content:
        parts = []
        for name, dataset in self._class.parts():
            part = self._part(name, dataset)
            if part.labels.null_count < len(part.labels):
                parts.append(part)
                if not part.paths:
                    self._opened[name] = dataset
        if not parts:
            raise SourceError(f"torchvision: {self.dataset} has no image with a label in {self.root}")
        sides = _sides([part.name for part in parts])
        ids = pa.array([name for part in parts for name in part.ids], pa.string())
        locators = pa.array([name for part in parts for name in part.locators], pa.string())
        split = pa.array([sides[part.name] for part in parts for _ in part.ids], pa.string())
        group = pa.array([""] * len(ids), pa.string())
        labels = pa.chunked_array([part.labels for part in parts])
        column = "attribute" if pa.types.is_list(labels.type) else "label"
        if column == "label":
            labels = coded(labels).array  # one dictionary for all parts
        table = pa.table([ids, locators, group, split, labels], names=[*ROW_COLUMNS, column])
        paths = [path for part in parts for path in part.paths]
        return _Content(table, [part.digest for part in parts], paths, missing_files(self._root, paths))

    def _part(self, name: str, dataset: Any) -> _Part:
        n = len(dataset)
        if n == 0:
            raise SourceError(f"torchvision: {self.dataset} has no images; {self._class.how_to_get(name)}")
        found, paths, digest = targets(dataset), image_paths(dataset), ""
        if found is None or (paths is None and not hasattr(dataset, "data")):
            found, digest = self._decoded(dataset)
        elif paths is None:
            digest = hashlib.sha256(np.ascontiguousarray(dataset.data).tobytes()).hexdigest()[:16]
        if len(found) != n or (paths is not None and len(paths) != n):
            raise SourceError(
                f"torchvision: {self.dataset} has {n:,} images, {len(found):,} labels"
                f"{f' and {len(paths):,} paths' if paths is not None else ''}: half downloaded, or of two versions; "
                f"remove it and {self._class.how_to_get(name)}"
            )
        labels = self._labels(dataset, found)
        if paths is None:
            ids = [f"{name}-{i}" if name else str(i) for i in range(n)]
            return _Part(name, ids, [f"item:{name}:{i}" for i in range(n)], [], labels, digest)
        below = [self._below(path) for path in paths]
        order = sorted(range(n), key=below.__getitem__)  # some classes list folders in no order
        below = [below[i] for i in order]
        raw = [os.fsencode(path) for path in below]
        ids = [path.decode("utf-8", "backslashreplace") for path in raw]
        locators = [f"file:{quote_from_bytes(path, safe='/ ')}" for path in raw]
        return _Part(name, ids, locators, below, labels.take(pa.array(order)), digest)

    def _below(self, path: str) -> str:
        start = f"{self._root}/"
        if not path.startswith(start):
            raise SourceError(f"torchvision: {self.dataset} has an image {path} outside of {self._root}")
        return path.removeprefix(start)

    def _decoded(self, dataset: Any) -> tuple[list[Any], str]:
        """The label of every image by decoding it, and a digest of the pixels; an unreadable image has no label."""
        digest, labels = hashlib.sha256(), []
        for i in range(len(dataset)):
            try:
                image, label, *more = dataset[i]
            except OSError:
                image, label, more = None, None, []
            if more or not (image is None or isinstance(image, Image.Image)):
                what = f"{1 + len(more)} targets" if more else f"a {type(image).__name__} for an image"
                raise SourceError(f"torchvision: {self.dataset} gives {what}; wanted one image with one class")
            digest.update(b"" if image is None else image.tobytes())
            labels.append(label)
            if i == 0:
                self._numbers(labels)  # captions and boxes are found out at once
        return labels, digest.hexdigest()[:16]

    def _numbers(self, found: Any) -> NDArray[np.int64]:
        """Numbers of classes, -1 for none."""
        values = found if isinstance(found, np.ndarray) else [-1 if value is None else value for value in found]
        try:
            array = np.asarray(values)
        except ValueError:  # of several lengths
            array = np.empty(0, object)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            first = found[0] if len(found) else None
            raise SourceError(
                f"torchvision: the targets of {self.dataset} are no class numbers, the first is {first!r:.80}; only "
                "datasets with one class for each image, and CelebA, can be sources"
            )
        return array.astype(np.int64)

    def _labels(self, dataset: Any, found: Any) -> pa.Array:
        if isinstance(found, np.ndarray) and found.ndim == 2:
            names = [name for name in getattr(dataset, "attr_names", ()) if name]
            if len(names) != found.shape[1] or not np.isin(found, (0, 1)).all():
                raise SourceError(
                    f"torchvision: {self.dataset} has {found.shape[1]} attributes and {len(names)} names, or values "
                    "other than 0 and 1; only CelebA may have several labels for an image"
                )
            return attribute_lists({name: found[:, i].astype(np.int8) for i, name in enumerate(names)})[0]
        numbers = self._numbers(found)
        names = class_names(dataset)
        names += [str(i) for i in range(len(names), int(numbers.max()) + 1)]
        values = pa.array(names, pa.string())
        return coded(pa.chunked_array([values.take(pa.array(numbers, mask=numbers < 0))])).array

    @property
    def info(self) -> SourceInfo:
        """What the files say; the revision is a hash of labels, of images in arrays, and of which files are missing.

        Raises:
            SourceError: see `annotations`.
            MissingPackageError: a package that the class wants is not installed.
        """
        content = self._content
        column = content.table.column_names[-1]
        rows = hashlib.sha256()
        for name in ("image_id", "split", column):
            values = content.table[name].to_pylist()
            rows.update("\0".join("\1".join(v) if isinstance(v, list) else str(v) for v in values).encode())
        asked = [self.dataset, sorted([k, repr(v)] for k, v in (self.options or {}).items())]
        return SourceInfo(
            name=self.name or slug(self.dataset),
            domain=self.domain,
            revision=fingerprint(asked, rows.hexdigest(), content.digests, digest_of(content.missing)),
            licence=self.licence,
            homepage=f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{self.dataset}.html",
            label_columns=(column,),
        )

    def annotations(self) -> pa.Table:
        """Part by part; files in the order of their paths below the root, which are the ids; others as they come.

        Raises:
            SourceError: the data are missing, damaged or half downloaded, the message has the line of Python that
                downloads them; or they are no images with one class each.
            MissingPackageError: a package that the class wants is not installed.
        """
        return self._content.table

    def read(self, locator: str) -> bytes:
        """A file as it is, or a PNG of an image in an array."""
        kind, _, place = locator.partition(":")
        if kind == "file":
            return read_file(self._root, os.fsdecode(unquote_to_bytes(place)))
        name, _, index = place.rpartition(":")
        if name not in self._opened:
            self._opened[name] = self._class.open(name)
        image = self._opened[name][int(index)][0]
        if not isinstance(image, Image.Image):
            raise ImageError(f"{self.dataset} gives a {type(image).__name__}, wanted an image")
        sink = io.BytesIO()
        (image if image.mode in _PNG_MODES else image.convert("RGB")).save(sink, "PNG")
        return sink.getvalue()

    def check_images(self) -> None:
        """Are the files there?

        Raises:
            SourceError: more than 1% are missing.
        """
        content = self._content
        mend = f"remove the dataset and {self._class.how_to_get('')}"
        check_missing("torchvision", self._root, content.missing, len(content.table), mend)


def _sides(names: Sequence[str]) -> dict[str, str]:
    """Which side of the split each part is on; of a single part, the hash decides."""
    if len(names) == 1:
        return {names[0]: ""}
    plain = {name: "train" if name.startswith("train") else name for name in names}
    meant = split_sides(list(plain.values()))
    return {name: meant[plain[name]] for name in names}
