"""Meta-tasks, readings, rankings, ceilings, and the whole comparison on a small matrix."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from t2v_core.ceiling import split_half, twin_scores
from t2v_core.config import MetaTaskRule, Model2VecSpec, SelectionSpec
from t2v_core.embedding import Layer, TaskEmbedding
from t2v_core.errors import ConfigError, DataError
from t2v_core.evaluation import evaluate_selectors
from t2v_core.matrix import ErrorMatrix
from t2v_core.metatasks import (
    ALL,
    DOMAIN_LEFT_OUT,
    LEFT_OUT,
    READINGS,
    candidates_of,
    concept_groups,
    make_meta_tasks,
    own_domain,
)
from t2v_core.ranking import random_ranks, rank_measures
from t2v_core.records import EmbeddingTable, embedding_row
from t2v_core.selection import paired_differences
from t2v_core.selectors import SELECTORS
from t2v_core.selectors.rates import QueryRates

TASKS = ("a/x", "a/y", "b/x", "b/y", "c/z", "a/w", "b/v", "c/u")
TRAINED = {"generic": [], "ax": ["a/x"], "bs": ["b/x", "b/y"], "cz": ["c/z"]}


def test_meta_tasks_by_rule() -> None:
    rules = [
        MetaTaskRule(name="ab", tasks=["a/*", "b/*"], experts=["ax", "bs"]),
        MetaTaskRule(name="three", tasks=["*"], experts=["*"], n_tasks=3, n_experts=1),
        MetaTaskRule(name="other three", tasks=["*"], experts=["*"], n_tasks=3, n_experts=1, seed=5),
    ]
    whole, ab, three, other = make_meta_tasks(rules, list(TRAINED), TASKS)
    assert (whole.name, whole.rows.tolist(), whole.columns.tolist()) == ("all", list(range(8)), [0, 1, 2, 3])
    assert (ab.rows.tolist(), ab.columns.tolist()) == ([0, 1, 2, 3, 5, 6], [0, 1, 2])
    assert len(three.rows) == 3
    assert three.columns[0] == 0
    assert len(three.columns) == 2
    assert three.rows.tolist() != other.rows.tolist()
    more = make_meta_tasks(rules[1:2], list(TRAINED), ("0/new", *TASKS), everything=False)[0]
    names = {("0/new", *TASKS)[i] for i in more.rows} - {"0/new"}
    assert names <= {TASKS[i] for i in three.rows}  # what is added disturbs no sample of the rest


def test_meta_task_errors() -> None:
    rule = MetaTaskRule(name="m", tasks=["a/*"], experts=["ax"])
    with pytest.raises(ConfigError, match="two meta-tasks are named 'm'"):
        make_meta_tasks([rule, rule], list(TRAINED), TASKS)
    with pytest.raises(ConfigError, match="meta-task 'm': no expert matches generic"):
        make_meta_tasks([rule.model_copy(update={"experts": ["generic"]})], list(TRAINED), TASKS)
    with pytest.raises(ConfigError, match="two meta-tasks are named 'all'"):
        make_meta_tasks([rule.model_copy(update={"name": "all"})], list(TRAINED), TASKS)


def test_readings_by_hand() -> None:
    known = np.ones((8, 4), bool)
    known[0, 3] = False
    own = np.array([[t in on for on in TRAINED.values()] for t in TASKS])
    same = own_domain(TASKS, TRAINED)
    assert same[0].tolist() == [False, True, False, False]
    assert same[6].tolist() == [False, False, True, False]
    assert candidates_of(ALL, known, own, same)[0].tolist() == [True, True, True, False]
    assert candidates_of(LEFT_OUT, known, own, same)[[0, 1]].tolist() == [[True, False, True, False], [True] * 4]
    assert candidates_of(DOMAIN_LEFT_OUT, known, own, same)[1].tolist() == [True, False, True, True]
    with pytest.raises(ConfigError, match="got reading 'none'; wanted one of own expert left out"):
        candidates_of("none", known, own, same)


def test_groups_are_names_over_sources() -> None:
    assert concept_groups(TASKS).tolist() == [0, 1, 0, 1, 2, 3, 4, 5]
    assert concept_groups(["a/p=1/q", "b/q", "b/p=1/q"]).tolist() == [0, 1, 0]


def test_ranks_by_hand() -> None:
    errors = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, np.nan, 0.2, 0.1]])
    scores = np.array([[3.0, 4.0, 2.0, 1.0], [1.0, 0.0, 2.0, np.nan]])
    got = rank_measures(errors, scores)
    # First three of task 0: .4 .3 .1; of task 1: .4 .2 and then the one without an opinion, .1.
    assert (got["regret3"], got["top3"]) == (0, 1)
    errors[0, 0] = 0.9
    got = rank_measures(errors, scores)
    assert got["regret3"] == pytest.approx((0.3 - 0.2) / 2)
    assert got["top3"] == 0.5
    assert got["regret5"] == 0
    assert rank_measures(errors[:1], errors[:1])["tau"] == pytest.approx(1)
    assert rank_measures(errors[:1], -errors[:1])["tau"] == pytest.approx(-1)
    assert np.isnan(rank_measures(errors, np.zeros((2, 4)))["tau"])


def test_random_ranks_are_expectations() -> None:
    errors = np.tile(np.linspace(0, 0.9, 10), (500, 1))
    got = random_ranks(errors)
    assert got["top3"] == pytest.approx(0.3, abs=0.02)
    assert got["regret5"] == pytest.approx(0.1 * (11 / 6 - 1), abs=0.01)  # the lowest of five among ten, in tenths


def test_split_half_of_equal_experts_is_their_error() -> None:
    """Twenty experts with equal truth: picking gains nothing, though the best on a half looks better."""
    rng = np.random.default_rng(0)
    n = np.full(300, 60)
    errors = rng.binomial(60, 0.3, (300, 20)) / 60
    got = split_half(errors, n, np.ones(errors.shape, bool))
    assert got.picked == pytest.approx(0.3, abs=0.01)
    assert got.oracle < 0.2
    errors[:, 4] = rng.binomial(60, 0.05, 300) / 60
    assert split_half(errors, n, np.ones(errors.shape, bool)).picked == pytest.approx(0.06, abs=0.015)
    without = np.ones(errors.shape, bool)
    without[:, 4] = False
    assert split_half(errors, n, without).picked > 0.25
    with pytest.raises(DataError, match="two test images and a candidate"):
        split_half(errors, np.ones(300), np.ones(errors.shape, bool))


def test_twins_by_hand() -> None:
    errors = np.array([[0.1, 0.2], [0.3, np.nan], [0.5, 0.6], [0.9, 0.8]])
    got = twin_scores(errors, np.array([0, 0, 0, 1]))
    assert got[0].tolist() == pytest.approx([0.4, 0.6])
    assert got[1].tolist() == pytest.approx([0.3, 0.4])
    assert np.isnan(got[3]).all()


def test_bootstrap_draws_whole_groups() -> None:
    """Ten copies of each task are no more evidence than one."""
    rng = np.random.default_rng(0)
    one = rng.normal(0.01, 0.05, 40)
    frame = pd.DataFrame({"method": "m", "task": np.arange(400), "error": np.repeat(one, 10), "ratio": 1.0})
    yard = frame.assign(method="yard", error=0.0)
    detail = pd.concat([frame, yard])
    apart = paired_differences(detail, ["m"], ["yard"]).iloc[0]
    together = paired_differences(detail, ["m"], ["yard"], groups=np.repeat(np.arange(40), 10)).iloc[0]
    assert apart["difference"] == pytest.approx(together["difference"])
    assert together["high"] - together["low"] == pytest.approx(np.sqrt(10) * (apart["high"] - apart["low"]), rel=0.15)
    assert apart["verdict"] == ("worse" if apart["low"] > 0 else "not told apart")
    assert (together["relative"], together["relative_low"]) == (0, 0)


def library() -> tuple[ErrorMatrix, EmbeddingTable]:
    rng = np.random.default_rng(0)
    layers = (Layer("first", 0, 8), Layer("second", 8, 20))
    rows, prints = [], {}
    for i, task in enumerate(TASKS):
        e = TaskEmbedding(
            vector=np.exp(rng.normal(size=20)).astype(np.float32), noise=np.zeros(20, np.float32),
            groups=np.zeros((1, 20), np.float32), noise_distance=0.1,
            trivial=np.full(20, 0.01, np.float32), layers=layers, domain=rng.random(5).astype(np.float32), probe="p",
            estimator="exact", beta=1.0, beta_scale="sample", seed=0, n_classes=2, n_images=10 + i, n_passes=1,
            exact=True, objective=(), converged=True, head_loss=0.1, head_accuracy=0.9, head_l2=0.1, seconds=1.0, head_error=0.1, images_per_second=1.0,
            device="cpu",
        )  # fmt: skip
        prints[task] = f"f{i}"
        rows.append(embedding_row(task, "t", f"f{i}", e))
    table = EmbeddingTable.of(pa.concat_tables(rows), prints)
    errors = rng.uniform(0.1, 0.5, (8, 4))
    own = np.array([[t in on for on in TRAINED.values()] for t in TASKS])
    return ErrorMatrix(TASKS, tuple(TRAINED), errors, own), table


def test_the_whole_comparison() -> None:
    matrix, table = library()
    rules = [MetaTaskRule(name="ab", tasks=["a/*", "b/*"], experts=["ax", "bs"])]
    spec = SelectionSpec(meta_tasks=rules, n_bootstrap=100)
    settings = Model2VecSpec(l2=(0.1,), folds=2)
    given = {("all", LEFT_OUT): -matrix.errors}
    rates = QueryRates(100, probe_image=0.01, embedding=7.0, embedding_passes=80, expert_image=0.02, head=0.5)
    extra = {"LogME": matrix.errors, "worst": -matrix.errors}
    got = evaluate_selectors(matrix, table, TRAINED, given, spec, settings=settings, extra=extra, rates=rates)
    names = {n for n in SELECTORS if not SELECTORS[n].slow} | {"chance", "LogME", "worst"}
    names -= {"taxonomic distance", "domain distance, C1"}  # what they need was not given
    by = got.table.groupby(["meta_task", "reading"], sort=False)["method"].agg(list)
    assert by.index.tolist() == [(m, r) for m in ("all", "ab") for r in READINGS]
    assert all(set(methods) == names and methods[:2] == ["oracle", "chance"] for methods in by)
    rows = got.table.set_index(["meta_task", "reading", "method"]).sort_index()
    for meta in ("all", "ab"):
        for reading in READINGS:
            part = rows.loc[meta, reading]
            assert part.loc["oracle", "absolute_difference"] == part.loc["LogME", "absolute_difference"] == 0
            assert (part["error"] >= part.loc["oracle", "error"]).all()
            assert (part["error"] <= part.loc["worst", "error"] + 1e-12).all()
    same = rows.loc["all", LEFT_OUT]
    assert same.loc["MODEL2VEC", "error"] == same.loc["worst", "error"]  # what was given is what is judged
    assert rows.loc["all", ALL].loc["MODEL2VEC", "error"] != rows.loc["all", ALL].loc["worst", "error"]
    assert (rows.loc["ab", LEFT_OUT]["n_tasks"] == 6).all()
    assert rows.loc[("ab", LEFT_OUT, "oracle"), "experts_tried"] == 3
    cost = rows.loc["ab", LEFT_OUT]["query_seconds"]
    assert cost["MODEL2VEC"] == pytest.approx(8.0)
    assert (cost["chance"], cost["static"]) == (0, 0)
    assert cost["LogME"] == pytest.approx(3 * 2.0)
    assert cost["oracle"] == pytest.approx(3 * 2.5)
    assert rows.loc[("all", LEFT_OUT, "LogME"), "query_images"] == 4 * 100
    # No choice breaks its reading.
    own = {(t, e) for e, on in TRAINED.items() for t in on}
    picked = got.choices[(got.choices["reading"] == LEFT_OUT) & (got.choices["method"] != "chance")]
    assert not own & set(zip(picked["task_id"], picked["expert"], strict=True))
    far = got.choices[(got.choices["reading"] == DOMAIN_LEFT_OUT) & (got.choices["method"] != "chance")]
    sources = {"generic": set(), "ax": {"a"}, "bs": {"b"}, "cz": {"c"}}
    assert not any(t[0] in sources[e] for t, e in zip(far["task_id"], far["expert"], strict=True))
    assert set(got.pairs["against"]) == {"generic", "static", "asymmetric TASK2VEC"}
    assert len(got.conclusions) == 10
    assert all("paired over 8 tasks" in words for words in got.conclusions)


def test_chosen_selectors_only() -> None:
    matrix, table = library()
    spec = SelectionSpec(selectors=["static", "MODEL2VEC, hard labels"], n_bootstrap=100)
    got = evaluate_selectors(matrix, table, TRAINED, {}, spec, settings=Model2VecSpec(l2=(0.1,)))
    assert set(got.table["method"]) == {"static", "MODEL2VEC, hard labels", "chance"}
