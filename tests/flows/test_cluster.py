"""Units and GPUs: never two on one card, none in the way of the others, and none needed where there is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from flows._cluster import Cluster
from flows._settings import gpu_ids
from flows._workers import GPU, PLAIN, Census, count

WHERE: Any = os.getpid  # a function that every worker can import, and that says where it ran


def where_and_when(seconds: float = 0.2) -> Callable[[], dict[str, Any]]:
    """A unit that says on which worker it ran, which card that sees, and from when to when."""

    def unit() -> dict[str, Any]:
        import os
        import time

        from distributed import get_worker

        began = time.time()
        time.sleep(seconds)
        worker = get_worker()
        return {
            "worker": worker.address,
            "gpu": bool(worker.state.total_resources.get("GPU")),
            "sees": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "began": began,
            "ended": time.time(),
        }

    return unit


def ran(cluster: Cluster, wanted: list[bool], seconds: float = 0.2) -> list[dict[str, Any]]:
    """Units that want a GPU or not, all at once."""
    with ThreadPoolExecutor(len(wanted)) as pool:
        return list(pool.map(lambda gpu: cluster.run(where_and_when(seconds), gpu=gpu), wanted))


def never_two_at_once(units: list[dict[str, Any]]) -> bool:
    """Whether the units on each worker came one after another."""
    for worker in {u["worker"] for u in units}:
        spans = sorted((u["began"], u["ended"]) for u in units if u["worker"] == worker)
        if any(later[0] < earlier[1] for earlier, later in pairwise(spans)):
            return False
    return True


@contextmanager
def worker_of(address: str, folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as `dask worker` starts one."""
    command = [sys.executable, "-W", "ignore", "-m", "dask", "worker", address, "--no-nanny", "--no-dashboard"]
    folder.mkdir()
    with (
        (folder / "worker.log").open("wb") as log,
        subprocess.Popen([*command, "--local-directory", str(folder), *options], stdout=log, stderr=log) as worker,
    ):
        try:
            yield worker
        finally:
            worker.kill()


def test_a_mixed_local_cluster_has_one_process_for_each_gpu() -> None:
    """The ids are made up: which worker gets which unit is Dask's affair, and needs no card."""
    cluster = Cluster("", workers=2, gpus=["3", "GPU-8932f937"])
    try:
        assert cluster.census() == Census(gpus=2, plain=2)
        assert (cluster.in_flight(gpu=True), cluster.in_flight(), cluster.threads) == (4, 4, 4)
        units = ran(cluster, [i % 2 == 0 for i in range(24)])
    finally:
        cluster.close()
    asked, plain = units[0::2], units[1::2]
    assert all(u["gpu"] for u in asked)
    assert not any(u["gpu"] for u in plain)  # although GPU workers were idle or free at times
    assert {u["sees"] for u in asked} == {"3", "GPU-8932f937"}  # both worked, and each sees its own card alone
    assert {u["sees"] for u in plain} == {""}
    assert len({u["worker"] for u in asked}) == len({u["worker"] for u in plain}) == 2
    assert never_two_at_once(asked)
    assert set(cluster.busy) == {"gpu", "cpu"}
    assert all(seconds >= 12 * 0.2 for seconds in cluster.busy.values())


def test_a_mixed_cluster_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dask worker`s: two threads on one card are still one unit; plain workers that come later or back are used."""
    monkeypatch.setattr("flows._cluster._CENSUS_AGE", 0.0)
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1") as local:
        address, cluster = local.scheduler_address, Cluster(local.scheduler_address)
        with Client(address, set_as_default=False) as client:
            with worker_of(address, tmp_path / "gpu", "--nthreads", "2", "--resources", "GPU=1"):
                client.wait_for_workers(1, timeout=60)
                # Only GPUs: what wants none runs there too, and waits for its turn at the card.
                units = ran(cluster, [True, False, True, False])
                assert all(u["gpu"] for u in units)
                assert never_two_at_once(units)
                for name in ("plain", "plain again"):  # the second joins after the first was killed
                    with worker_of(address, tmp_path / name, "--nthreads", "1") as plain:
                        client.wait_for_workers(2, timeout=60)
                        units = ran(cluster, [False, True] * 4)
                        assert [u["gpu"] for u in units] == [False, True] * 4
                        assert never_two_at_once([u for u in units if u["gpu"]])
                        plain.send_signal(signal.SIGKILL)
                        plain.wait(10)
                    while len(client.scheduler_info()["workers"]) > 1:
                        time.sleep(0.1)
            cluster.close()


def test_a_cluster_without_gpus_runs_everything(dask_cluster: str) -> None:
    cluster = Cluster(dask_cluster)
    try:
        units = ran(cluster, [True, False] * 3, 0.01)
        assert not any(u["gpu"] for u in units)
        before = cluster.busy["cpu"]
        cluster.run(time.sleep, 0.2)
        assert 0.2 <= cluster.busy["cpu"] - before < 5
        assert set(cluster.busy) == {"cpu"}
        assert cluster.threads == 2
    finally:
        cluster.close()


@pytest.mark.parametrize(
    ("census", "gpu_unit", "plain_unit", "slots"),
    [
        (Census(0, 4), None, None, (4, 4)),
        (Census(2, 0), {GPU: 1}, {GPU: 1}, (2, 2)),
        (Census(2, 6), {GPU: 1}, {PLAIN: 1}, (2, 6)),
        (Census(0, 0), None, None, (1, 1)),  # workers are still to come
    ],
)
def test_what_units_ask_for(census: Census, gpu_unit: Any, plain_unit: Any, slots: tuple[int, int]) -> None:
    assert (census.resources(True), census.resources(False)) == (gpu_unit, plain_unit)
    assert (census.slots(True), census.slots(False)) == slots


def test_counting_workers() -> None:
    gpu, plain = {"nthreads": 4, "resources": {"GPU": 2.0}}, {"nthreads": 3, "resources": {PLAIN: 3.0}}
    assert count({"a": gpu, "b": plain, "c": {"nthreads": 1}}) == Census(gpus=2, plain=4)


def test_which_cards_a_local_cluster_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("T2V_GPUS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_ids(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")  # of eight, two are ours
    assert gpu_ids(2) == ["2", "5"]
    monkeypatch.setenv("T2V_GPUS", "1")
    assert gpu_ids(2) == ["2"]
    monkeypatch.setenv("T2V_GPUS", "0")
    assert gpu_ids(2) == []


def test_units_in_flight_have_a_limit(dask_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(dask_cluster)
    try:
        assert cluster.in_flight() == 4
        monkeypatch.setenv("T2V_UNITS_IN_FLIGHT", "3")
        assert cluster.in_flight() == 3
    finally:
        cluster.close()
