"""What the emoji sets share: concepts, attributes, the table of emoji, keywords. The same emoji gets the same words.

An emoji is named by its codepoints, ``1F469-1F3FD-200D-1F33E`` (woman, medium tone, joined to a sheaf of rice: a
farmer). Its *concept* is what is left without tone, gender, hair and direction; a concept must be on one side of a
split, or the test set would hold recoloured training images. A split is by a hash of the concept's name, so it is the
same in all sets.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from t2v_core.errors import SourceError
from t2v_core.fingerprints import digest_bytes
from t2v_core.sources.base import LabelValue

__all__ = ["EMOJI_ROOT", "LABELS", "EmojiTable", "Keywords", "attributes", "concept", "key_of", "toneless"]

EMOJI_ROOT = "~/.cache/t2v/emoji"
"""Folder of the unpacked npm packages, where nothing else is said."""
LABELS = ("category", "subcategory", "emoji", "skin_tone", "gender", "hair")
"""Label columns of every set; ``keyword`` may follow."""

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
_TABLE_KEYS = ("unified", "image", "short_name", "category", "subcategory", "sort_order")
_KEYWORDS_FILE = Path("emojilib") / "dist" / "emoji-en-US.json"
_FEWEST_CONCEPTS = 4  # two for each side of a split
_FUNCTION_WORDS = frozenset(
    ("a", "an", "and", "as", "at", "by", "for", "from", "in", "of", "on", "or", "st", "the", "to", "with")
)


def key_of(unified: str) -> str:
    """Codepoints without FE0F, which only asks for a coloured rendering and is used inconsistently."""
    return "-".join(point for point in unified.upper().split("-") if point != "FE0F")


def toneless(key: str) -> str:
    """Codepoints without skin tones; a tone that stands alone is kept."""
    first, *rest = key.split("-")
    return "-".join([first, *(point for point in rest if point not in _TONES)])


def concept(unified: str) -> str:
    """Codepoints without tone, gender, hair and direction; a tone or sign that stands alone is kept."""
    pieces = toneless(key_of(unified)).split("-200D-")
    kept = [pieces[0], *(piece for piece in pieces[1:] if piece not in _JOINED)]
    neutral = "-".join(_NEUTRAL.get(point, point) for point in "-200D-".join(kept).split("-"))
    return _COUPLES.get(neutral, neutral)


def attributes(unified: str) -> dict[str, LabelValue]:
    """``skin_tone``, ``gender`` and ``hair`` that the codepoints spell out; ``None`` where they are silent or two."""
    first, *rest = key_of(unified).split("-")
    tones = {_TONES[point] for point in rest if point in _TONES}
    genders = {_SIGNS[point] for point in rest if point in _SIGNS}
    if sum(point in _PEOPLE for point in (first, *rest)) == 1 and first in _ADULTS:
        genders.add(_ADULTS[first])
    hair = {_HAIR[point] for point in rest if point in _HAIR}
    found = {"skin_tone": tones, "gender": genders, "hair": hair}
    return {name: values.pop() if len(values) == 1 else None for name, values in found.items()}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _read_json(path: Path, source: str, mend: str) -> tuple[Any, str]:
    """The content of a JSON file, and a digest of its bytes."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{source}: cannot read {path}: {error.strerror or error}; {mend}") from error
    try:
        return json.loads(data), digest_bytes(data)
    except json.JSONDecodeError as error:
        raise SourceError(f"{source}: {path}:{error.lineno}: not JSON, or cut short: {error.msg}; {mend}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{source}: {path} is not JSON: {error}; {mend}") from error


