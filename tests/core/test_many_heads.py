"""Heads trained together are the heads trained alone; and the reference recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2v_core import many_heads
from t2v_core.config import HeadSpec
from t2v_core.errors import ComputeError, TaskError
from t2v_core.heads import fit_head
from t2v_core.many_heads import HeadTask, fit_heads
from t2v_core.reference_head import fit_reference_head

N, D = 500, 40
TIGHT = HeadSpec(l2=(1e-2, 1e-1), tolerance=1e-7)


def source(n: int = N, d: int = D, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * np.geomspace(3, 0.1, d) + 5).astype(np.float32)


def task(features: np.ndarray, seed: int, share: float = 1.0, positive: float = 0.5) -> HeadTask:
    """Labels that the features explain in part."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(features))[: int(share * len(features))])
    score = (features[rows] - 5) @ rng.normal(size=features.shape[1]) + rng.normal(0, 3, len(rows))
    labels = (score > np.quantile(score, 1 - positive)).astype(np.int64)
    return HeadTask(rows, labels)


def assert_same(features: np.ndarray, tasks: list[HeadTask], spec: HeadSpec, rel: float) -> None:
    results = fit_heads(features, tasks, spec)
    assert all(r.together for r in results)
    for result, t in zip(results, tasks, strict=True):
        alone = fit_head(features[t.rows], t.labels, spec, groups=t.groups)
        assert result.fit is not None
        assert result.fit.l2 == alone.l2
        assert result.fit.loss == pytest.approx(alone.loss, rel=rel)
        assert result.fit.held_out_loss == pytest.approx(alone.held_out_loss, rel=rel)
        assert result.fit.accuracy == pytest.approx(alone.accuracy, abs=0.005)
        assert result.fit.converged
        scale = np.abs(alone.weight).max()
        assert np.abs(result.fit.weight - alone.weight).max() < 30 * rel * scale
        p, q = (features[t.rows] @ f.weight.T + f.bias for f in (result.fit, alone))
        assert np.abs((p[:, 1] - p[:, 0]) - (q[:, 1] - q[:, 0])).max() < 100 * rel * np.abs(q).max()


def test_together_is_alone_in_float64() -> None:
    x = source()
    tasks = [
        task(x, s, share, positive) for s, (share, positive) in enumerate([(1, 0.5), (0.4, 0.5), (1, 0.06), (0.8, 0.9)])
    ]
    assert_same(x, tasks, TIGHT, 1e-5)


def test_together_is_alone_to_the_usual_tolerance() -> None:
    """Mostly in float32."""
    x = source()
    assert_same(x, [task(x, s) for s in range(6)], HeadSpec(l2=(1e-2,)), 1e-3)


def test_fewer_rows_than_features() -> None:
    x = source(60, 200)
    assert_same(x, [task(x, s) for s in range(4)], TIGHT, 1e-5)


def test_groups_are_held_out_together() -> None:
    x = source()
    groups = np.random.default_rng(5).integers(0, 12, N)
    tasks = [HeadTask(t.rows, t.labels, groups) for t in (task(x, s) for s in range(3))]
    assert_same(x, tasks, TIGHT, 1e-5)


def test_separable_and_unbalanced() -> None:
    x = source()
    labels = (x[:, 0] > np.quantile(x[:, 0], 0.98)).astype(np.int64)
    assert_same(x, [HeadTask(np.arange(N), labels)] * 3, HeadSpec(l2=(1e-3,), tolerance=1e-7, balance=False), 1e-5)


def test_equal_tasks_get_equal_heads_and_order_does_not_matter() -> None:
    x = source()
    tasks = [task(x, s % 3) for s in range(7)]
    results = fit_heads(x, tasks, TIGHT)
    reverse = fit_heads(x, tasks[::-1], TIGHT)[::-1]
    for i, result in enumerate(results):
        assert result.fit is not None
        for other in (results[i % 3].fit, reverse[i].fit):
            assert other is not None
            assert np.abs(result.fit.weight - other.weight).max() < 1e-5 * np.abs(other.weight).max()


