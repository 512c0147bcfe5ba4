"""Features in chunks: made once, resumed, read by rows; and sources cut into blocks that bound the memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import flows._features
from flows._data import Extractor, load_extractor, load_images
from flows._features import BLOCK, blocks, make_features, n_chunks, read_features
from flows._keys import features_key
from flows._pack_units import close_unit, plan_unit, shard_unit
from flows._store import Store
from t2v_core.config import SourceSpec
from t2v_core.errors import StoreError
from t2v_core.features import extract_features
from t2v_core.library import Task, TaskSpec

PREFIX = "sources/digits-1"
EXTRACTOR = Extractor(architecture="efficientnet_lite0", weights="random", image_size=16)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store with 300 digits, and chunks of 128 rows."""
    monkeypatch.setattr(flows._features, "CHUNK", 128)
    monkeypatch.setattr(flows._features, "_DECODED", 50)
    place = str(tmp_path / "store")
    source = SourceSpec(name="digits", limit=300)
    payload = {"source": source.model_dump(mode="json"), "prefix": PREFIX}
    plan_unit(place, payload)
    shard_unit(place, {**payload, "index": 0})
    close_unit(place, {**payload, "failed": ""})
    yield place
    flows._features._chunk.cache_clear()


def test_chunks_hold_the_features_of_their_rows(url: str) -> None:
    assert n_chunks(url, PREFIX) == 3
    probe = load_extractor(url, EXTRACTOR)
    n = flows._features.source_record(url, PREFIX)["n_images"]
    whole = extract_features(probe, load_images(url, PREFIX, probe.transform, np.arange(n)))
    rows = np.array([290, 3, 127, 128, 129, 3])
    got, seconds = read_features(url, EXTRACTOR, probe.digest, PREFIX, rows)
    assert seconds > 0
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, whole[rows], rtol=2e-3, atol=1e-3 * np.abs(whole).max())
    keys = [features_key(probe.digest, 16, PREFIX, i) for i in range(3)]
    assert sorted(Store(url).list("features")) == sorted(keys)
    again, seconds = read_features(url, EXTRACTOR, probe.digest, PREFIX, rows)
    assert seconds == 0
    np.testing.assert_array_equal(again, got)


def test_only_the_chunks_that_are_needed_are_made(url: str) -> None:
    probe = load_extractor(url, EXTRACTOR)
    read_features(url, EXTRACTOR, probe.digest, PREFIX, np.array([130, 200]))
    assert list(Store(url).list("features")) == [features_key(probe.digest, 16, PREFIX, 1)]
    assert make_features(url, EXTRACTOR, probe.digest, PREFIX, 1) == 0
    assert make_features(url, EXTRACTOR, probe.digest, PREFIX, 2) > 0


def test_a_chunk_of_another_source_is_refused(url: str) -> None:
    probe = load_extractor(url, EXTRACTOR)
    key = features_key(probe.digest, 16, PREFIX, 1)
    Store(url).put(key, save({"features": np.zeros((5, probe.n_features), np.float16)}))
    with pytest.raises(StoreError, match="holds 5 rows where 128 belong; delete it"):
        read_features(url, EXTRACTOR, probe.digest, PREFIX, np.array([130]))


def task(name: str, train: int, test: int) -> Task:
    spec = TaskSpec(
        task_id=name, source="s", domain="d", kind="binary", label="l", classes=("a", "b"), values=(("a",), ("b",)),
        max_per_class=9, max_ratio=3, seed=0,
    )  # fmt: skip
    return Task(spec, (train, train), (test, test), "f")


def test_blocks_keep_to_their_rows_and_lose_no_task() -> None:
    third = BLOCK // 8
    tasks = [task(f"s/{i}", third // 2, third // 2) for i in range(8)]  # each uses a quarter of a block
    assert [len(b) for b in blocks(tasks, 10 * BLOCK)] == [4, 4]
    assert [t for b in blocks(tasks, 10 * BLOCK) for t in b] == tasks
    assert [len(b) for b in blocks(tasks, BLOCK)] == [8]  # its rows are so many at most
    huge = [task("s/a", 1, 1), task("s/huge", BLOCK, BLOCK), task("s/b", 1, 1)]
    assert [[t.task_id for t in b] for b in blocks(huge, 10 * BLOCK)] == [["s/a"], ["s/huge"], ["s/b"]]


def test_bfloat16_is_another_object_with_nearly_the_same_features(url: str) -> None:
    probe = load_extractor(url, EXTRACTOR)
    rows = np.arange(40)
    full, _ = read_features(url, EXTRACTOR, probe.digest, PREFIX, rows)
    brain, seconds = read_features(url, EXTRACTOR, probe.digest, PREFIX, rows, 64, "bfloat16")
    assert seconds > 0
    assert len(list(Store(url).list("features"))) == 2
    assert not np.array_equal(full, brain)
    spread = np.linalg.norm(full - full.mean(0))
    assert np.linalg.norm(brain - full) < 0.2 * spread