@dataclass(frozen=True, eq=False)
class EmojiTable:
    """The rows of an ``emoji.json``, one an emoji, with its skin variations in it."""

    rows: tuple[Mapping[str, Any], ...]
    digest: str
    """Of the file's bytes."""

    @classmethod
    def read(cls, path: Path, source: str, mend: str, *, also: Iterable[str] = ()) -> EmojiTable:
        """Read and check a file.

        Args:
            path: the file.
            source: name, for errors.
            mend: what to do about a bad file, for errors.
            also: more keys that a row and its variations must have.

        Raises:
            SourceError: it is not there, not JSON, or not a table of emoji.
        """
        content, digest = _read_json(path, source, mend)
        if not isinstance(content, list) or not content:
            raise SourceError(f"{source}: {path} holds {type(content).__name__}, wanted a list of emoji; {mend}")
        for number, row in enumerate(content):
            wanted = {*_TABLE_KEYS, *also}
            lacking = sorted(wanted - row.keys()) if isinstance(row, dict) else sorted(wanted)
            if not lacking:
                short = {"unified", "image", *also}
                variations = row.get("skin_variations", {}).values()
                lacking = sorted({name for variation in variations for name in short - variation.keys()})
            if lacking:
                raise SourceError(
                    f"{source}: {path}: emoji number {number} lacks {', '.join(lacking)}: another version; {mend}"
                )
        return cls(tuple(content), digest)

    @cached_property
    def by_key(self) -> Mapping[str, Mapping[str, Any]]:
        """Codepoints to the row of the emoji they are, or are a variation of."""
        variants = [(v["unified"], row) for row in self.rows for v in row.get("skin_variations", {}).values()]
        return {key_of(unified): row for unified, row in [*variants, *((row["unified"], row) for row in self.rows)]}

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Concept to the short name of its plainest emoji: the concept's own row, else the first in the usual order."""
        names: dict[str, str] = {}
        for row in sorted(self.rows, key=lambda row: row["sort_order"]):
            of = concept(row["unified"])
            if of not in names or key_of(row["unified"]) == of:
                names[of] = row["short_name"]
        return names

    def labels(self, key: str, row: Mapping[str, Any]) -> dict[str, LabelValue]:
        """The values of `LABELS` for a rendering of ``key``, which is an emoji of ``row``."""
        return {
            "category": _slug(row["category"]),
            "subcategory": _slug(row["subcategory"]),
            "emoji": self.names[concept(row["unified"])],
            **attributes(key),
        }


@dataclass(frozen=True, eq=False)
class Keywords:
    """Keywords of every emoji, from the npm package emojilib."""

    of: Mapping[str, tuple[str, ...]]
    """Toneless codepoints to keywords, sorted."""
    digest: str
    """Of the file's bytes."""

    @classmethod
    def read(cls, root: Path, source: str) -> Keywords:
        """Read the keywords below a folder of unpacked packages, in lower case with dashes.

        Left out: function words, what has no two letters or digits, and what fewer than four concepts have, such as an
        emoji's own name. Of several words that exactly the same emoji have, the first by the alphabet stays.

        Raises:
            SourceError: the file is not there, or not what it should be.
        """
        path = root / _KEYWORDS_FILE
        mend = "fetch it with `t2v fetch emoji`, or give the option `keywords: false`"
        content, digest = _read_json(path, source, mend)
        if not isinstance(content, dict) or not content:
            raise SourceError(f"{source}: {path} holds {type(content).__name__}, wanted emoji to keywords; {mend}")
        emoji_of: dict[str, set[str]] = defaultdict(set)
        keys = []
        for emoji, words in content.items():
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise SourceError(f"{source}: {path}: {emoji!r} has {words!r:.80}, wanted a list of words; {mend}")
            keys.append(key_of("-".join(f"{ord(point):04X}" for point in emoji)))
            for word in words:
                emoji_of[_slug(word)].add(keys[-1])
        kept: dict[frozenset[str], str] = {}
        for word in sorted(emoji_of):
            common = len({concept(key) for key in emoji_of[word]}) >= _FEWEST_CONCEPTS
            if len(word) > 1 and common and word not in _FUNCTION_WORDS:
                kept.setdefault(frozenset(emoji_of[word]), word)
        of: dict[str, list[str]] = {key: [] for key in keys}
        for members, word in kept.items():
            for key in members:
                of[key].append(word)
        return cls({key: tuple(sorted(words)) for key, words in of.items()}, digest)

    def labels(self, row: Mapping[str, Any]) -> dict[str, LabelValue]:
        """The column ``keyword`` for every rendering of ``row``; ``None`` where the package does not have it."""
        return {"keyword": self.of.get(key_of(row["unified"]))}
