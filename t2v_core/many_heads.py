"""Heads of many binary tasks on the same features, together: one decomposition, and two large products an iteration.

`fit_head` spends nearly all its time on the eigenbasis of each task's own covariance. Tasks cut from one source share
its rows, so that here one basis serves them all: a task weighs the rows that it uses and gives the others zero. What
is minimised is what `fit_head` minimises. Of two classes it has ``W = (-w/2, w/2)``, hence in margins
``m_n = y_n (w'x_n + b)``, y = -1 or 1, the convex ``sum_n w_n log(1 + exp(-m_n)) + l2/4 |w|^2``; that it divides the
features by the root mean squared length of the task's own rows is here a factor on l2.

The solver is preconditioned nonlinear conjugate gradients (Hestenes-Stiefel). Margins are linear in the step, so that
a line search costs no product. Iterations measured on 24 random dichotomies of 5,000 MNIST digits (D = 1,280) at an
l2 of 1e-4 and 1e-5: 12 and 21; L-BFGS with ten pairs 11 and 20, but with a history to keep; truncated Newton 13 and
20 products; Nesterov's method with restarts 23 and 47, and no end where rare positives make its bound fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from t2v_core.config import HeadSpec
from t2v_core.errors import T2VError, TaskError
from t2v_core.heads import HeadFit, Rotated, balanced_error, fit_head, row_weights, validation_mask

__all__ = ["HeadResult", "HeadTask", "fit_heads"]

_ROOM = 256 * 2**20
"""Bytes for all arrays of a number for each row and task."""
_ARRAYS = 10
"""Such arrays, temporary ones too."""
_WIDEST = 128
"""Tasks solved at once; the products are no faster with more."""
_ALONE = 3
"""Fewer tasks than this are solved one by one."""
_GAIN = 0.1
"""Solving together must be expected to save this share of the time, as the estimate is a rough one."""
_COARSE = 1e-5
"""A tolerance below this is beyond float32 gradients: then all is done in float64."""


@dataclass(frozen=True, eq=False)
class HeadTask:
    """One task on rows of the features."""

    rows: np.ndarray
    """``[n]`` integers, row numbers."""
    labels: np.ndarray
    """``[n]`` integers in ``[0, C)``."""
    groups: np.ndarray | None = None
    """``[n]`` of any type; rows of a group are held out together. Default: each row alone."""
    n_classes: int | None = None
    """C, where it is more than the largest label + 1."""


@dataclass(frozen=True, eq=False)
class HeadResult:
    """What became of one task: a head, or the error that it failed with."""

    fit: HeadFit | None
    error: T2VError | None
    seconds: float
    """Of a task that was solved with others, its share."""
    together: bool
    """Solved with others, not by `fit_head`."""


@dataclass(eq=False)
class _Job:
    """A binary task on its way: strengths from strong to weak on the inner rows, then the chosen one on all rows."""

    index: int
    rows: np.ndarray  # [n]
    labels: np.ndarray  # [n], 0 or 1
    weights: np.ndarray  # [n], sum to one
    held: np.ndarray  # [n]
    inner: np.ndarray  # [n], weights of the rows that are not held out
    outer: np.ndarray  # [n], weights of those that are
    strengths: list[float]
    ratio: float  # mean squared length of the task's rows, of all rows it is one
    w: np.ndarray  # [R], where the next fit starts
    b: float = 0.0
    stage: int = 0  # index into the strengths
    chosen: int = 0
    final: bool = False
    held_loss: float = float("nan")
    held_error: float = float("nan")
    iterations: int = 0
    failed: bool = False
    scaling: tuple[np.ndarray, np.ndarray] | None = None  # centre and spectrum [R] of the rows that are fitted
    margins: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def l2(self) -> float:
        return self.strengths[self.chosen if self.final else self.stage] * self.ratio

    def advance(self, w: np.ndarray, b: float, margins: np.ndarray) -> None:
        """Take the optimum of the present fit; ``stage`` and ``final`` say which comes next."""
        margins = margins[self.rows].astype(np.float64)
        if self.final:
            self.w, self.b, self.margins = w.copy(), b, margins
            return
        loss = float(self.outer @ np.logaddexp(0, -margins))
        if not loss >= self.held_loss:  # also where there is none yet
            self.chosen, self.held_loss, self.w, self.b = self.stage, loss, w.copy(), b
            predicted = margins[self.held] * (2 * self.labels[self.held] - 1) > 0
            self.held_error = balanced_error(self.labels[self.held], predicted.astype(np.int64), 2)
            if self.stage + 1 < len(self.strengths):
                self.stage += 1
                return
        self.final, self.scaling = True, None


class _Solver:
    """Columns of tasks in the air: one that has converged makes room for its job's next fit, or for the next job.

    Features are centred on each task's weighted mean, by a shift of its bias, and preconditioned by the diagonal of its
    own weighted covariance in the shared basis; both on the fly. T columns, N rows, R coordinates and then the bias.
    """

    def __init__(self, x: np.ndarray, tolerance: float, max_iterations: int) -> None:
        self.x, self.squares = x, np.square(x)
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.width = int(np.clip(_ROOM // (_ARRAYS * x.itemsize * len(x)), 1, _WIDEST))

    def run(self, queue: Iterator[_Job]) -> Iterator[_Job]:
        """Solve jobs from a queue; each is given back when its last fit is done or one has failed."""
        self.jobs = [job for _, job in zip(range(self.width), queue, strict=False)]
        t, (n, r) = len(self.jobs), self.x.shape
        rows, coordinates = ("sign", "weights", "margins", "miss"), ("data", "gradient", "direction", "inverse")
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(rows, (t, n)) | dict.fromkeys(coordinates, (t, r + 1))
        shapes |= dict.fromkeys(("w", "centre", "spectrum"), (t, r)) | dict.fromkeys(("b", "half_l2", "slope"), (t,))
        self.of: dict[str, np.ndarray] = {k: np.zeros(shape, self.x.dtype) for k, shape in shapes.items()}
        self.of |= {"fresh": np.ones(t, bool), "restart": np.ones(t, bool), "count": np.zeros(t, np.int64)}
        self._enter(list(range(t)))
        while self.jobs:
            self._move()
            size = self._gradient()
            over = self.of["count"] >= self.max_iterations
            entering: list[int] = []
            for i in np.flatnonzero((size <= self.tolerance) | over | ~np.isfinite(size))[::-1].tolist():
                job = self.jobs[i]
                job.failed, finished = not size[i] <= self.tolerance, job.final
                if finished:
                    job.iterations += int(self.of["count"][i])
                if not job.failed:
                    job.advance(self.of["w"][i], float(self.of["b"][i]), self.of["margins"][i])
                    if not finished and not job.final:  # the same rows at another strength
                        self._aim(i)
                        continue
                if job.failed or finished:
                    yield job
                    following = next(queue, None)
                    if following is None:
                        last = len(self.jobs) - 1
                        entering = [i if k == last else k for k in entering]
                        self._drop(i)
                        continue
                    self.jobs[i] = following
                entering.append(i)
            self._enter(entering)
            self._turn()

    def _drop(self, i: int) -> None:
        """The last column takes the place of column i, so that the arrays stay whole."""
        last = self.jobs.pop()
        if i < len(self.jobs):
            self.jobs[i] = last
        for name, values in self.of.items():
            values[i] = values[-1]
            self.of[name] = values[:-1]

    def _enter(self, at: list[int]) -> None:
        """Set columns to the next fits of their jobs, on rows that are new to them."""
        of = self.of
        for i in at:
            job = self.jobs[i]
            of["sign"][i], of["weights"][i], of["margins"][i] = 1, 0, 0
            of["sign"][i, job.rows] = 2 * job.labels - 1
            of["weights"][i, job.rows] = job.weights if job.final else job.inner
            of["w"][i], of["b"][i], of["fresh"][i] = job.w, job.b, True
        new = [i for i in at if self.jobs[i].scaling is None]
        if new:
            centre = of["weights"][new] @ self.x
            spectrum = np.maximum(of["weights"][new] @ self.squares - np.square(centre), 0)
            for i, *scaling in zip(new, centre, spectrum, strict=True):
                self.jobs[i].scaling = scaling[0], scaling[1]
        for i in at:
            scaling_of = self.jobs[i].scaling
            assert scaling_of is not None
            of["centre"][i], of["spectrum"][i] = scaling_of
            self._aim(i)

    def _aim(self, i: int) -> None:
        """Set a column to the strength of its job's next fit."""
        l2 = self.jobs[i].l2
        self.of["half_l2"][i], self.of["count"][i], self.of["restart"][i] = l2 / 2, 0, True
        self.of["inverse"][i, :-1], self.of["inverse"][i, -1] = 1 / (self.of["spectrum"][i] / 2 + l2), 2

    def _move(self) -> None:
        """Step along the directions, to where the slope is a tenth; columns that are fresh get their margins."""
        of = self.of
        fresh, w, d, miss, weights = of["fresh"], of["w"], of["direction"], of["miss"], of["weights"]
        db = d[:, -1] - np.einsum("tr,tr->t", d[:, :-1], of["centre"])
        change = np.where(fresh[:, None], w, d[:, :-1]) @ self.x.T
        change += np.where(fresh, of["b"], db)[:, None]
        change *= of["sign"]
        weighted = weights * change
        along = of["half_l2"] * np.einsum("tr,tr->t", w, d[:, :-1])
        bend = of["half_l2"] * np.einsum("tr,tr->t", d[:, :-1], d[:, :-1])

        def curvature(at: np.ndarray | slice, p: np.ndarray) -> np.ndarray:
            spread = p - np.square(p)
            spread *= weighted[at]
            return np.asarray(np.einsum("tn,tn->t", spread, change[at]) + bend[at])

        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            step = np.where(fresh, 1, -of["slope"] / curvature(slice(None), miss)).astype(w.dtype)
            low, high = np.zeros_like(step), np.full_like(step, np.inf)
            left: np.ndarray | slice = slice(None)
            for _ in range(10):  # Newton's method inside a bracket; the objective is convex along the line
                p = change[left] * step[left, None]
                p += of["margins"][left]
                np.exp(p, out=p)
                p += 1
                np.reciprocal(p, out=p)
                miss[left] = p
                slope = step[left] * bend[left] + along[left] - np.einsum("tn,tn->t", weighted[left], p)
                far = (np.abs(slope) > 0.1 * np.abs(of["slope"][left])) & ~fresh[left]
                if not far.any():
                    break
                left, p, slope = np.arange(len(step))[left][far], p[far], slope[far]
                here = step[left]
                low[left], high[left] = np.where(slope < 0, here, low[left]), np.where(slope < 0, high[left], here)
                there = here - slope / curvature(left, p)
                middle = np.where(np.isinf(high[left]), 2 * here, (low[left] + high[left]) / 2)
                step[left] = np.where((there > low[left]) & (there < high[left]), there, middle)
        change *= step[:, None]
        of["margins"] += change
        moved = np.where(fresh, 0, step)
        w += moved[:, None] * d[:, :-1]
        of["b"] += moved * db
        of["count"] += ~fresh
        fresh[:] = False

    def _gradient(self) -> np.ndarray:
        """Gradients without the penalty, and the largest entry of each with it, in conditioned coordinates."""
        of = self.of
        residual = of["weights"] * of["miss"]
        residual *= of["sign"]
        of["data"][:, -1] = -residual.sum(1)
        of["data"][:, :-1] = -(residual @ self.x) - of["data"][:, -1:] * of["centre"]
        full = of["half_l2"][:, None] * of["w"] + of["data"][:, :-1]
        size = np.abs(full * np.sqrt(of["inverse"][:, :-1])).max(1, initial=0)
        return np.asarray(np.maximum(size, np.abs(of["data"][:, -1]) * np.sqrt(2)))

    def _turn(self) -> None:
        """The next directions: conjugate to the last, or steepest where there is none or it does not descend."""
        of = self.of
        gradient = of["data"].copy()
        gradient[:, :-1] += of["half_l2"][:, None] * of["w"]
        steepest = -of["inverse"] * gradient
        change = gradient - of["gradient"]
        by = np.einsum("tr,tr->t", of["direction"], change)
        beta = -np.einsum("tr,tr->t", steepest, change) / np.where(by > 0, by, np.inf)
        direction = steepest + np.where(of["restart"], 0, np.maximum(beta, 0))[:, None] * of["direction"]
        slope = np.einsum("tr,tr->t", gradient, direction)
        up = ~(slope < 0)
        direction[up] = steepest[up]
        slope[up] = np.einsum("tr,tr->t", gradient[up], steepest[up])
        of["gradient"], of["direction"], of["slope"] = gradient, direction, slope
        of["restart"][:] = of["fresh"]


