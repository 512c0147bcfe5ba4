"""All selectors on all judged tasks, by meta-task and reading: Table 1 for any library."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from t2v_core.config import Model2VecSpec, SelectionSpec
from t2v_core.errors import DataError
from t2v_core.matrix import ErrorMatrix, expert_vectors
from t2v_core.metatasks import (
    ALL,
    DOMAIN_LEFT_OUT,
    EVERYTHING,
    LEFT_OUT,
    READINGS,
    MetaTask,
    candidates_of,
    concept_groups,
    make_meta_tasks,
    own_domain,
)
from t2v_core.records import EmbeddingTable
from t2v_core.selection import compare_selectors, conclusions, paired_differences
from t2v_core.selectors import SELECTORS, Problem
from t2v_core.selectors.method import BY_FEATURES, Cost
from t2v_core.selectors.rates import QueryRates

__all__ = [
    "ALL",
    "DOMAIN_LEFT_OUT",
    "LEFT_OUT",
    "OURS",
    "SelectionResult",
    "build_problem",
    "evaluate_meta_task",
    "evaluate_problem",
    "evaluate_selectors",
    "judged_rows",
]

OURS = ("TASK2VEC", "asymmetric TASK2VEC", "MODEL2VEC")
YARDSTICKS = ("generic", "static", "asymmetric TASK2VEC")
CHANCE_NOTE = "mean over the candidates"


@dataclass(frozen=True, eq=False)
class SelectionResult:
    """What the comparison found."""

    table: pd.DataFrame
    """One row a meta-task, reading and selector; see `compare_selectors`."""
    choices: pd.DataFrame
    """One row a meta-task, reading, selector and task: the chosen expert (empty for chance), its error, its ratio."""
    conclusions: tuple[str, ...]
    """Paired comparisons in words: the whole matrix, own experts left out."""
    pairs: pd.DataFrame
    """One row a meta-task, reading, selector and yardstick: see `paired_differences`."""


def _or_generic(scores: np.ndarray, candidates: np.ndarray, generic: int) -> np.ndarray:
    """Where a selector has no opinion of any candidate, it takes the generic expert."""
    silent = ~(np.isfinite(scores) & candidates).any(1)
    out = np.array(scores, np.float64)
    out[silent, generic] = 0.0
    return out


def _judgeable(problem: Problem, candidates: np.ndarray) -> np.ndarray:
    """``[T]`` bool: two candidates with known errors."""
    return np.asarray((candidates & np.isfinite(problem.errors)).sum(1) >= 2)


def judged_rows(matrix: ErrorMatrix, meta: MetaTask) -> np.ndarray:
    """Rows of a meta-task with two tried experts, not trained on them, of the meta-task's own."""
    cells = np.ix_(meta.rows, meta.columns)
    return np.asarray(meta.rows[(np.isfinite(matrix.errors[cells]) & ~matrix.own[cells]).sum(1) >= 2])


