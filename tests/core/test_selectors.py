"""Selectors: one contract over the registry, and each against a case worked by hand or a slow oracle."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from t2v_core.config import Model2VecSpec
from t2v_core.distances import cosine_matrix, symmetric_matrix
from t2v_core.embedding import Layer
from t2v_core.errors import DataError, UnknownNameError
from t2v_core.leave_out import folds_of_groups, other_groups_mean, other_groups_sum
from t2v_core.selection import choose
from t2v_core.selectors import SELECTORS, Cost, Problem
from t2v_core.selectors.landmarks import NOISE, SHRINK, complete_rows
from t2v_core.selectors.layer_weights import block_slices
from t2v_core.selectors.method import BY_FEATURES
from t2v_core.selectors.neighbours import neighbour_errors, task_distance
from t2v_core.selectors.rates import QueryRates
from t2v_core.selectors.scaled import scaled

LEARNED = [n for n in SELECTORS if not SELECTORS[n].sees_own_errors]


def make(t: int = 18, e: int = 5, p: int = 24, seed: int = 0) -> Problem:
    """Pairs of tasks are groups; two kinds of task, experts 1 and 2 good at one each; expert 0 is generic."""
    rng = np.random.default_rng(seed)
    groups, kinds = np.arange(t) // 2, rng.permutation(t // 2) % 2
    centres = np.exp(rng.normal(size=(2, p)))
    kind = kinds[groups]
    tasks = (centres[kind] * np.exp(0.3 * rng.normal(size=(t, p)))).astype(np.float32)
    experts = np.exp(rng.normal(size=(e, p)))
    experts[0], experts[1], experts[2] = 0, centres[0], centres[1]
    errors = rng.uniform(0.2, 0.3, (t, e)) + 0.05 * rng.random((t, 1))
    errors[:, 1] += np.where(kind == 0, -0.1, 0.05)
    errors[:, 2] += np.where(kind == 1, -0.1, 0.05)
    own = np.zeros((t, e), bool)
    own[0, 1] = own[5, 2] = True
    domains = rng.random((t, 6)) + kind[:, None]
    return Problem(
        errors=errors,
        candidates=~own,
        own=own,
        tasks=tasks,
        experts=experts,
        trivial=np.full(p, 0.05, np.float32),
        groups=groups,
        domains=domains,
        expert_domains=np.stack([np.zeros(6), *rng.random((e - 1, 6))]),
        moments=rng.random((t, 6)) + kind[:, None],
        expert_moments=np.stack([np.zeros(6), *rng.random((e - 1, 6))]),
        layers=(Layer("a", 0, 10), Layer("b", 10, 18), Layer("c", 18, p)),
        sizes=np.array([np.nan, 5.0, 20.0, 3.0, 7.0]),
        taxonomy=rng.integers(0, 3, (t, e)).astype(float),
        model2vec=Model2VecSpec(l2=(1e-2, 1e-1), folds=2),
    )


@pytest.mark.parametrize("name", list(SELECTORS))
def test_contract(name: str) -> None:
    """Shape, an opinion on every task that has one to have, input untouched, the same bytes twice."""
    problem = make()
    before = [x.copy() for x in (problem.errors, problem.tasks, problem.experts)]
    one, other = SELECTORS[name].score(problem), SELECTORS[name].score(make())
    assert one is not None
    assert one.shape == problem.errors.shape
    assert (np.isfinite(one) & problem.candidates).any(1).all()
    assert np.array_equal(one, other, equal_nan=True)
    assert all(
        np.array_equal(a, b) for a, b in zip(before, (problem.errors, problem.tasks, problem.experts), strict=True)
    )
    assert SELECTORS[name].name == name
    assert SELECTORS[name].note
    assert SELECTORS[name].source


@pytest.mark.parametrize("name", LEARNED)
def test_nothing_leaks_from_the_group_that_is_judged(name: str) -> None:
    problem = make()
    before = SELECTORS[name].score(problem)
    assert before is not None
    learns = False
    for rows, values in ((slice(4, 6), problem.errors[4:6, ::-1]), (slice(8, 10), np.full((2, 5), np.nan))):
        errors = problem.errors.copy()
        errors[rows] = values
        after = SELECTORS[name].score(replace(problem, errors=errors))
        assert after is not None
        assert after[rows] == pytest.approx(before[rows], abs=1e-9, nan_ok=True)
        learns |= not np.allclose(after, before, equal_nan=True)
    assert learns == (name in READS_OTHERS)


READS_OTHERS = {
    "static",
    "TASK2VEC, layer weights",
    "MODEL2VEC",
    "MODEL2VEC, hard labels",
    "MODEL2VEC, F = 0",
    "MODEL2VEC, cautious",
    "MODEL2VEC, expert prior",
    "MODEL2VEC, first order",
    "prior + distance",
    "prior + distance + domain",
    "prior + distance + domain + neighbours",
    "task neighbours",
    "task and domain neighbours",
}
"""asymmetric TASK2VEC with a learned alpha reads them too, but here no alpha beats another by other tasks' errors."""


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("by", ["tried", "by TASK2VEC"])
def test_landmarks_read_k_cells_of_the_row_only(k: int, by: str) -> None:
    problem, name = make(), f"landmarks, {k} {by}"
    before = SELECTORS[name].score(problem)
    assert before is not None
    read = 0
    for expert in range(5):
        errors = problem.errors.copy()
        errors[4, expert] += 0.2
        after = SELECTORS[name].score(replace(problem, errors=errors))
        assert after is not None
        read += not np.allclose(after[4], before[4], atol=1e-9)
    assert read == k
    assert SELECTORS[name].cost.experts_tried == k


