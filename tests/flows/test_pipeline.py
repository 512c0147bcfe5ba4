"""The whole line on a small config, over Prefect's test harness and a real Dask cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest

from flows._cluster import shared_cluster
from flows._keys import EMBEDDING_UNITS
from flows._moments import read_moments
from flows._plan import Speed, make_plan, probe_of
from flows._registered import configured
from flows._stage import StageFailed, StageParams
from flows._store import Store
from flows.embed_tasks import EmbedTasksParams, embed_tasks
from flows.ingest import ingest
from flows.pipeline import PipelineParams, pipeline
from t2v_core.errors import ConfigError, SourceError, StoreError, T2VError, UnknownNameError, WeightsError
from t2v_core.library import TaskLibrary
from t2v_core.selectors import SELECTORS

pytestmark = pytest.mark.usefixtures("prefect_api")


def train_images(store: Store) -> float:
    """Of the median task."""
    library = TaskLibrary.from_table(store.read_table(store.read_json("latest/mini/library.json")["manifest"]))
    return float(np.median([sum(task.train_counts) for task in library.tasks]))


def contents(store: Store) -> dict[str, bytes]:
    """Every object of a store."""
    return {key: store.read(key) for key in store.list()}


def vectors(store: Store) -> dict[str, bytes]:
    """Task id to the bytes of its embedding's vector."""
    table = pd.read_parquet(store.path("embeddings"))
    return {row.task_id: np.asarray(row.vector, np.float32).tobytes() for row in table.itertuples()}


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """(store URL, Dask address): a folder on the shared cluster, or S3 on a cluster that starts in its environment."""
    if request.param == "folder":
        return str(tmp_path / "store"), request.getfixturevalue("dask_cluster")
    return request.getfixturevalue("s3_url"), ""


def test_the_main_job_twice(config: Callable[..., str], place: tuple[str, str], tmp_path: Path) -> None:
    url, address = place
    params = PipelineParams(config=config(), store=url, dask=address, workers=2)
    with shared_cluster(address, 2):
        first = pipeline(params)
        store = Store(url)
        before = contents(store)
        second = pipeline(params)
    after = contents(store)

    # 1. What ran: every unit once, and then none.
    assert [(s["stage"], s["done"], s["failed"]) for s in first["stages"]] == [
        ("ingest", 2, 0),
        ("embed tasks", 6, 0),
        ("train experts", 2, 0),
        ("evaluate experts", 6, 0),
        ("fit MODEL2VEC", 4, 0),
        ("report", 1, 0),
    ]
    assert all(s["done"] == 0 for s in second["stages"])
    changed = {k for k in before | after if before.get(k) != after.get(k)}
    assert {k.split("/")[0] for k in changed} <= {"results"}  # its stage counts say "reused" now

    # 2. The table: all selectors in each reading that can be judged, oracle at zero, none below it.
    table = pd.DataFrame(first["table"])
    assert {"own expert left out", "all candidates"} <= set(table["reading"])
    wanted = {n for n in SELECTORS if not SELECTORS[n].slow and n != "taxonomic distance"} | {"chance"}
    assert all(set(part["method"]) == wanted for _, part in table.groupby("reading"))
    assert set(table["meta_task"]) == {"all"}
    assert (table[table["method"] == "oracle"]["relative_increase"] == 0).all()
    assert (table["relative_increase"] >= 0).all()

    costs = table[table["reading"] == "own expert left out"].set_index("method")
    assert (costs[["query_seconds", "query_images"]].loc[["static", "chance", "generic"]] == 0).all(axis=None)
    assert 0 < costs["query_seconds"]["domain distance"] < costs["query_seconds"]["MODEL2VEC"]
    assert costs["query_images"]["oracle"] == 3 * train_images(store)

    # C1 of a task is over the images that its mean features are over: a second moment is no less than a squared mean.
    embedded = pd.DataFrame(store.read_table("embeddings/part-0.parquet").to_pylist())
    moments = read_moments(
        store, store.read_json("latest/mini/moments.json")["units"], list(embedded["task_fingerprint"])
    )
    assert moments is not None
    means = np.stack(embedded["domain_embedding"].to_list())
    assert moments.shape == means.shape
    assert (moments >= np.square(means) - 1e-4).all()
    assert (moments <= 20 * np.square(means).max(1, keepdims=True)).all()
    assert len(np.unique(moments.round(6), axis=0)) == 6

    # 3. The report: bad images, skipped tasks and the absent source are in it, by name.
    page = store.read(first["keys"][0]).decode()
    for said in ("truncated.png", "bomb.png", "zero.png", "one class only", "left out"):
        assert said in page
    # It names its MLflow run and what the work cost, and has images of every task.
    assert f"{first['mlflow_run']} in " in page
    assert "a head of the error matrix" in page
    images = json.loads(re.search(r'id="t2v-images">(.*?)</script>', page)[1])
    assert sorted(images) == [str(i) for i in range(6)]
    assert all(set(image["names"]) for image in images.values())
    sources = store.read_json("latest/mini/sources.json")
    record = store.read_json(f"{sources['sources']['shapes']}/source.json")
    rejects = store.read_table(f"{sources['sources']['shapes']}/rejects.parquet").to_pylist()
    bad = {Path(r["image_id"]).name for r in rejects if "the same picture as" not in r["reason"]}
    assert bad == {"truncated.png", "zero.png", "text.png", "bomb.png", "page.html"}
    twice = {Path(r["image_id"]).name: r["reason"] for r in rejects if Path(r["image_id"]).name not in bad}
    assert twice == {
        "grey.png": "the same picture as disc/deep.png",
        "palette.png": "the same picture as disc/moving.gif",
    }
    assert (record["n_rejected"], record["n_duplicates"]) == (5, 2)
    assert record["n_images"] == 3 * 24 + 6  # CMYK, grey, palette, 16 bit, animated and rotated ones are read
    assert [name for name, _ in sources["absent"]] == ["gone"]

    # 4. MLflow has one run, not two.
    assert first["mlflow_run"]
    assert first["mlflow_run"] == second["mlflow_run"]

    if url.startswith("s3://"):
        return
    # 5. The datasets open in pandas, DuckDB and pyarrow, straight from the folder.
    import duckdb

    assert len(pd.read_parquet(store.path("embeddings"))) == 6
    assert pyarrow.dataset.dataset(store.path("error_matrix")).count_rows() == 18
    counted = duckdb.sql(f"select count(*), count(distinct expert) from '{store.path('error_matrix')}/*.parquet'")
    assert counted.fetchall() == [(18, 3)]
    # 6. No weights or embeddings by pickle.
    kinds = {key.rsplit(".", 1)[-1] for key in after}
    assert kinds == {"parquet", "json", "safetensors", "html"}

    # 7. The plan finds every unit where it is, and before the first run none.
    config_now, place = configured(params.config, url)
    network = probe_of(config_now, place)
    speed = Speed(images=100.0, binary_heads=10.0)
    planned = make_plan(config_now, place, network, speed)
    assert planned.exact
    assert [(x.stage, x.units, x.there, x.seconds) for x in planned.lines] == [
        ("ingest", 2, 2, 0),
        ("probe features", 2, 2, 0),
        ("embed tasks", 6, 6, 0),
        ("train experts", 2, 2, 0),
        ("evaluate experts", 6, 6, 0),
    ]
    assert (planned.tasks, planned.experts, planned.cells) == (6, 3, 18)
    fresh = make_plan(config_now, Store(str(tmp_path / "empty")), network, speed)
    assert not fresh.exact
    assert [(x.units, x.there) for x in fresh.lines] == [(2, 0), (2, 0), (6, 0), (2, 0), (6, 0)]
    assert fresh.lines[3].seconds == 2 * (2 * 8 * 3) / 100  # two experts, steps x batch x (forward + backward)

    check_champion(first)
    check_select(url)
    check_run_again(params.config, url)


