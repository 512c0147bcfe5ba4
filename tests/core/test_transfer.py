"""A block of the error matrix: heads on fixed features, and cells that fail."""

from __future__ import annotations

import numpy as np
import pytest

from t2v_core.config import HeadSpec
from t2v_core.errors import TaskError
from t2v_core.library import TaskRows
from t2v_core.transfer import CELLS, cells_table, evaluate_block, evaluate_cell

N = 120


def features() -> np.ndarray:
    """Two blobs along the first axis (even rows left, odd rows right), noise along the others."""
    x = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    x[:, 0] += np.where(np.arange(N) % 2, 20, -20)
    return x


def rows(labels: np.ndarray, test: np.ndarray | None = None, at: np.ndarray | None = None) -> TaskRows:
    at = np.arange(N) if at is None else at
    test = at % 3 == 0 if test is None else test
    return TaskRows(at, labels.astype(np.int64), test, np.array([f"g{i}" for i in at], object))


def test_separable_features_have_no_error() -> None:
    cell = evaluate_cell("e", "t", features(), rows(np.arange(N) % 2), HeadSpec())
    assert (cell.error, cell.balanced_error, cell.n_train, cell.n_test) == (0.0, 0.0, 80, 40)
    assert cell.converged
    assert (cell.expert, cell.task_id, cell.reason) == ("e", "t", "")
    assert cell.l2 == 1e-4


def test_errors_are_counted_on_the_test_rows_alone() -> None:
    """Test labels against the features: a tenth of class 0 wrong, none of class 1."""
    labels, test = np.arange(N) % 2, np.arange(N) >= 60
    labels[60:66:2] = 1
    cell = evaluate_cell("e", "t", features(), rows(labels, test), HeadSpec())
    assert cell.error == pytest.approx(3 / 60)
    assert cell.balanced_error == pytest.approx((3 / 33) / 2)
    assert cell.head_loss < 1e-2  # none of it was seen in training


def test_rows_pick_the_features_of_the_source() -> None:
    at = np.random.default_rng(1).permutation(N)[:70]
    assert evaluate_cell("e", "t", features(), rows(at % 2, at=at), HeadSpec()).error == 0.0
    shuffled = rows((at + np.arange(70)) % 2, at=at)
    assert evaluate_cell("e", "t", features(), shuffled, HeadSpec()).error > 0.2


def test_a_class_that_only_the_test_split_has_is_an_error_of_the_test() -> None:
    labels = np.arange(N) % 2
    labels[0] = 2
    cell = evaluate_cell("e", "t", features(), rows(labels), HeadSpec())
    assert cell.error == pytest.approx(1 / 40)
    assert cell.balanced_error == pytest.approx(1 / 3)


def test_groups_reach_the_head() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 80)).repeat(3, 0)
    labels, groups = rng.integers(0, 2, 40).repeat(3), np.arange(40).repeat(3)
    test = np.arange(N) >= 90
    spec = HeadSpec(l2=(1e-4, 1.0))
    chosen = [
        evaluate_cell("e", "t", x, TaskRows(np.arange(N), labels, test, g), spec).l2 for g in (groups, np.arange(N))
    ]
    assert chosen == [1.0, 1e-4]


def test_a_failing_task_is_a_row_with_its_reason() -> None:
    good = rows(np.arange(N) % 2)
    no_test = rows(np.arange(N) % 2, test=np.zeros(N, bool))
    one_class = rows(np.where(np.arange(N) % 3 == 0, 1, 0))
    seen: list[tuple[int, int]] = []
    tasks = [("good", good), ("no test", no_test), ("one class", one_class), ("good again", good)]
    cells = evaluate_block("e", features(), tasks, HeadSpec(), progress=lambda *x: seen.append(x))
    assert [c.task_id for c in cells] == ["good", "no test", "one class", "good again"]
    assert [bool(c.reason) for c in cells] == [False, True, True, False]
    assert [c.error for c in cells if not c.reason] == [0.0, 0.0]
    assert all(np.isnan(c.error) and np.isnan(c.balanced_error) and not c.converged for c in cells if c.reason)
    assert cells[1].reason == "no test: the test split is empty"
    assert "at least two classes" in cells[2].reason
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(TaskError, match="the test split is empty"):
        evaluate_cell("e", "no test", features(), no_test, HeadSpec())


def test_binary_tasks_of_one_source_together_are_the_cells_alone() -> None:
    """On rows of their own, among a task of three classes and one of no rows."""
    x = np.random.default_rng(3).normal(size=(N, 6)).astype(np.float32)
    tasks = [(f"t{k}", rows((x[:, k] + x[:, k + 1] > 0).astype(int))) for k in range(5)]
    tasks += [("few", rows(np.arange(20) % 2, at=np.arange(20))), ("three", rows(np.arange(N) % 3))]
    tasks += [("none", rows(np.arange(0), at=np.arange(0)))]
    spec = HeadSpec(tolerance=1e-7, max_iterations=1000)
    *cells, none = evaluate_block("e", x, tasks, spec)
    assert none.reason == "none: the test split is empty"
    for cell, (task_id, task) in zip(cells, tasks, strict=False):
        alone = evaluate_cell("e", task_id, x, task, spec)
        assert (cell.l2, cell.n_train, cell.n_test, cell.converged) == (alone.l2, alone.n_train, alone.n_test, True)
        assert cell.head_loss == pytest.approx(alone.head_loss, rel=1e-5)
        assert (cell.error, cell.balanced_error) == (alone.error, alone.balanced_error)
        assert cell.seconds > 0


def test_broken_features_fail_their_tasks_only() -> None:
    x = features()
    x[7] = np.nan
    without = np.flatnonzero(np.arange(N) != 7)
    tasks = [("hit", rows(np.arange(N) % 2)), ("clear", rows(without % 2, at=without))]
    hit, clear = evaluate_block("e", x, tasks, HeadSpec())
    assert "not finite" in hit.reason
    assert clear.error == 0.0


def test_same_bytes_twice_and_a_table() -> None:
    tasks = [("a", rows(np.arange(N) % 2)), ("b", rows(np.arange(N) % 5))]
    one, other = (cells_table(evaluate_block("e", features(), tasks, HeadSpec())) for _ in range(2))
    assert one.schema == CELLS
    assert one.drop_columns(["seconds"]).equals(other.drop_columns(["seconds"]))
    assert one["error"].to_pylist()[1] > 0.2  # five classes where two can be told apart
