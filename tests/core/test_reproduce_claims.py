"""Claims: verdicts differ between embeddings that agree with everything and those that agree with nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from reproduced import evidence, runs
from scipy.stats import spearmanr

from t2v_core.config import SelectionSpec
from t2v_core.errors import DataError
from t2v_core.reproduce.bootstrap import group_weights, mean_interval, pair_correlation, rank_correlation
from t2v_core.reproduce.claims import (
    Verdict,
    attributes_do_not_collapse,
    few_samples_keep_the_gain,
    judge,
    nearer,
    norm_follows_difficulty,
    selection_beats_generic,
    taxonomy_agrees,
    twins_are_near,
)
from t2v_core.reproduce.few_samples import relative_curves, starts_of
from t2v_core.reproduce.neighbourhood import neighbourhoods

SPEC = SelectionSpec(n_bootstrap=200)
SMALL = {10: 0.4, 100: 0.3}


def test_a_verdict_is_where_the_interval_lies() -> None:
    assert judge(0.6, 0.55, 0.7, 0.5) is Verdict.SHOWN
    assert judge(0.6, 0.45, 0.7, 0.5) is Verdict.NOT_SHOWN
    assert judge(0.4, 0.30, 0.45, 0.5) is Verdict.AGAINST
    assert judge(float("nan"), 0.0, 1.0) is Verdict.NO_DATA


def test_the_taxonomy_agrees_where_distances_follow_it_and_not_where_they_are_random() -> None:
    agrees, random, opposite = (taxonomy_agrees(evidence(k), SPEC) for k in ("perfect", "random", "reversed"))
    assert agrees.verdict is Verdict.SHOWN
    assert agrees.value > 0.7  # most pairs share no top and are tied in the taxonomy, not in the embedding
    assert agrees.n == 32  # the species of both domains, no attribute task
    assert random.verdict is Verdict.NOT_SHOWN
    assert opposite.verdict is Verdict.AGAINST
    exact = evidence()
    kept = np.flatnonzero(exact.taxonomic)
    exact.symmetric[np.ix_(kept, kept)] = exact.taxonomy_distances
    assert taxonomy_agrees(exact, SPEC).value == pytest.approx(1.0)


def test_twins_are_near_where_topics_count_and_not_where_nothing_does() -> None:
    near, random = twins_are_near(evidence(), SPEC), twins_are_near(evidence("random"), SPEC)
    assert near.value == 1.0
    assert near.verdict is Verdict.SHOWN
    assert "very nearest for 100%" in near.detail
    assert random.verdict is Verdict.NOT_SHOWN
    assert abs(random.value - 0.5) < 0.12
    assert twins_are_near(evidence("reversed"), SPEC).verdict is Verdict.AGAINST


def test_attributes_keep_their_question_in_the_embedding_and_lose_it_in_the_domain() -> None:
    kept, collapsed = attributes_do_not_collapse(evidence(), SPEC)
    assert kept.value == 1.0
    assert (kept.verdict, collapsed.verdict) == (Verdict.SHOWN, Verdict.SHOWN)
    assert 0.3 < collapsed.value < 0.7  # the domain embedding is at chance, one half
    random = attributes_do_not_collapse(evidence("random"), SPEC)
    assert [c.verdict for c in random] == [Verdict.NOT_SHOWN, Verdict.NOT_SHOWN]
    # An embedding that is itself the domain's has collapsed by the same measure.
    same = evidence(symmetric=evidence().domain)
    assert attributes_do_not_collapse(same, SPEC)[1].value == 0.0


def test_the_norm_follows_difficulty_where_it_was_made_of_it() -> None:
    best, own = norm_follows_difficulty(evidence(), SPEC)
    assert own.value == pytest.approx(1.0)
    assert own.verdict is Verdict.SHOWN
    assert norm_follows_difficulty(evidence("random"), SPEC)[1].verdict is Verdict.NOT_SHOWN
    made = evidence()
    made.tasks["complexity"] = -made.tasks["head_error"]
    assert norm_follows_difficulty(made, SPEC)[1].verdict is Verdict.AGAINST
    assert best.n == own.n == len(made.tasks)


def test_selection_against_the_generic_expert_is_paired_over_tasks() -> None:
    made = evidence()
    ids = made.task_ids[:6]
    generic = [0.5, 0.4, 0.3, 0.5, 0.4, 0.3]
    rows = [
        {"meta_task": "m", "reading": "r", "method": method, "task_id": t, "error": g - less}
        for method, less in (("generic", 0.0), ("good", 0.1), ("bad", -0.02))
        for t, g in zip(ids, generic, strict=True)
    ]
    good, bad, absent = selection_beats_generic(made, pd.DataFrame(rows), SPEC, ["good", "bad", "absent"])
    # The generic errors differ by 20 points from task to task; the paired differences do not differ at all.
    assert (good.value, good.low, good.high) == pytest.approx((10.0, 10.0, 10.0))
    assert (good.verdict, bad.verdict, absent.verdict) == (Verdict.SHOWN, Verdict.AGAINST, Verdict.NO_DATA)


def test_the_gain_that_is_kept_with_few_images() -> None:
    def kept(small: float) -> object:
        picked = {10: SMALL[10] - small, 100: SMALL[100] - 0.10}
        return few_samples_keep_the_gain(evidence(transfer=runs(picked, SMALL, {10: 0.2, 100: 0.1})), SPEC)

    assert kept(0.09).value == pytest.approx(0.9)  # type: ignore[attr-defined]
    assert kept(0.09).verdict is Verdict.SHOWN  # type: ignore[attr-defined]
    assert kept(0.02).verdict is Verdict.AGAINST  # type: ignore[attr-defined]
    assert few_samples_keep_the_gain(evidence(), SPEC).verdict is Verdict.NO_DATA
    few = runs({10: 0.3, 100: 0.2}, SMALL, {10: 0.2, 100: 0.1})
    few = few[few["task_id"].isin(few["task_id"].unique()[:4])]
    assert few_samples_keep_the_gain(evidence(transfer=few), SPEC).verdict is Verdict.NOT_SHOWN
    nothing = runs(SMALL, SMALL, SMALL)
    assert few_samples_keep_the_gain(evidence(transfer=nothing), SPEC).verdict is Verdict.NO_DATA


def test_curves_are_relative_to_the_best_frozen_start_but_a_tasks_own() -> None:
    found = starts_of(runs({10: 0.3, 0: 0.2}, {10: 0.4, 0: 0.3}, {10: 0.2, 0: 0.1}))
    assert found["oracle"].tolist() == [0.2, 0.1] * 6  # `own` has error 0 and is no candidate
    assert set(found["candidates"]) == {3}
    curves = relative_curves(found, SPEC).set_index(["curve", "size"])
    assert curves.loc[("selected, frozen", 10), "value"] == pytest.approx(0.5)
    assert curves.loc[("generic, frozen", 0), "value"] == pytest.approx(2.0)
    assert curves.loc[("generic, fine-tuned", 0), "value"] == pytest.approx(1.9)
    assert [size for _, size in curves.index[::4]] == [10, 0]  # 0 is all images: the largest
    with pytest.raises(DataError, match="lack columns own, selected"):
        starts_of(runs(SMALL, SMALL, SMALL).drop(columns=["selected", "own"]))


def test_nearer_counts_pairs_and_halves_ties() -> None:
    distances = np.array([0.1, 0.2, 0.2, 0.4])
    assert nearer(distances, np.array([0]), np.array([1, 2, 3])) == 1.0
    assert nearer(distances, np.array([1]), np.array([0, 2, 3])) == pytest.approx(0.5)  # loses, ties, wins
    rng = np.random.default_rng(0)
    d = rng.integers(0, 9, 40) / 9
    a, b = np.arange(15), np.arange(15, 40)
    slow = np.mean([[1.0 if d[i] < d[j] else 0.5 if d[i] == d[j] else 0.0 for j in b] for i in a])
    assert nearer(d, a, b) == pytest.approx(slow)


def test_correlations_are_scipys_and_a_resample_is_one_of_repeated_rows() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random(20), rng.random(20)
    assert rank_correlation(x, y, np.arange(20), SPEC)[0] == pytest.approx(spearmanr(x, y).statistic)
    a, b = rng.random((9, 9)), rng.integers(0, 3, (9, 9)).astype(float)
    a, b = a + a.T, b + b.T
    b[2, 5] = b[5, 2] = np.nan
    upper = np.triu_indices(9, 1)
    known = np.isfinite(b[upper])
    assert pair_correlation(a, b, np.arange(9), SPEC)[0] == pytest.approx(
        spearmanr(a[upper][known], b[upper][known]).statistic
    )


def test_groups_are_resampled_whole() -> None:
    groups = np.array([7, 7, 7, 2, 2, 5])
    weights = group_weights(groups, SPEC)
    assert (weights[:, :3] == weights[:, :1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert ((weights[:, 0] + weights[:, 3] + weights[:, 5]) == 3).all()
    values = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    wide = mean_interval(values, groups, SPEC)
    narrow = mean_interval(np.tile(values, 20), np.arange(120), SPEC)
    assert wide[2] - wide[1] > narrow[2] - narrow[1]


def test_neighbourhoods_by_hand() -> None:
    tax = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [2, 2, 0, 0], [2, 2, 0, 0]], float)
    good = neighbourhoods(tax + 0.1, tax)
    # One neighbour of distance 0, then two of 2: means 0, 1, 4/3.
    assert good.ours == pytest.approx([0, 1, 4 / 3])
    assert good.ideal == pytest.approx([0, 1, 4 / 3])
    assert good.chance == pytest.approx(4 / 3)
    assert good.captured == pytest.approx(1.0)
    bad = neighbourhoods(2.5 - tax, tax)
    assert bad.ours == pytest.approx([2, 2, 4 / 3])
    assert bad.captured < 0
    rng = np.random.default_rng(0)
    big = np.kron(tax, np.ones((10, 10)))
    noise = rng.random((40, 40))
    assert abs(neighbourhoods(noise + noise.T, big).captured) < 0.15
    with pytest.raises(DataError, match="three tasks"):
        neighbourhoods(tax[:2, :2], tax[:2, :2])
