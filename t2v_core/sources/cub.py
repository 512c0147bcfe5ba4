"""CUB-200-2011: 11,788 birds of 200 species, with the taxonomy that the archive lacks."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import pyarrow as pa

from t2v_core.errors import ImageError, SourceError
from t2v_core.images import decode_image
from t2v_core.sources._layout import need, refuse_outside, revision_of, text_lines
from t2v_core.sources._missing import check_missing, digest_of, missing_files
from t2v_core.sources.base import Row, SourceInfo, annotation_table, read_file

__all__ = ["CubSource", "taxonomy"]

_MEND = "unpack CUB_200_2011.tgz of Caltech-UCSD Birds-200-2011 (data.caltech.edu) and name its folder with `root:`"
_FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
_RANKS = ("order", "family", "genus", "species")


def taxonomy() -> dict[str, dict[str, str]]:
    """Class name to order, family, genus and species (the binomial) of the 200 classes, as of about 2011.

    Ten orders beside Passeriformes, and 15 families of these, have two classes or more: the paper's 25 tasks. Later
    taxonomies split some of them (Suliformes, Passerellidae), which would change the tasks.
    """
    text = files("t2v_core.sources").joinpath("data", "cub_taxonomy.csv").read_text(encoding="utf-8")
    return {row.pop("class"): row for row in csv.DictReader(io.StringIO(text))}


@dataclass(frozen=True, kw_only=True)
class CubSource:
    """The folder ``CUB_200_2011`` of the official archive, or the one above it."""

    root: str | Path
    """The folder."""
    crop: bool = False
    """Cut each image to its bounding box (``bounding_boxes.txt``)."""

    @cached_property
    def _root(self) -> Path:
        root = Path(self.root).expanduser()
        below = root / "CUB_200_2011"
        return below if (below / "images.txt").is_file() else root

    @cached_property
    def _files(self) -> list[Path]:
        return [need(self._root / name, _MEND) for name in (*_FILES, *(["bounding_boxes.txt"] if self.crop else []))]

    def _pairs(self, name: str) -> dict[str, str]:
        """``KEY VALUE`` a line."""
        path = self._root / name
        pairs: dict[str, str] = {}
        for number, line in enumerate(text_lines(path, _MEND), start=1):
            key, _, value = line.strip().partition(" ")
            if not value:
                raise SourceError(f"{path}:{number}: got {line!r:.80}; wanted an id and a value; {_MEND}")
            if pairs.setdefault(key, value) != value:
                raise SourceError(f"{path}:{number}: id {key} has two values, {pairs[key]!r} and {value!r}; {_MEND}")
        return pairs

    @cached_property
    def _rows(self) -> list[Row]:
        _ = self._files
        images, labels = self._pairs("images.txt"), self._pairs("image_class_labels.txt")
        split, classes = self._pairs("train_test_split.txt"), self._pairs("classes.txt")
        boxes = self._pairs("bounding_boxes.txt") if self.crop else {}
        refuse_outside(images.values(), self._root / "images.txt")
        places = taxonomy()
        for number, name in enumerate(classes.values(), start=1):
            if name not in places:
                raise SourceError(
                    f"{self._root / 'classes.txt'}:{number}: {name!r} is no class of CUB-200-2011 (CUB-200 of 2010 has "
                    f"other names); {_MEND}"
                )
        wanted = {"image_class_labels.txt": labels, "train_test_split.txt": split}
        if self.crop:
            wanted["bounding_boxes.txt"] = boxes
        for name, pairs in wanted.items():
            half = f"the archive was half unpacked, or half downloaded; {_MEND}"
            lacking = next((key for key in images if key not in pairs), None)
            if lacking is not None:
                raise SourceError(
                    f"{self._root / name}: {len(pairs):,} lines for {len(images):,} images, none for image "
                    f"{lacking} ({images[lacking]}); {half}"
                )
            if len(pairs) > len(images):
                extra = next(key for key in pairs if key not in images)
                raise SourceError(
                    f"{self._root / 'images.txt'}: {len(images):,} lines where {name} has {len(pairs):,}, none for "
                    f"image {extra}; {half}"
                )
        rows = []
        for key, path in images.items():
            if labels[key] not in classes:
                number = list(labels).index(key) + 1
                raise SourceError(
                    f"{self._root / 'image_class_labels.txt'}:{number}: class {labels[key]} is not in classes.txt "
                    f"({len(classes)} classes); {_MEND}"
                )
            if split[key] not in ("0", "1"):
                number = list(split).index(key) + 1
                raise SourceError(
                    f"{self._root / 'train_test_split.txt'}:{number}: got {split[key]!r}; wanted 1 (train) or 0 "
                    f"(test); {_MEND}"
                )
            name = classes[labels[key]]
            place = places[name]
            rows.append(
                Row(
                    path,
                    {"order": place["order"], "family": place["family"], "genus": place["genus"], "species": name},
                    locator=f"{path}#{boxes[key]}" if self.crop else path,
                    split="train" if split[key] == "1" else "test",
                )
            )
        return rows

    @cached_property
    def _missing(self) -> list[str]:
        return missing_files(self._root / "images", [row.image_id for row in self._rows])

    @cached_property
    def info(self) -> SourceInfo:
        """What the annotation files say.

        Raises:
            SourceError: a file is missing, or not what it should be.
        """
        return SourceInfo(
            name="cub",
            domain="photographs of birds",
            revision=revision_of(self._files, digest_of(self._missing), self.crop, sorted(taxonomy().items())),
            licence="non-commercial research; the photographers keep their rights",
            homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
            label_columns=_RANKS,
        )

    def annotations(self) -> pa.Table:
        """In the order of ``images.txt``; the species column has the official class names.

        Raises:
            SourceError: a file is missing, or not what it should be.
        """
        return annotation_table(self._rows, _RANKS, "cub")

    def read(self, locator: str) -> bytes:
        """One photograph, or the part of it in the bounding box."""
        path, _, box = locator.rpartition("#") if self.crop and "#" in locator else (locator, "", "")
        data = read_file(self._root / "images", path)
        if not box:
            return data
        try:
            x, y, width, height = edges = [float(v) for v in box.split()]
        except ValueError as error:
            raise ImageError(f"its bounding box is {box!r}; wanted x, y, width and height") from error
        if not all(map(math.isfinite, edges)):
            raise ImageError(f"its bounding box is {box!r}; wanted finite numbers")
        image = decode_image(data)
        left, top = max(0, int(x)), max(0, int(y))
        right, bottom = min(image.width, int(x + width)), min(image.height, int(y + height))
        if right <= left or bottom <= top:
            raise ImageError(f"its bounding box {box!r} lies outside the image of {image.width}x{image.height}")
        sink = io.BytesIO()
        image.crop((left, top, right, bottom)).save(sink, "PNG")
        return sink.getvalue()

    def check_images(self) -> None:
        """Are the photographs there?

        Raises:
            SourceError: more than one in a hundred is missing.
        """
        check_missing("cub", self._root / "images", self._missing, len(self._rows), _MEND)