def _jobs(
    shared: np.ndarray, tasks: Sequence[HeadTask], places: Sequence[tuple[int, np.ndarray]], spec: HeadSpec, chunk: int
) -> Iterator[_Job]:
    """Jobs of tasks, ``places`` being (number, rows in ``shared [N, R]``) of each, in order; those to leave alone too.

    A task whose rows are (nearly) one point on the scale of the source is `failed` from the start.
    """
    squares = np.square(shared).sum(1)
    strengths = sorted(spec.l2, reverse=True)
    for start in range(0, len(places), chunk):
        part = places[start : start + chunk]
        means = np.zeros((2 * len(part), len(shared)), shared.dtype)
        for k, (i, rows) in enumerate(part):
            means[2 * k, rows] = row_weights(tasks[i].labels, 2, spec.balance)
            means[2 * k + 1, rows] = 1 / len(rows)
        centres = (means @ shared).astype(np.float64)
        for k, (i, rows) in enumerate(part):
            labels = np.asarray(tasks[i].labels, np.int64)
            groups = np.arange(len(labels)) if tasks[i].groups is None else np.asarray(tasks[i].groups)
            held = validation_mask(labels, groups, spec.validation_share, spec.seed)
            use = held.any() and len(np.unique(labels[~held])) == 2
            inner, outer = np.zeros(len(labels)), np.zeros(len(labels))
            if use:
                inner[~held] = row_weights(labels[~held], 2, spec.balance)
                outer[held] = row_weights(labels[held], 2, spec.balance)
            centre, mean = centres[2 * k], centres[2 * k + 1]
            ratio = float(squares[rows].mean(dtype=np.float64) - 2 * centre @ mean + centre @ centre)
            yield _Job(
                index=i,
                rows=rows,
                labels=labels,
                weights=row_weights(labels, 2, spec.balance),
                held=held,
                inner=inner,
                outer=outer,
                strengths=strengths,
                ratio=ratio,
                w=np.zeros(shared.shape[1]),
                final=not use,
                failed=not ratio > 1e-2 * centre @ centre,
            )


