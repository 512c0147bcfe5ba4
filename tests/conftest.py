"""Fixtures for all tests: a real S3 server, for stores that other processes must reach too."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Endpoint of an S3 server in a process of its own, for the whole test run."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("s3_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            endpoint = server.stdout.readline().strip()
            assert endpoint, "the S3 server did not start; is moto[server] installed?"
            yield endpoint
        finally:
            server.stdin.close()  # it ends by itself, and also when this process is killed


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The environment in which ``s3://`` means the test server, for this process and those it starts."""
    from flows._store import Store

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test-key-id",
        "AWS_SECRET_ACCESS_KEY": "test-secret-key",
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",  # or a test without credentials waits for a cloud's answer
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    yield s3_endpoint
    Store.disconnect()  # connections keep the environment in which they were made


@pytest.fixture
def s3_bucket(s3_environment: str) -> Callable[[str], str]:
    """Make a new bucket and give its URL; its name begins as told (see `s3_server` for what that does)."""

    def make(kind: str = "bucket") -> str:
        name = f"{kind}-{uuid.uuid4().hex[:8]}"
        request = urllib.request.Request(f"{s3_environment}/{name}", method="PUT")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10):
            return f"s3://{name}"

    return make


@pytest.fixture
def s3_url(s3_bucket: Callable[[str], str]) -> str:
    """URL of an empty S3 store, e.g. ``s3://bucket-0123abcd/prefix``."""
    return f"{s3_bucket('bucket')}/prefix"
