"""Freed memory is kept."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from t2v_core.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def batches(n):
    for _ in range(n):
        [np.ones(1 << 24, np.uint8) for _ in range(8)]
batches(2)
before = pages()
batches(10)
print(pages() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_for_the_next_batch() -> None:
    # Dask leaves its workers' settings in the environment of a process that has started a cluster.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = {}
    for way in ("keep", "give back"):
        command = [sys.executable, "-c", SCRIPT, way]
        found = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
        faults[way] = int(found.stdout)
    # 10 times 128 MiB: a page is 4 KiB, or 2 MiB where the system gives huge ones
    assert faults["keep"] < 10 <= faults["give back"]