def test_a_planted_pattern_is_found() -> None:
    problem = make()
    best = np.where(problem.candidates, problem.errors, np.inf).argmin(1)
    for name in ("task neighbours", "task and domain neighbours", "prior + distance", "TASK2VEC"):
        scores = SELECTORS[name].score(problem)
        assert scores is not None
        assert (choose(scores, problem.candidates) == best).mean() > 0.8, name
    assert (choose(SELECTORS["static"].score(problem), problem.candidates) == best).mean() < 0.7


def test_what_the_problem_lacks_is_none() -> None:
    problem = replace(make(), domains=None, expert_domains=None, moments=None, layers=(), sizes=None, taxonomy=None)
    for name in (
        "domain distance",
        "domain distance, C1",
        "TASK2VEC, layer weights",
        "largest source task",
        "taxonomic distance",
    ):
        assert SELECTORS[name].score(problem) is None
    for name in ("task and domain neighbours", "prior + distance + domain"):
        assert SELECTORS[name].score(problem) is not None


def test_sums_over_other_groups_by_hand() -> None:
    values, groups = np.array([[1.0], [2.0], [4.0], [np.nan]]), np.array([7, 7, 3, 3])
    assert other_groups_sum(values[:3], groups[:3]).ravel().tolist() == [4, 4, 3]
    assert other_groups_mean(values, groups).ravel() == pytest.approx([4, 4, 1.5, 1.5])
    alone = other_groups_mean(values, np.array([0, 0, 0, 1]))
    assert np.isnan(alone[:3]).all()
    assert alone[3, 0] == pytest.approx(7 / 3)


def test_folds_hold_whole_groups() -> None:
    groups = np.random.default_rng(0).integers(0, 23, 100)
    folds = folds_of_groups(groups, 5, 0)
    assert all(len(np.unique(folds[groups == g])) == 1 for g in np.unique(groups))
    sizes = [len(np.unique(groups[folds == f])) for f in range(5)]
    assert max(sizes) - min(sizes) <= 1
    assert (folds_of_groups(groups, 5, 1) != folds).any()
    assert len(np.unique(folds_of_groups(np.array([1, 1, 2]), 5, 0))) == 2


def test_static_by_hand() -> None:
    """Two groups: each is scored by the centred errors of the other."""
    errors = np.array([[0.1, 0.3], [0.2, 0.6], [0.5, 0.3]])
    problem = Problem(
        errors,
        np.ones((3, 2), bool),
        np.zeros((3, 2), bool),
        np.ones((3, 4)),
        np.ones((2, 4)),
        np.ones(4),
        np.array([0, 0, 1]),
    )
    got = SELECTORS["static"].score(problem)
    assert got == pytest.approx(np.array([[0.1, -0.1], [0.1, -0.1], [-0.15, 0.15]]))


def test_plain_distances_are_the_papers() -> None:
    problem = make()
    known = slice(1, None)
    symmetric = symmetric_matrix(problem.tasks, problem.experts[known])
    complexity = symmetric_matrix(problem.experts[known], problem.trivial[None])[:, 0]
    assert SELECTORS["TASK2VEC"].score(problem)[:, known] == pytest.approx(symmetric)
    assert SELECTORS["asymmetric TASK2VEC"].score(problem)[:, known] == pytest.approx(symmetric - 0.15 * complexity)
    wanted = cosine_matrix(problem.domains, problem.expert_domains[known])
    assert SELECTORS["domain distance"].score(problem)[:, known] == pytest.approx(wanted)
    wanted = cosine_matrix(problem.moments, problem.expert_moments[known])
    assert SELECTORS["domain distance, C1"].score(problem)[:, known] == pytest.approx(wanted)
    part = problem.reading(problem.candidates).part(np.arange(3, 7), np.array([0, 2, 4]))
    assert SELECTORS["domain distance, C1"].score(part)[:, 1:] == pytest.approx(wanted[3:7, [1, 3]])
    for name in ("TASK2VEC", "domain distance", "domain distance, C1"):
        assert np.isnan(SELECTORS[name].score(problem)[:, 0]).all()
    largest = SELECTORS["largest source task"].score(problem)
    assert choose(largest, np.ones(problem.errors.shape, bool)).tolist() == [2] * 18


