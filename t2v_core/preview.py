"""A task library from annotation files alone: what would be cut, before an image is read or anything is packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from t2v_core.annotations import Annotations
from t2v_core.config import LibrarySpec, SourceSpec, TaskRule
from t2v_core.errors import ConfigError, MissingPackageError, SourceError
from t2v_core.library import SkippedTask, Task, TaskLibrary
from t2v_core.packing import plan_source
from t2v_core.rules import build_library
from t2v_core.sources import open_source

__all__ = ["Preview", "default_rules", "preview_annotations", "preview_library"]


@dataclass(frozen=True, eq=False)
class Preview:
    """A library as the annotations promise it; fingerprints are of ids, not of images."""

    library: TaskLibrary
    images: dict[str, int]
    """Images of each source that is there."""
    absent: tuple[tuple[str, str], ...]
    """(source, what is missing and how to get it)"""


def preview_annotations(spec: SourceSpec) -> Annotations:
    """A source's annotations with splits as packing would choose them.

    Raises:
        SourceError: an annotation file is missing or wrong.
        MissingPackageError: a package is not installed.
    """
    source = open_source(spec.loader, **spec.options)
    plan = plan_source(source, limit=spec.limit, test_share=spec.test_share, seed=spec.seed)
    return Annotations(spec.name, source.info.domain, plan.table.drop_columns(["locator"]), source.info.taxonomy)


def preview_library(
    sources: Sequence[SourceSpec],
    library: LibrarySpec,
    progress: Callable[[str, int], None] | None = None,
) -> Preview:
    """The tasks that rules cut from sources whose annotation files are there; one source in memory at a time.

    Args:
        sources: where tasks come from.
        library: the rules.
        progress: called with (source, tasks of it so far).

    Raises:
        ConfigError: a rule names a column that its source does not have, or two tasks have one name.
    """
    tasks: list[Task] = []
    skipped: list[SkippedTask] = []
    absent: list[tuple[str, str]] = []
    images: dict[str, int] = {}
    for spec in sources:
        rules = [rule for rule in library.rules if rule.source == spec.name]
        if progress:
            progress(spec.name, 0)
        try:
            annotations = preview_annotations(spec)
        except (SourceError, MissingPackageError) as error:
            absent.append((spec.name, str(error)))
            continue
        images[spec.name] = len(annotations)
        if rules:
            part = build_library(library.model_copy(update={"rules": rules}), {spec.name: annotations}, progress)
            tasks.extend(part.tasks)
            skipped.extend(part.skipped)
    return Preview(TaskLibrary(tuple(tasks), tuple(skipped)), images, tuple(absent))


def default_rules(annotations: Annotations) -> list[TaskRule]:
    """Rules that fit a source's columns, where nobody wrote any.

    A column of single values makes one task over them; the levels of a ``/`` lineage (columns ``NAME_1``, ``NAME_2``,
    ...) also one task inside each value of the level above; a list column and a column of booleans or of 0 and 1 make
    binary tasks.

    Raises:
        ConfigError: the source has no label column with two values.
    """
    rules = []
    source = annotations.source
    for name in annotations.label_names:
        column = annotations.column(name)
        kind = annotations.table.schema.field(name).type
        base, _, level = name.rpartition("_")
        above = f"{base}_{int(level) - 1}" if level.isdigit() and int(level) > 1 else ""
        if f"{name}_1" in annotations.label_names or (len(column.values) < 2 and not column.multi):
            continue
        if column.multi:
            rules.append(TaskRule(source=source, label=name, kind="one_vs_rest", lineage=[name]))
        elif above in annotations.label_names:
            path = [f"{base}_{i}" for i in range(1, int(level))]
            rules.append(TaskRule(source=source, label=name, within=above, lineage=path))
        elif pa.types.is_boolean(kind) or len(column.values) < len(annotations) // 4:
            rules.append(TaskRule(source=source, label=name))
    if not rules:
        raise ConfigError(
            f"source {source!r} has no column that a task can be cut by (columns: "
            f"{', '.join(annotations.label_names) or 'none'}); wanted one of two values or more, each on several images"
        )
    return rules
