"""The task library: tasks as queries on sources, never copies of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from t2v_core.config import FrozenModel, LibrarySpec, TaskRule
from t2v_core.errors import ConfigError, DataError, TaskError
from t2v_core.fingerprints import fingerprint, name_rank

__all__ = ["Annotations", "SkippedTask", "Task", "TaskLibrary", "TaskRows", "TaskSpec", "build_library", "resolve_task"]

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
    max_per_class: int = Field(description="Most images of a class and split.")
    max_ratio: float = Field(description="Most times the images of the smallest class.")
    seed: int = Field(description="Seed of the sample.")


@dataclass(frozen=True, eq=False)
class Annotations:
    """A packed source's annotation table, without the images."""

    source: str
    domain: str
    table: pd.DataFrame
    """One row an image, in the order of the shards: image_id, group, split, digest, and the label columns."""

    @cached_property
    def order(self) -> np.ndarray:
        """A random rank of each image that depends on its id alone, so that new images disturb no sample."""
        return np.array([name_rank(i) for i in self.table["image_id"].tolist()], np.uint64)

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Label columns as arrays of strings, "" where there is no value."""
        out = {}
        for name in self.table.columns:
            column = self.table[name]
            text = column.astype(object).where(column.notna(), "")
            out[name] = np.array([str(v).lower() if isinstance(v, bool) else str(v) for v in text], dtype=object)
        return out

    def column(self, name: str) -> np.ndarray:
        """One label column.

        Raises:
            ConfigError: no such column.
        """
        if name not in self.columns:
            raise ConfigError(f"source {self.source!r} has no column {name!r}; its columns: {', '.join(self.columns)}")
        return self.columns[name]


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


def _capped(of_class: list[np.ndarray], spec: TaskSpec) -> list[np.ndarray]:
    smallest = min((len(rows) for rows in of_class if len(rows)), default=0)
    limit = min(spec.max_per_class, max(1, int(smallest * spec.max_ratio)))
    return [rows[:limit] for rows in of_class]


def _class_index(column: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """Class of each row, -1 for none."""
    lookup = {value: c for c, values in enumerate(spec.values) for value in values}
    rest = next((c for c, values in enumerate(spec.values) if not values), -1)
    index = pd.Series(column).map(lookup).fillna(-1).to_numpy(np.int64)
    if rest >= 0:
        index = np.where((index < 0) & (column != ""), rest, index)
    return np.asarray(index)


def resolve_task(spec: TaskSpec, annotations: Annotations) -> TaskRows:
    """Run a task's query.

    Raises:
        ConfigError: a column that the source does not have.
        TaskError: no rows.
    """
    keep = np.ones(len(annotations.table), bool)
    for name, allowed in spec.where:
        keep &= np.isin(annotations.column(name), list(allowed))
    index = np.where(keep, _class_index(annotations.column(spec.label), spec), -1)
    is_test = annotations.columns["split"] == "test"
    order = np.argsort(annotations.order ^ np.uint64(spec.seed * 0x9E3779B97F4A7C15 % 2**64), kind="stable")
    picked: list[np.ndarray] = []
    for side in (False, True):
        ordered = order[is_test[order] == side]
        of_class = [ordered[index[ordered] == c] for c in range(len(spec.classes))]
        picked.extend(_capped(of_class, spec))
    rows = np.concatenate(picked) if picked else np.empty(0, np.int64)
    if len(rows) == 0:
        raise TaskError(f"{spec.task_id}: no image fits; check the rule's where, within and values")
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    rows = rows[np.argsort(position[rows], kind="stable")]
    return TaskRows(rows, index[rows], is_test[rows], annotations.columns["group"][rows])


def _task_fingerprint(spec: TaskSpec, rows: TaskRows, annotations: Annotations) -> str:
    digest = hashlib.sha256()
    names = annotations.columns["digest"]
    for row, label, test, group in zip(rows.rows, rows.labels, rows.test, rows.groups, strict=True):
        digest.update(f"{names[row]}:{label}:{int(test)}:{group};".encode())
    return fingerprint(spec, digest.hexdigest())


def _counted(values: np.ndarray) -> list[str]:
    """Distinct values, the most frequent first, then by name; "" is no value."""
    unique, counts = np.unique(values[values != ""], return_counts=True)
    return [str(v) for _, v in sorted(zip(-counts, unique, strict=True))]


def _lineage(rule: TaskRule, own: np.ndarray, annotations: Annotations) -> tuple[str, ...]:
    out: list[str] = []
    for name in rule.lineage:
        values = np.unique(annotations.column(name)[own])
        if len(values) != 1 or values[0] == "":
            break
        out.append(str(values[0]))
    return tuple(out)


def _candidates(rule: TaskRule, library: LibrarySpec, annotations: Annotations) -> Iterator[TaskSpec]:
    """The tasks that a rule asks for, before it is known whether the data give them."""
    base: dict[str, object] = {
        "source": rule.source,
        "domain": annotations.domain,
        "label": rule.label,
        "max_per_class": library.max_per_class,
        "max_ratio": library.max_ratio,
        "seed": library.seed,
    }
    label = annotations.column(rule.label)
    fixed = tuple((name, tuple(values)) for name, values in rule.where.items())
    keep = np.ones(len(label), bool)
    for name, allowed in fixed:
        keep &= np.isin(annotations.column(name), list(allowed))
    scopes: list[str] = _counted(annotations.column(rule.within)[keep]) if rule.within else [""]
    if not scopes:  # nothing fits the filter: one task to say so
        yield TaskSpec(
            task_id=f"{rule.source}/{rule.within}=?/{rule.label}",
            kind=rule.kind,
            classes=(),
            values=(),
            where=fixed,
            **base,
        )
    for scope in scopes:
        inside = keep & (annotations.column(rule.within) == scope) if rule.within else keep
        where = (*fixed, (rule.within, (scope,))) if rule.within else fixed
        prefix = f"{rule.source}/{rule.within}={scope}/" if rule.within else f"{rule.source}/"
        if not rule.within and rule.where:
            prefix += "+".join(f"{n}={','.join(v)}" for n, v in rule.where.items()) + "/"
        values = [v for v in _counted(label[inside]) if not rule.values or v in rule.values]
        if rule.kind == "grouped":
            names, members = tuple(rule.groups), tuple(tuple(v) for v in rule.groups.values())
            own = inside & np.isin(label, [v for m in members for v in m])
            yield TaskSpec(
                task_id=prefix + rule.name,
                kind="binary" if len(names) == 2 else "multiclass",
                classes=names,
                values=members,
                where=where,
                lineage=_lineage(rule, own, annotations),
                **base,
            )
        elif rule.kind == "multiclass":
            names = tuple(values[: library.max_classes])
            yield TaskSpec(
                task_id=prefix + rule.label,
                kind="multiclass",
                classes=names,
                values=tuple((v,) for v in names),
                where=where,
                lineage=_lineage(rule, inside & np.isin(label, list(names)), annotations),
                **base,
            )
        else:
            # A value that was asked for and is not there is a task that is skipped, with the reason.
            absent = [] if rule.within else [v for v in rule.values if v not in values] or ([] if values else ["?"])
            for value in [*values, *absent]:
                yield TaskSpec(
                    task_id=f"{prefix}{rule.label}={value}",
                    kind="binary",
                    classes=(value, REST),
                    values=((value,), ()),
                    where=where,
                    lineage=_lineage(rule, inside & (label == value), annotations),
                    **base,
                )


def _fitting(spec: TaskSpec, rule: TaskRule, library: LibrarySpec, annotations: Annotations) -> Task:
    """The task with its too small classes left out.

    Raises:
        TaskError: fewer than two classes are left.
    """
    fewest_train = rule.min_train or library.min_train
    fewest_test = rule.min_test or library.min_test
    for attempt in (0, 1):
        rows = resolve_task(spec, annotations)
        c = len(spec.classes)
        train = np.bincount(rows.labels[~rows.test], minlength=c)
        test = np.bincount(rows.labels[rows.test], minlength=c)
        # The cap follows the smallest class, so judge a multiclass task's classes before it.
        big = (train >= fewest_train) & (test >= fewest_test)
        if attempt == 0 and spec.kind == "multiclass":
            free = resolve_task(spec.model_copy(update={"max_ratio": 1e9}), annotations)
            big = (np.bincount(free.labels[~free.test], minlength=c) >= fewest_train) & (
                np.bincount(free.labels[free.test], minlength=c) >= fewest_test
            )
        if big.all():
            break
        if big.sum() < 2 or spec.kind == "binary":
            small = [f"{spec.classes[k]} {train[k]}/{test[k]}" for k in np.flatnonzero(~big)[:3]]
            raise TaskError(
                f"{int(big.sum())} of {c} classes have {fewest_train} train and {fewest_test} test images "
                f"(too small: {', '.join(small)}); a task needs two"
            )
        spec = spec.model_copy(
            update={
                "classes": tuple(np.array(spec.classes, object)[big]),
                "values": tuple(v for v, k in zip(spec.values, big, strict=True) if k),
            }
        )
    else:
        raise TaskError(f"no set of classes with {fewest_train} train and {fewest_test} test images each")
    if len(spec.classes) < 2:
        raise TaskError(f"one class only ({spec.classes[0]!r}); a task needs two")
    if len(spec.classes) == 2 and spec.kind != "binary":
        spec = spec.model_copy(update={"kind": "binary"})
    return Task(spec, tuple(map(int, train)), tuple(map(int, test)), _task_fingerprint(spec, rows, annotations))


def build_library(library: LibrarySpec, sources: Mapping[str, Annotations]) -> TaskLibrary:
    """All tasks that the rules cut from the sources; those that do not fit are listed with the reason.

    Rules of sources that are not given (optional ones that were not found) are passed over.

    Raises:
        ConfigError: a column that a source does not have, or two tasks of one name.
    """
    tasks: dict[str, Task] = {}
    skipped: list[SkippedTask] = []
    for rule in library.rules:
        annotations = sources.get(rule.source)
        if annotations is None:
            continue
        for spec in _candidates(rule, library, annotations):
            if spec.task_id in tasks:
                raise ConfigError(
                    f"two rules make a task {spec.task_id!r}; give one of them another `name` or `within`"
                )
            try:
                tasks[spec.task_id] = _fitting(spec, rule, library, annotations)
            except TaskError as error:
                skipped.append(SkippedTask(spec.task_id, str(error)))
    return TaskLibrary(tuple(tasks.values()), tuple(skipped))
