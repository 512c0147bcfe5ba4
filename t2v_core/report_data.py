"""What the report page is made of: plain tables and arrays, gathered by the caller.

Errors are fractions (0.25 is 25%), relative increases are ratios (0.1 is 10% above the best expert's error).
Axes: T tasks, E experts, P filters, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from t2v_core.errors import DataError
from t2v_core.thumbnails import Thumbnail

__all__ = [
    "PAIR_COLUMNS",
    "SELECTION_COLUMNS",
    "TASK_COLUMNS",
    "CostLine",
    "Failure",
    "Link",
    "ReportData",
    "StageLine",
]

TASK_COLUMNS = (
    "task_id",
    "source",
    "domain",
    "kind",
    "lineage",
    "n_classes",
    "n_train",
    "n_test",
    "complexity",
    "head_error",
    "oracle_error",
    "generic_error",
    "selected_expert",
    "selected_error",
)
SELECTION_COLUMNS = (
    "reading",
    "method",
    "relative_increase",
    "relative_low",
    "relative_high",
    "median_increase",
    "absolute_difference",
    "absolute_low",
    "absolute_high",
    "top1",
    "n_tasks",
    "note",
)

PAIR_COLUMNS = ("reading", "method", "against", "difference", "low", "high", "verdict")


@dataclass(frozen=True)
class StageLine:
    """How one stage of the pipeline went.

    Attributes:
        name: the stage, e.g. ``"embed tasks"``.
        done: units computed in this run.
        reused: units found in the store.
        failed: units that failed; each has a line in `ReportData.failures`.
        seconds: wall time of the stage.
        busy: seconds that workers spent in its units, all workers together; NaN where it is not known.
    """

    name: str
    done: int
    reused: int
    failed: int
    seconds: float
    busy: float = float("nan")


class Failure(NamedTuple):
    """A unit or a cell that failed."""

    stage: str
    unit: str
    reason: str
    seconds: float = float("nan")
    """What it cost before it failed; NaN where it is not known."""


class CostLine(NamedTuple):
    """What one kind of work cost, from the records in the store: this run's and those that it reused."""

    what: str
    """E.g. ``"embed a task"``."""
    units: int
    median: float
    """Seconds of the middle unit."""
    total: float
    """Seconds of all units together."""


class Link(NamedTuple):
    """Where a result lies."""

    label: str
    text: str
    """What is shown: a path, an id, an address."""
    href: str = ""
    """``http(s)://`` or a path relative to the page; empty where it is no link. Others are shown as text."""


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that one page of results shows.

    Attributes:
        title: heading of the page.
        subtitle: one line below it.
        run: what ran: probe, estimator, store, versions, started, seconds.
        stages: one line a stage, in the order they ran.
        tasks: one row a task, with `TASK_COLUMNS`; ``lineage`` is a list of names from the root down, ``complexity``
            the L1 norm of the embedding, ``head_error`` the error of the probe's head on held-out data.
        embeddings: task embeddings, ``[T, P]``.
        domain_embeddings: label-free baseline, ``[T, D]``.
        distances: symmetric TASK2VEC distance, ``[T, T]`` (Sect. 3.3).
        experts: E names; the first is the generic expert.
        errors: error matrix, ``[T, E]``; NaN where a cell was not evaluated.
        own: true where the expert was trained on the task, ``[T, E]``.
        selection: one row per reading and method, with `SELECTION_COLUMNS`; the first reading is the one the page
            leads with. A column ``meta_task`` splits it into several tables; further columns are further measures.
        floor: smallest oracle error that a relative increase is divided by.
        oracle_error: mean over tasks of the best expert's error.
        conclusions: sentences that say which differences exceed their interval.
        failures: units that failed; plain tuples ``(stage, unit, reason)`` will do.
        rejected_images: ``(source, image id, reason)``.
        skipped_tasks: ``(task id, reason)``.
        commands: ``(what it does, command)``, to copy.
        pairs: paired differences of errors between methods, with `PAIR_COLUMNS`; ``verdict`` says in a word which is
            better, or that they cannot be told apart.
        domain_distances: ``[T, T]`` cosine distances of the domain embeddings, where the caller has them already.
        thumbnails: task id to a strip of a few of its images.
        links: where the run and its results lie.
        costs: what the work cost by kind.

    Raises:
        DataError: a column is missing, or the shapes do not agree.
    """

    title: str
    subtitle: str
    run: dict[str, str]
    stages: tuple[StageLine, ...]
    tasks: pd.DataFrame
    embeddings: npt.NDArray[np.floating]
    domain_embeddings: npt.NDArray[np.floating]
    distances: npt.NDArray[np.floating]
    experts: tuple[str, ...]
    errors: npt.NDArray[np.floating]
    own: npt.NDArray[np.bool_]
    selection: pd.DataFrame
    floor: float
    oracle_error: float
    conclusions: tuple[str, ...] = ()
    failures: tuple[Failure | tuple[str, str, str], ...] = ()
    rejected_images: tuple[tuple[str, str, str], ...] = ()
    skipped_tasks: tuple[tuple[str, str], ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    pairs: pd.DataFrame | None = None
    domain_distances: npt.NDArray[np.floating] | None = None
    thumbnails: Mapping[str, Thumbnail] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    costs: tuple[CostLine, ...] = ()

    def __post_init__(self) -> None:
        """Refuse tables and arrays that do not belong together."""
        for name, frame, wanted in (
            ("tasks", self.tasks, TASK_COLUMNS),
            ("selection", self.selection, SELECTION_COLUMNS),
            *([] if self.pairs is None else [("pairs", self.pairs, PAIR_COLUMNS)]),
        ):
            missing = [column for column in wanted if column not in frame.columns]
            if missing:
                raise DataError(f"report: {name} lacks the columns {', '.join(missing)}; got {list(frame.columns)}")
        n_tasks, n_experts = len(self.tasks), len(self.experts)
        square = self.distances if self.domain_distances is None else self.domain_distances
        for name, got, shape in (
            ("embeddings", self.embeddings.shape, (n_tasks, None)),
            ("domain_embeddings", self.domain_embeddings.shape, (n_tasks, None)),
            ("distances", self.distances.shape, (n_tasks, n_tasks)),
            ("domain_distances", square.shape, (n_tasks, n_tasks)),
            ("errors", self.errors.shape, (n_tasks, n_experts)),
            ("own", self.own.shape, (n_tasks, n_experts)),
        ):
            if len(got) != len(shape) or any(w is not None and g != w for g, w in zip(got, shape, strict=True)):
                raise DataError(
                    f"report: {name} has shape {got}, wanted {shape}; rows follow `tasks`, columns follow `experts`"
                )
