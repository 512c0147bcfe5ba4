"""iNaturalist, the competitions of 2017, 2018, 2019 and 2021: photographs of species with their whole lineage."""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from t2v_core.errors import ConfigError, SourceError
from t2v_core.sources._layout import coded_column, json_items, need, refuse_outside, revision_of, whole_number
from t2v_core.sources._missing import check_missing, digest_of, missing_files
from t2v_core.sources.base import SourceInfo, read_file

__all__ = ["INaturalistSource"]

_RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
_YEARS: Mapping[int, tuple[str, str]] = {
    2017: ("train2017.json", "val2017.json"),
    2018: ("train2018.json", "val2018.json"),
    2019: ("train2019.json", "val2019.json"),
    2021: ("train.json", "val.json"),
}
_LINEAGE_APART = (2018, 2019)
"""Years whose annotation files have made-up names; ``categories.json`` has the true ones."""


@dataclass(frozen=True, kw_only=True)
class INaturalistSource:
    """One year's competition; its validation split is the test split, as the labels of the test set are not public."""

    root: str | Path
    """Folder with the JSON files and, below it, the images under the names that the files give."""
    year: int = 2018
    """2017 (which has no lineage, but a supercategory), 2018, 2019 or 2021."""

    def __post_init__(self) -> None:
        if self.year not in _YEARS:
            raise ConfigError(f"source 'inaturalist': year {self.year!r}; wanted one of {', '.join(map(str, _YEARS))}")

    @property
    def _mend(self) -> str:
        apart = " and categories.json (in categories.json.tar.gz)" if self.year in _LINEAGE_APART else ""
        return (
            f"get {' and '.join(_YEARS[self.year])}{apart} and the images of the iNaturalist competition {self.year} "
            "(github.com/visipedia/inat_comp) and name their folder with `root:`"
        )

    @cached_property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    @property
    def _ranks(self) -> tuple[str, ...]:
        return ("supercategory",) if self.year == 2017 else _RANKS

    @cached_property
    def _files(self) -> list[Path]:
        files = [need(self._root / name, self._mend) for name in _YEARS[self.year]]
        apart = self._root / "categories.json"
        return [*files, apart] if self.year in _LINEAGE_APART and apart.is_file() else files

    @cached_property
    def _categories(self) -> dict[int, dict[str, str]]:
        """Category id to lineage and species; an empty text where a rank has no name."""
        train, apart = self._files[0], self._files[-1]
        if len(self._files) == 2:
            return self._listed(train, "categories")
        out = self._listed(apart, "")
        theirs = {whole_number(item.get("id")) for item in json_items(train, "categories", self._mend)}
        if theirs and theirs != out.keys():
            raise SourceError(
                f"{apart}: {len(out):,} categories where {train.name} lists {len(theirs):,} of other ids; it is of "
                f"another year; {self._mend}"
            )
        return out

    def _listed(self, path: Path, prefix: str) -> dict[int, dict[str, str]]:
        out: dict[int, dict[str, str]] = {}
        for n, item in enumerate(json_items(path, prefix, self._mend), start=1):
            number = whole_number(item.get("id"))
            name = item.get("name")
            lacking = [] if name else ["name"]
            lacking += [rank for rank in self._ranks if item.get(rank) is None]
            if number is None or lacking:
                needed = prefix and self.year in _LINEAGE_APART
                cause = f"{self._root / 'categories.json'} is missing" if needed else "it is of another year"
                raise SourceError(
                    f"{path}: category {n} ({str(name)[:40]}) has no {', '.join(lacking) or 'id that is a number'}; "
                    f"{cause}; {self._mend}"
                )
            if number in out:
                raise SourceError(f"{path}: category {n} has the id {number} of another one; {self._mend}")
            out[number] = {**{r: str(item[r]) for r in self._ranks}, "species": str(name)}
        if not out:
            raise SourceError(f"{path}: no categories; {self._mend}")
        _no_ring(path, [[c[r] for r in (*self._ranks, "species") if c[r]] for c in out.values()])
        return out

    @cached_property
    def _images(self) -> tuple[list[str], np.ndarray[Any, Any], list[int]]:
        """File names, category ids (-1 for none), and how many images each of the two files has."""
        names: list[str] = []
        categories = []
        sizes = []
        for path in self._files[:2]:
            ids = array.array("q")
            for n, item in enumerate(json_items(path, "images", self._mend), start=1):
                number, name = whole_number(item.get("id")), item.get("file_name")
                if number is None or not isinstance(name, str):
                    raise SourceError(f"{path}: image {n} has no id or no file_name; {self._mend}")
                ids.append(number)
                names.append(name)
            if not ids:
                raise SourceError(f"{path}: no images; {self._mend}")
            owners, of = array.array("q"), array.array("q")
            for n, item in enumerate(json_items(path, "annotations", self._mend), start=1):
                owner, category = whole_number(item.get("image_id")), whole_number(item.get("category_id"))
                if owner is None:
                    raise SourceError(
                        f"{path}: annotation {n} has the image_id {item.get('image_id')!r:.40}; wanted a number; "
                        f"{self._mend}"
                    )
                if category is None or category not in self._categories:
                    raise SourceError(
                        f"{path}: annotation {n} (image {owner}) is of category "
                        f"{item.get('category_id')!r:.40}, which is none of the {len(self._categories):,} categories; "
                        f"the files are of different years; {self._mend}"
                    )
                owners.append(owner)
                of.append(category)
            if not owners:
                raise SourceError(
                    f"{path}: no annotations, as in the list of test images, whose labels are not public; {self._mend}"
                )
            categories.append(_join(np.array(ids), np.array(owners, np.int64), np.array(of, np.int64)))
            sizes.append(len(ids))
            refuse_outside(names[-len(ids) :], path)
        return names, np.concatenate(categories), sizes

    @cached_property
    def _missing(self) -> list[str]:
        return missing_files(self._root, self._images[0])

    @cached_property
    def info(self) -> SourceInfo:
        """What the annotation files say.

        Raises:
            SourceError: a file is missing, or not what it should be.
        """
        return SourceInfo(
            name=f"inat{self.year}",
            domain="photographs of nature",
            revision=revision_of(self._files, digest_of(self._missing), self.year),
            licence="that of each photographer, often CC BY-NC; non-commercial research",
            homepage="https://github.com/visipedia/inat_comp",
            label_columns=(*self._ranks, "species"),
        )

    def annotations(self) -> pa.Table:
        """Training images, then validation images, in the order of the files.

        Raises:
            SourceError: a file is missing, or not what it should be.
        """
        names, categories, sizes = self._images
        ids = pa.array(names, pa.string())
        columns: dict[str, Any] = {
            "image_id": ids,
            "locator": ids,
            "group": pa.array([""] * len(names), pa.string()),
            "split": pa.array(np.repeat(np.array(["train", "test"], object), sizes), pa.string()),
        }
        known = sorted(self._categories)
        place = np.searchsorted(known, categories)  # an image without a category is told by its -1 below
        for rank in (*self._ranks, "species"):
            values = [self._categories[c][rank] for c in known]
            unique = sorted(set(values) - {""})
            code = {"": -1, **{value: i for i, value in enumerate(unique)}}
            of = np.array([code[value] for value in values], np.int64)
            columns[rank] = coded_column(np.where(categories >= 0, of[place], -1), unique)
        return pa.table(columns)

    def read(self, locator: str) -> bytes:
        """One photograph."""
        return read_file(self._root, locator)

    def check_images(self) -> None:
        """Are the photographs there?

        Raises:
            SourceError: more than one in a hundred is missing.
        """
        check_missing(f"inat{self.year}", self._root, self._missing, len(self._images[0]), self._mend)


def _join(ids: Any, owners: Any, of: Any) -> Any:
    """The category of each image; the first annotation counts, -1 for an image without one."""
    order = np.argsort(owners, kind="stable")
    place = np.minimum(np.searchsorted(owners[order], ids), len(owners) - 1)
    found = order[place]
    return np.where(owners[found] == ids, of[found], -1)


def _no_ring(path: Path, lineages: Sequence[Sequence[str]]) -> None:
    """A name that stands above another one must not stand below it elsewhere."""
    above: dict[str, set[str]] = {}
    for lineage in lineages:
        for parent, child in pairwise(lineage):
            if parent != child:
                above.setdefault(child, set()).add(parent)
    try:
        TopologicalSorter(above).prepare()
    except CycleError as error:
        ring = " < ".join(error.args[1])
        raise SourceError(f"{path}: the lineages go in a ring: {ring}; fetch the file again, or mend it") from None
