"""Life after day one on real runs: garbage of changed settings, collections beside flows and units, a lost machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from test_faults import payloads, same
from test_pipeline import check_champion, check_select

import flows._units
from flows._check import check_store
from flows._collect import collect
from flows._keys import EMBEDDING_UNITS, EMBEDDINGS
from flows._stage import StageParams
from flows._store import Store
from flows.embed_tasks import EmbedTasksParams, embed_tasks
from flows.ingest import ingest
from flows.pipeline import PipelineParams, pipeline
from t2v_core.errors import StoreError


def embed(params: StageParams) -> int:
    """Run embed-tasks; how many units it did."""
    result = embed_tasks(EmbedTasksParams(**params.model_dump(), refresh=False))
    assert result.failed == 0
    return result.done


@contextmanager
def collecting(store: Store, grace: float) -> Iterator[dict[str, int]]:
    """Collect garbage all the while; what came of it: collections done, and those that gave way."""
    stop, told = threading.Event(), {"done": 0, "gave way": 0, "deleted": 0}
    failed: list[BaseException] = []

    def run() -> None:
        while not stop.is_set():
            try:
                told["deleted"] += collect(store, grace).objects
                told["done"] += 1
            except StoreError as error:
                if "there is at work: flow of mini" not in str(error):
                    failed.append(error)
                    return
                told["gave way"] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


@pytest.mark.soak
def test_settings_that_change_leave_garbage_and_nothing_that_is_wanted_goes(
    params: StageParams, config: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two settings in turn. What only the other one needs goes; beside a flow and beside units nothing is lost."""
    store = Store(params.store)
    assert embed(params) == 6
    first = {key: store.read(key) for key in store.list(EMBEDDING_UNITS)}
    rules = [{"name": "digits-expert", "tasks": ["digits/digit"]}]
    config(experts__rules=rules, embedding__beta=1e-6)
    assert embed(params) == 6
    assert store.read_table(EMBEDDINGS).num_rows == 12
    features = store.list("features")

    # 1. Old enough: the first setting's embeddings and their rows go, and what both share stays.
    garbage = collect(store, 0)
    assert sorted(garbage.groups) == sorted(first)
    assert store.read_table(EMBEDDINGS)["unit"].to_pylist() == store.list(EMBEDDING_UNITS)
    assert store.list("features") == features
    assert check_store(store, full=True).whole
    assert embed(params) == 0

    # 2. Back to the first, while collections never end: they give way to the flow, and all that it points to is there.
    config(experts__rules=rules)
    with collecting(store, 0) as told:
        assert embed(params) == 6
    assert told["gave way"] > 0
    assert set(first) <= set(store.list(EMBEDDING_UNITS))
    assert check_store(store).missing == ()
    collect(store, 0)
    assert set(store.list(EMBEDDING_UNITS)) == set(first)
    remade = Store(f"{store.url}-before")
    for key, data in first.items():
        remade.put(key, data)
    assert all(same(store, remade, key) for key in first)

    # 3. Units whose flow was killed leave no mark: then the grace period keeps what they write.
    config(experts__rules=rules, embedding__beta=1e-5)
    wanted = payloads(params, "embed_tasks", monkeypatch)
    units = [payload for payload in wanted.values() if payload["key"].startswith(EMBEDDING_UNITS)]
    config(experts__rules=rules)
    embed(params)
    for payload in units:
        store.delete(payload["key"])
    with collecting(store, 3600) as told:
        while not told["done"]:
            time.sleep(0.05)
        for payload in units[:3]:
            flows._units.embed_unit(store.url, payload)
    assert told["done"] > 1
    assert all(store.exists(payload["key"]) for payload in units[:3])


def command(*words: str) -> str:
    """`t2v` in a process of its own; what it prints."""
    root = str(Path(flows._units.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.soak
def test_a_lost_machine_comes_back_from_its_backup(
    config: Callable[..., str], prefect_api: None, dask_cluster: str, tmp_path: Path
) -> None:
    """The store, MLflow's database and artifacts, Prefect's database: lost, restored, and in use again."""
    import sqlite3

    from prefect.settings import get_current_settings

    prefect = str(get_current_settings().server.database.connection_url.get_secret_value())
    params = PipelineParams(config=config(), store=str(tmp_path / "store"), dask=dask_cluster)
    summary = pipeline(params)
    store, run, place = Store(params.store), tmp_path / "runs" / "mini", str(tmp_path / "backup")
    mine = ["--store", store.url, "--name", "mini"]
    before = {key: store.read(key) for key in store.list()}
    said = command("store", *mine, "backup", place, "--beside", "--prefect", prefect, "--verify")
    assert "all digests are right" in said
    assert "0 were new" in command("store", *mine, "backup", place, "--beside")

    for lost in (store.url, run):
        shutil.rmtree(lost)
    stamp = command("store", *mine, "restore", place, "--list").split()[0]
    other = tmp_path / "prefect.db"
    said = command("store", *mine, "restore", place, "--at", stamp, "--beside", "--prefect", f"sqlite:///{other}")
    assert "database:mlflow: restored" in said
    assert {key: store.read(key) for key in store.list()} == before
    said = command("store", *mine, "check", "--full")
    assert "0 missing, 0 damaged, 0 unfinished" in said
    check_select(store.url)
    check_champion(summary)
    with closing(sqlite3.connect(other)) as base:
        names = {row[0] for row in base.execute("select name from flow_run")}
    assert f"pipeline[{params.config}]" in names
    again = pipeline(params)
    assert [s["done"] for s in again["stages"]] == [0] * 6
    assert again["mlflow_run"] == summary["mlflow_run"]

    said = command("store", *mine, "info")
    assert "configs: mini" in said
    assert "units/embeddings" in said
    assert "Nothing to do" in command("store", *mine, "upgrade")
    assert "Nothing was deleted" not in command("store", *mine, "gc", "--grace", "0s")  # nothing would go


def test_a_newer_store_stops_a_flow_before_any_work(params: StageParams) -> None:
    store = Store(params.store)
    store.replace_json("format.json", {"format": 2, "schema": 1})
    before = {key: store.read(key) for key in store.list()}
    for flow, more in ((ingest, params), (embed_tasks, EmbedTasksParams(**params.model_dump(), refresh=False))):
        with pytest.raises(StoreError, match="A newer t2v wrote it"):
            flow(more)
    assert {key: store.read(key) for key in store.list()} == before
    assert json.loads(before["format.json"]) == {"format": 2, "schema": 1}