def _checked(task: HeadTask, n_rows: int) -> HeadTask:
    """The task with integer arrays.

    Raises:
        TaskError: rows that are not there, or arrays of different lengths.
    """
    rows, labels = np.asarray(task.rows, np.int64), np.asarray(task.labels, np.int64)
    groups = None if task.groups is None else np.asarray(task.groups)
    if labels.shape != rows.shape or rows.ndim != 1 or (groups is not None and groups.shape != rows.shape):
        raise TaskError(
            f"rows, labels and groups must be of one length, got {rows.shape}, {labels.shape} and "
            f"{None if groups is None else groups.shape}"
        )
    if len(rows) and not (rows.min() >= 0 and rows.max() < n_rows and labels.min() >= 0):
        raise TaskError(
            f"rows must be in [0, {n_rows}) and labels not negative, got rows from {rows.min()} to {rows.max()} and "
            f"labels from {labels.min()}"
        )
    return HeadTask(rows, labels, groups, task.n_classes)


def _suits(task: HeadTask, finite: np.ndarray) -> bool:
    """Whether a task is binary, with both classes, each row once, and none that is not finite."""
    n = len(task.rows)
    if n == 0 or (task.n_classes or 2) != 2 or task.labels.max() != 1 or task.labels.min() != 0:
        return False
    seen = np.zeros(len(finite), bool)
    seen[task.rows] = True
    return bool(seen.sum() == n and finite[task.rows].all())


