"""The task library: tasks as queries on sources, never copies of images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from t2v_core.annotations import Annotations, LabelColumn
from t2v_core.config import FrozenModel
from t2v_core.errors import DataError, TaskError
from t2v_core.fingerprints import fingerprint

__all__ = [
    "REST",
    "SkippedTask",
    "Task",
    "TaskLibrary",
    "TaskRows",
    "TaskSpec",
    "compare_libraries",
    "resolve_task",
    "task_fingerprint",
]

REST = "rest"
"""Name of the class of all other values."""


class TaskSpec(FrozenModel):
    """A task = a query on a source: row filter, label column, classes."""

    task_id: str = Field(description="Stable and readable, e.g. inat2018/order=Rodentia.")
    source: str = Field(description="Source that the rows come from.")
    domain: str = Field(description="What the images look like.")
    kind: str = Field(description="multiclass or binary.")
    label: str = Field(description="Annotation column of the classes.")
    classes: tuple[str, ...] = Field(description="Class names.")
    values: tuple[tuple[str, ...], ...] = Field(
        description="Values of each class; empty: all values of no other class."
    )
    where: tuple[tuple[str, tuple[str, ...]], ...] = Field((), description="Row filter: column and its allowed values.")
    lineage: tuple[str, ...] = Field((), description="Place in the taxonomy, from the root down.")
    class_lineage: tuple[tuple[str, ...], ...] = Field(
        (), description="Each class's own place in the taxonomy, itself last; empty for a class of several values."
    )
    max_per_class: int = Field(description="Most images of a class and split.")
    max_ratio: float = Field(description="Most times the images of the smallest class.")
    max_images: int | None = Field(None, description="Most images of a split, in all classes together.")
    seed: int = Field(description="Seed of the sample.")


@dataclass(frozen=True, eq=False)
class TaskRows:
    """The rows of a task in its source, in a fixed random order."""

    rows: np.ndarray
    """``[M]`` int64, row numbers in the source."""
    labels: np.ndarray
    """``[M]`` int64, index into the task's classes."""
    test: np.ndarray
    """``[M]`` bool."""
    groups: np.ndarray
    """``[M]``, what must stay on one side of a split."""

    def part(self, *, test: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, labels, groups) of one split."""
        keep = self.test == test
        return self.rows[keep], self.labels[keep], self.groups[keep]


@dataclass(frozen=True)
class Task:
    """A task with what is known of its data."""

    spec: TaskSpec
    train_counts: tuple[int, ...]
    """Train images of each class."""
    test_counts: tuple[int, ...]
    fingerprint: str
    """Hash of the spec and of every image, label, split and group in it: changes when the data change."""

    @property
    def task_id(self) -> str:
        """The spec's id."""
        return self.spec.task_id


@dataclass(frozen=True)
class SkippedTask:
    """A task that a rule asked for and the data do not give."""

    task_id: str
    reason: str