def test_taxonomic_distance_breaks_ties_by_the_embedding() -> None:
    problem = make()
    got = SELECTORS["taxonomic distance"].score(problem)
    asymmetric = SELECTORS["asymmetric TASK2VEC"].score(problem)
    chosen = choose(got, problem.candidates)
    for t, i in enumerate(chosen):
        level = problem.taxonomy[t]
        lowest = problem.candidates[t] & (level == level[problem.candidates[t]].min())
        assert lowest[i]
        rest = np.where(lowest & np.isfinite(asymmetric[t]), asymmetric[t], np.inf)
        assert np.isinf(rest.min()) or i == rest.argmin()


def test_learned_alpha_prefers_complex_experts_where_that_pays() -> None:
    """Experts 1 and 2 are equally far from all tasks; the complex one is better, and only alpha can tell."""
    p, t = 8, 6
    problem = Problem(
        errors=np.tile([0.5, 0.4, 0.2], (t, 1)),
        candidates=np.ones((t, 3), bool),
        own=np.zeros((t, 3), bool),
        tasks=np.ones((t, p)),
        experts=np.ones((3, p)),
        trivial=np.ones(p),
        groups=np.arange(t),
        given={"symmetric": np.tile([np.nan, 0.30, 0.40], (t, 1)), "complexity": np.array([np.nan, 0.1, 0.5])},
    )
    everyone = np.ones((t, 3), bool)
    assert choose(SELECTORS["asymmetric TASK2VEC"].score(problem), everyone).tolist() == [1] * t
    assert choose(SELECTORS["asymmetric TASK2VEC, alpha learned"].score(problem), everyone).tolist() == [2] * t
    simple = replace(problem, errors=np.tile([0.5, 0.2, 0.4], (t, 1)))
    assert choose(SELECTORS["asymmetric TASK2VEC, alpha learned"].score(simple), everyone).tolist() == [1] * t


def test_scaled_embeddings_forget_their_size() -> None:
    x = np.exp(np.random.default_rng(0).normal(size=(3, 7)))
    x[0, 2] = 0
    assert scaled(1e5 * x) == pytest.approx(scaled(x))
    assert np.exp(np.log(scaled(x)[1:]).mean(1)) == pytest.approx(1)
    problem = make()
    louder = replace(problem, tasks=problem.tasks * np.float32(50))
    assert SELECTORS["scaled TASK2VEC"].score(louder) == pytest.approx(
        SELECTORS["scaled TASK2VEC"].score(problem), nan_ok=True
    )
    assert not np.allclose(SELECTORS["TASK2VEC"].score(louder), SELECTORS["TASK2VEC"].score(problem), equal_nan=True)


def test_blocks_of_layers_cover_all_filters() -> None:
    problem = replace(make(), layers=tuple(Layer(str(i), 2 * i, 2 * i + 2) for i in range(12)))
    parts = block_slices(problem)
    assert [parts[0].start, parts[-1].stop, len(parts)] == [0, 24, 8]
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))


def test_layer_weights_find_the_layer_that_says_it() -> None:
    """The first layer says who is good; the second, of many filters, says the opposite."""
    rng = np.random.default_rng(0)
    kind = np.arange(30) % 2
    first, second = np.exp(2 * rng.normal(size=(2, 6))), np.exp(2 * rng.normal(size=(2, 40)))
    tasks = np.concatenate([first[kind], second[1 - kind]], 1) * np.exp(0.2 * rng.normal(size=(30, 46)))
    experts = np.concatenate([first, second], 1)
    errors = 0.3 - 0.1 * (np.arange(2)[None] == kind[:, None]) + 0.01 * rng.random((30, 2))
    problem = Problem(
        errors, np.ones((30, 2), bool), np.zeros((30, 2), bool), tasks, experts, np.full(46, 0.1), np.arange(30),
        layers=(Layer("first", 0, 6), Layer("second", 6, 46)),
    )  # fmt: skip
    assert (choose(SELECTORS["TASK2VEC"].score(problem), problem.candidates) == kind).mean() < 0.2
    assert (choose(SELECTORS["TASK2VEC, layer weights"].score(problem), problem.candidates) == kind).mean() > 0.9


