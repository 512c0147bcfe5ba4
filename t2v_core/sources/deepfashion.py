"""DeepFashion, Category and Attribute Prediction: 289,222 images of clothes, 1,000 attributes, 50 categories."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from t2v_core.errors import SourceError
from t2v_core.sources._layout import coded_column, need, refuse_outside, revision_of, text_lines
from t2v_core.sources._missing import check_missing, digest_of, missing_files
from t2v_core.sources.base import SourceInfo, read_file, unknown_of

__all__ = ["DeepFashionSource"]

_MEND = (
    "get the Category and Attribute Prediction Benchmark of DeepFashion (mmlab.ie.cuhk.edu.hk/projects/DeepFashion): "
    "Anno/, Eval/ and Img/img.zip, unpacked, and name their folder with `root:`"
)
_ATTRIBUTE_TYPES = {"1": "texture", "2": "fabric", "3": "shape", "4": "part", "5": "style"}
_CLOTHES_TYPES = {"1": "upper", "2": "lower", "3": "full"}
_SPLITS = {"train": "train", "val": "train", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class DeepFashionSource:
    """The benchmark's folder; validation images count as train."""

    root: str | Path
    """Folder with ``Anno`` (or ``Anno_coarse``), ``Eval`` and ``Img``."""

    @cached_property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    def _file(self, name: str) -> Path:
        places = [self._root / folder / name for folder in ("Anno", "Anno_coarse", "Eval")]
        return need(next((place for place in places if place.is_file()), places[2 if "eval" in name else 0]), _MEND)

    def _records(self, name: str) -> list[tuple[str, str]]:
        """``NAME VALUE`` a line below two lines of header, the first with their number."""
        path = self._file(name)
        lines = iter(text_lines(path, _MEND))
        total = _header(path, next(lines, ""), next(lines, ""))
        records = []
        for number, line in enumerate(lines, start=3):
            parts = line.rsplit(maxsplit=1)
            if len(parts) < 2:
                raise SourceError(f"{path}:{number}: got {line.strip()!r:.80}; wanted a name and a value; {_MEND}")
            records.append((parts[0].strip(), parts[1]))
        _complete(path, len(records), total)
        return records

    @cached_property
    def _attributes(self) -> tuple[list[str], list[str]]:
        """Names, a number behind one that comes again, and their types."""
        names: list[str] = []
        seen: dict[str, int] = {}
        types = []
        for number, (name, kind) in enumerate(self._records("list_attr_cloth.txt"), start=3):
            if kind not in _ATTRIBUTE_TYPES:
                raise SourceError(
                    f"{self._file('list_attr_cloth.txt')}:{number}: attribute type {kind!r}; wanted 1 to 5; {_MEND}"
                )
            seen[name] = seen.get(name, 0) + 1
            names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
            types.append(_ATTRIBUTE_TYPES[kind])
        return names, types

    @cached_property
    def _paths(self) -> list[str]:
        """The images, in the order of the attribute file."""
        return self._labels[0]

    @cached_property
    def _labels(self) -> tuple[list[str], pa.ListArray, pa.ListArray]:
        """Paths, and a list column each of attributes that an image has and that are undecided."""
        path, names = self._file("list_attr_img.txt"), self._attributes[0]
        paths: list[str] = []
        lists: tuple[list[NDArray[np.int16]], list[NDArray[np.int16]]] = ([], [])
        with path.open("rb") as file:
            total = _header(path, *(file.readline().decode("utf-8", "backslashreplace") for _ in range(2)))
            for number, line in enumerate(file, start=3):
                name, values = _states(path, number, line, len(names))
                paths.append(name)
                lists[0].append(np.flatnonzero(values == 1).astype(np.int16))
                lists[1].append(np.flatnonzero(values == 0).astype(np.int16))
        _complete(path, len(paths), total)
        refuse_outside(paths, path)
        positive, unknown = (_list_column(parts, names) for parts in lists)
        return paths, positive, unknown

    def _aligned(self, name: str) -> list[str]:
        """A file's value for each image of the attribute file."""
        values = dict(self._records(name))
        lacking = [path for path in self._paths if path not in values]
        if lacking:
            raise SourceError(
                f"{self._file(name)}: no line for {len(lacking):,} of {len(self._paths):,} images, first "
                f"{lacking[0]}; it is of another benchmark or version; {_MEND}"
            )
        return [values[path] for path in self._paths]

    @cached_property
    def _missing(self) -> list[str]:
        return missing_files(self._images, self._paths)

    @property
    def _images(self) -> Path:
        below = self._root / "Img"
        return below if (below / "img").is_dir() else self._root

    @cached_property
    def info(self) -> SourceInfo:
        """What the annotation files say.

        Raises:
            SourceError: a file is missing, or not what it should be.
        """
        names = ("list_attr_cloth.txt", "list_attr_img.txt", "list_category_cloth.txt", "list_category_img.txt")
        files = [self._file(name) for name in (*names, "list_eval_partition.txt")]
        return SourceInfo(
            name="deepfashion",
            domain="photographs of clothes",
            revision=revision_of(files, digest_of(self._missing)),
            licence="non-commercial research, by agreement with its owners",
            homepage="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html",
            label_columns=("attribute", "category", "clothes_type"),
            taxonomy={"attribute": {name: (kind,) for name, kind in zip(*self._attributes, strict=True)}},
        )

    def annotations(self) -> pa.Table:
        """In the order of ``list_attr_img.txt``; attributes that the file gives as 0 are undecided.

        Raises:
            SourceError: a file is missing, or not what it should be.
        """
        paths, positive, unknown = self._labels
        split = self._aligned("list_eval_partition.txt")
        odd = next((i for i, s in enumerate(split) if s not in _SPLITS), None)
        if odd is not None:
            raise SourceError(
                f"{self._file('list_eval_partition.txt')}: {paths[odd]} is of {split[odd]!r}; wanted train, val or "
                f"test; {_MEND}"
            )
        categories = self._records("list_category_cloth.txt")
        code = (
            np.array([int(v) if v.isdecimal() and len(v) < 10 else 0 for v in self._aligned("list_category_img.txt")])
            - 1
        )
        if ((code < 0) | (code >= len(categories))).any():
            odd = int(np.flatnonzero((code < 0) | (code >= len(categories)))[0])
            raise SourceError(
                f"{self._file('list_category_img.txt')}: {paths[odd]} is of category {code[odd] + 1}; wanted 1 to "
                f"{len(categories)} (list_category_cloth.txt); {_MEND}"
            )
        kinds = list(_CLOTHES_TYPES.values())
        kind = np.array([list(_CLOTHES_TYPES).index(k) if k in _CLOTHES_TYPES else -1 for _, k in categories])
        ids = pa.array(paths, pa.string())
        return pa.table(
            {
                "image_id": ids,
                "locator": ids,
                "group": pa.array([""] * len(paths), pa.string()),
                "split": pa.array([_SPLITS[s] for s in split], pa.string()),
                "attribute": positive,
                "category": coded_column(code, [name for name, _ in categories]),
                "clothes_type": coded_column(kind[code], kinds),
                unknown_of("attribute"): unknown,
            }
        )

    def read(self, locator: str) -> bytes:
        """One photograph."""
        return read_file(self._images, locator)

    def check_images(self) -> None:
        """Are the photographs there?

        Raises:
            SourceError: more than one in a hundred is missing.
        """
        check_missing("deepfashion", self._images, self._missing, len(self._paths), _MEND)


