"""A unit that kills its worker is named after its retries; its neighbours finish, also those that waited beside it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from flows._cluster import Cluster
from flows._stage import Run, StageFailed, Unit, run_units, threads
from flows._store import Store
from t2v_core.config import load_config

pytestmark = pytest.mark.usefixtures("prefect_api")


def unit_that_may_kill(kill: int) -> Any:
    """A unit's function, sent by value: workers need not find this file."""

    def unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
        import os
        import time

        from flows._store import Store

        Store(store_url).put(f"tried/{payload['name']}-{os.getpid()}-{time.time_ns()}", b"")
        if payload["name"] == "poison":
            time.sleep(0.3)  # its neighbours are at the same worker by now
            os.kill(os.getpid(), kill)
        Store(store_url).put(payload["key"], b"done")
        return {"key": payload["key"], "wrote": True, "records": []}

    return unit


def go(path: str, workers: int, names: list[str]) -> tuple[Any, Store]:
    config, store, cluster = load_config(path), Store(str(Path(path).parent / "store")), Cluster("", workers)
    units = [Unit(name, f"made/{name}", {"key": f"made/{name}", "name": name}) for name in names]

    @flow(name="poisoned", task_runner=threads(), persist_result=False)
    def poisoned() -> Any:
        run = Run(config, store, cluster)
        return run_units(run, "embed tasks", unit_that_may_kill(signal.SIGKILL), units, folder="made")

    try:
        return poisoned(), store
    finally:
        cluster.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_poisoned_unit_is_named_and_its_neighbours_finish(config: Callable[..., str], workers: int) -> None:
    names = ["poison", *(f"neighbour-{i}" for i in range(5))]
    result, store = go(config(max_failed_share=0.5), workers, names)
    assert (result.done, result.failed) == (5, 1)
    ((unit, reason),) = result.failures
    assert unit == "poison"
    assert "poison killed every worker that it ran on" in reason
    assert store.list("made") == sorted(f"made/{n}" for n in names[1:])
    tried = [key.split("/")[1].split("-")[0] for key in store.list("tried")]
    assert tried.count("poison") >= 4  # Dask's own patience, and once more by itself


def test_a_stage_of_which_nothing_came_is_failed_whatever_the_share(config: Callable[..., str]) -> None:
    with pytest.raises(StageFailed, match="embed tasks: 1 of 1 units failed, all. poison: ComputeError"):
        go(config(max_failed_share=1.0), 1, ["poison"])
