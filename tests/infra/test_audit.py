"""What `make audit` makes of pip-audit's report."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from stacks import ROOT

CLEAN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": []}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (3)"}


def _verdict(*dependencies: dict[str, Any]) -> tuple[int, str]:
    spec = importlib.util.spec_from_file_location("t2v_audit", ROOT / "infra/audit.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    status, words = module.verdict({"dependencies": list(dependencies)})
    return int(status), str(words)


@pytest.mark.parametrize(
    ("dependencies", "status", "said"),
    [
        ([CLEAN], 0, "1 packages, no known vulnerability"),
        ([CLEAN, BAD], 1, "b 2: PYSEC-1; mended in 2.1"),
        ([BAD, SKIPPED], 1, "1 could not be asked about"),
        ([CLEAN, SKIPPED], 2, "says nothing of their safety"),
        ([SKIPPED], 2, "1 of 1 packages could not be asked about"),
    ],
)
def test_what_was_not_asked_is_no_clean_result(dependencies: list[dict[str, Any]], status: int, said: str) -> None:
    got, words = _verdict(*dependencies)
    assert got == status
    assert said in words
