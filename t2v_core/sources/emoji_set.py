"""Noto and Twemoji, about 3,800 colour drawings of 64 pixels each, from npm packages: OpenMoji's emoji in other styles.

`t2v_core.fetch` brings the packages. An image is named by its codepoints, and a group is a concept, as in OpenMoji.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from t2v_core.errors import ConfigError, SourceError
from t2v_core.fingerprints import digest_bytes, fingerprint
from t2v_core.sources._emoji import EMOJI_ROOT, LABELS, EmojiTable, Keywords, concept, key_of
from t2v_core.sources.base import Row, SourceInfo, annotation_table, read_file

__all__ = ["EmojiSetSource"]


class _Set(NamedTuple):
    name: str
    licence: str
    homepage: str


_SETS = {
    "google": _Set("noto", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    "twitter": _Set("twemoji", "CC BY 4.0", "https://github.com/jdecked/twemoji"),
}
_MOST_MISSING = 0.01
_MEND = "fetch it with `t2v fetch emoji`, or name another folder with the option `root:`"


@dataclass(frozen=True, kw_only=True)
class EmojiSetSource:
    """One image for each emoji and each skin variation that the set draws."""

    set: str
    """``google`` (the source noto) or ``twitter`` (twemoji)."""
    root: str | Path = EMOJI_ROOT
    """Folder of the unpacked npm packages ``emoji-datasource-SET`` and ``emojilib``; a node_modules folder will do."""
    keywords: bool = True
    """Whether to give the column ``keyword``, a list; it needs the package ``emojilib``."""

    def __post_init__(self) -> None:
        if self.set not in _SETS:
            raise ConfigError(f"source 'emoji_set': set is {self.set!r}; wanted one of {', '.join(_SETS)}")
        if not isinstance(self.keywords, bool):
            raise ConfigError(f"source 'emoji_set': keywords is {self.keywords!r}; wanted true or false")

    @property
    def _name(self) -> str:
        return _SETS[self.set].name

    @cached_property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    @property
    def _package(self) -> Path:
        return self._root / f"emoji-datasource-{self.set}"

    @property
    def _images(self) -> Path:
        return self._package / "img" / self.set / "64"

    @cached_property
    def _table(self) -> EmojiTable:
        return EmojiTable.read(self._package / "emoji.json", self._name, _MEND, also=(f"has_img_{self.set}",))

    @cached_property
    def _keywords(self) -> Keywords | None:
        return Keywords.read(self._root, self._name) if self.keywords else None

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        return tuple(self._listed())

    def _listed(self) -> Iterator[Row]:
        for row in self._table.rows:
            keywords = self._keywords.labels(row) if self._keywords else {}
            for drawn in (row, *row.get("skin_variations", {}).values()):
                if drawn[f"has_img_{self.set}"]:
                    key = key_of(drawn["unified"])
                    labels = {**self._table.labels(key, row), **keywords}
                    yield Row(key, labels, locator=drawn["image"], group=concept(row["unified"]))

    @cached_property
    def _missing(self) -> tuple[str, ...]:
        """Image files that the table names and the folder lacks, in the table's order."""
        try:
            there = {entry.name for entry in os.scandir(self._images)}
        except OSError:
            there = set()
        return tuple(row.locator for row in self._rows if row.locator not in there)

    @cached_property
    def info(self) -> SourceInfo:
        """What is known of the package; the revision is of its version, table, keywords, and missing images.

        Raises:
            SourceError: the package is not there, or not what it should be.
        """
        keywords = self._keywords
        about = self._package / "package.json"
        version = digest_bytes(about.read_bytes()) if about.is_file() else ""
        parts = (self.set, version, self._table.digest, keywords.digest if keywords else "", list(self._missing))
        _, licence, homepage = _SETS[self.set]
        columns = (*LABELS, "keyword") if keywords else LABELS
        return SourceInfo(self._name, "emoji", fingerprint(*parts), licence, homepage, columns)

    def annotations(self) -> pa.Table:
        """In the order of the package's table, each emoji before its tones; the id is the codepoints without FE0F.

        Raises:
            SourceError: the package is not there, or not what it should be.
        """
        return annotation_table(self._rows, self.info.label_columns, self._name)

    def read(self, locator: str) -> bytes:
        """One PNG, transparent around the drawing."""
        return read_file(self._images, locator)

    def check_images(self) -> None:
        """One look at the folder.

        Raises:
            SourceError: more than 1% of the images are missing.
        """
        if len(self._missing) > _MOST_MISSING * len(self._rows):
            raise SourceError(
                f"{self._name}: {len(self._missing):,} of {len(self._rows):,} images are missing in {self._images}, "
                f"first {self._missing[0]}; {_MEND}"
            )
