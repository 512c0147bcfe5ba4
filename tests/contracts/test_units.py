"""What runs on Dask workers needs neither Prefect nor MLflow."""

from __future__ import annotations

import subprocess
import sys

import pytest

UNITS = ("_units", "_pack_units", "_score_units", "_moments", "_features")


@pytest.mark.parametrize("module", UNITS)
def test_a_unit_loads_no_server_client(module: str) -> None:
    code = f"import flows.{module}, sys; print(sorted({{'prefect', 'mlflow'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