def check_champion(summary: dict) -> None:
    """The registered selector loads in a fresh process and ranks experts for an embedding."""
    script = """
import json, sys, mlflow, numpy as np, pandas as pd
uri, model, embeddings = sys.argv[1:]
mlflow.set_tracking_uri(uri)
loaded = mlflow.pyfunc.load_model(model)
vector = np.stack(pd.read_parquet(embeddings)["vector"].to_numpy())[:1].astype(np.float32)
print(json.dumps(loaded.predict(vector, params={"top_k": 2}).to_dict(orient="records")))
"""
    command = [sys.executable, "-c", script, summary["mlflow"], summary["model"], f"{summary['store']}/embeddings"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    ranked = json.loads(answer.stdout.strip().splitlines()[-1])
    assert [r["rank"] for r in ranked] == [1, 2]
    assert ranked[0]["distance"] <= ranked[1]["distance"]
    assert {r["expert"] for r in ranked} <= {"generic", "digits-expert", "shapes-expert"}


def check_select(store: str) -> None:
    """`t2v select` answers where Prefect cannot even be imported."""
    script = (
        "import sys; sys.modules['prefect'] = None; sys.modules['mlflow'] = None; from flows.cli import main; main()"
    )
    folder = sorted(Path(store).parent.glob("*/shapes")) or [Path(shapes_of(store))]
    command = [sys.executable, "-c", script, "select", str(folder[0]), "--store", store, "--json"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    told = json.loads(answer.stdout)
    assert [e["rank"] for e in told["experts"]] == [1, 2, 3]
    assert told["seconds"] > 0
    assert "nearest" in told["verdict"]
    assert "images left out" in answer.stderr


def check_run_again(config_path: str, store: str) -> None:
    """`t2v run` a second time prints the table, says that there is nothing to do, and needs no Prefect for it."""
    script = "import sys; sys.modules['prefect'] = None; from flows.cli import main; main()"
    command = [sys.executable, "-c", script, "run", config_path, "--store", store]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert "Nothing to do: all 21 units" in answer.stdout
    assert "MODEL2VEC" in answer.stdout
    assert "Where to look next" in answer.stdout


def shapes_of(store: str) -> str:
    """Where the small pipeline's folder of images is."""
    text = (Path(store).parent / "mini.yaml").read_text()
    found = re.search(r"path: (.*shapes)$", text, re.MULTILINE)
    assert found
    return found[1]


def test_a_killed_worker_changes_no_result(config: Callable[..., str], tmp_path: Path) -> None:
    """SIGKILL of a worker in mid-run: its unit runs again on another one, and the bytes are the same."""
    path = config()
    quiet, killed = str(tmp_path / "quiet"), str(tmp_path / "killed")
    with shared_cluster("", 2) as cluster:
        embed_tasks(EmbedTasksParams(config=path, store=quiet, workers=2))
        client = cluster.client()
        pids = [w["pid"] for w in client.run(lambda: {"pid": os.getpid()}).values()]

        def kill() -> None:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not any(tasks for tasks in client.processing().values()):
                time.sleep(0.01)
            os.kill(pids[0], signal.SIGKILL)

        ingest(StageParams(config=path, store=killed, workers=2))
        killer = threading.Thread(target=kill)
        killer.start()
        result = embed_tasks(EmbedTasksParams(config=path, store=killed, workers=2, refresh=False))
        killer.join()
        alive = [w["pid"] for w in client.run(lambda: {"pid": os.getpid()}).values()]
    assert pids[0] not in alive
    assert result.failed == 0
    assert vectors(Store(killed)) == vectors(Store(quiet))


def test_nightly_embeds_what_is_new_and_nothing_else(
    config: Callable[..., str], tmp_path: Path, shapes_folder: Path, dask_cluster: str
) -> None:
    import shutil

    mine = tmp_path / "mine"
    shutil.copytree(shapes_folder, mine)
    path = config(sources__1__options={"path": str(mine)})
    params = EmbedTasksParams(config=path, store=str(tmp_path / "store"), dask=dask_cluster)
    first = embed_tasks(params)
    again = embed_tasks(params)
    store = Store(str(tmp_path / "store"))
    before = set(store.list(EMBEDDING_UNITS))
    for image in sorted((mine / "square").glob("*.png"))[:12]:  # the squares change; the digits do not
        image.unlink()
    changed = embed_tasks(params)
    new = set(store.list(EMBEDDING_UNITS)) - before
    assert (first.done, first.reused) == (6, 0)
    assert (again.done, again.reused) == (0, 6)
    assert changed.done == len(new) >= 1
    assert all("shapes" in key for key in new)
    assert before <= set(store.list(EMBEDDING_UNITS))  # the old embeddings stay readable


def test_a_failing_task_takes_no_other_along(config: Callable[..., str], tmp_path: Path, dask_cluster: str) -> None:
    url = str(tmp_path / "store")
    path = config(max_failed_share=0.6)
    params = {"config": path, "store": url, "dask": dask_cluster}
    ingest(StageParams(**params))
    store = Store(url)
    prefix = store.read_json("latest/mini/sources.json")["sources"]["shapes"]
    store.replace(f"{prefix}/shard-00000.parquet", b"damaged")
    result = embed_tasks(EmbedTasksParams(**params, refresh=False))
    assert result.done == 3
    assert result.failed == 3
    assert all(unit.startswith("shapes/") for unit, _ in result.failures)
    assert set(vectors(store)) == {"digits/digit", "digits/digit=3", "digits/digit=8"}

    config(max_failed_share=0.1)
    with pytest.raises(StageFailed, match="3 of 6 units failed, more than the 10%"):
        embed_tasks(EmbedTasksParams(**params, refresh=False))


def _wrong_weights(tmp_path: Path) -> str:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(8, 3, 3, 3)}, path)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"probe__name": "resnet43"}, UnknownNameError, "did you mean 'resnet34'"),
        ({"embedding__estimator": "montecarl"}, UnknownNameError, "did you mean 'montecarlo'"),
        ({"embedding__drawz": 3}, ConfigError, "did you mean 'draws'"),
        ({"sources__2__optional": False}, SourceError, "nowhere"),
        ({"sources__0__kind": "digitz"}, UnknownNameError, "did you mean 'digits'"),
        ({"probe__weights": "{wrong}"}, WeightsError, "another architecture"),
        ({"probe__weights": "absent.pt"}, WeightsError, "no weights at"),
    ],
)
def test_wrong_settings_are_said_before_any_work(
    config: Callable[..., str], tmp_path: Path, changes: dict, error: type[T2VError], said: str
) -> None:
    changes = {k: _wrong_weights(tmp_path) if v == "{wrong}" else v for k, v in changes.items()}
    url = str(tmp_path / "store")
    path = config(**changes)
    with pytest.raises(error, match=re.escape(said)):
        ingest(StageParams(config=path, store=url))
    assert not [key for key in Store(url).list() if not key.startswith("latest/") and key != "format.json"]


def test_a_store_that_cannot_be_written_is_said_first(config: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError):
        ingest(StageParams(config=config(), store=str(tmp_path / "file" / "store")))


def test_no_scheduler_at_the_address(config: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no Dask scheduler answers"):
        ingest(StageParams(config=config(), store=str(tmp_path / "store"), dask="tcp://127.0.0.1:9"))
