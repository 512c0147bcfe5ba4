"""Cells of the error matrix: heads of a block together, against one by one with the reference recipe; and the bill.

    python benchmarks/block.py runs/rehearsal/store rehearsal      after `make rehearsal`

Blocks of three experts on the two largest sources: seconds a cell, and balanced errors on a sample of cells, paired.
Then the full matrix against 4,100 cells one by one, side by side: all blocks of one expert made anew, times the
experts; and a sample of cells, each with the features of its own images and a head by the recipe (Adam, 16 epochs of
10,000 balanced images). Heads and precision are those of examples/NAME.yaml.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flows._data import Extractor, annotations, load_extractor, load_images
from flows._features import read_features
from flows._pointers import read_pointer
from flows._store import Store
from t2v_core.config import EvaluationSpec, load_config
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


def block(
    store: Store, expert: dict, prefix: str, tasks: list[Task], precision: str
) -> tuple[np.ndarray, list[tuple[str, TaskRows]]]:
    """Features of the rows that the tasks use, and the tasks on them."""
    table = annotations(store.url, prefix)
    found = [(t.task_id, resolve_task(t.spec, table)) for t in tasks]
    used = np.unique(np.concatenate([r.rows for _, r in found]))
    extractor = Extractor.model_validate(expert["extractor"])
    values, _ = read_features(store.url, extractor, expert["digest"], prefix, used, precision=precision)
    return values, [(i, replace(r, rows=np.searchsorted(used, r.rows))) for i, r in found]


def features_anew(url: str, expert: dict, prefix: str, rows: np.ndarray, precision: str) -> np.ndarray:
    """As the pipeline makes them, and stored nowhere."""
    network = load_extractor(url, Extractor.model_validate(expert["extractor"]))
    network = network if precision == "float32" else network.to(torch.bfloat16)
    parts = [rows[i : i + 1024] for i in range(0, len(rows), 1024)]
    return np.concatenate([extract_features(network, load_images(url, prefix, network.transform, p)) for p in parts])


def bill(store: Store, shelf: list, sources: dict, by_source: dict, spec: EvaluationSpec, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    """(cells, features, heads) in core-minutes: the full matrix, and 4,100 cells one by one."""
    expert, features, heads = shelf[len(shelf) // 2], 0.0, 0.0
    cells: list[tuple[str, TaskRows]] = []
    for source, own in by_source.items():
        table = annotations(store.url, sources[source])
        tasks = [(t.task_id, resolve_task(t.spec, table)) for t in own]
        used = np.unique(np.concatenate([r.rows for _, r in tasks]))
        began = time.perf_counter()
        values = features_anew(store.url, expert, sources[source], used, spec.precision)
        features += time.perf_counter() - began
        began = time.perf_counter()
        placed = [(i, replace(r, rows=np.searchsorted(used, r.rows))) for i, r in tasks]
        evaluate_block(expert["name"], values.astype(np.float16).astype(np.float32), placed, spec.head)
        heads += time.perf_counter() - began
        cells += [(source, r) for _, r in tasks]
    full = len(shelf) * len(cells), len(shelf) * features / 60, len(shelf) * heads / 60
    features = heads = 0.0
    for i in rng.choice(len(cells), 2 * SAMPLE, replace=False):
        source, task = cells[i]
        began = time.perf_counter()
        values = features_anew(store.url, expert, sources[source], task.rows, "float32")
        features += time.perf_counter() - began
        began = time.perf_counter()
        reference_error(values, replace(task, rows=np.arange(len(task.rows))))
        heads += time.perf_counter() - began
    times = PAPER_CELLS / (2 * SAMPLE) / 60
    return full, (PAPER_CELLS, features * times, heads * times)


def main(url: str, name: str) -> None:
    """Print two tables."""
    store, rng = Store(url), np.random.default_rng(0)
    spec = load_config(Path(__file__).parents[1] / "examples" / f"{name}.yaml").evaluation
    sources = read_pointer(store, name, "sources")["sources"]
    shelf = read_pointer(store, name, "experts")["experts"]
    by_source = TaskLibrary.from_table(store.read_table(read_pointer(store, name, "library")["manifest"])).by_source()
    largest = sorted(by_source, key=lambda s: -len(by_source[s]))[:2]
    together, alone, cells, differences = 0.0, 0.0, 0, []
    for expert in (shelf[0], shelf[len(shelf) // 3], shelf[-1]):
        for source in largest:
            values, tasks = block(store, expert, sources[source], by_source[source], spec.precision)
            began = time.perf_counter()
            ours = evaluate_block(expert["name"], values, tasks, spec.head)
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
        f"cells: {100 * d.mean():+.2f} points, 95% [{100 * (d.mean() - half):+.2f}, {100 * (d.mean() + half):+.2f}]\n",
        flush=True,
    )
    print("| matrix | cells | features, core-min | heads, core-min | in all |\n|---|---:|---:|---:|---:|")
    for what, found in zip(("full", "one by one"), bill(store, shelf, sources, by_source, spec, rng), strict=True):
        n, features, heads = found
        print(f"| {what} | {n:,} | {features:.1f} | {heads:.1f} | {features + heads:.1f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
