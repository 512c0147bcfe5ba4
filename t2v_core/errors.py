"""The one exception tree of t2v.

T2VError
├── ConfigError            a setting, name or file given by the user is wrong; nothing was started
│   ├── UnknownNameError   a name is in no registry (says what was probably meant)
│   └── MissingPackageError  an optional package is not installed (says which extra brings it)
├── DataError              input data cannot be used; a retry will not help
│   ├── ImageError         one image cannot be decoded; it is skipped and counted
│   ├── SourceError        a source as a whole is missing or empty
│   └── TaskError          a task cannot be built or judged (one class, an empty test split)
├── WeightsError           weights are missing, or belong to another architecture
├── ProbeError             a network cannot serve as a probe or expert
├── StoreError             the store cannot be read or written
└── ComputeError           a computation left its range (not finite, not converged)

Every message says what was got, what was wanted, and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ComputeError",
    "ConfigError",
    "DataError",
    "ImageError",
    "MissingPackageError",
    "ProbeError",
    "SourceError",
    "StoreError",
    "T2VError",
    "TaskError",
    "UnknownNameError",
    "WeightsError",
]


class T2VError(Exception):
    """Base of all errors that t2v raises on purpose."""


class ConfigError(T2VError):
    """A setting, name or file given by the user is wrong; nothing was started."""


class UnknownNameError(ConfigError):
    """A name is in no registry.

    Args:
        kind: what was looked up, e.g. ``"probe"``.
        name: what was asked for.
        known: the names that exist; the nearest is suggested.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.kind, self.name, self.known = kind, name, names

    def __reduce__(self) -> tuple[type, tuple[str, str, list[str]]]:
        return type(self), (self.kind, self.name, self.known)


class MissingPackageError(ConfigError):
    """An optional package is not installed; the message names the extra that brings it."""


class DataError(T2VError):
    """Input data cannot be used; a retry will not help."""


class ImageError(DataError):
    """One image cannot be decoded; it is skipped and counted."""


class SourceError(DataError):
    """A source as a whole is missing or empty."""


class TaskError(DataError):
    """A task cannot be built or judged."""


class WeightsError(T2VError):
    """Weights are missing, or belong to another architecture."""


class ProbeError(T2VError):
    """A network cannot serve as a probe or an expert."""


class StoreError(T2VError):
    """The store cannot be read or written."""


class ComputeError(T2VError):
    """A computation left its range: not finite, or not converged."""