def _header(path: Path, first: str, second: str) -> int:
    if not first.strip().isdecimal() or not second.strip() or second.split()[0].endswith((".jpg", ".png")):
        raise SourceError(
            f"{path}:1: got {first.strip()!r:.40} and {second.strip()!r:.40}; wanted the number of rows, then "
            f"the names of the columns; {_MEND}"
        )
    return int(first)


def _complete(path: Path, found: int, total: int) -> None:
    if found != total:
        raise SourceError(
            f"{path}: {found:,} rows where its first line says {total:,}; it is half downloaded or unpacked; {_MEND}"
        )


def _states(path: Path, number: int, line: bytes, n: int) -> tuple[str, NDArray[np.int8]]:
    """A line's image and its values -1, 0 and 1."""
    name, *more = line.split(maxsplit=1)[:2] or [b""]
    rest = more[0].rstrip() if more else b""
    # One digit a value once the spaces are gone; a minus sign marks the digit behind it.
    packed = np.frombuffer(rest.translate(None, b" \t"), np.uint8)
    minus = packed == ord("-")
    values = packed[~minus].astype(np.int8) - ord("0")
    after = np.flatnonzero(minus) - np.arange(int(minus.sum()))
    if len(values) != n or (len(after) and after[-1] >= n) or ((values != 0) & (values != 1)).any():
        raise SourceError(
            f"{path}:{number}: {len(rest.split()):,} values of {name.decode('utf-8', 'backslashreplace')!r:.80}; "
            f"wanted {n:,} (list_attr_cloth.txt), each -1, 0 or 1; {_MEND}"
        )
    values[after] *= -1
    try:
        return name.decode(), values
    except UnicodeDecodeError:
        raise SourceError(f"{path}:{number}: the path {name!r:.80} is not UTF-8; {_MEND}") from None


def _list_column(parts: list[NDArray[np.int16]], names: list[str]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    codes = np.concatenate(parts) if parts else np.empty(0, np.int16)
    values = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.string()))
    return pa.ListArray.from_arrays(pa.array(offsets), values)