MANIFEST = pa.schema(
    [
        ("task_id", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("kind", pa.string()),
        ("classes", pa.list_(pa.string())),
        ("n_classes", pa.int32()),
        ("n_train", pa.int64()),
        ("n_test", pa.int64()),
        ("train_counts", pa.list_(pa.int64())),
        ("test_counts", pa.list_(pa.int64())),
        ("lineage", pa.list_(pa.string())),
        ("fingerprint", pa.string()),
        ("spec", pa.string()),
    ]
)


@dataclass(frozen=True)
class TaskLibrary:
    """Tasks in a fixed order, and those that could not be made."""

    tasks: tuple[Task, ...]
    skipped: tuple[SkippedTask, ...] = field(default=())

    def to_table(self) -> pa.Table:
        """The manifest, one row a task."""
        rows = [
            {
                "task_id": t.task_id,
                "source": t.spec.source,
                "domain": t.spec.domain,
                "kind": t.spec.kind,
                "classes": list(t.spec.classes),
                "n_classes": len(t.spec.classes),
                "n_train": sum(t.train_counts),
                "n_test": sum(t.test_counts),
                "train_counts": list(t.train_counts),
                "test_counts": list(t.test_counts),
                "lineage": list(t.spec.lineage),
                "fingerprint": t.fingerprint,
                "spec": t.spec.model_dump_json(),
            }
            for t in self.tasks
        ]
        return pa.Table.from_pylist(rows, schema=MANIFEST)

    @classmethod
    def from_table(cls, table: pa.Table, skipped: Sequence[SkippedTask] = ()) -> TaskLibrary:
        """Read a manifest back.

        Raises:
            DataError: columns are missing.
        """
        missing = set(MANIFEST.names) - set(table.column_names)
        if missing:
            raise DataError(f"the manifest lacks columns {sorted(missing)}; it was written by another version")
        tasks = tuple(
            Task(
                TaskSpec.model_validate_json(row["spec"]),
                tuple(row["train_counts"]),
                tuple(row["test_counts"]),
                row["fingerprint"],
            )
            for row in table.to_pylist()
        )
        return cls(tasks, tuple(skipped))

    def __getitem__(self, task_id: str) -> Task:
        for task in self.tasks:
            if task.task_id == task_id:
                return task
        raise KeyError(task_id)

    def by_source(self) -> Mapping[str, list[Task]]:
        """Tasks of each source, in the library's order."""
        out: dict[str, list[Task]] = {}
        for task in self.tasks:
            out.setdefault(task.spec.source, []).append(task)
        return out


def compare_libraries(old: TaskLibrary, new: TaskLibrary) -> dict[str, list[str]]:
    """Ids of the tasks that are ``new``, ``changed`` (other images, labels or splits) and ``removed``."""
    before, after = ({t.task_id: t.fingerprint for t in library.tasks} for library in (old, new))
    return {
        "new": [t for t in after if t not in before],
        "changed": [t for t, f in after.items() if t in before and before[t] != f],
        "removed": [t for t in before if t not in after],
    }


def _levelled(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """The largest sizes brought down to one level, so that they sum to ``total`` at most."""
    if sizes.sum() <= total:
        return sizes
    ascending = np.sort(sizes)
    left, n = total, len(sizes)
    for i, size in enumerate(ascending):
        if size * (n - i) > left:
            return np.minimum(sizes, left // (n - i))
        left -= int(size)
    return sizes


def _capped(of_class: list[NDArray[np.int64]], spec: TaskSpec) -> list[NDArray[np.int64]]:
    smallest = min((len(rows) for rows in of_class if len(rows)), default=0)
    limit = min(spec.max_per_class, max(1, int(smallest * spec.max_ratio)))
    sizes = np.array([min(len(rows), limit) for rows in of_class], np.int64)
    if spec.max_images is not None:
        sizes = _levelled(sizes, spec.max_images)
    return [rows[:size] for rows, size in zip(of_class, sizes, strict=True)]


def _class_index(
    column: LabelColumn, spec: TaskSpec, unknown: Callable[[Iterable[str]], NDArray[np.bool_]]
) -> NDArray[np.int32]:
    """Class of each row, -1 for none: no value, values of two classes, or undecided."""
    index = np.full(len(column.known), -1, np.int32)
    rest = next((c for c, values in enumerate(spec.values) if not values), -1)
    several = np.zeros(len(index), bool)
    for c, values in enumerate(spec.values):
        for value in values:
            rows = column.rows_of(value)
            if column.multi:
                several[rows] |= (index[rows] >= 0) & (index[rows] != c)
            index[rows] = c
    if rest >= 0:
        asked = [value for values in spec.values for value in values]
        index[(index < 0) & column.known & ~unknown(asked)] = rest
    index[several] = -1
    return index


def _by_class(own: NDArray[np.int32], n_classes: int) -> list[NDArray[np.int64]]:
    """Places of each class, ascending."""
    if n_classes <= 16:  # a pass a class is cheaper than sorting
        return [np.flatnonzero(own == c) for c in range(n_classes)]
    inside = np.flatnonzero(own >= 0)
    by_class = inside[np.argsort(own[inside], kind="stable")]
    return np.split(by_class, np.cumsum(np.bincount(own[inside], minlength=n_classes))[:-1])


def resolve_task(spec: TaskSpec, annotations: Annotations) -> TaskRows:
    """Run a task's query.

    Raises:
        ConfigError: a column that the source does not have.
        TaskError: no rows.
    """
    index = _class_index(annotations.column(spec.label), spec, lambda values: annotations.unknown(spec.label, values))
    for name, allowed in spec.where:
        index[~annotations.column(name).mask(allowed)] = -1
    parts: list[NDArray[np.int64]] = []
    for ordered in annotations.order(spec.seed):
        picked = _capped(_by_class(index[ordered], len(spec.classes)), spec)
        parts.append(ordered[np.sort(np.concatenate(picked))] if picked else ordered[:0])
    rows = np.concatenate(parts)
    if len(rows) == 0:
        raise TaskError(f"{spec.task_id}: no image fits; check the rule's where, within and values")
    key = annotations.image_ranks[rows] ^ np.uint64(spec.seed * 0x9E3779B97F4A7C15 % 2**64)
    rows = rows[np.argsort(key, kind="stable")]
    return TaskRows(rows, index[rows].astype(np.int64), annotations.test[rows], annotations.groups[rows])


def task_fingerprint(spec: TaskSpec, rows: TaskRows, annotations: Annotations) -> str:
    """Hash of a task's query and of every image, label, split and group in it. Its place in a taxonomy is no part."""
    digest = hashlib.sha256()
    for array in (
        annotations.contents[rows.rows],
        rows.labels.astype("<i4"),
        rows.test.astype("u1"),
        annotations.group_ranks[rows.rows].astype("<u8"),
    ):
        digest.update(np.ascontiguousarray(array).tobytes())
    shaping = spec.model_dump(mode="json", exclude={"lineage", "class_lineage"})
    return fingerprint(shaping, digest.hexdigest())
