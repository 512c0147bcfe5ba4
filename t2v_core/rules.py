"""From rules to tasks: what a rule asks for, what the data give, and what is said of the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from t2v_core.annotations import Annotations
from t2v_core.config import LibrarySpec, TaskRule
from t2v_core.errors import ConfigError, TaskError
from t2v_core.library import REST, SkippedTask, Task, TaskLibrary, TaskSpec, resolve_task, task_fingerprint

__all__ = ["build_library"]

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Scope:
    """Where a rule looks: all rows, or those of one value of `within`."""

    prefix: str
    where: tuple[tuple[str, tuple[str, ...]], ...]
    inside: Bools
    values: tuple[tuple[str, int], ...]
    """The label's values that the rule may use, with their counts: the most frequent first."""


def _scopes(rule: TaskRule, annotations: Annotations) -> Iterator[_Scope]:
    label = annotations.column(rule.label)
    fixed = tuple((name, tuple(values)) for name, values in rule.where.items())
    keep = annotations.usable.copy()
    for name, allowed in fixed:
        keep &= annotations.column(name).mask(allowed)
    names = [name for name, _ in annotations.column(rule.within).counted(keep)] if rule.within else [""]
    for name in names:
        inside = keep & annotations.column(rule.within).mask([name]) if rule.within else keep
        where = (*fixed, (rule.within, (name,))) if rule.within else fixed
        prefix = f"{rule.source}/{rule.within}={name}/" if rule.within else f"{rule.source}/"
        if not rule.within and rule.where:
            prefix += "+".join(f"{n}={','.join(v)}" for n, v in rule.where.items()) + "/"
        values = [(v, n) for v, n in label.counted(inside) if not rule.values or v in rule.values]
        yield _Scope(prefix, where, inside, tuple(values))


def _one_value(name: str, inside: Bools, annotations: Annotations) -> str:
    """The value that all rows inside have in a column; empty where they differ or have none."""
    found = annotations.column(name).counted(inside)
    return found[0][0] if len(found) == 1 and found[0][1] == int(inside.sum()) else ""


def _lineage(rule: TaskRule, own: Bools, annotations: Annotations) -> tuple[str, ...]:
    out: list[str] = []
    for name in rule.lineage:
        if annotations.column(name).multi:  # rows of several values; their places are in the source's taxonomy
            continue
        value = _one_value(name, own, annotations)
        if not value:
            break
        out.append(value)
    return tuple(out)


def _places(rule: TaskRule, values: Sequence[str], annotations: Annotations) -> dict[str, tuple[str, ...]]:
    """Each value's own place in the taxonomy, itself last."""
    stated = annotations.taxonomy.get(rule.label, {})
    label = annotations.column(rule.label)
    columns = [annotations.column(name) for name in rule.lineage if name != rule.label]
    out = {}
    for value in values:
        rows = label.rows_of(value)
        above: list[str] = []
        for column in columns if not label.multi else []:
            codes = column.codes[rows]
            if len(codes) == 0 or codes[0] < 0 or (codes != codes[0]).any():
                break
            above.append(column.values[codes[0]])
        out[value] = (*stated.get(value, above), value)
    return out


def _task_name(rule: TaskRule, *values: str) -> str:
    return f"{rule.label}={'+'.join(values)}" if values else rule.label


def _candidates(rule: TaskRule, library: LibrarySpec, annotations: Annotations) -> Iterator[tuple[TaskSpec, int]]:
    """The tasks that a rule asks for, with their images, before it is known whether the data give them."""
    base: dict[str, object] = {
        "source": rule.source,
        "domain": annotations.domain,
        "label": rule.label,
        "max_per_class": library.max_per_class,
        "max_ratio": library.max_ratio,
        "max_images": rule.max_images or library.max_images,
        "seed": library.seed,
    }
    label = annotations.column(rule.label)
    for name in rule.lineage:
        annotations.column(name)
    scopes = list(_scopes(rule, annotations))
    if not scopes:  # nothing fits the filter: one task to say so
        fixed = tuple((name, tuple(values)) for name, values in rule.where.items())
        missing = f"{rule.source}/{rule.within}=?/{rule.label}"
        yield TaskSpec(task_id=missing, kind=rule.kind, classes=(), values=(), where=fixed, **base), 0
    places = _places(rule, sorted({v for scope in scopes for v, _ in scope.values}), annotations)
    for scope in scopes:
        make = _maker(rule, scope, base, annotations, places)
        values = [value for value, _ in scope.values]
        if rule.kind == "grouped":
            members = tuple(tuple(v) for v in rule.groups.values())
            yield make(rule.name, "binary" if len(members) == 2 else "multiclass", tuple(rule.groups), members)
        elif rule.kind == "multiclass":
            names = tuple(values[: library.max_classes])
            yield make(_task_name(rule), "multiclass", names, tuple((v,) for v in names))
        elif rule.kind == "pairs":
            for pair in combinations(values, 2):
                yield make(_task_name(rule, *pair), "binary", pair, tuple((v,) for v in pair))
        else:
            # A value that was asked for and is not there is a task that is skipped, with the reason.
            absent = [] if rule.within else [v for v in rule.values if v not in values] or ([] if values else ["?"])
            for value in [*values, *absent]:
                spec, _ = make(_task_name(rule, value), "binary", (value, REST), ((value,), ()))
                yield spec, int(label.mask([value])[scope.inside].sum()) if rule.largest else 0


