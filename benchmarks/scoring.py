"""Methods that look at every expert's features, on the cells of Table 1's meta-tasks.

    python benchmarks/scoring.py runs/rehearsal/store        after `make rehearsal`

Writes benchmarks/results/rehearsal/scores.parquet, which `t2v reproduce --library rehearsal` takes into Table 1. The
features are in the store since the experts were evaluated. It prints what each method took.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from flows._data import Extractor, annotations
from flows._features import read_features
from flows._pointers import read_pointer
from flows._score_units import expert_heads
from flows._store import Store
from t2v_core.config import ScoringSpec, load_config
from t2v_core.library import TaskLibrary, resolve_task
from t2v_core.matrix import wanted_cells
from t2v_core.reproduce.profile import load_profile
from t2v_core.transferability import METHODS
from t2v_core.transferability.block import score_block, train_sample

HERE = Path(__file__).parent
SPEC = ScoringSpec(methods=list(METHODS))


def main(url: str) -> None:
    """Score, write, and print a table."""
    store = Store(url)
    precision = load_config(HERE.parent / "examples" / "rehearsal.yaml").evaluation.precision
    sources = read_pointer(store, "rehearsal", "sources")["sources"]
    shelf = read_pointer(store, "rehearsal", "experts")["experts"]
    library = TaskLibrary.from_table(store.read_table(read_pointer(store, "rehearsal", "library")["manifest"]))
    ids, names = [t.task_id for t in library.tasks], [e["name"] for e in shelf]
    wanted = wanted_cells(load_profile("rehearsal").meta_tasks, names, ids)
    blocks = []
    for source, own in library.by_source().items():
        table = annotations(url, sources[source])
        found = {t.task_id: resolve_task(t.spec, table) for t in own}
        for expert in shelf:
            tasks = [(i, rows) for i, rows in found.items() if i in wanted[expert["name"]]]
            if not tasks:
                continue
            extractor = Extractor.model_validate(expert["extractor"])
            used = np.unique(np.concatenate([train_sample(rows, SPEC)[0] for _, rows in tasks]))
            values, _ = read_features(url, extractor, expert["digest"], sources[source], used, precision=precision)
            placed = [(i, replace(rows, rows=np.searchsorted(used, rows.rows))) for i, rows in tasks]
            blocks.append(score_block(expert["name"], values, expert_heads(store, extractor), placed, SPEC))
        print(f"{source}: {sum(map(len, blocks)):,} scores so far", flush=True)
    scores = pa.concat_tables(blocks)
    kept = scores.drop_columns(["reason"]).replace_schema_metadata(None)
    path = HERE / "results" / "rehearsal" / "scores.parquet"
    pq.write_table(kept, path, compression="zstd", compression_level=19)
    cells = len({*zip(scores["task_id"].to_pylist(), scores["expert"].to_pylist(), strict=True)})
    print(f"\n{cells:,} cells, {path.stat().st_size / 1e6:.1f} MB\n")
    print("| method | ms a cell, median | no answer |\n|---|---:|---:|")
    for method in SPEC.methods:
        own = scores.filter(pc.equal(scores["method"], method))
        seconds = np.median(own["seconds"].to_numpy())
        print(f"| {METHODS[method].title} | {1e3 * seconds:.2f} | {int(np.isnan(own['score'].to_numpy()).sum())} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
