"""Freed memory is kept."""

from __future__ import annotations

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
    faults = {}
    for way in ("keep", "give back"):
        found = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True)
        faults[way] = int(found.stdout)
    # 10 times 128 MiB: a page is 4 KiB, or 2 MiB where the system gives huge ones
    assert faults["keep"] < 10 <= faults["give back"]