def _maker(
    rule: TaskRule,
    scope: _Scope,
    base: Mapping[str, object],
    annotations: Annotations,
    places: Mapping[str, tuple[str, ...]],
) -> Callable[[str, str, tuple[str, ...], tuple[tuple[str, ...], ...]], tuple[TaskSpec, int]]:
    label = annotations.column(rule.label)

    def make(
        name: str, kind: str, classes: tuple[str, ...], values: tuple[tuple[str, ...], ...]
    ) -> tuple[TaskSpec, int]:
        own = scope.inside & label.mask(v for members in values for v in members)
        lineage = places[values[0][0]][:-1] if label.multi and len(values[0]) == 1 and values[0][0] in places else ()
        spec = TaskSpec(
            task_id=scope.prefix + name,
            kind=kind,
            classes=classes,
            values=values,
            where=scope.where,
            lineage=lineage or _lineage(rule, own, annotations),
            class_lineage=tuple(places.get(v[0], (v[0],)) if len(v) == 1 else () for v in values),
            **base,
        )
        return spec, int(own.sum())

    return make


def _counts(spec: TaskSpec, annotations: Annotations) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Train and test images of each class, before ``max_ratio``, which follows the smallest class."""
    rows = resolve_task(spec.model_copy(update={"max_ratio": 1e9, "max_images": None}), annotations)
    c = len(spec.classes)
    return np.bincount(rows.labels[~rows.test], minlength=c), np.bincount(rows.labels[rows.test], minlength=c)


def _fitting(spec: TaskSpec, rule: TaskRule, library: LibrarySpec, annotations: Annotations) -> Task:
    """The task with its too small classes left out.

    Raises:
        TaskError: fewer than two classes are left.
    """
    fewest_train = rule.min_train or library.min_train
    fewest_test = rule.min_test or library.min_test
    train, test = _counts(spec, annotations)
    big = (train >= fewest_train) & (test >= fewest_test)
    if len(big) == 1 and big.all():
        raise TaskError(f"one class only ({spec.classes[0]!r}); a task needs two")
    if big.sum() < 2 or (spec.kind == "binary" and not big.all()):
        small = [f"{spec.classes[k]} {train[k]}/{test[k]}" for k in np.flatnonzero(~big)[:3]]
        raise TaskError(
            f"{int(big.sum())} of {len(big)} classes have {fewest_train} train and {fewest_test} test images "
            f"(too small: {', '.join(small)}); a task needs two"
        )
    kept = np.flatnonzero(big)
    spec = spec.model_copy(
        update={
            "classes": tuple(spec.classes[k] for k in kept),
            "values": tuple(spec.values[k] for k in kept),
            "class_lineage": tuple(spec.class_lineage[k] for k in kept),
            "kind": "binary" if len(kept) == 2 else spec.kind,
        }
    )
    rows = resolve_task(spec, annotations)
    c = len(spec.classes)
    train = np.bincount(rows.labels[~rows.test], minlength=c)
    test = np.bincount(rows.labels[rows.test], minlength=c)
    if (train < fewest_train).any() or (test < fewest_test).any():
        raise TaskError(
            f"max_ratio {spec.max_ratio:g} and max_images {spec.max_images} leave a class of {train.min()} train and "
            f"{test.min()} test images; wanted {fewest_train} and {fewest_test}"
        )
    return Task(spec, tuple(map(int, train)), tuple(map(int, test)), task_fingerprint(spec, rows, annotations))


def build_library(
    library: LibrarySpec,
    sources: Mapping[str, Annotations],
    progress: Callable[[str, int], None] | None = None,
) -> TaskLibrary:
    """All tasks that the rules cut from the sources; those that do not fit are listed with the reason.

    Rules of sources that are not given (optional ones that were not found) are passed over.

    Args:
        library: the rules.
        sources: annotation tables by name.
        progress: called with (source, tasks so far) after each task.

    Raises:
        ConfigError: a column that a source does not have, or two tasks of one name.
    """
    tasks: dict[str, Task] = {}
    skipped: list[SkippedTask] = []
    for rule in library.rules:
        annotations = sources.get(rule.source)
        if annotations is None:
            continue
        candidates = list(_candidates(rule, library, annotations))
        if rule.largest:
            candidates.sort(key=lambda pair: (-pair[1], pair[0].task_id))
        made = 0
        for spec, _ in candidates:
            if spec.task_id in tasks:
                raise ConfigError(
                    f"two rules make a task {spec.task_id!r}; give one of them another `name` or `within`"
                )
            if rule.largest and made >= rule.largest:
                skipped.append(SkippedTask(spec.task_id, f"not among the {rule.largest} largest of its rule"))
                continue
            try:
                tasks[spec.task_id] = _fitting(spec, rule, library, annotations)
                made += 1
            except TaskError as error:
                skipped.append(SkippedTask(spec.task_id, str(error)))
            if progress:
                progress(rule.source, len(tasks))
    return TaskLibrary(tuple(tasks.values()), tuple(skipped))