def _basis_seconds(n: int, d: int) -> float:
    r = min(n, d)
    return 5e-11 * n * d * r + 1.5e-10 * r**3


def _worth(rows: Sequence[np.ndarray], n_rows: int, d: int) -> list[int]:
    """Which tasks to solve together: the largest so many for which the expected saving is greatest.

    Alone, a task costs its eigenbasis and a little; together, all cost one basis of the union of their rows, and
    each the products with all of it, whatever its own share. So it is the union that counts: tasks that share no rows
    are better off alone. The constants are seconds on one core, from 3,808 and 5,000 rows of 128 to 1,280 features and
    tasks of 2 to 100 percent of them, and were within about 30 percent of what was measured; only their ratios matter.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    used = np.zeros(n_rows, bool)
    alone, best, most = 0.0, 0.0, 0
    for count, i in enumerate(order, start=1):
        n = len(rows[i])
        alone += _basis_seconds(n, d) + 5e-8 * n * min(n, d) + 3e-3
        used[rows[i]] = True
        union = int(used.sum())
        size = union * min(union, d)
        together = _basis_seconds(union, d) + 3e-8 * size + count * (3e-9 * size + 5e-4)
        saved = alone - together
        if count >= _ALONE and saved > max(best, _GAIN * alone):
            best, most = saved, count
    return sorted(order[:most])


def _heads(
    features: np.ndarray, tasks: Sequence[HeadTask], numbers: Sequence[int], spec: HeadSpec
) -> Iterator[tuple[int, HeadFit]]:
    """Heads of the binary tasks of these numbers; those that cannot be solved together are passed over."""
    used = np.unique(np.concatenate([tasks[i].rows for i in numbers]))
    raw = np.asarray(features[used], np.float64)
    mean = raw.mean(0)
    raw -= mean
    scale = float(np.sqrt(np.square(raw).sum(1).mean()))
    if scale <= 1e-7 * float(np.linalg.norm(mean)):
        return
    raw /= scale
    basis = Rotated.of(raw, np.full(len(raw), 1 / len(raw)))
    del raw
    shared = basis.rows
    position = np.zeros(len(features), np.int64)
    position[used] = np.arange(len(used))
    exact = _Solver(shared, spec.tolerance, spec.max_iterations)
    coarse = spec.tolerance >= _COARSE
    bulk = _Solver(shared.astype(np.float32), 0.9 * spec.tolerance, spec.max_iterations) if coarse else exact
    jobs = _jobs(bulk.x, tasks, [(i, position[tasks[i].rows]) for i in numbers], spec, bulk.width)
    solved = (job for job in bulk.run(job for job in jobs if not job.failed) if not job.failed)
    while part := [job for _, job in zip(range(exact.width), solved, strict=False)]:
        if coarse:
            part = [job for job in exact.run(iter(part)) if not job.failed]
        weights = np.stack([job.w for job in part]) @ basis.back / scale if part else ()
        for job, w in zip(part, weights, strict=True):
            weight, bias = np.stack([-w, w]) / 2, np.array([-0.5, 0.5]) * (job.b - w @ mean)
            yield (
                job.index,
                HeadFit(
                    weight=weight,
                    bias=bias,
                    l2=job.strengths[job.chosen],
                    loss=float(np.logaddexp(0, -job.margins).mean()),
                    accuracy=float(((job.margins * (2 * job.labels - 1) > 0) == job.labels).mean()),
                    held_out_loss=job.held_loss,
                    held_out_error=job.held_error,
                    iterations=job.iterations,
                    converged=True,
                ),
            )


def fit_heads(
    features: np.ndarray,
    tasks: Sequence[HeadTask],
    spec: HeadSpec | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[HeadResult]:
    """Train the heads of many tasks on the rows of one source.

    The answers are those of `fit_head` to within the tolerance of the spec, L2 strengths chosen by the same rule on
    the same groups. Binary tasks are solved together where that is faster (see `_worth`), the others one by one.

    Together, all fits run in float32 and the last one is carried on in float64 until its gradient is within the
    tolerance; below a tolerance of 1e-5 all is float64. The gradient is measured as `fit_head` does, each coordinate
    divided by the root of s/2 + l2, but in the eigenbasis of the source with the task's own variances s along it. A
    task that does not get there in the spec's iterations goes to `fit_head`, whose basis is its own.

    Args:
        features: ``[N, D]``.
        tasks: rows, labels and groups of each.
        spec: L2 strengths, tolerance, balancing; default `HeadSpec()`.
        progress: called with (tasks done, tasks in all).

    Returns:
        A result for each task, in order. A task that fails does not take the others along.
    """
    spec = spec or HeadSpec()
    results: list[HeadResult | None] = [None] * len(tasks)
    finite = np.isfinite(features).all(1)
    done = 0

    def note(i: int, result: HeadResult) -> None:
        nonlocal done
        results[i], done = result, done + 1
        if progress:
            progress(done, len(tasks))

    checked: list[HeadTask] = list(tasks)
    suited = []
    for i, task in enumerate(tasks):
        try:
            checked[i] = _checked(task, len(features))
        except TaskError as error:
            note(i, HeadResult(None, error, 0.0, False))
            continue
        if _suits(checked[i], finite):
            suited.append(i)
    numbers = [suited[k] for k in _worth([checked[i].rows for i in suited], *features.shape)]
    if numbers:
        began = time.perf_counter()
        heads = []
        for i, fit in _heads(features, checked, numbers, spec):
            heads.append(i)
            note(i, HeadResult(fit, None, 0.0, True))
        share = (time.perf_counter() - began) / max(len(heads), 1)
        results = [replace(r, seconds=share) if r is not None and r.together else r for r in results]
    for i, task in enumerate(checked):
        if results[i] is not None:
            continue
        began = time.perf_counter()
        try:
            alone = fit_head(features[task.rows], task.labels, spec, groups=task.groups, n_classes=task.n_classes)
        except T2VError as error:
            note(i, HeadResult(None, error, time.perf_counter() - began, False))
        else:
            note(i, HeadResult(alone, None, time.perf_counter() - began, False))
    return [result for result in results if result is not None]