def test_a_bad_task_is_reported_and_takes_none_along() -> None:
    x = source()
    x[7] = np.nan
    good = [task(x[np.arange(N) != 7], s) for s in range(3)]
    good = [HeadTask(np.where(t.rows >= 7, t.rows + 1, t.rows), t.labels) for t in good]
    one_class = HeadTask(np.arange(20, 40), np.zeros(20, np.int64))
    not_finite = HeadTask(np.arange(20), np.arange(20) % 2)
    out_of_range = HeadTask(np.array([0, N]), np.array([0, 1]))
    ragged = HeadTask(np.arange(10), np.arange(9) % 2)
    multiclass = HeadTask(np.arange(20, 200), np.arange(180) % 3)
    seen: list[tuple[int, int]] = []
    results = fit_heads(
        x,
        [one_class, *good, not_finite, out_of_range, ragged, multiclass],
        TIGHT,
        progress=lambda d, n: seen.append((d, n)),
    )
    assert seen == [(i, 8) for i in range(1, 9)]
    kinds = [type(r.error) for r in results]
    assert kinds == [TaskError, *[type(None)] * 3, ComputeError, TaskError, TaskError, type(None)]
    assert "two classes" in str(results[0].error)
    assert results[-1].fit is not None
    assert results[-1].fit.weight.shape == (3, D)
    for result, t in zip(results[1:4], good, strict=True):
        assert result.fit is not None
        assert result.fit.loss == pytest.approx(fit_head(x[t.rows], t.labels, TIGHT).loss, rel=1e-5)


def test_the_chunk_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = source()
    tasks = [task(x, s, share=(1, 0.6)[s % 2]) for s in range(9)]
    wide = fit_heads(x, tasks, TIGHT)
    monkeypatch.setattr(many_heads, "_WIDEST", 2)
    for one, other in zip(wide, fit_heads(x, tasks, TIGHT), strict=True):
        assert one.fit is not None
        assert other.fit is not None
        assert one.fit.l2 == other.fit.l2
        assert one.fit.loss == pytest.approx(other.fit.loss, rel=1e-6)
        assert np.abs(one.fit.weight - other.fit.weight).max() < 1e-5 * np.abs(one.fit.weight).max()


def test_what_does_not_converge_together_is_the_head_alone() -> None:
    x = source()
    tasks, spec = [task(x, s) for s in range(3)], HeadSpec(l2=(1e-3,), max_iterations=2)
    for result, t in zip(fit_heads(x, tasks, spec), tasks, strict=True):
        alone = fit_head(x[t.rows], t.labels, spec)
        assert not result.together
        assert result.fit is not None
        assert np.array_equal(result.fit.weight, alone.weight)
        assert result.fit.converged == alone.converged


def test_what_goes_together() -> None:
    """It is the union of the rows that counts, not the size of a task."""
    whole = [np.arange(2000)] * 4
    assert many_heads._worth(whole, 2000, 1280) == [0, 1, 2, 3]
    assert many_heads._worth(whole[:1], 2000, 1280) == []
    disjoint = [np.arange(300 * i, 300 * i + 300) for i in range(12)]
    assert many_heads._worth(disjoint, 4000, 1280) == []
    assert many_heads._worth([*disjoint[:2], *whole], 4000, 1280)[-4:] == [2, 3, 4, 5]
    tiny = [np.arange(1000, 1010), *whole]
    assert many_heads._worth(tiny, 2000, 1280) == [1, 2, 3, 4]
    x = source(600, 1000)
    apart = [HeadTask(np.arange(100 * i, 100 * i + 100), np.arange(100) % 2) for i in range(6)]
    assert not any(r.together for r in fit_heads(x, apart, HeadSpec(l2=(1e-1,))))
    assert not fit_heads(x, [task(x, 0)], TIGHT)[0].together


def test_no_tasks() -> None:
    assert fit_heads(source(), []) == []


def test_the_reference_recipe_learns_and_is_seeded() -> None:
    x = source()
    t = task(x, 0)
    state = torch.get_rng_state()
    first, again, other = (fit_reference_head(x, t.labels, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first.weight, again.weight)
    assert not np.array_equal(first.weight, other.weight)
    assert first.iterations == 10 * 157
    assert not first.converged
    assert first.accuracy > 0.6 > 0.5
    assert first.loss < np.log(2)


def test_the_reference_recipe_draws_classes_equally_often() -> None:
    """99 to 1: an unbalanced head would give the rare class a bias of about log 99 below the other."""
    rng = np.random.default_rng(0)
    labels = (np.arange(2000) % 100 == 0).astype(np.int64)
    fit = fit_reference_head(rng.normal(size=(2000, 2)) * 0.01, labels, learning_rate=1e-2)
    assert abs(fit.bias[1] - fit.bias[0]) < 0.3


def test_the_reference_recipe_refuses_what_has_no_answer() -> None:
    with pytest.raises(TaskError, match="two classes"):
        fit_reference_head(np.ones((4, 2)), np.zeros(4))
    with pytest.raises(ComputeError, match="1 of 4 feature rows"):
        fit_reference_head(np.array([[np.nan], [1.0], [1.0], [1.0]]), [0, 1, 0, 1])
