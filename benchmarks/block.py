"""Cells of the error matrix: heads of a block together, against one by one with the reference recipe; and the bill.

    python benchmarks/block.py runs/rehearsal/store rehearsal      after `make rehearsal`

Blocks of three experts on the two largest sources: seconds a cell, and balanced errors on a sample of cells, paired.
Then what the full matrix of the store took by its own records, against 4,100 cells one by one, which for each take the
features of the task's images and a head by the recipe (Adam, 16 epochs of 10,000 balanced images).
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import torch

from flows._data import Extractor, annotations, load_extractor, load_images, read_cells
from flows._features import read_features
from flows._pointers import read_pointer
from flows._store import Store
from t2v_core.config import EvaluationSpec
from t2v_core.features import extract_features
from t2v_core.heads import balanced_error, predict
from t2v_core.library import Task, TaskLibrary, TaskRows, resolve_task
from t2v_core.reference_head import fit_reference_head
from t2v_core.transfer import evaluate_block

SAMPLE, PAPER_CELLS = 16, 4100
RECIPE = {"epochs": 16, "learning_rate": 1e-4, "weight_decay": 5e-4}


def reference_error(values: np.ndarray, task: TaskRows) -> float:
    """Balanced test error of a head by the reference recipe."""
    rows, labels, _ = task.part(test=False)
    head = fit_reference_head(values[rows], labels, **RECIPE)  # type: ignore[arg-type]
    rows, labels, _ = task.part(test=True)
    return balanced_error(labels, predict(values[rows].astype(np.float64), head.weight, head.bias), len(head.bias))


def block(store: Store, expert: dict, prefix: str, tasks: list[Task]) -> tuple[np.ndarray, list[tuple[str, TaskRows]]]:
    """Features of the rows that the tasks use, and the tasks on them."""
    table = annotations(store.url, prefix)
    found = [(t.task_id, resolve_task(t.spec, table)) for t in tasks]
    used = np.unique(np.concatenate([r.rows for _, r in found]))
    extractor = Extractor.model_validate(expert["extractor"])
    values, _ = read_features(store.url, extractor, expert["digest"], prefix, used)
    return values, [(i, replace(r, rows=np.searchsorted(used, r.rows))) for i, r in found]


def main(url: str, name: str) -> None:
    """Print two tables."""
    store, rng = Store(url), np.random.default_rng(0)
    sources = read_pointer(store, name, "sources")["sources"]
    shelf = read_pointer(store, name, "experts")["experts"]
    by_source = TaskLibrary.from_table(store.read_table(read_pointer(store, name, "library")["manifest"])).by_source()
    largest = sorted(by_source, key=lambda s: -len(by_source[s]))[:2]
    together, alone, cells, differences = 0.0, 0.0, 0, []
    for expert in (shelf[0], shelf[len(shelf) // 3], shelf[-1]):
        for source in largest:
            values, tasks = block(store, expert, sources[source], by_source[source])
            began = time.perf_counter()
            ours = evaluate_block(expert["name"], values, tasks, EvaluationSpec().head)
            together, cells = together + time.perf_counter() - began, cells + len(ours)
            picked = rng.choice(len(tasks), SAMPLE, replace=False)
            began = time.perf_counter()
            theirs = [reference_error(values, tasks[i][1]) for i in picked]
            alone += time.perf_counter() - began
            differences += [ours[i].balanced_error - e for i, e in zip(picked, theirs, strict=True)]
    d = np.array(differences)
    each = alone / len(d)
    print(f"| heads | cells | ms a cell |\n|---|---:|---:|\n| together | {cells} | {1e3 * together / cells:.1f} |")
    print(f"| one by one, reference recipe | {len(d)} | {1e3 * each:.0f} |\n")
    half = 1.96 * d.std(ddof=1) / len(d) ** 0.5
    print(
        f"{each / (together / cells):.0f} times faster a cell. Balanced error, together less one by one, on {len(d)} "
        f"cells: {100 * d.mean():+.2f} points, 95% [{100 * (d.mean() - half):+.2f}, {100 * (d.mean() + half):+.2f}]\n"
    )
    probe = load_extractor(url, Extractor.model_validate(shelf[0]["extractor"]))
    images = load_images(url, sources[largest[0]], probe.transform, np.arange(512))
    extract_features(probe, images)
    began = time.perf_counter()
    extract_features(probe, images)
    rate = len(images) / (time.perf_counter() - began)
    frame = read_cells(store, read_pointer(store, name, "error_matrix")["blocks"]).to_pandas()
    features = frame.groupby("unit")["features_seconds"].first().sum()
    tasks_mean = float((frame["n_train"] + frame["n_test"]).mean())
    print("| matrix | cells | features, core-min | heads, core-min | in all |\n|---|---:|---:|---:|---:|")
    full = (features / 60, frame["seconds"].sum() / 60)
    print(f"| full, as it ran | {len(frame):,} | {full[0]:.1f} | {full[1]:.1f} | {sum(full):.1f} |")
    single = (PAPER_CELLS * tasks_mean / rate / 60, PAPER_CELLS * each / 60)
    print(f"| one by one | {PAPER_CELLS:,} | {single[0]:.1f} | {single[1]:.1f} | {sum(single):.1f} |")
    print(f"\n{rate:,.0f} images/s a core, {tasks_mean:.0f} images a task.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
