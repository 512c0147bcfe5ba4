"""iMaterialist (Fashion) 2018: a million product photographs with any number of 228 labels, in 8 groups."""

from __future__ import annotations

import array
import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from t2v_core.errors import SourceError
from t2v_core.sources._layout import json_items, need, revision_of, text_lines, whole_number
from t2v_core.sources._missing import check_missing, digest_of
from t2v_core.sources.base import SourceInfo, read_file

__all__ = ["IMaterialistSource"]

N_LABELS = 228
_MEND = (
    "get train.json and validation.json of the competition imaterialist-challenge-fashion-2018 (kaggle.com), download "
    "the images that they list as train/ID.jpg and validation/ID.jpg, and name the folder with `root:`"
)
_MAP_MEND = "get it again from github.com/visipedia/imat_fashion_comp, or take it away: labels then go by their numbers"
_PARTS = {"train": "train", "validation": "test"}
_CODES: Mapping[str | int, int] = {
    **{i: i - 1 for i in range(1, N_LABELS + 1)},
    **{str(i): i - 1 for i in range(1, N_LABELS + 1)},
}
"""A label, in either spelling, to its code from 0."""
_MAP = "iMat_fashion_2018_label_map_228.csv"


@dataclass(frozen=True, kw_only=True)
class IMaterialistSource:
    """The training and the validation set; the labels of the test set were never published."""

    root: str | Path
    """Folder with ``train.json``, ``validation.json``, and the images in ``train`` and ``validation``."""

    @cached_property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    @cached_property
    def _map(self) -> tuple[list[str], dict[str, tuple[str, ...]]]:
        """Names of the labels 1 to 228, and their groups; the numbers themselves where there is no label map."""
        path = self._root / _MAP
        if not path.is_file():
            return [str(i) for i in range(1, N_LABELS + 1)], {}
        rows = list(csv.DictReader(io.StringIO("\n".join(text_lines(path, _MEND)))))
        lacking = {"labelId", "labelName", "taskName"} - set(rows[0] if rows else ())
        if lacking:
            raise SourceError(
                f"{path}:1: no column {', '.join(sorted(lacking))}; it is of another competition; {_MAP_MEND}"
            )
        names: dict[str, str] = {}
        groups: dict[str, tuple[str, ...]] = {}
        for number, row in enumerate(rows, start=2):
            if not all(row[column] for column in ("labelId", "labelName", "taskName")):
                raise SourceError(f"{path}:{number}: got {list(row.values())}; wanted four values; {_MAP_MEND}")
            group = row["taskName"].split(":")[-1]
            name = f"{group}/{row['labelName']}"
            if name in groups or row["labelId"] in names:
                raise SourceError(f"{path}:{number}: label {row['labelId']} ({name}) is there already; {_MAP_MEND}")
            names[row["labelId"]] = name
            groups[name] = (group,)
        absent = [i for i in range(1, N_LABELS + 1) if str(i) not in names]
        if absent or len(names) != N_LABELS:
            raise SourceError(
                f"{path}: {len(names)} labels, label {absent[0] if absent else max(names)} is "
                f"{'not there' if absent else 'one too many'}; wanted 1 to {N_LABELS}; {_MAP_MEND}"
            )
        return [names[str(i)] for i in range(1, N_LABELS + 1)], groups

    @cached_property
    def _table(self) -> pa.Table:
        parts = [self._part(name, split) for name, split in _PARTS.items()]
        return pa.concat_tables(parts).unify_dictionaries()

    def _part(self, name: str, split: str) -> pa.Table:
        path = self._root / f"{name}.json"
        ids = [_number(path, n, image, "imageId", "image_id") for n, image in enumerate(_items(path, "images"), 1)]
        offsets, codes, owners = array.array("q", [0]), array.array("h"), array.array("q")
        for n, item in enumerate(_items(path, "annotations"), 1):
            owners.append(_number(path, n, item, "imageId", "image_id"))
            codes.extend(_labels(path, n, item))
            offsets.append(len(codes))
        if not ids or not owners:
            raise SourceError(
                f"{path}: {len(ids):,} images, {len(owners):,} annotations; it is of another competition, or the list "
                f"of test images, whose labels are not public; {_MEND}"
            )
        arrays = (np.array(ids, np.int64), np.array(owners), np.array(offsets), np.array(codes))
        return _rows(name, split, *arrays, self._map[0])

    @cached_property
    def _files(self) -> Mapping[str, str]:
        """Image id, as ``train/12``, to the file that is there, whatever its extension; of several, ``.jpg``."""
        there: dict[str, str] = {}
        for name in _PARTS:
            folder = self._root / name
            if folder.is_dir():
                # The last one of a dictionary's equal keys stays.
                found = sorted(os.listdir(folder), key=lambda file: (file.endswith(".jpg"), file))
                there.update({f"{name}/{file.partition('.')[0]}": f"{name}/{file}" for file in found})
        return there

    @cached_property
    def _missing(self) -> list[str]:
        there = self._files
        return [f"{i}.jpg" for i in self._table["image_id"].to_pylist() if i not in there]

    @cached_property
    def info(self) -> SourceInfo:
        """What the annotation files say.

        Raises:
            SourceError: a file is missing, or not what it should be.
        """
        files = [need(self._root / f"{name}.json", _MEND) for name in _PARTS]
        label_map = self._root / _MAP
        return SourceInfo(
            name="imaterialist",
            domain="product photographs of clothes",
            revision=revision_of([*files, *([label_map] if label_map.is_file() else [])], digest_of(self._missing)),
            licence="rules of the Kaggle competition; the shops keep their rights in the images",
            homepage="https://www.kaggle.com/c/imaterialist-challenge-fashion-2018",
            label_columns=("label",),
            taxonomy={"label": self._map[1]} if self._map[1] else {},
        )

    def annotations(self) -> pa.Table:
        """Training images, then validation images, in the order of the files.

        Raises:
            SourceError: a file is missing, or not what it should be.
        """
        there = self._files
        table = self._table
        if not there:
            return table
        ids = table["image_id"].to_pylist()
        locators = pa.array([there.get(i, f"{i}.jpg") for i in ids], pa.string())
        return table.set_column(table.column_names.index("locator"), "locator", locators)

    def read(self, locator: str) -> bytes:
        """One photograph."""
        return read_file(self._root, locator)

    def check_images(self) -> None:
        """Are the photographs there?

        Raises:
            SourceError: more than one in a hundred is missing. (Some of the addresses in the files are dead: download
                what is left into a copy of the JSON files without the rest.)
        """
        check_missing("imaterialist", self._root, self._missing, len(self._table), _MEND)


