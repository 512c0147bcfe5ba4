"""The selector as a file, its ranking in words and numbers, what it answers where it is served; experts tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2v_core.distances import symmetric_distance
from t2v_core.errors import DataError, TaskError
from t2v_core.images import ImageTransform
from t2v_core.model2vec import Model2Vec
from t2v_core.prediction import fit_error_model
from t2v_core.query import read_folder
from t2v_core.selector import Selector
from t2v_core.served import COLUMNS, served_answer
from t2v_core.verify import TEST_SHARE, split_of

P, T = 50, 40


def selector(predictions: bool = True) -> tuple[Selector, np.ndarray]:
    """Three experts, the first without a task; errors that grow with the distance. And the library's embeddings."""
    rng = np.random.default_rng(0)
    tasks = rng.lognormal(size=(T, P)) + 0.1
    base = np.stack([np.zeros(P), tasks[0], tasks[1]])
    vectors = np.where(base > 0, base, tasks.mean(0))
    distances = np.array([[np.nan, *(symmetric_distance(b, t) for b in base[1:])] for t in tasks])
    head = rng.uniform(0.05, 0.4, T)
    errors = head[:, None] * np.array([1.0, 0.8, 0.8]) + 0.2 * np.nan_to_num(distances - np.nanmean(distances))
    own = np.zeros((T, 3), bool)
    own[0, 1] = own[1, 2] = True
    complexity = np.abs(tasks - 0.1).sum(1)
    models = {
        "head": fit_error_model(errors, own, distances, head, uses_head=True),
        "embedding": fit_error_model(errors, own, distances, complexity, uses_head=False),
    }
    made = Selector(
        model=Model2Vec(vectors, 10.0, 0.15, np.full(P, 0.1), 1.0, np.array([0.05, 0.0, 0.0])),
        experts=("generic", "a", "b"),
        tasks=((), ("s/one",), ("s/1", "s/2", "s/3", "s/4")),
        base=base,
        probe="p:1",
        probe_name="p",
        image_size=32,
        mean_error=errors.mean(0),
        image_seconds=np.array([0.01, 0.01, 0.02]),
        head_seconds=np.array([1.0, 1.0, 2.0]),
        device="cpu",
        n_tasks=T,
        fingerprint="0",
        predictions={k: m for k, m in models.items() if m} if predictions else {},
    )
    return made, tasks


def test_the_same_after_a_file_and_the_same_bytes_again() -> None:
    made, tasks = selector()
    data = made.dumps()
    back = Selector.loads(data)
    assert back.dumps() == data
    assert back.tasks == made.tasks
    a, b = (x.rank(tasks[5], head_error=0.2, n_images=100) for x in (made, back))
    assert a["expert"].tolist() == b["expert"].tolist()
    assert b["predicted_error"].tolist() == pytest.approx(a["predicted_error"].tolist(), rel=1e-4)
    for wrong in (b"", data[:-40], made.model.vectors.tobytes()):
        with pytest.raises(DataError, match="not a selector of this version"):
            Selector.loads(wrong)


def test_costs_are_each_experts_own() -> None:
    made, tasks = selector()
    by = made.rank(tasks[5], n_images=300).set_index("expert")
    assert by["seconds"].to_dict() == pytest.approx({"generic": 4.0, "a": 4.0, "b": 8.0})


def test_errors_are_predicted_with_and_without_the_heads_error() -> None:
    made, tasks = selector()
    easy, hard, unknown = (made.rank(tasks[5], head_error=h).set_index("expert") for h in (0.06, 0.35, np.nan))
    assert (easy["predicted_error"] < hard["predicted_error"]).all()
    assert made.error_model(0.1) is made.predictions["head"]
    assert made.error_model() is made.predictions["embedding"]
    assert np.isfinite(unknown["predicted_error"]).all()
    known = made.predictions["head"]
    own = [symmetric_distance(made.base[i], tasks[5]) for i in (1, 2)]
    expected, low, high = known.predict(0.06, np.array([np.nan, *own]))
    assert easy.loc[list(made.experts), "predicted_error"].tolist() == pytest.approx(expected.tolist())
    assert (low < expected).all()
    assert (expected < high).all()


