"""Judging selectors: ratios by hand, no leak, and words that follow the numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from t2v_core.config import SelectionSpec
from t2v_core.errors import DataError
from t2v_core.selection import choose, compare_selectors, conclusions, relative_error_increase
from t2v_core.selectors import SELECTORS, Problem

ERRORS = np.array([[0.1, 0.2, 0.4], [0.5, 0.4, 0.8], [0.3, 0.6, 0.2]])


def test_mean_of_ratios_not_ratio_of_means() -> None:
    got = relative_error_increase(ERRORS, np.array([1, 0, 1]))
    assert got.per_task == pytest.approx([1.0, 0.25, 2.0])
    assert got.mean == pytest.approx(3.25 / 3)
    assert got.median == pytest.approx(1.0)
    assert got.mean != pytest.approx((0.2 + 0.5 + 0.6) / (0.1 + 0.4 + 0.2) - 1)


@pytest.mark.parametrize("as_mask", [False, True])
def test_own_expert_is_no_candidate_for_the_oracle_either(as_mask: bool) -> None:
    own = np.array([0, -1, 2])
    mask = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1]])
    got = relative_error_increase(ERRORS, np.array([2, 0, 0]), mask if as_mask else own)
    # Oracles: 0.2 (not 0.1), 0.4, 0.3 (not 0.2).
    assert got.per_task == pytest.approx([1.0, 0.25, 0.0])


def test_several_own_experts() -> None:
    own = np.array([[True, True, False], [False] * 3, [False] * 3])
    assert relative_error_increase(ERRORS, np.array([2, 1, 2]), own).per_task == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("own", [np.array([1, -1, -1]), np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])])
def test_choosing_ones_own_raises(own: np.ndarray) -> None:
    with pytest.raises(DataError, match="1 choices are a task's own expert or an unknown cell, e.g. of task 0"):
        relative_error_increase(ERRORS, np.array([1, 1, 1]), own)


def test_unknown_cells() -> None:
    errors = ERRORS.copy()
    errors[2, 2] = errors[0, 1] = np.nan
    assert relative_error_increase(errors, np.array([0, 1, 1])).per_task == pytest.approx([0, 0, 1.0])
    with pytest.raises(DataError, match="e.g. of task 2"):
        relative_error_increase(errors, np.array([0, 1, 2]))
    errors[1] = np.nan
    with pytest.raises(DataError, match="1 tasks have no candidate left"):
        relative_error_increase(errors, np.array([0, 1, 0]))


def test_oracle_of_zero_counts_as_the_floor() -> None:
    errors = np.array([[0.0, 0.05], [0.005, 0.0], [0.002, 0.03]])
    assert relative_error_increase(errors, np.array([1, 0, 1])).per_task == pytest.approx([4.0, 0.0, 2.0])
    got = relative_error_increase(errors, np.array([1, 0, 1]), floor=0.001)
    assert got.per_task == pytest.approx([49.0, 4.0, 14.0])


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"errors \(3, 3\) and selected \(2,\); wanted \[T, E\] and \[T\]"):
        relative_error_increase(ERRORS, np.array([0, 1]))
    with pytest.raises(DataError, match=r"own of shape \(2,\); wanted \[3\] indices or a mask \(3, 3\)"):
        relative_error_increase(ERRORS, np.array([0, 1, 2]), np.array([0, 1]))


@pytest.mark.parametrize(
    "selected",
    [
        pytest.param(-1),
        pytest.param(3),
    ],
)
def test_a_choice_that_is_no_expert(selected: int) -> None:
    with pytest.raises(DataError):
        relative_error_increase(ERRORS, np.array([0, 1, selected]))


def test_bootstrap_interval_over_tasks() -> None:
    rng = np.random.default_rng(0)
    errors = np.stack([np.full(200, 0.2), 0.2 + 0.2 * rng.random(200)], axis=1)
    picks = np.ones(200, int)
    one, again = relative_error_increase(errors, picks), relative_error_increase(errors, picks)
    assert (one.low, one.high) == (again.low, again.high)
    assert one.low < one.mean < one.high
    half = 1.96 * one.per_task.std() / np.sqrt(200)
    assert (one.high - one.low) / 2 == pytest.approx(half, rel=0.1)
    seeded = relative_error_increase(errors, picks, spec=SelectionSpec(seed=1))
    assert seeded.low != one.low
    narrow = relative_error_increase(errors, picks, spec=SelectionSpec(confidence=0.6))
    assert (narrow.high - narrow.low) / 2 == pytest.approx(0.842 / 1.96 * half, rel=0.1)
    certain = relative_error_increase(errors, np.zeros(200, int))
    assert (certain.low, certain.mean, certain.high) == (0, 0, 0)


def test_choose() -> None:
    scores = np.array([[3, 1, 2], [1, 2, 3], [np.nan, 5, np.nan], [np.nan, np.nan, 1], [-np.inf, 1, 2]])
    candidates = np.array([[1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]], bool)
    assert choose(scores, candidates).tolist() == [1, 1, 1, -1, 1]


def scores(name: str, errors: np.ndarray, own: np.ndarray, generic: int = 0) -> np.ndarray:
    """What a selector that looks at errors alone says; every task is a group by itself."""
    n_tasks, n_experts = errors.shape
    problem = Problem(
        errors=errors,
        candidates=np.isfinite(errors),
        own=own,
        tasks=np.ones((n_tasks, 2)),
        experts=np.ones((n_experts, 2)),
        trivial=np.ones(2),
        groups=np.arange(n_tasks),
        generic=generic,
    )
    found = SELECTORS[name].score(problem)
    assert found is not None
    return found


def test_baselines_by_hand() -> None:
    own = np.zeros(ERRORS.shape, bool)
    assert choose(scores("oracle", ERRORS, own), ~own).tolist() == [0, 1, 2]
    assert choose(scores("generic", ERRORS, own, 1), ~own).tolist() == [1, 1, 1]
    # Centred rows: (-4, -1, 5) / 30, (-2, -5, 7) / 30, (-2, 7, -5) / 30; each row's score leaves its own out.
    wanted = np.array([[-4, 2, 2], [-6, 6, 0], [-6, -6, 12]]) / 60
    assert scores("static", ERRORS, own) == pytest.approx(wanted)


def test_static_leaves_own_cells_and_unknown_cells_out() -> None:
    errors = np.array([[0.1, 0.2, 0.3], [0.2, 0.1, np.nan], [0.3, 0.2, 0.1], [0.0, 0.4, 0.5]])
    own = np.zeros(errors.shape, bool)
    own[3, 0] = True
    got = scores("static", errors, own)
    # Centred: (-.1, 0, .1), (.05, -.05, -), (.1, 0, -.1), (-, -.05, .05).
    assert got[0] == pytest.approx([0.15 / 2, -0.1 / 3, -0.05 / 2])
    assert got[1] == pytest.approx([0.0, -0.05 / 3, 0.05 / 3])
    assert got[3] == pytest.approx([0.05 / 3, -0.05 / 3, 0.0])
    alone = scores("static", np.array([[0.1, 0.2], [0.2, np.nan]]), np.zeros((2, 2), bool))
    assert np.isnan(alone[0, 1])  # nobody else tried it


def test_static_never_sees_the_task() -> None:
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.1, 0.6, (12, 5))
    own = rng.random(errors.shape) < 0.1
    before = scores("static", errors, own)
    for t in range(12):
        changed = errors.copy()
        changed[t] = rng.uniform(0.1, 0.6, 5)
        changed[t, t % 5] = np.nan
        after = scores("static", changed, own)
        assert after[t] == pytest.approx(before[t], abs=1e-14)
        assert not np.allclose(np.delete(after, t, 0), np.delete(before, t, 0), atol=1e-3, equal_nan=True)


def compared(**settings: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    own = np.array([[True, False, False], [False] * 3, [False] * 3])
    selectors = {"oracle": ERRORS, "last": np.array([[2, 1, 0]] * 3), "picky": np.array([[0, 1, 2]] * 3)}
    table, detail = compare_selectors(ERRORS, own, selectors, notes={"last": "a remark"}, **settings)  # type: ignore[arg-type]
    return table.set_index("method"), detail


def test_table_by_hand_with_own_left_out() -> None:
    table, detail = compared(leave_own_out=True)
    assert list(table.index) == ["oracle", "last", "picky", "chance"]
    # Candidates: task 0 has 0.2 and 0.4; the oracle is 0.2, 0.4, 0.2.
    assert table.loc["oracle", "relative_increase"] == 0
    assert table.loc["oracle", "top1"] == 1
    last, picky = table.loc["last"], table.loc["picky"]
    assert last["relative_increase"] == pytest.approx((1 + 1 + 0) / 3)
    assert last["absolute_difference"] == pytest.approx((0.2 + 0.4 + 0) / 3)
    assert last["error"] == pytest.approx((0.4 + 0.8 + 0.2) / 3)
    assert last["top1"] == pytest.approx(1 / 3)
    assert last["median_increase"] == pytest.approx(1)
    assert last["note"] == "a remark"
    assert picky["relative_increase"] == pytest.approx((0 + 0.25 + 0.5) / 3)
    assert (table["n_tasks"] == 3).all()
    assert (table["relative_low"] <= table["relative_increase"]).all()
    assert (table["relative_high"] >= table["relative_increase"]).all()
    assert (table["absolute_low"] <= table["absolute_difference"]).all()
    # Chance: the mean over the candidates of the ratio, not the ratio of the mean over all.
    chance = table.loc["chance"]
    wanted = [np.mean([0, 1]), np.mean([0.25, 0, 1]), np.mean([0.5, 2, 0])]
    assert chance["relative_increase"] == pytest.approx(np.mean(wanted))
    assert chance["error"] == pytest.approx(np.mean([0.3, 1.7 / 3, 1.1 / 3]))
    assert chance["top1"] == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 3]))
    chosen = detail.pivot(index="method", columns="task", values="expert").loc[["last", "picky", "chance"]]
    assert chosen.to_numpy().tolist() == [[2, 2, 2], [1, 0, 0], [-1, -1, -1]]
    assert detail[detail.method == "chance"]["ratio"].tolist() == pytest.approx(wanted)


def test_table_by_hand_with_all_candidates() -> None:
    table, detail = compared(leave_own_out=False)
    # The oracle is 0.1, 0.4, 0.2.
    assert table.loc["picky", "relative_increase"] == pytest.approx((0 + 0.25 + 0.5) / 3)
    assert table.loc["last", "relative_increase"] == pytest.approx((3 + 1 + 0) / 3)
    assert table.loc["chance", "relative_increase"] == pytest.approx(np.mean([4 / 3, 1.25 / 3, 2.5 / 3]))
    assert detail[detail.method == "picky"]["expert"].tolist() == [0, 0, 0]


def test_table_agrees_with_the_plain_function() -> None:
    rng = np.random.default_rng(0)
    errors, own = rng.uniform(0.0, 0.5, (30, 6)), np.zeros((30, 6), bool)
    own[np.arange(30), rng.integers(0, 6, 30)] = rng.random(30) < 0.7
    scores = rng.random((30, 6))
    spec = SelectionSpec(floor=0.03, seed=4, confidence=0.9)
    table, _ = compare_selectors(errors, own, {"s": scores}, spec, leave_own_out=True)
    plain = relative_error_increase(errors, choose(scores, ~own), own, floor=0.03, spec=spec)
    row = table.iloc[0]
    assert (row["relative_increase"], row["relative_low"], row["relative_high"], row["median_increase"]) == (
        pytest.approx(plain.mean),
        pytest.approx(plain.low),
        pytest.approx(plain.high),
        pytest.approx(plain.median),
    )


def test_chance_under_the_floor_is_the_mean_of_the_ratios() -> None:
    """Ratios to 0.01: 1, 2, 4; their mean less one is 4/3, while the ratio of the mean error would give 1."""
    table, _ = compare_selectors(np.array([[0.0, 0.02, 0.04]]), np.zeros((1, 3), bool), {}, leave_own_out=True)
    assert table["relative_increase"].tolist() == pytest.approx([4 / 3])


def test_chance_is_what_random_picks_get() -> None:
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.05, 0.5, (10, 5))
    table, _ = compare_selectors(errors, np.zeros((10, 5), bool), {}, leave_own_out=True)
    picks = [relative_error_increase(errors, rng.integers(0, 5, 10)).mean for _ in range(300)]
    chance = table.set_index("method").loc["chance", "relative_increase"]
    assert abs(np.mean(picks) - chance) < 4 * np.std(picks) / np.sqrt(300)


def test_a_selector_without_an_opinion() -> None:
    own = np.array([[True, False, False], [False] * 3, [False] * 3])
    with pytest.raises(DataError, match="selector 'generic' has no opinion on 1 tasks"):
        compare_selectors(ERRORS, own, {"generic": scores("generic", ERRORS, own)}, leave_own_out=True)
    with pytest.raises(DataError, match="1 tasks have no candidate left"):
        compare_selectors(ERRORS, own | np.array([[True], [False], [False]]), {}, leave_own_out=True)


def detail(**errors: np.ndarray) -> pd.DataFrame:
    frames = [pd.DataFrame({"method": m, "task": np.arange(len(e)), "error": e}) for m, e in errors.items()]
    return pd.concat(frames, ignore_index=True).sample(frac=1, random_state=0)


def test_conclusions_follow_the_interval_of_the_paired_difference() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.1, 0.9, 40)  # tasks differ far more than methods do: only pairs can tell
    made = detail(
        yard=hard,
        better=hard - 0.02 + 0.01 * rng.normal(size=40),
        worse=hard + 0.03 + 0.01 * rng.normal(size=40),
        a_bit_less=hard + np.where(np.arange(40) < 22, -0.01, 0.01),
        a_bit_more=hard + np.where(np.arange(40) < 18, -0.01, 0.01),
    )
    words = conclusions(made, ["better", "worse", "a_bit_less", "a_bit_more", "yard", "none"], ["yard", "none"])
    assert len(words) == 4
    assert words[0].startswith("better is better than yard: -")
    assert words[1].startswith("worse is worse than yard: +")
    assert words[2].startswith("a_bit_less cannot be told apart from yard: -0.1 points")
    assert words[3].startswith("a_bit_more cannot be told apart from yard: +0.1 points")
    assert all(w.endswith("paired over 40 tasks.") for w in words)
    assert words == conclusions(made, ["better", "worse", "a_bit_less", "a_bit_more"], ["yard"])


def test_conclusions_give_points_and_interval_by_hand() -> None:
    made = detail(a=np.array([0.2, 0.3, 0.4]), b=np.array([0.1, 0.2, 0.3]))
    assert conclusions(made, ["a"], ["b"]) == [
        "a is worse than b: +10.0 points of error [+10.0, +10.0], paired over 3 tasks."
    ]
    equal = detail(a=np.array([0.2, 0.3]), b=np.array([0.2, 0.3]))
    assert conclusions(equal, ["a"], ["b"])[0].startswith("a cannot be told apart from b: +0.0 points")


def test_static_of_a_task_without_other_experts() -> None:
    own = np.array([[True] * 3, [False] * 3, [False] * 3])
    assert np.isfinite(scores("static", ERRORS, own)).all()
