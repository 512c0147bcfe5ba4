"""Packing in shards that resume, and datasets that people add while a pipeline runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import replicas
import yaml
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from flows._data import decode_rows
from flows._pack_units import close_unit, plan_unit, shard_unit
from flows._registered import configured
from flows._stage import StageParams, open_run
from flows._store import Store
from flows.cli import app
from flows.embed_tasks import EmbedTasksParams, embed_tasks
from flows.ingest import ingest, library_of
from t2v_core.config import SourceSpec, load_config
from t2v_core.errors import ConfigError, SourceError
from t2v_core.images import ImageTransform
from t2v_core.library import Task
from t2v_core.preview import preview_library


def packed(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list("sources")}


def test_packing_goes_on_with_the_shards_that_are_missing(
    config: Callable[..., str], tmp_path: Path, dask_cluster: str
) -> None:
    """As after a kill: some shards are there, one lost its record, the source is not closed. The bytes are the same."""
    path = config(sources__0__shard_rows=64, sources__1__shard_rows=10)
    whole, cut = (StageParams(config=path, store=str(tmp_path / name), dask=dask_cluster) for name in ("whole", "cut"))
    ingest(whole)
    ingest(cut)
    store = Store(cut.store)
    record = store.read_json(f"{store.read_json('latest/mini/sources.json')['sources']['digits']}/source.json")
    assert [s["rows"] for s in record["shards"]] == [64] * 4 + [44]
    prefix = record["shards"][0]["key"].rsplit("/", 1)[0]
    kept = store.read(f"{prefix}/shard-00000.parquet")
    for name in ("source.json", "annotations.parquet", "shard-00003.json", "shard-00003.parquet", "shard-00001.json"):
        store.delete(f"{prefix}/{name}")
    store.replace(f"{prefix}/shard-00001.parquet", b"half of it")
    result = ingest(cut)
    assert (result.done, result.reused, result.failed) == (1, 1, 0)
    assert packed(store) == packed(Store(whole.store))
    assert store.read(f"{prefix}/shard-00000.parquet") == kept
    again = ingest(cut)
    assert (again.done, again.reused) == (0, 2)


@pytest.mark.parametrize("store", ["folder", "memory"])
def test_a_sample_reads_the_row_groups_it_needs_and_no_other(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SourceSpec(name="digits", shard_rows=600, image_size=8)
    url = str(tmp_path / "store") if store == "folder" else f"memory://{tmp_path.name}"
    payload = {"source": source.model_dump(mode="json"), "prefix": "sources/digits-1"}
    plan_unit(url, payload)
    for index in range(3):
        shard_unit(url, {**payload, "index": index})
    close_unit(url, {**payload, "failed": ""})
    read: list[int] = []
    original = pyarrow.parquet.ParquetFile.read_row_group

    def counted(self: Any, i: int, **options: Any) -> Any:
        read.append(i)
        return original(self, i, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", counted)
    transform = ImageTransform(size=8, mean=(0, 0, 0), std=(1, 1, 1))
    rows = np.array([1796, 5, 300, 255, 620, 1200])  # shards of 600, 600 and 597 rows; groups of 256
    images = decode_rows(url, "sources/digits-1", transform, rows)
    assert sorted(read) == [0, 0, 0, 1, 2]
    pixels = load_digits().images
    for row, image in zip(rows, images, strict=True):
        np.testing.assert_array_equal(image[..., 0], np.rint(pixels[row] * 255 / 16))


def test_a_shard_that_cannot_be_packed_names_its_source(
    config: Callable[..., str], tmp_path: Path, dask_cluster: str, shapes_folder: Path
) -> None:
    """A worker cannot see the data although the flow can: that source fails, with the reason; the other is packed."""
    mine = tmp_path / "mine"
    shutil.copytree(shapes_folder, mine)
    path = config(sources__1__options={"path": str(mine)}, max_failed_share=0.6)
    params = StageParams(config=path, store=str(tmp_path / "store"), dask=dask_cluster)
    store = Store(params.store)
    ingest(params)
    prefix = store.read_json("latest/mini/sources.json")["sources"]["shapes"]
    for key in [k for k in store.list(prefix) if "plan" not in k]:
        store.delete(key)
    store.replace(f"{prefix}/plan.parquet", b"damaged")
    result = ingest(params)
    [(unit, reason)] = result.failures
    assert unit == "shapes"
    assert "not complete, run again to go on" in reason
    assert "plan.parquet" in reason
    assert list(store.read_json("latest/mini/sources.json")["sources"]) == ["digits"]


def test_the_papers_library_from_packed_replicas(tmp_path: Path, dask_cluster: str, config: Callable[..., str]) -> None:
    """All four layouts through the ingest flow: the manifest has the tasks that the annotation files promise."""
    data = tmp_path / "data"
    for name, kind in (("inat2018", "inaturalist"), ("CUB_200_2011", "cub"), ("imaterialist", "imaterialist")):
        getattr(replicas, f"small_{kind}")(data / name)
    path = tmp_path / "paper.yaml"
    own = {"min_test": 2, "max_ratio": 100.0, "rules": [{"source": "cub", "label": "species", "kind": "pairs"}]}
    path.write_text(yaml.safe_dump({"name": "paper", "use": "paper", "data": str(data), "sources": [], "library": own}))
    params = StageParams(config=str(path), store=str(tmp_path / "store"), dask=dask_cluster)
    with pytest.raises(SourceError, match="list_attr_cloth.txt is missing; get the Category and Attribute"):
        ingest(params)
    replicas.small_deepfashion(data / "deepfashion")
    result = ingest(params)
    assert (result.done, result.failed) == (4, 0)
    loaded = load_config(path)
    promised = preview_library(loaded.sources, loaded.library).library
    with open_run(params) as run:
        cut = library_of(run)

    def said(tasks: Iterable[Task]) -> set[Any]:
        return {(t.task_id, t.train_counts, t.test_counts, t.spec.lineage, t.spec.class_lineage) for t in tasks}

    assert said(cut.tasks) == said(promised.tasks)
    kinds = {t.spec.source for t in cut.tasks}
    assert kinds == {"inat2018", "cub", "imaterialist", "deepfashion"}
    attribute = next(t for t in cut.tasks if t.spec.source == "deepfashion")
    assert attribute.spec.lineage in {("texture",), ("fabric",), ("shape",), ("part",), ("style",)}


def test_ten_lines_of_the_docs_work_when_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "bring-your-own.md").read_text()
    block = page.split("```bash\n", 1)[1].split("```", 1)[0]
    (tmp_path / "examples").mkdir()
    shutil.copy(root / "examples" / "demo.yaml", tmp_path / "examples")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = subprocess.run(
        ["bash", "-euc", block],
        cwd=tmp_path,
        env={**os.environ, "PATH": tools, "T2V_STORE": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    assert "four-digits/label" in told.stdout
    assert "added 1 tasks on 720 images" in told.stdout


def folder_of(path: Path, shapes: Path, classes: tuple[str, ...]) -> Path:
    for name in classes:
        shutil.copytree(shapes / name, path / name)
    return path


def test_added_tasks_are_embedded_by_the_next_night(
    config: Callable[..., str], tmp_path: Path, dask_cluster: str, shapes_folder: Path
) -> None:
    mine = folder_of(tmp_path / "mine", shapes_folder, ("square", "cross"))
    path, url = config(), str(tmp_path / "store")
    params = EmbedTasksParams(config=path, store=url, dask=dask_cluster)
    assert embed_tasks(params).done == 6

    def t2v(*arguments: str) -> str:
        answer = CliRunner().invoke(app, ["tasks", "--config", path, "--store", url, *arguments])
        if answer.exception and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        return answer.output

    said = t2v("add", "mine", str(mine))
    assert "mine/label" in said
    assert "added 1 tasks on 48 images" in said
    assert "unchanged" in t2v("add", "mine", str(mine))
    night = embed_tasks(params)
    assert (night.done, night.reused) == (1, 6)
    with open_run(params) as run:
        assert [t.task_id for t in library_of(run).tasks][-1] == "mine/label"
    assert "mine: 1 tasks (1 binary)" in t2v()

    # Other images: the task is told apart, embedded anew, and its old embedding stays readable.
    for image in sorted((mine / "cross").glob("*.png"))[:6]:
        image.unlink()
    result = ingest(StageParams(config=path, store=url, dask=dask_cluster))
    assert result.notes[-1] == "1 tasks changed: mine/label"
    assert embed_tasks(params).done == 1
    rows = pd.read_parquet(f"{url}/embeddings")
    assert (rows["task_id"] == "mine/label").sum() == 2
    assert rows[rows["task_id"] == "mine/label"]["task_fingerprint"].nunique() == 2

    # The data go away: the night of all others is not stopped, and it is said.
    shutil.rmtree(mine)
    gone = ingest(StageParams(config=path, store=url, dask=dask_cluster))
    assert any(note.startswith("source mine left out") for note in gone.notes)
    assert gone.notes[-1] == "1 tasks removed: mine/label"
    assert "removed" in t2v("remove", "mine")
    assert [s.name for s in configured(path, url)[0].sources] == ["digits", "shapes", "gone"]
    with pytest.raises(ConfigError, match="no source 'mine' was added to 'mini'; added: none"):
        t2v("remove", "mine")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("digits", "{shapes}"), "has a source 'digits' of its own; choose another name"),
        (("mine", "{shapes}/nowhere"), "is neither a folder nor a .csv or .parquet file"),
        (("mine", "{shapes}", "--label", "colour"), "source 'mine' has no column 'colour'; its columns: label"),
        (("mine", "{one}"), "no column that a task can be cut by"),
        (("mine", "{few}"), "gives no task"),
        (("a b", "{shapes}"), "name: String should match pattern"),
    ],
)
def test_what_cannot_be_added_is_said_and_not_registered(
    config: Callable[..., str], tmp_path: Path, shapes_folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    places = {
        "shapes": shapes_folder,
        "one": folder_of(tmp_path / "one", shapes_folder, ("cross",)),
        "few": tmp_path / "few",
    }
    for i, image in enumerate(sorted((shapes_folder / "cross").glob("*.png"))[:12]):
        (tmp_path / "few" / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / "few" / f"c{i % 2}" / image.name)
    url = str(tmp_path / "store")
    options = ["tasks", "--config", config(library__min_train=10), "--store", url]
    answer = CliRunner().invoke(app, [*options, "add", *(a.format(**places) for a in arguments)])
    assert answer.exception is not None
    assert said in str(answer.exception)
    assert not Store(url).list("registered")