def _items(path: Path, key: str) -> Any:
    return json_items(path, key, _MEND)


def _number(path: Path, n: int, item: Mapping[str, Any], *names: str) -> int:
    value = next((item[name] for name in names if name in item), None)
    number = whole_number(value)
    if number is None:
        raise SourceError(
            f"{path}: entry {n} has {' or '.join(names)} {value!r:.40}; wanted a number. It is of another competition, "
            f"or damaged; {_MEND}"
        )
    return number


def _labels(path: Path, n: int, item: Mapping[str, Any]) -> list[int]:
    """Codes from 0."""
    values = item.get("labelId", item.get("label_id"))
    if not isinstance(values, list):
        raise SourceError(f"{path}: annotation {n} has labelId {values!r:.40}; wanted a list of numbers; {_MEND}")
    try:
        return [_CODES[v] for v in values]
    except (KeyError, TypeError):
        wrong = next(v for v in values if not isinstance(v, (str, int)) or v not in _CODES)
        raise SourceError(
            f"{path}: annotation {n} has the label {wrong!r:.40}; wanted 1 to {N_LABELS}; it is of another year's "
            f"competition; {_MEND}"
        ) from None


def _rows(name: str, split: str, ids: Any, owners: Any, offsets: Any, codes: Any, values: list[str]) -> pa.Table:
    """Labels beside the images they belong to; an image without an annotation has a null list."""
    order = np.argsort(owners, kind="stable")
    of = order[np.minimum(np.searchsorted(owners[order], ids), len(owners) - 1)]
    known = owners[of] == ids
    lengths = np.where(known, np.diff(offsets)[of], 0)
    ends = np.cumsum(lengths)
    taken = np.arange(int(ends[-1])) + np.repeat(offsets[of] - (ends - lengths), lengths)
    lists = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]).astype(np.int32)),
        pa.DictionaryArray.from_arrays(pa.array(codes[taken].astype(np.int16)), pa.array(values, pa.string())),
        mask=pa.array(~known),
    )
    named = pa.array([f"{name}/{i}" for i in ids.tolist()], pa.string())
    return pa.table(
        {
            "image_id": named,
            "locator": pa.array([f"{name}/{i}.jpg" for i in ids.tolist()], pa.string()),
            "group": pa.array([""] * len(ids), pa.string()),
            "split": pa.array([split] * len(ids), pa.string()),
            "label": lists,
        }
    )
