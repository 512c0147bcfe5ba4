"""A stack of the tests' own: free ports, a folder of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from person import Person

from infra.stack.config import StackConfig
from infra.stack.launcher import Stack
from infra.stack.services import ROOT


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that PostgreSQL's account may enter; pytest's own are closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="t2v-stack-"))
    folder.chmod(0o711)
    yield folder
    for made in (folder, ROOT / "runs" / folder.name):
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def stack(place: Path) -> Iterator[Stack]:
    """The whole stack, on the database that `auto` finds; T2V_TEST_DATABASE chooses another."""
    kind = os.environ.get("T2V_TEST_DATABASE", "auto")
    config = StackConfig(folder=place / "stack", free_ports=True, dask_workers=2, database=kind)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")  # the worker has our environment
        stack = Stack(config, say=print)
        stack.up()
        try:
            yield stack
        finally:
            stack.down()


@pytest.fixture(scope="module")
def person(stack: Stack) -> Person:
    return Person(stack)


@pytest.fixture
def shell(person: Person, monkeypatch: pytest.MonkeyPatch) -> Person:
    """This process in the stack's environment, as after `eval "$(python -m infra.stack env)"`."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "T2V_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name, value in person.environment.items():
        monkeypatch.setenv(name, value)
    return person
