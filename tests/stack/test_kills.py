"""`make stack-faults`: each part of the stack is killed by SIGKILL in mid-run; Supervisor brings it back; the work goes on.

One run without any fault says what must come out. Then, for each part, a run into an empty store: killed while tasks are
embedded. However that run ends, it ends, and says the truth; where it did not complete, the same run is started again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from person import Person, small_config
from same_objects import same

from flows._store import Store
from infra.stack.health import s3_client, why_ill
from infra.stack.services import ROOT

pytestmark = [pytest.mark.soak, pytest.mark.server, pytest.mark.timeout(1200)]

PARTS = ("prefect", "postgres", "s3", "dask worker", "scheduler", "driver", "worker")
COUNTED = {"embed tasks": "units/embeddings", "train experts": "experts", "evaluate experts": "units/error_matrix"}
TABLE = os.environ.get("T2V_STACK_TABLE", "")
"""Where the table of outcomes is written, as JSON lines."""


@pytest.fixture(scope="module")
def config(place: Path) -> str:
    return small_config(place)


def store_of(person: Person, name: str) -> Store:
    return Store(f"s3://{person.stack.layout.config.bucket}/{name}")


@pytest.fixture(scope="module")
def shelled(person: Person) -> Iterator[Person]:
    """This process in the stack's environment, for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("AWS_", "T2V_STORE", "T2V_DASK", "MLFLOW_"))]:
            patch.delenv(name)
        for name, value in person.environment.items():
            patch.setenv(name, value)
        yield person
        Store.disconnect()


@pytest.fixture(scope="module", autouse=True)
def impatient(person: Person, place: Path) -> None:
    """Runs are called Crashed sooner than six minutes after their last heartbeat, which flows send more often."""
    automations = yaml.safe_load((ROOT / "infra/automations/heartbeats.yaml").read_text())
    automations["automations"][0]["trigger"]["within"] = 100
    (place / "heartbeats.yaml").write_text(yaml.safe_dump(automations))
    command = [sys.executable, "-m", "flows.cli", "alerts", str(place / "heartbeats.yaml")]
    subprocess.run(command, cwd=ROOT, env=os.environ | person.environment, check=True, timeout=120)


@pytest.fixture(scope="module")
def whole(shelled: Person, config: str) -> Store:
    """The store of a run in which nothing broke."""
    store = store_of(shelled, "whole")
    run = shelled.run("pipeline/default", config=config, store=store.url)
    assert shelled.end(run, 500)["type"] == "COMPLETED"
    return store


def victims(person: Person, part: str) -> list[psutil.Process]:
    """The processes of a part: a server with its children, one Dask worker, or the flow's own process."""
    states = person.stack.manager.states()
    if part == "driver":
        children = psutil.Process(states["worker"]["pid"]).children(recursive=True)
        return [p for p in children if "prefect" in " ".join(p.cmdline())]
    if part == "dask worker":
        children = psutil.Process(states["dask-workers"]["pid"]).children(recursive=True)
        return [next(p for p in children if "spawn_main" in " ".join(p.cmdline()))]
    main = psutil.Process(states[part]["pid"])
    # The flow is a child of Prefect's worker, and lives on when only that is killed.
    return [main] if part == "worker" else [main, *main.children(recursive=True)]


def well_again(person: Person, name: str) -> float:
    """Seconds until a process is well."""
    began = time.monotonic()
    person.wait(f"{name}'s return", lambda: not why_ill(person.stack.layout, name), 120)
    return time.monotonic() - began


def counts(store: Store) -> dict[str, int]:
    """Finished units by stage."""
    experts = [k for k in store.list("experts") if k.endswith("expert.json")]
    return {stage: len(experts if folder == "experts" else store.list(folder)) for stage, folder in COUNTED.items()}


def written(person: Person, store: Store) -> dict[str, tuple[Any, str]]:
    """When each object of a unit was written, and its digest."""
    client, prefix = s3_client(person.stack.layout), store.url.rsplit("/", 1)[1]
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=person.stack.layout.config.bucket, Prefix=f"{prefix}/units/"
    )
    return {o["Key"]: (o["LastModified"], o["ETag"]) for page in pages for o in page.get("Contents", [])}