def evaluate_problem(
    problem: Problem,
    same_domain: np.ndarray,
    spec: SelectionSpec,
    *,
    extra: Mapping[str, np.ndarray] | None = None,
    made: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    names: Sequence[str] | None = None,
    readings: Sequence[str] = READINGS,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Every selector in every reading.

    Args:
        problem: its ``candidates`` are ignored; each reading has its own.
        same_domain: ``[T, E]`` bool, see `own_domain`.
        spec: floor, bootstrap.
        extra: scores ``[T, E]`` by name of selectors that look at features, say; lower is better. They see no errors.
        made: reading to scores of registered selectors that were computed elsewhere.
        names: selectors to compare; default: those of ``spec``, else all that are not slow. What the problem lacks the
            data for is left out.
        readings: which, in the order of the table.
        told: called with (done, total) after each selector of each reading.

    Returns:
        Table, per-task values, paired differences to generic, static and asymmetric TASK2VEC; each with ``reading``.

    Raises:
        DataError: no task has two candidates in a reading.
        UnknownNameError: no such selector.
    """
    wanted = list(names or spec.selectors) or [n for n in SELECTORS if not SELECTORS[n].slow]
    parts: tuple[list[pd.DataFrame], ...] = ([], [], [])
    known = np.isfinite(problem.errors)
    for turn, reading in enumerate(readings):
        candidates = candidates_of(reading, known, problem.own, same_domain)
        keep = _judgeable(problem, candidates)
        if not keep.any():
            raise DataError(f"no task has two candidates to choose from: {reading}; nothing can be judged")
        part = problem.reading(candidates)
        scores, seconds = {}, {}
        for place, name in enumerate(wanted):
            began, method = time.perf_counter(), SELECTORS[name]
            value = (made or {}).get(reading, {}).get(name)
            value = method.score(part) if value is None else value
            if value is not None:
                scores[name], seconds[name] = value, time.perf_counter() - began
            told(turn * len(wanted) + place + 1, len(readings) * len(wanted))
        scores |= {name: np.asarray(value) for name, value in (extra or {}).items()}
        notes = {name: SELECTORS[name].note for name in scores if name in SELECTORS} | {"chance": CHANCE_NOTE}
        table, detail = compare_selectors(
            problem.errors[keep],
            problem.own[keep],
            {name: _or_generic(value, candidates, problem.generic)[keep] for name, value in scores.items()},
            spec,
            leave_own_out=False,
            notes=notes,
            candidates=candidates[keep],
            groups=problem.groups[keep],
        )
        order = {name: i for i, name in enumerate(dict.fromkeys(["oracle", "chance", *scores]))}
        table = table.sort_values("method", key=lambda c, order=order: c.map(order), kind="stable", ignore_index=True)
        table = _with_costs(table, problem, extra or {})
        table["score_seconds"] = [seconds.get(m, float("nan")) for m in table["method"]]
        groups = problem.groups[keep]
        compared = paired_differences(detail, list(scores), YARDSTICKS, spec, groups)
        detail["task"] = np.flatnonzero(keep)[detail["task"].to_numpy()]
        for frame, frames in zip((table, detail, compared), parts, strict=True):
            frame.insert(0, "reading", reading)
            frames.append(frame)
    table, detail, compared = (pd.concat(frames, ignore_index=True) for frames in parts)
    return table, detail, compared


def _with_costs(table: pd.DataFrame, problem: Problem, extra: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The table with what each method costs for a new task; seconds and images where they were measured."""
    of, n = {m: SELECTORS[m].cost for m in table["method"] if m in SELECTORS}, len(problem.experts)
    costs = [of.get(m, BY_FEATURES if m in extra else Cost()) for m in table["method"]]
    out = table.assign(
        probe_passes=[float(c.probe_passes) for c in costs],
        experts_tried=[float(c.tried(n)) for c in costs],
    )
    if problem.rates is None:
        return out
    rates = problem.rates
    return out.assign(
        query_images=[c.images(rates, n) for c in costs], query_seconds=[c.seconds(rates, n) for c in costs]
    )


def build_problem(
    matrix: ErrorMatrix,
    embeddings: EmbeddingTable,
    trained_on: Mapping[str, Sequence[str]],
    model2vec: Model2VecSpec,
    *,
    sizes: np.ndarray | None = None,
    taxonomy: np.ndarray | None = None,
    moments: np.ndarray | None = None,
    rates: QueryRates | None = None,
) -> Problem:
    """The problem of a whole matrix, all cells candidates.

    Args:
        matrix: its rows are the embeddings' tasks.
        embeddings: of the T tasks.
        trained_on: expert to the tasks it was trained on; ``generic`` first.
        model2vec: settings; its alpha is that of d_asym too.
        sizes: ``[E]``, train images of each expert's tasks; default: those that the embeddings name.
        taxonomy: ``[T, E]``, taxonomic distances, if any.
        moments: ``[T, D]``, second moments of the tasks' features, if any.
        rates: measured costs of a new task, if known.
    """
    if sizes is None:
        images = dict(zip(embeddings.task_ids, embeddings.frame["n_images"], strict=True))
        named = [[images[t] for t in tasks if t in images] for tasks in trained_on.values()]
        sizes = np.array([float(sum(n)) if n else np.nan for n in named])
    return Problem(
        errors=matrix.errors,
        candidates=np.isfinite(matrix.errors),
        own=matrix.own,
        tasks=embeddings.vectors,
        experts=expert_vectors(embeddings.vectors, embeddings.task_ids, trained_on),
        trivial=embeddings.trivial,
        groups=concept_groups(matrix.task_ids),
        domains=embeddings.domains,
        expert_domains=expert_vectors(embeddings.domains, embeddings.task_ids, trained_on),
        rates=rates,
        moments=moments,
        expert_moments=None if moments is None else expert_vectors(moments, embeddings.task_ids, trained_on),
        layers=embeddings.layers,
        sizes=sizes,
        taxonomy=taxonomy,
        model2vec=model2vec,
    )


def evaluate_meta_task(
    whole: Problem,
    matrix: ErrorMatrix,
    trained_on: Mapping[str, Sequence[str]],
    meta: MetaTask,
    spec: SelectionSpec,
    *,
    extra: Mapping[str, np.ndarray] | None = None,
    model2vec: Mapping[tuple[str, str], np.ndarray] | None = None,
    names: Sequence[str] | None = None,
    readings: Sequence[str] = READINGS,
    compared: Sequence[str] = (),
    against: Sequence[str] = (),
    told: Callable[[int, int], None] = lambda done, total: None,
) -> SelectionResult:
    """Every selector on one meta-task; its ``choices`` name tasks and experts.

    Args:
        whole: the problem of the whole matrix, see `build_problem`.
        matrix: error matrix.
        trained_on: expert to the tasks it was trained on.
        meta: rows and columns.
        spec: floor, bootstrap, selectors.
        extra: as for `evaluate_selectors`.
        model2vec: likewise.
        names: selectors; default: as for `evaluate_problem`.
        readings: those in which nothing can be judged are left out.
        compared: selectors to compare in words, own experts left out.
        against: with these.
        told: as for `evaluate_problem`.

    Raises:
        DataError: no task of it can be judged.
    """
    rows = judged_rows(matrix, meta)
    if not len(rows):
        raise DataError(f"meta-task {meta.name!r}: no task has two experts that were tried on it and not trained on it")
    cells = np.ix_(rows, meta.columns)
    problem, same = whole.part(rows, meta.columns), own_domain(matrix.task_ids, trained_on)[cells]
    # Where nothing but a task's own domain is left, that reading cannot be judged, and is not shown.
    known, made = np.isfinite(problem.errors), model2vec or {}
    shown = [r for r in readings if _judgeable(problem, candidates_of(r, known, problem.own, same)).any()]
    table, choices, pairs = evaluate_problem(
        problem,
        same,
        spec,
        extra={name: np.asarray(value)[cells] for name, value in (extra or {}).items()},
        made={r: {"MODEL2VEC": made[meta.name, r]} for r in shown if (meta.name, r) in made},
        names=names,
        readings=shown,
        told=told,
    )
    first = choices[choices["reading"] == LEFT_OUT]
    words = conclusions(first, list(compared), list(against), spec, problem.groups) if compared else []
    experts = np.array([*np.array(matrix.experts, object)[meta.columns], ""], object)
    choices["task_id"] = np.array(matrix.task_ids, object)[rows][choices.pop("task").to_numpy()]
    choices["expert"] = experts[choices["expert"].to_numpy()]
    return SelectionResult(table, choices, tuple(words), pairs)


def evaluate_selectors(
    matrix: ErrorMatrix,
    embeddings: EmbeddingTable,
    trained_on: Mapping[str, Sequence[str]],
    model2vec: Mapping[tuple[str, str], np.ndarray],
    spec: SelectionSpec,
    *,
    settings: Model2VecSpec,
    extra: Mapping[str, np.ndarray] | None = None,
    taxonomy: np.ndarray | None = None,
    moments: np.ndarray | None = None,
    rates: QueryRates | None = None,
    told: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> SelectionResult:
    """Compare the selectors of Sect. 4.2, the baselines and the extensions, on each meta-task in three readings.

    Args:
        matrix: error matrix; its rows are the embeddings' tasks.
        embeddings: of the T tasks.
        trained_on: expert to the tasks it was trained on; ``generic`` first.
        model2vec: (meta-task, reading) to MODEL2VEC's distances of the meta-task's judged rows and its experts, each
            from a model that was fitted without the task; what is missing is computed here.
        spec: floor, bootstrap, meta-tasks, selectors.
        settings: of MODEL2VEC; its alpha is that of d_asym too.
        extra: further scores ``[T, E]`` by name, lower is better, rows as the matrix's.
        taxonomy: ``[T, E]``, taxonomic distances, if any.
        moments: ``[T, D]``, second moments of the tasks' features, if any.
        rates: measured costs of a new task, if known.
        told: called with (meta-task, done, total) after each selector of each reading.

    Raises:
        DataError: no task can be judged.
    """
    if not matrix.judged().any():
        raise DataError("no task has two experts that were tried on it and not trained on it; nothing can be judged")
    known = {"taxonomy": taxonomy, "moments": moments}
    whole = build_problem(matrix, embeddings, trained_on, settings, rates=rates, **known)
    parts: dict[str, list[pd.DataFrame]] = {"table": [], "choices": [], "pairs": []}
    words: tuple[str, ...] = ()
    for meta in make_meta_tasks(spec.meta_tasks, matrix.experts, matrix.task_ids):
        compared = [*OURS, "domain distance", "task neighbours"] if meta.name == EVERYTHING else []
        found = evaluate_meta_task(
            whole,
            matrix,
            trained_on,
            meta,
            spec,
            extra=extra,
            model2vec=model2vec,
            compared=compared,
            against=["generic", "static"],
            told=partial(told, meta.name),
        )
        words = found.conclusions or words
        for name, frames in parts.items():
            frame: pd.DataFrame = getattr(found, name)
            frame.insert(0, "meta_task", meta.name)
            frames.append(frame)
    joined = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    return SelectionResult(joined["table"], joined["choices"], words, joined["pairs"])
