"""MODEL2VEC: the dual against the primal, its gradient, planted problems, and that nothing leaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from t2v_core import model2vec, soft_choice
from t2v_core.config import Model2VecSpec
from t2v_core.distances import asymmetric_distance, symmetric_matrix
from t2v_core.errors import ComputeError, DataError
from t2v_core.model2vec import Model2Vec, _linearise, fit_model2vec, leave_one_task_out, target_distribution

ONE = Model2VecSpec(l2=(3e-2,))


def random_problem(t: int = 9, e: int = 4, p: int = 30, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Tasks, errors, experts, t0; nothing to learn."""
    rng = np.random.default_rng(seed)
    tasks, base = np.exp(rng.normal(size=(t, p))), np.exp(rng.normal(size=(e, p)))
    return tasks, rng.uniform(0.05, 0.5, (t, e)), base, np.full(p, 0.1)


def planted_problem(t: int = 24, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Two clusters of tasks in one domain. Expert 0 is of this domain and good at cluster 0; expert 1 is good at cluster 1
    but was trained in another domain, so that its own task is far from all of these. Expert 2 is a bystander."""
    rng = np.random.default_rng(seed)
    content, domain = np.exp(1.0 * rng.normal(size=(3, 20))), np.exp(1.5 * rng.normal(size=(3, 30)))

    def embedding(cluster: int, place: int) -> np.ndarray:
        return np.concatenate([content[cluster], domain[place]]) * np.exp(0.3 * rng.normal(size=50))

    cluster = np.arange(t) % 2
    tasks = np.stack([embedding(c, 0) for c in cluster])
    base = np.stack([embedding(0, 0), embedding(1, 1), embedding(2, 2)])
    errors = np.stack([np.where(cluster == 0, 0.1, 0.3), np.where(cluster == 0, 0.3, 0.1), np.full(t, 0.4)], axis=1)
    return tasks, errors + 0.02 * rng.random(errors.shape), base, np.full(50, 0.05)


def test_hard_targets_by_hand() -> None:
    errors = np.array([[0.3, 0.1, 0.2], [0.2, 0.2, 0.5], [0.1, 0.2, np.nan], [0.3, 0.2, 0.2]])
    candidates = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]], bool)
    wanted = [[0, 1, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5]]
    assert target_distribution(errors, candidates, Model2VecSpec(labels="hard")).tolist() == wanted


def test_soft_targets_by_hand() -> None:
    """Standardised errors of 0.1, 0.2, 0.3 are -z, 0, z with z = sqrt(3/2); of two cells -1 and 1."""
    errors = np.array([[0.1, 0.2, 0.3], [0.4, 0.4, 0.4], [0.1, 0.9, 0.2]])
    candidates = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 1]], bool)
    got = target_distribution(errors, candidates, Model2VecSpec(labels="soft", sharpness=2.0))
    e = np.exp(2 * np.sqrt(1.5) * np.array([1, 0, -1]))
    assert got[0] == pytest.approx(e / e.sum(), rel=1e-12)
    assert got[1].tolist() == [0.5, 0, 0.5]
    assert got[2] == pytest.approx([1 / (1 + np.exp(-4)), 0, 1 / (1 + np.exp(4))], rel=1e-12)


def test_distances_and_probabilities_are_those_of_the_paper() -> None:
    tasks, _, base, t0 = random_problem()
    model = Model2Vec(vectors=base, gamma=7.0, alpha=0.3, trivial=t0, l2=1.0)
    wanted = np.array([[asymmetric_distance(m, t, 0.3, trivial=t0) for m in base] for t in tasks])
    assert model.distances(tasks) == pytest.approx(wanted, abs=1e-13)
    candidates = np.ones(wanted.shape, bool)
    candidates[:, 2] = False
    e = np.where(candidates, np.exp(-7 * wanted), 0)
    assert model.probabilities(tasks, candidates) == pytest.approx(e / e.sum(1, keepdims=True), rel=1e-10)
    assert model.probabilities(tasks).sum(1) == pytest.approx(1)
    assert model.distances(tasks[0]).shape == (1, 4)


def exact(tasks: np.ndarray, vectors: np.ndarray, t0: np.ndarray, alpha: float) -> np.ndarray:
    return symmetric_matrix(tasks, vectors) - alpha * symmetric_matrix(vectors, t0[None])[:, 0]


def test_linearised_distances_agree_to_second_order() -> None:
    tasks, _, base, t0 = random_problem()
    linear = model2vec._linearise(tasks, base, t0, 0.15)
    assert linear.distances == pytest.approx(exact(tasks, base, t0, 0.15), abs=1e-13)
    delta = np.random.default_rng(1).normal(size=base.shape)
    off = []
    for size in (0.02, 0.01):
        moved = linear.distances + size * np.einsum("etp,ep->te", linear.jacobians, delta)
        truth = exact(tasks, base * np.exp(size * delta), t0, 0.15)
        off.append(np.abs(moved - truth).max())
        assert off[-1] < 0.05 * np.abs(truth - linear.distances).max()
    assert 3 < off[0] / off[1] < 5
    wanted = np.einsum("etp,esp->ets", linear.jacobians.astype(float), linear.jacobians.astype(float))
    assert linear.grams == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_linearised_distances_leave_dead_filters_out() -> None:
    tasks, _, base, t0 = random_problem()
    tasks[:, :10] = base[:, :10] = t0[:10] = 0
    linear = model2vec._linearise(tasks, base, t0, 0.15)
    assert linear.distances == pytest.approx(exact(tasks, base, t0, 0.15), abs=1e-10)


@pytest.fixture
def objectives(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[np.ndarray], tuple[float, np.ndarray]]]:
    """The objectives that the solver was given."""
    seen: list[Callable[[np.ndarray], tuple[float, np.ndarray]]] = []

    def spy(objective: Any, start: np.ndarray, **options: Any) -> Any:
        seen.append(objective)
        return minimize(objective, start, **options)

    monkeypatch.setattr(soft_choice, "minimize", spy)
    return seen


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_gradient_of_the_dual(objectives: list[Any], labels: str) -> None:
    tasks, errors, base, t0 = random_problem()
    candidates = np.random.default_rng(2).random(errors.shape) < 0.8
    candidates[:, 0] = True
    base[1] = 0  # its level is free
    fit_model2vec(tasks, errors, base, t0, ONE.model_copy(update={"labels": labels}), candidates=candidates)
    [objective] = objectives
    rng = np.random.default_rng(3)
    for _ in range(3):
        at = np.append(rng.normal(size=36 + 4), np.log(5.0) + rng.normal())
        gradient = objective(at)[1]
        assert check_grad(lambda x: objective(x)[0], lambda x: objective(x)[1], at) < 1e-4 * np.linalg.norm(gradient)


def test_dual_solves_the_primal() -> None:
    """Minimise over all E P biases: cross entropy + l2/2 sum_i mean_p (gamma delta_ip)^2 + the weak prior on gamma."""
    tasks, errors, base, t0 = random_problem(t=6, e=3, p=8)
    linear = model2vec._linearise(tasks, base, t0, ONE.alpha)
    jacobians = linear.jacobians.astype(np.float64)
    target = target_distribution(errors, np.ones(errors.shape, bool), ONE)

    def primal(flat: np.ndarray) -> float:
        delta, log_gamma = flat[:-1].reshape(3, 8), flat[-1]
        logits = -np.exp(log_gamma) * (linear.distances + np.einsum("etp,ep->te", jacobians, delta))
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        prior = 0.02 * (np.exp(log_gamma) / 10 - 1 - log_gamma + np.log(10))
        penalty = 0.5 * ONE.l2[0] * np.exp(2 * log_gamma) * (delta**2).mean(1).sum()
        return float(-(target * log_p).sum(1).mean() + penalty + prior)

    start = np.append(np.zeros(24), np.log(10))
    found = minimize(
        primal, start, method="L-BFGS-B", options={"maxiter": 5000, "maxfun": 10**6, "gtol": 1e-9, "ftol": 0}
    )
    fitted = fit_model2vec(tasks, errors, base, t0, ONE)
    delta = np.log(fitted.vectors / base)
    assert np.abs(delta).max() > 0.05
    assert primal(np.append(delta, np.log(fitted.gamma))) == pytest.approx(found.fun, abs=1e-6)
    assert delta == pytest.approx(found.x[:-1].reshape(3, 8), abs=2e-3)
    assert fitted.gamma == pytest.approx(np.exp(found.x[-1]), rel=1e-2)


def test_bias_mends_a_planted_domain_effect() -> None:
    tasks, errors, base, t0 = planted_problem()
    best = errors.argmin(1)
    misled = symmetric_matrix(tasks, base).argmin(1)
    assert (misled == 0).all()
    for spec in (Model2VecSpec(), Model2VecSpec(labels="hard")):
        assert (leave_one_task_out(tasks, errors, base, t0, spec).argmin(1) == best).mean() > 0.9
    model = fit_model2vec(tasks[:16], errors[:16], base, t0)
    assert (model.distances(tasks[16:]).argmin(1) == best[16:]).all()
    assert model.probabilities(tasks[16:])[np.arange(8), best[16:]].mean() > 0.6


def test_strong_penalty_leaves_the_tasks_where_they_are() -> None:
    tasks, errors, base, t0 = random_problem()
    model = fit_model2vec(tasks, errors, base, t0, Model2VecSpec(l2=(1e9,)))
    assert model.vectors == pytest.approx(base, rel=1e-6)
    weak = fit_model2vec(tasks, errors, base, t0, Model2VecSpec(l2=(1e-4,)))
    assert np.abs(np.log(weak.vectors / base)).max() > 0.1


def test_penalty_is_chosen_by_what_generalises() -> None:
    """Nothing to learn from random errors; a clear pattern wants freedom."""
    assert fit_model2vec(*random_problem(t=20)).l2 == 0.1
    assert fit_model2vec(*planted_problem(), Model2VecSpec()).l2 <= 1e-3


def test_twins_do_not_vouch_for_a_penalty() -> None:
    """Random errors that twins share look like something to learn, unless twins are held out together."""
    tasks, errors, base, t0 = random_problem(t=16)
    both, twice = np.concatenate([tasks, tasks * 1.001]), np.concatenate([errors, errors])
    assert fit_model2vec(both, twice, base, t0).l2 < 0.1
    assert fit_model2vec(both, twice, base, t0, groups=np.arange(32) % 16).l2 == 0.1


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_no_leak_from_the_task_that_is_left_out(labels: str) -> None:
    """Row t is a function of the other tasks' errors, and of task t's embedding."""
    tasks, errors, base, t0 = random_problem()
    spec = Model2VecSpec(l2=(1e-3, 1e-1), folds=3, labels=labels)
    before = leave_one_task_out(tasks, errors, base, t0, spec)
    for t, values in ((0, errors[0][::-1]), (4, [0.9, 0.0, 0.9, np.nan])):
        changed = errors.copy()
        changed[t] = values
        after = leave_one_task_out(tasks, changed, base, t0, spec)
        assert after[t].tobytes() == before[t].tobytes()
        others = np.delete(np.arange(len(tasks)), t)
        assert (after[others] != before[others]).any(1).all()


def test_leaving_a_task_out_is_fitting_without_it() -> None:
    tasks, errors, base, t0 = random_problem()
    base[3] = 0
    spec = Model2VecSpec(l2=(1e-3, 1e-1), folds=3)
    out = leave_one_task_out(tasks, errors, base, t0, spec)
    for t in (0, 5):
        keep = np.delete(np.arange(len(tasks)), t)
        model = fit_model2vec(tasks[keep], errors[keep], base, t0, spec)
        assert out[t] == pytest.approx(model.distances(tasks[t])[0], abs=1e-8)


def test_masked_cells_do_not_count() -> None:
    tasks, errors, base, t0 = random_problem()
    candidates = np.random.default_rng(4).random(errors.shape) < 0.7
    candidates[:, 1] = True
    one = fit_model2vec(tasks, errors, base, t0, ONE, candidates=candidates)
    other = fit_model2vec(tasks, np.where(candidates, errors, 99.0), base, t0, ONE, candidates=candidates)
    unknown = fit_model2vec(tasks, np.where(candidates, errors, np.nan), base, t0, ONE)
    free = fit_model2vec(tasks, errors, base, t0, ONE)
    assert one.vectors.tobytes() == other.vectors.tobytes() == unknown.vectors.tobytes()
    assert not np.allclose(one.vectors, free.vectors, rtol=1e-3)


def test_an_expert_that_is_no_candidate_stays_at_its_task() -> None:
    tasks, errors, base, t0 = random_problem()
    candidates = np.ones(errors.shape, bool)
    candidates[:, 2] = False
    model = fit_model2vec(tasks, errors, base, t0, ONE, candidates=candidates)
    assert model.vectors[2] == pytest.approx(base[2], rel=1e-5)
    assert (model.probabilities(tasks, candidates)[:, 2] == 0).all()


@pytest.mark.parametrize("unknown", [0.0, np.nan])
def test_an_expert_without_a_task_starts_from_the_mean_of_the_others(unknown: float) -> None:
    tasks, errors, base, t0 = random_problem()
    base[0] = unknown
    held = fit_model2vec(tasks, errors, base, t0, Model2VecSpec(l2=(1e9,)))
    assert held.vectors[0] == pytest.approx(base[1:].mean(0), rel=1e-6)
    assert np.isfinite(leave_one_task_out(tasks, errors, base, t0, ONE)).all()
    assert fit_model2vec(tasks, errors, base, t0, ONE).vectors[0] != pytest.approx(base[1:].mean(0), rel=1e-3)


@pytest.mark.parametrize("exact_tasks", [0, 100])
def test_the_level_of_an_unknown_expert_is_its_share(exact_tasks: int) -> None:
    """No bias: only gamma and the level o are left, and o/n is by how much too often the expert is expected, per task."""
    tasks, errors, base, t0 = random_problem()
    base[1] = 0
    candidates = np.ones(errors.shape, bool)
    candidates[3, 1] = False
    spec = Model2VecSpec(l2=(1e9,), exact_tasks=exact_tasks)
    for better in (0.0, -0.3, 0.3):
        changed = errors + better * (np.arange(4) == 1)
        model = fit_model2vec(tasks, changed, base, t0, spec, candidates=candidates)
        assert model.offsets is not None
        assert (model.offsets[[0, 2, 3]] == 0).all()
        target = target_distribution(changed, candidates, spec)
        expected = (model.probabilities(tasks, candidates) - target)[:, 1].sum()
        assert model.gamma * model.offsets[1] == pytest.approx(expected, abs=2e-3)
        assert np.sign(model.offsets[1]) == (np.sign(better) or np.sign(model.offsets[1]))


def test_nothing_to_learn_is_the_asymmetric_distance() -> None:
    """With few tasks and a strong penalty the choice is d_asym's: the expert without a task does not get in between."""
    tasks, errors, base, t0 = random_problem(t=20, e=6)
    base[0] = 0
    errors[:, 0] = 0.9
    out = leave_one_task_out(tasks, errors, base, t0, Model2VecSpec(l2=(1e6,)))
    asymmetric = symmetric_matrix(tasks, base[1:]) - 0.15 * symmetric_matrix(base[1:], t0[None])[:, 0]
    assert (out[:, 0] > out[:, 1:].max(1)).all()
    assert out[:, 1:] == pytest.approx(asymmetric, abs=1e-4)


def test_an_expert_prior_is_a_level_of_each() -> None:
    tasks, errors, base, t0 = random_problem(t=20)
    errors += np.array([0.0, 0.3, -0.3, 0.3])
    spec = Model2VecSpec(l2=(1e6,))
    without = fit_model2vec(tasks, errors, base, t0, spec)
    assert (without.distances(tasks).argmin(1) != 2).any()
    prior = fit_model2vec(tasks, errors, base, t0, spec.model_copy(update={"prior": "all"}))
    assert (prior.distances(tasks).argmin(1) == 2).all()
    left_out = leave_one_task_out(tasks, errors, base, t0, spec.model_copy(update={"prior": "all"}))
    assert (left_out.argmin(1) == 2).all()


def test_a_generic_expert_is_learned_from_its_errors_alone() -> None:
    tasks, errors, base, t0 = planted_problem()
    base[1] = 0  # the expert of the other domain is now of no domain
    chosen = leave_one_task_out(tasks, errors, base, t0).argmin(1)
    assert (chosen == errors.argmin(1)).mean() > 0.9


def test_same_bytes_twice_and_input_untouched() -> None:
    problem = random_problem()
    kept = [x.copy() for x in problem]
    one, other = fit_model2vec(*problem), fit_model2vec(*problem)
    assert one.vectors.tobytes() == other.vectors.tobytes()
    assert (one.gamma, one.l2) == (other.gamma, other.l2)
    assert all(np.array_equal(a, b) for a, b in zip(problem, kept, strict=True))


def test_errors_say_what_is_wanted() -> None:
    tasks, errors, base, t0 = random_problem()
    with pytest.raises(DataError, match=r"got tasks \(9, 30\), experts \(4, 29\), errors \(9, 4\); wanted"):
        fit_model2vec(tasks, errors, base[:, :29], t0)
    with pytest.raises(DataError, match=r"errors \(9, 3\)"):
        leave_one_task_out(tasks, errors[:, :3], base, t0)
    with pytest.raises(DataError, match="got 2 tasks; leaving one out needs at least three"):
        leave_one_task_out(tasks[:2], errors[:2], base, t0)
    with pytest.raises(DataError, match="no expert has a known task"):
        fit_model2vec(tasks, errors, np.zeros_like(base), t0)
    errors[[1, 4]] = np.nan
    with pytest.raises(DataError, match="2 tasks have no candidate with a known error"):
        fit_model2vec(tasks, errors, base, t0)


def test_tasks_at_the_minimum_have_nothing_to_learn_from() -> None:
    _, errors, base, t0 = random_problem()
    same = np.tile(base[:1], (9, 1))
    model = fit_model2vec(same, errors, np.tile(base[:1], (4, 1)), t0, ONE.model_copy(update={"alpha": 0.0}))
    assert model.vectors == pytest.approx(np.tile(base[:1], (4, 1)))


def test_what_does_not_fit_into_memory_is_said_at_once() -> None:
    """20,000 tasks, 2,000 experts, 20,000 filters: from arrays that take no room themselves."""
    tasks = np.broadcast_to(np.float64(1.0), (20_000, 20_000))
    base = np.broadcast_to(np.float64(1.0), (2_000, 20_000))
    with pytest.raises(ComputeError, match=r"wants \d+ GiB.*fewer tasks or experts"):
        _linearise(tasks, base, np.ones(20_000), 0.15)