def running(person: Person) -> list[dict[str, Any]]:
    """Flow runs that are under way by their state, nested ones too."""
    states = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
    return list(person.api("/flow_runs/filter", states))


def summary(store: Store) -> dict[str, dict[str, Any]]:
    """What the last run of a store said of each stage."""
    (key,) = store.list("results")
    return {s["stage"]: s for s in store.read_json(key)["stages"]}


def check_the_rest_only(store: Store, before: dict[str, int], whole: dict[str, int]) -> None:
    """The second start did what was missing, and no more. A unit may end after its driver: workers finish what they do."""
    stages = summary(store)
    for stage, total in whole.items():
        told = stages[stage]
        assert told["failed"] == 0
        assert told["reused"] >= before[stage], f"{stage} repeated what was complete: {told}"
        assert told["done"] + told["reused"] == total, told


@pytest.mark.parametrize("part", PARTS)
def test_killed_in_mid_run(shelled: Person, whole: Store, config: str, part: str) -> None:
    person = shelled
    if part == "postgres" and not person.stack.layout.postgres:
        pytest.skip("this stack is on SQLite: the database is a file of the Prefect server's")
    store = store_of(person, part.replace(" ", "-"))
    run = person.run("pipeline/default", config=config, store=store.url)
    person.wait("two embeddings", lambda: counts(store)["embed tasks"] >= 2, 400)
    for process in victims(person, part):
        process.kill()
    outage = well_again(person, {"driver": "worker", "dask worker": "dask-workers"}.get(part, part))
    began = time.monotonic()
    first = person.end(run, 600)
    lasted = time.monotonic() - began
    before, objects = counts(store), written(person, store)
    row: dict[str, Any] = {"part": part, "outage": outage, "first": first["name"], "after": lasted, "there": before}
    row["message"] = (first["message"] or "")[:200]
    if first["type"] == "COMPLETED":
        assert before == counts(whole), "it shows green, and units are missing"
    else:
        again = person.run("pipeline/default", config=config, store=store.url)
        began = time.monotonic()
        assert person.end(again, 600)["type"] == "COMPLETED"
        row["rerun"] = time.monotonic() - began
        check_the_rest_only(store, before, counts(whole))
    assert {k: v for k, v in written(person, store).items() if k in objects} == objects, "rewritten"
    keys = [k for k in whole.list() if k.startswith(("units/", "experts/", "sources/", "libraries/"))]
    assert [k for k in store.list() if k.startswith(("units/", "experts/", "sources/", "libraries/"))] == keys
    differ = [k for k in keys if not same(whole, store, k)]
    assert not differ, differ
    row["objects"] = len(keys)
    # What the killed process ran inside it is settled by the heartbeats that do not come.
    person.wait("no run left Running", lambda: not running(person), 240)
    if TABLE:
        with open(TABLE, "a") as file:
            file.write(json.dumps(row) + "\n")
    wait_all_well(person, person.stack.ills)


def test_stopped_in_mid_run(shelled: Person, whole: Store, config: str) -> None:
    """The whole stack is stopped while a flow runs, and started again: nothing is left behind, nothing runs for ever."""
    person, stack = shelled, shelled.stack
    store = store_of(person, "stopped")
    run = person.run("pipeline/default", config=config, store=store.url)
    person.wait("two embeddings", lambda: counts(store)["embed tasks"] >= 2, 400)
    mains = [psutil.Process(s["pid"]) for s in stack.manager.states().values() if s["pid"]]
    everyone = [*mains, *(child for main in mains for child in main.children(recursive=True))]
    assert victims(person, "driver")
    stack.down()
    assert [p.cmdline() for p in everyone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    stack.up()
    state = person.end(run, 120)
    assert state["type"] in ("CRASHED", "FAILED", "CANCELLED"), state
    assert running(person) == []  # of the driver that was killed, too
    before = counts(store)
    again = person.run("pipeline/default", config=config, store=store.url)
    assert person.end(again, 600)["type"] == "COMPLETED"
    check_the_rest_only(store, before, counts(whole))
    assert all(same(whole, store, key) for key in whole.list("units"))


def wait_all_well(person: Person, ills: Callable[[], dict[str, str]]) -> None:
    """Nothing stays ill for the next part."""
    person.wait("all well", lambda: not any(ills().values()), 120)
