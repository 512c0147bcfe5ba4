"""What breaks while a pipeline runs: killed workers, a full disk, a store that is busy. Nothing half-written is read."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from same_objects import same

import flows._units
from flows._cluster import shared_cluster
from flows._stage import StageParams
from flows._store import Store
from flows.embed_tasks import EmbedTasksParams, embed_tasks
from flows.ingest import ingest
from flows.train_experts import train_experts
from t2v_core.errors import StoreError


def payloads(params: StageParams, stage: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The payloads of a stage's units by label, as its flow sends them; the stage itself runs too."""
    module = importlib.import_module(f"flows.{stage}")
    sent: dict[str, dict[str, Any]] = {}
    original = module.run_units

    def caught(run: Any, name: str, function: Any, units: Any, **options: Any) -> Any:
        sent.update({u.label: u.payload for u in units})
        return original(run, name, function, units, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_units", caught)
        flow = getattr(module, stage)
        flow(EmbedTasksParams(**params.model_dump(), refresh=False) if stage == "embed_tasks" else params)
    return sent


KILL = """
import json, os, signal, sys
import flows._units
unit, store, payload, kills = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
fsync = os.fsync
def killed(fd):
    # The object's bytes are in a hidden file; it has no name yet.
    global kills
    kills -= 1
    if kills < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(fd)
os.fsync = killed
getattr(flows._units, unit)(store, payload)
"""


@pytest.mark.parametrize(
    ("stage", "label", "unit", "written_before"),
    [
        ("embed_tasks", "features of shapes", "features_unit", 0),
        ("embed_tasks", "digits/digit=3", "embed_unit", 1),
        ("train_experts", "digits-expert", "train_unit", 2),
        ("evaluate_experts", "digits-expert on shapes", "evaluate_unit", 1),
    ],
)
def test_a_worker_that_is_killed_while_it_writes_leaves_nothing_half(
    params: StageParams,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    label: str,
    unit: str,
    written_before: int,
) -> None:
    """SIGKILL of the process when so many objects are written and the next one has its bytes but no name."""
    if stage == "evaluate_experts":
        train_experts(params)
    payload = payloads(params, stage, monkeypatch)[label]
    whole, broken = Store(params.store), Store(str(tmp_path / "broken"))
    ingest(params.model_copy(update={"store": broken.url}))
    if stage == "evaluate_experts":
        train_experts(params.model_copy(update={"store": broken.url}))
    before = set(broken.list())
    # One thread, as on a worker: sums over two are rounded otherwise.
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

    def child(writes: int) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", KILL, unit, broken.url, json.dumps(payload), str(writes)]
        return subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment)

    answer = child(written_before)
    assert answer.returncode == -signal.SIGKILL, answer.stderr.decode()[-2000:]
    half = set(broken.list()) - before
    assert len(half) == written_before
    hidden = list(Path(broken.url).rglob(".*.tmp"))
    assert len(hidden) == 1  # what no reader looks at
    answer = child(1000)
    assert answer.returncode == 0, answer.stderr.decode()[-2000:]
    made = set(broken.list()) - before
    assert half < made
    assert all(same(whole, broken, key) for key in made)


def test_a_full_disk_is_said_and_nothing_half_is_left(
    params: StageParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = payloads(params, "embed_tasks", monkeypatch)["digits/digit=3"]
    whole, full = Store(params.store), Store(str(tmp_path / "full"))
    ingest(params.model_copy(update={"store": full.url}))
    before = set(full.list())

    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        with pytest.raises(StoreError, match="the disk is full: free some room and run again"):
            flows._units.embed_unit(full.url, payload)
    assert set(full.list()) == before
    assert not list(Path(full.url).rglob(".*.tmp"))
    flows._units.embed_unit(full.url, payload)
    assert same(whole, full, payload["key"])


def test_a_busy_store_is_asked_again(
    config: Callable[..., str], s3_bucket: Callable[[str], str], tmp_path: Path, prefect_api: None
) -> None:
    """503 SlowDown on the first request for each object: the stages end well, with the objects of a quiet store."""
    path = config(sources__0__limit=100)
    quiet = StageParams(config=path, store=str(tmp_path / "quiet"), workers=1)
    busy = quiet.model_copy(update={"store": f"{s3_bucket('busy')}/prefix"})
    with shared_cluster("", 1):
        for params in (quiet, busy):
            ingest(params)
            assert embed_tasks(EmbedTasksParams(**params.model_dump(), refresh=False)).failed == 0
    one, two = Store(quiet.store), Store(busy.store)
    assert one.list() == two.list()
    assert all(same(one, two, key) for key in one.list("units"))
