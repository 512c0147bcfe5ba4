"""What half precision does to the errors of heads: features stored in float16, and computed in bfloat16.

    python benchmarks/precision.py runs/demo/store        after `make demo`

Cells of the demo's first experts on its digits and OpenMoji drawings, from float32 features, from the same rounded to
float16 (what the pipeline stores), and from a network run in bfloat16.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from flows._data import Extractor, annotations, load_extractor, load_images, source_record
from flows._pointers import read_pointer
from flows._store import Store
from t2v_core.config import HeadSpec
from t2v_core.features import extract_features
from t2v_core.library import TaskLibrary, resolve_task
from t2v_core.transfer import evaluate_block

EXPERTS = 4


def main(url: str) -> None:
    """Print a table."""
    store = Store(url)
    sources = read_pointer(store, "demo", "sources")["sources"]
    shelf = read_pointer(store, "demo", "experts")["experts"][:EXPERTS]
    library = TaskLibrary.from_table(store.read_table(read_pointer(store, "demo", "library")["manifest"])).by_source()
    changes: dict[str, list[np.ndarray]] = {"float16 stored": [], "bfloat16 computed": []}
    for expert in shelf:
        probe = load_extractor(url, Extractor.model_validate(expert["extractor"]))
        for name in ("openmoji", "digits"):
            rows = np.arange(source_record(url, sources[name])["n_images"])
            images = load_images(url, sources[name], probe.transform, rows)
            full = extract_features(probe, images)
            brain = extract_features(probe.to(torch.bfloat16), images)
            tasks = [(t.task_id, resolve_task(t.spec, annotations(url, sources[name]))) for t in library[name]]

            def errors(values: np.ndarray, tasks: list = tasks) -> np.ndarray:
                cells = evaluate_block("", values, tasks, HeadSpec())
                return np.array([cell.balanced_error for cell in cells])

            base = errors(full)
            changes["float16 stored"].append(errors(full.astype(np.float16).astype(np.float32)) - base)
            changes["bfloat16 computed"].append(errors(brain.astype(np.float16).astype(np.float32)) - base)
    print(f"| features | cells | mean change | its standard error | mean size | largest | unchanged |\n|{'---|' * 7}")
    for what, parts in changes.items():
        d = np.concatenate(parts)
        print(
            f"| {what} | {len(d)} | {d.mean():+.5f} | {d.std() / len(d) ** 0.5:.5f} | {np.abs(d).mean():.5f} "
            f"| {np.abs(d).max():.4f} | {(d == 0).mean():.0%} |"
        )


if __name__ == "__main__":
    main(sys.argv[1])
