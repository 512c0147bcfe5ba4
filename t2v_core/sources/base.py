"""What a source is: images plus one annotation row each, before anything is packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["LabelValue", "RawImage", "Source", "SourceInfo"]

LabelValue = str | bool | int | None


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before its images are read."""

    name: str
    """The name that task ids begin with."""
    domain: str
    """What the images look like, in a word: ``emoji``, ``digits``, ``clothes``, ``photographs``."""
    revision: str
    """Changes when the data change: a package version, or a hash of a folder's listing."""
    licence: str = "unknown"
    """Licence of the images, as its owner names it."""
    homepage: str = ""
    """Where the data come from, for people."""
    label_columns: tuple[str, ...] = ()
    """The annotation columns that tasks may be cut by."""


@dataclass(frozen=True)
class RawImage:
    """One image with its annotations."""

    image_id: str
    """Stable and unique in the source."""
    read: Callable[[], bytes]
    """Opens the image: its encoded bytes. May raise `OSError` or `ImageError`; the image is then skipped."""
    labels: Mapping[str, LabelValue] = field(default_factory=dict)
    """A value per label column; ``None`` where the image has none."""
    group: str = ""
    """Images that must be on one side of a split (an emoji with its skin tones); empty: the image alone."""
    split: str = ""
    """``train`` or ``test`` where the source says so; empty: by a hash of the group."""


class Source(Protocol):
    """A dataset that tasks are cut from."""

    @property
    def info(self) -> SourceInfo:
        """What is known without reading an image.

        Raises:
            SourceError: the data are not there; the message says how to get them.
            MissingPackageError: a package is not installed; the message names the extra.
        """
        ...

    def images(self) -> Iterator[RawImage]:
        """All images, in a fixed order."""
        ...