@pytest.mark.parametrize("sparse", [False, True])
def test_neighbours_are_kernel_ridge_regression_without_the_group(sparse: bool) -> None:
    problem = make()
    if sparse:
        candidates = problem.candidates.copy()
        candidates[:8, 3:] = False
        problem = replace(problem, candidates=candidates)
    distance, everything = task_distance(problem, domains=True), np.arange(18)
    got = neighbour_errors(problem, distance, (0.7, 0.3), everything, everything)
    kernel = np.exp(-distance / 0.7) + 1
    for t in (0, 5, 17):
        for i in range(5):
            known = problem.usable[:, i] if sparse and i > 2 else np.ones(18, bool)
            rows = np.flatnonzero(known & (problem.groups != problem.groups[t]))
            values = np.where(problem.usable[rows, i], problem.centred[rows, i], 0)
            if not sparse or i > 2:
                a = kernel[np.ix_(rows, rows)] + 0.3 * np.eye(len(rows))
                if problem.usable[:, i].mean() >= 0.95 or (sparse and i > 2):
                    assert got[t, i] == pytest.approx(kernel[t, rows] @ np.linalg.solve(a, values), abs=1e-10)


def test_rows_are_completed_as_a_gaussian_would() -> None:
    problem = replace(make(), own=np.zeros((18, 5), bool), candidates=np.ones((18, 5), bool))
    tried = np.zeros((18, 5), bool)
    tried[:, [1, 3]] = True
    got = complete_rows(problem, tried)
    for t in (0, 7):
        rest = problem.errors[problem.groups != problem.groups[t]]
        mean, covariance = rest.mean(0), np.cov(rest.T, bias=True)
        shrunk = (1 - SHRINK) * covariance + SHRINK * np.diag(np.diag(covariance))
        inside = shrunk[np.ix_([1, 3], [1, 3])] + NOISE * np.diag(covariance).mean() * np.eye(2)
        wanted = mean + shrunk[:, [1, 3]] @ np.linalg.solve(inside, problem.errors[t, [1, 3]] - mean[[1, 3]])
        assert got[t] == pytest.approx(wanted, abs=1e-12)
    nothing = complete_rows(problem, np.zeros((18, 5), bool))
    assert nothing[0] == pytest.approx(problem.errors[2:].mean(0))


def test_a_new_task_is_a_row_without_errors() -> None:
    problem = make()
    errors = problem.errors.copy()
    errors[-2:] = np.nan
    for name in LEARNED:
        before, after = SELECTORS[name].score(problem), SELECTORS[name].score(replace(problem, errors=errors))
        assert before is not None
        assert after is not None
        assert after[-2:] == pytest.approx(before[-2:], abs=1e-9, nan_ok=True), name


def test_parts_and_readings_keep_their_distances() -> None:
    problem = make()
    read = problem.reading(np.ones(problem.errors.shape, bool))
    part = read.part(np.array([3, 4, 9]), np.array([0, 2, 4]))
    assert part.symmetric == pytest.approx(problem.symmetric[np.ix_([3, 4, 9], [0, 2, 4])], nan_ok=True)
    assert part.between_tasks == pytest.approx(problem.between_tasks[np.ix_([3, 4, 9], [3, 4, 9])])
    plain = problem.part(np.array([3, 4, 9]), np.array([0, 2, 4]))
    assert plain.symmetric == pytest.approx(part.symmetric, nan_ok=True)
    assert part.groups.tolist() == [1, 2, 4]


def test_errors_say_what_is_wanted() -> None:
    with pytest.raises(DataError, match=r"got groups of shape \(3,\); wanted \(18,\)"):
        replace(make(), groups=np.zeros(3, int))
    with pytest.raises(UnknownNameError, match="task neighbours"):
        SELECTORS["task neighbors"]


def test_cost_by_hand() -> None:
    rates = QueryRates(100, probe_image=0.01, embedding=7.0, embedding_passes=80, expert_image=0.02, head=0.5)
    for cost, images, seconds in (
        (Cost(), 0, 0),
        (Cost(1), 100, 1.0),
        (Cost(2), 180, 8.0),
        (Cost(2, 3), 480, 8.0 + 3 * 2.5),
        (Cost(0, -1), 5000, 50 * 2.5),
        (BY_FEATURES, 5000, 50 * 2.0),
    ):
        assert cost.images(rates, 50) == images
        assert cost.seconds(rates, 50) == pytest.approx(seconds)