def test_ties_by_images_and_by_past_misses() -> None:
    made, tasks = selector(predictions=False)
    near_a = tasks[0] * np.random.default_rng(1).lognormal(0, 0.05, P)
    alone = made.rank(near_a, np.stack([near_a] * 4))
    assert alone["expert"].iloc[0] == "a"
    assert not alone["tied"].any()
    assert alone["predicted_error"].isna().all()
    apart = np.stack([tasks[0], tasks[1], tasks[0], tasks[1]])
    between = made.rank(apart.mean(0), apart)
    assert set(between[between["tied"]]["expert"]) >= {"a", "b"}
    # With a record of misses, an expert that is nearly as good by prediction is tied too.
    with_record, _ = selector()
    rows = with_record.rank(near_a, np.stack([near_a] * 4), head_error=0.2).set_index("expert")
    assert rows["tied"].to_dict()["a"] == (rows["better"].drop("a") >= 0.25).any()


def test_an_embedding_of_another_probe() -> None:
    made, _ = selector()
    with pytest.raises(DataError, match="got an embedding of 7 filters; this selector wants 50"):
        made.rank(np.ones(7))


def test_what_is_served() -> None:
    made, tasks = selector()
    rows = served_answer(made, tasks[3:5].astype(np.float32), 2, 0.1)
    assert list(rows.columns) == list(COLUMNS)
    assert rows[["query", "rank"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    every = served_answer(made, tasks[3], 9).set_index("expert")
    assert every.loc["generic", "reason"] == "its task is not known"
    assert every.loc["b", "reason"].startswith("trained on s/1, s/2, s/3 and 1 more; 0.")
    without = made.rank(tasks[3]).set_index("expert")["predicted_error"]
    assert every["predicted_error"].to_dict() == without.to_dict()


# Reading a folder, and holding images out


def folder_of(root: Path, counts: dict[str, int], size: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for name, n in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(root / name / f"{i:03d}.png")
    return root


TRANSFORM = ImageTransform(size=8, mean=(0, 0, 0), std=(1, 1, 1))


def test_reading_takes_a_sample_of_large_classes_whatever_is_beside_it(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "f", {"a": 70, "b": 5})
    read = read_folder(str(root), TRANSFORM, max_per_class=20)
    assert np.bincount(read.labels).tolist() == [20, 5]
    assert read.classes == ("a", "b")
    assert read.images.shape == (25, 8, 8, 3)
    again = read_folder(str(root), TRANSFORM, max_per_class=20)
    assert (read.images == again.images).all()
    # What is not read is not opened: a class of damaged files beyond the sample is no reject.
    (root / "a" / "zzz.png").write_bytes(b"no image")
    assert len(read_folder(str(root), TRANSFORM).rejects) == 1


def test_the_held_out_share_keeps_twins_together_and_every_class_on_both_sides(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "f", {"a": 20, "b": 10, "c": 2})
    for i in range(5):
        (root / "a" / f"twin{i}.png").write_bytes((root / "a" / f"{i:03d}.png").read_bytes())
    read = read_folder(str(root), TRANSFORM)
    test = split_of(read)
    assert not set(read.groups[test]) & set(read.groups[~test])
    assert len(set(read.groups)) == 32
    assert len(set(read.groups[test])) == pytest.approx(TEST_SHARE * 32, abs=1)
    for side in (test, ~test):
        assert set(read.labels[side]) == {0, 1, 2}


def test_a_folder_that_has_a_split_keeps_it(tmp_path: Path) -> None:
    folder_of(tmp_path / "f" / "train", {"a": 6, "b": 6})
    folder_of(tmp_path / "f" / "test", {"a": 3, "b": 2})
    read = read_folder(str(tmp_path / "f"), TRANSFORM)
    assert split_of(read).sum() == 5


def test_one_image_of_each_class_cannot_be_tried(tmp_path: Path) -> None:
    read = read_folder(str(folder_of(tmp_path / "f", {"a": 1, "b": 1})), TRANSFORM)
    with pytest.raises(TaskError, match="none can be held out; add images"):
        split_of(read)
