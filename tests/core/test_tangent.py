"""Gradients of distances against autograd; the shared basis; MODEL2VEC in it against the exact dual."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad

from t2v_core import many_tasks, soft_choice
from t2v_core.config import Model2VecSpec
from t2v_core.distances import symmetric_matrix
from t2v_core.errors import DataError
from t2v_core.model2vec import Model2Vec, _linearise, fit_model2vec, leave_one_task_out, target_distribution
from t2v_core.soft_choice import SoftChoice, choose_penalty, solve_soft_choice
from t2v_core.tangent import distance_gradients, first_order_distances, tangent

LARGE = Model2VecSpec(l2=(1e-2,), exact_tasks=0, rank=1000)


def problem(t: int = 12, e: int = 4, p: int = 30, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Tasks, errors, experts, t0; errors follow the first filters, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    tasks, base = np.exp(rng.normal(size=(t, p))), np.exp(rng.normal(size=(e, p)))
    errors = 0.3 + 0.1 * np.tanh(np.log(tasks[:, :6]) @ rng.normal(size=(6, e))) + 0.01 * rng.random((t, e))
    return tasks, errors, base, np.full(p, 0.1)


def test_gradients_are_those_of_autograd() -> None:
    tasks, _, base, t0 = problem()
    tasks[:, :3] = base[:, :3] = t0[:3] = 0  # dead filters
    tasks[1, 5] = base[1, 6] = 0
    exact = _linearise(tasks, base, t0, 0.0).jacobians
    for i, m in enumerate(base):
        got = distance_gradients(m, tasks)
        assert got == pytest.approx(exact[i], abs=1e-6)
        assert (got[:, :3] == 0).all()
        assert distance_gradients(m.astype(np.float32), tasks.astype(np.float32)) == pytest.approx(exact[i], abs=1e-5)


def test_gradients_by_differences_of_far_embeddings() -> None:
    """Where a is 10^4 times b, autograd in float64 and differences of exact distances agree."""
    tasks, _, base, _ = problem(t=2, e=1)
    tasks *= 1e4
    step, got = 1e-4, distance_gradients(base[0], tasks)
    for f in (0, 7):
        up, down = base.copy(), base.copy()
        up[0, f] *= np.exp(step)
        down[0, f] *= np.exp(-step)
        slope = (symmetric_matrix(up, tasks) - symmetric_matrix(down, tasks))[0] / (2 * step)
        assert got[:, f] == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_a_whole_basis_holds_every_gradient() -> None:
    tasks, _, base, t0 = problem()
    line, exact = tangent(tasks, base, t0, 0.15, rank=1000), _linearise(tasks, base, t0, 0.15)
    assert line.basis.shape == (30, 30)
    assert line.basis.T @ line.basis == pytest.approx(np.eye(30), abs=1e-5)
    assert line.captured == pytest.approx(1)
    assert line.distances == pytest.approx(exact.distances, abs=1e-6)
    assert np.einsum("etr,esr->ets", line.slopes, line.slopes) == pytest.approx(exact.grams, rel=1e-3, abs=1e-5)
    delta = np.random.default_rng(1).normal(size=base.shape) * 0.1
    assert line.vectors(delta @ line.basis) == pytest.approx(base * np.exp(delta), rel=1e-4)


def test_captured_is_the_share_of_the_gradients_length() -> None:
    tasks, _, base, t0 = problem(t=40)
    line, exact = tangent(tasks, base, t0, 0.15, rank=5), _linearise(tasks, base, t0, 0.15)
    share = np.square(line.slopes).sum() / np.square(exact.jacobians).sum()
    assert line.captured == pytest.approx(share, rel=0.05)
    assert line.captured < 0.95
    assert tangent(tasks, base, t0, 0.15, rank=10).captured > line.captured
    random = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 5)))[0]
    assert share > 1.5 * np.square(exact.jacobians @ random).sum() / np.square(exact.jacobians).sum()


def test_gradient_of_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, errors, base, t0 = problem()
    candidates = np.random.default_rng(2).random(errors.shape) < 0.8
    candidates[:, 0] = True
    target = target_distribution(errors, candidates, LARGE)
    line, seen = tangent(tasks, base, t0, 0.15, rank=6), []
    original = soft_choice.minimize
    monkeypatch.setattr(soft_choice, "minimize", lambda f, *a, **k: seen.append(f) or original(f, *a, **k))
    free = np.array([True, False, False, True])
    args = (line.distances, line.slopes.astype(np.float64), target, candidates, 1e-2)
    solve_soft_choice(*args, free=free, scale=np.sqrt(30))
    at = np.append(np.random.default_rng(3).normal(size=28), np.log(5.0))
    gradient = seen[0](at)[1]
    off = check_grad(lambda x: seen[0](x)[0], lambda x: seen[0](x)[1], at, epsilon=1e-3)
    assert off < 0.02 * np.linalg.norm(gradient)


def test_the_solution_is_one_wherever_the_solver_begins() -> None:
    """The problem is convex in gamma and gamma beta."""
    tasks, errors, base, t0 = problem()
    line, everything = tangent(tasks, base, t0, 0.15, rank=6), np.ones(errors.shape, bool)
    target, free = target_distribution(errors, everything, LARGE), np.array([True, False, False, True])
    slopes, rng, found = line.slopes.astype(np.float64), np.random.default_rng(5), []
    for gamma in (0.1, 10.0, 300.0):
        start = SoftChoice(rng.normal(size=(4, 6)), gamma, rng.normal(size=4) * free)
        found.append(
            solve_soft_choice(
                line.distances, slopes, target, everything, 1e-3, free=free, scale=5.0, start=start, tolerance=0.0
            )
        )
    for other in found[1:]:
        assert other.gamma == pytest.approx(found[0].gamma, rel=1e-3)
        assert other.beta == pytest.approx(found[0].beta, abs=1e-3)
        assert other.offsets == pytest.approx(found[0].offsets, abs=1e-3)
    assert np.abs(found[0].beta).max() > 0.05


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_whole_basis_gives_the_exact_solution(labels: str) -> None:
    tasks, errors, base, t0 = problem()
    spec = LARGE.model_copy(update={"labels": labels})
    exact = fit_model2vec(tasks, errors, base, t0, spec.model_copy(update={"exact_tasks": 100}))
    large = fit_model2vec(tasks, errors, base, t0, spec)
    assert np.abs(np.log(exact.vectors / base)).max() > 0.1
    # The exact solution's bias is cut at 5.
    assert np.clip(np.log(large.vectors / base), -5, 5) == pytest.approx(np.log(exact.vectors / base), abs=5e-3)
    assert large.gamma == pytest.approx(exact.gamma, rel=2e-2)


def test_first_order_distances_are_the_models() -> None:
    tasks, errors, base, t0 = problem()
    model = fit_model2vec(tasks, errors, base, t0, LARGE)
    exact = _linearise(tasks, base, t0, LARGE.alpha)
    wanted = exact.distances + np.einsum("etp,ep->te", exact.jacobians, np.log(model.vectors / base))
    assert model.distances(tasks) == pytest.approx(wanted, abs=1e-5)
    assert (
        np.abs(model.distances(tasks) - Model2Vec(model.vectors, 1, LARGE.alpha, t0, 1).distances(tasks)).max() > 1e-3
    )
    line = tangent(tasks, base, t0, LARGE.alpha, rank=1000)
    beta = np.log(model.vectors / base) @ line.basis / np.sqrt(30)
    turned = many_tasks._Problem.of(line, errors, errors > 0, errors[0] > 0)
    beta = np.einsum("er,ers->es", beta, turned.vectors)
    found = SoftChoice(beta, model.gamma, np.array([0.0, 0.5, 0.0, 0.0]))
    assert turned.vectors_of(found) == pytest.approx(model.vectors, rel=1e-3)
    got = turned.distances(np.arange(12), found)
    wanted[:, 1] += 0.5
    assert got == pytest.approx(wanted, abs=1e-4)


def test_folds_of_one_task_are_leaving_one_task_out() -> None:
    tasks, errors, base, t0 = problem()
    exact = np.empty(errors.shape)
    for t in range(12):
        rest = np.delete(np.arange(12), t)
        few = LARGE.model_copy(update={"exact_tasks": 100})
        model = fit_model2vec(tasks[rest], errors[rest], base, t0, few)
        exact[t] = first_order_distances(model.vectors, base, tasks[[t]], t0, 0.15)[0]
    large = leave_one_task_out(tasks, errors, base, t0, LARGE.model_copy(update={"left_out_folds": 12}))
    assert large == pytest.approx(exact, abs=2e-3)
    assert large.std() > 0.02


@pytest.mark.parametrize("exact_tasks", [0, 100])
def test_a_row_does_not_read_the_errors_of_its_group(exact_tasks: int) -> None:
    tasks, errors, base, t0 = problem()
    groups = np.arange(12) // 2
    spec = Model2VecSpec(l2=(1e-4, 1e-3), folds=2, exact_tasks=exact_tasks, left_out_folds=3)
    before = leave_one_task_out(tasks, errors, base, t0, spec, groups=groups)
    changed = errors.copy()
    changed[4:6] = errors[4:6, ::-1]
    after = leave_one_task_out(tasks, changed, base, t0, spec, groups=groups)
    assert after[4:6].tobytes() == before[4:6].tobytes()
    assert (after != before).any()


@pytest.mark.parametrize("exact_tasks", [0, 100])
def test_a_new_task_is_a_row_without_errors(exact_tasks: int) -> None:
    tasks, errors, base, t0 = problem()
    spec = Model2VecSpec(l2=(1e-4,), exact_tasks=exact_tasks, left_out_folds=12)
    errors[3] = np.nan
    got = leave_one_task_out(tasks, errors, base, t0, spec)
    rest = np.delete(np.arange(12), 3)
    model = fit_model2vec(tasks[rest], errors[rest], base, t0, spec)
    assert got[3] == pytest.approx(model.distances(tasks[3])[0], abs=2e-3)


def test_without_known_tasks_all_experts_start_from_the_mean_task() -> None:
    tasks, errors, base, t0 = problem()
    spec = Model2VecSpec(known=False, l2=(1e9,))
    for exact_tasks in (0, 100):
        model = fit_model2vec(tasks, errors, base * np.nan, t0, spec.model_copy(update={"exact_tasks": exact_tasks}))
        assert model.vectors == pytest.approx(np.tile(tasks.mean(0), (4, 1)), rel=1e-4)
    free = leave_one_task_out(tasks, errors, base, t0, spec.model_copy(update={"l2": (1e-3,)}))
    again = leave_one_task_out(tasks, errors, base * 0, t0, spec.model_copy(update={"l2": (1e-3,)}))
    assert free.tobytes() == again.tobytes()


def test_one_group_leaves_nothing() -> None:
    tasks, errors, base, t0 = problem()
    with pytest.raises(DataError, match="all tasks with a known error are of one group"):
        leave_one_task_out(tasks, errors, base, t0, groups=np.zeros(12, int))


def test_penalty_by_one_standard_error() -> None:
    """Mean losses 1.0, 1.05, 2.0 at penalties 0.1, 1, 10; the paired difference of the second has an error of 0.07."""
    losses = np.array([[1.0, 1.0, 1.0, 1.0], [0.9, 1.2, 0.9, 1.2], [2.0, 2.1, 2.0, 1.9]])
    penalties = (0.1, 1.0, 10.0)
    assert choose_penalty(penalties, losses, "lowest") == 0.1
    assert choose_penalty(penalties, losses, "one_se") == 1.0
    untried = losses.copy()
    untried[1] = np.nan
    assert choose_penalty(penalties, untried, "one_se") == 0.1
