"""Every kind of store, for the suites that run over all of them."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from flows._store import Store


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}")
    return Store(request.getfixturevalue("s3_url"))


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))
