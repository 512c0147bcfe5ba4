"""docs/cluster.md and docs/security.md say what the files say."""

from __future__ import annotations

import itertools
import re

import pytest
from stacks import COMPOSE, KUBERNETES, OVERLAYS, ROOT, compose_stack, listens

CLUSTER = (ROOT / "docs/cluster.md").read_text()
SECURITY = (ROOT / "docs/security.md").read_text()


def _table(text: str, before: str) -> list[list[str]]:
    """The cells of the first table after some words, without its first two lines."""
    lines = text.split(before, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows]


def test_the_table_of_ports_is_complete() -> None:
    stack = compose_stack("compose.yaml")
    told: dict[str, set[int]] = {}
    for service, ports, _ in _table(CLUSTER, "## Ports"):
        numbers = {int(n) for n in re.findall(r"\b\d{4}\b", ports)}
        if "plus 10000" in ports:
            numbers |= {n + 10000 for n in numbers}
        told.setdefault(service.strip("`"), set()).update(numbers)
    wanted = {name: set(listens(c)) for name, c in stack.items() if not name.startswith("dask-gpu") and listens(c)}
    assert told == wanted


def test_the_tables_of_variables_are_complete() -> None:
    compose = (COMPOSE / "compose.yaml").read_text() + (COMPOSE / "compose.tls.yaml").read_text()
    secrets = {n for row in _table(CLUSTER, "## Variables") for n in re.findall(r"`([A-Z0-9_]+)`", row[0])}
    assert set(re.findall(r"\$\{(\w+):\?", compose)) | {"MLFLOW_ADMIN_USERNAME"} == secrets
    told = {}
    for names, defaults, _ in _table(CLUSTER, "Settings of compose, in `.env`:"):
        told |= dict(zip(re.findall(r"`([^`]+)`", names), re.findall(r"`([^`]+)`", defaults), strict=True))
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", compose))
    assert told == {k: v for k, v in defaults.items() if k != "MLFLOW_ADMIN_USERNAME"}


def test_the_table_of_overlays_is_complete() -> None:
    rows = _table(CLUSTER, "Push the images to your registry")
    assert sorted(row[0].strip("`") for row in rows) == OVERLAYS


@pytest.mark.parametrize("text", [CLUSTER, SECURITY], ids=["cluster.md", "security.md"])
def test_files_that_the_pages_name_are_there(text: str) -> None:
    named = set(re.findall(r"`((?:tests|infra|docker)/[\w./*-]+)`", text))
    named |= set(re.findall(r"(infra/[\w./-]+\.(?:yaml|example))", text))
    assert named
    for path in named:
        # A folder of the user's own data is made when it is first used.
        assert list(ROOT.glob(path)) or path in ("infra/compose/data", "infra/compose/tls"), path
    for name in re.findall(r"`(base/[\w.-]+|components/\w+)`", text):
        assert (KUBERNETES / name).exists(), name


def test_every_row_of_security_names_a_test() -> None:
    rows = _table(SECURITY, "# Security")
    assert len(rows) >= 13
    for row in rows:
        for path in re.findall(r"`(tests/[\w/.]+)`", row[2]):
            assert "\ndef test_" in (ROOT / path).read_text()
        assert "`tests/" in row[2], row[0]


def test_autoscaling_reads_a_metric_that_dask_has() -> None:
    """The scheduler's own code, and the name that KEDA is told."""
    from distributed.http.scheduler.prometheus import core

    name = re.search(r"valueLocation: (\w+)", (KUBERNETES / "components/autoscale/scaled-object.yaml").read_text())
    assert name
    assert name[1] == "dask_scheduler_desired_workers"
    source = (ROOT / core.__file__).read_text()
    assert 'self.build_name("desired_workers")' in source
    assert "adaptive_target()" in source
    assert f"`{name[1]}`" in CLUSTER
