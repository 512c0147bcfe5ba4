"""Units and GPUs: asked for where the cluster has any, and never in the way where it has none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from flows._cluster import Cluster

WHERE: Any = os.getpid  # a function that every worker can import, and that says where it ran


def test_gpu_units_go_to_the_gpu_worker_alone(tmp_path: Path) -> None:
    """A mixed cluster: one plain worker, and one that says it has a GPU (a resource is a word; no card is needed)."""
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1") as local:
        command = [sys.executable, "-W", "ignore", "-m", "dask", "worker", local.scheduler_address, "--no-nanny"]
        options = ["--nthreads", "1", "--resources", "GPU=1", "--no-dashboard", "--local-directory", str(tmp_path)]
        with (
            (tmp_path / "worker.log").open("wb") as log,
            subprocess.Popen([*command, *options], stdout=log, stderr=log) as worker,
        ):
            cluster = Cluster(local.scheduler_address)
            try:
                with Client(local.scheduler_address, set_as_default=False) as client:
                    client.wait_for_workers(2, timeout=60)
                asked = {cluster.run(WHERE, gpu=True) for _ in range(6)}
                plain = {cluster.run(WHERE) for _ in range(6)}
            finally:
                cluster.close()
                worker.terminate()
    assert asked == {worker.pid}
    assert plain  # any worker will do


def test_a_cluster_without_gpus_runs_everything(dask_cluster: str) -> None:
    cluster = Cluster(dask_cluster)
    try:
        assert cluster.run(WHERE, gpu=True)
        before = cluster.busy
        cluster.run(time.sleep, 0.2)
        assert 0.2 <= cluster.busy - before < 5
        assert cluster.threads == 2
    finally:
        cluster.close()
