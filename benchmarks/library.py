"""The paper's library from annotation files at full size: seconds and peak memory, one fresh process a dataset.

    python tests/replicas.py FOLDER        # 1.3 GB of annotation files in the official layouts, no images
    python benchmarks/library.py FOLDER

docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from t2v_core.config import load_library
from t2v_core.preview import preview_annotations
from t2v_core.rules import build_library


def peak() -> float:
    """Largest resident memory of this process so far, GiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def one(data: str, name: str) -> None:
    """A row of the table."""
    library = load_library("paper", data)
    source = next(s for s in library.sources if s.name == name)
    rules = [r for r in library.library.rules if r.source == name]
    began = time.perf_counter()
    annotations = preview_annotations(source)
    read = time.perf_counter() - began
    began = time.perf_counter()
    made = build_library(library.library.model_copy(update={"rules": rules}), {name: annotations})
    cut = time.perf_counter() - began
    assert len(made.tasks) == library.expected[name], (name, len(made.tasks))
    print(
        f"| {name} | {len(annotations):,} | {len(made.tasks):,} | {read:.1f} | {cut:.1f} | {peak():.2f} |", flush=True
    )


def main() -> None:
    """Print a table."""
    if len(sys.argv) == 3:
        one(sys.argv[1], sys.argv[2])
        return
    print(
        "| dataset | images | tasks | read annotations, s | cut tasks, s | peak, GiB |\n|---|---:|---:|---:|---:|---:|",
        flush=True,
    )
    for name in load_library("paper", sys.argv[1]).expected:
        subprocess.run([sys.executable, __file__, sys.argv[1], name], check=True)


if __name__ == "__main__":
    main()
