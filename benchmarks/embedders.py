"""Which embedding selects best: one probe, the tasks of a meta-task embedded in several ways.

    python benchmarks/embedders.py embed "variational, positions" runs/embedders/store     goes on where it was
    python benchmarks/embedders.py show runs/embedders/store                               prints the table

Tasks are those of Table 2 (`benchmarks/probes.py`): 50 of two sets of emoji, and what the 50 experts of the meta-task
were trained on; all of them are judged, with those experts. Errors are the rehearsal's. `show` wants all of `WAYS`.
Most tasks are binary with at most 512 images: for these `montecarlo` is the exact sum, and has no budget to raise.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from probes import embed

from flows._store import Store
from t2v_core.config import EmbeddingSpec, HeadSpec, MetaTaskRule, Model2VecSpec, SelectionSpec, load_config
from t2v_core.distances import distance_matrix
from t2v_core.metatasks import READINGS
from t2v_core.records import EmbeddingTable
from t2v_core.reproduce.bootstrap import mean_interval
from t2v_core.reproduce.claims import norm_follows_difficulty, taxonomy_agrees, twins_are_near
from t2v_core.reproduce.compact import read_compact
from t2v_core.reproduce.evidence import Evidence
from t2v_core.reproduce.judging import judge_by
from t2v_core.reproduce.profile import load_profile

HERE = Path(__file__).parent
CONFIG = load_config(HERE.parent / "examples" / "rehearsal.yaml")
WAYS: dict[str, dict[str, Any]] = {
    "montecarlo": {},
    "montecarlo, L2 fixed": {"head": CONFIG.embedding.head},
    "montecarlo, beta 1e-7": {"beta": 1e-7},
    "variational, positions": {"estimator": "variational"},
    "variational, weights": {
        "estimator": "variational",
        "variational": CONFIG.embedding.variational.model_copy(update={"diagonal": "weights"}),
    },
}
JUDGED = ("TASK2VEC", "asymmetric TASK2VEC", "MODEL2VEC", "task neighbours")


def spec_of(way: str) -> EmbeddingSpec:
    """The rehearsal's settings with heads that choose their L2, but for what the way changes."""
    return CONFIG.embedding.model_copy(update={"head": HeadSpec(), **WAYS[way]})


def part_of(evidence: Evidence, table: EmbeddingTable) -> Evidence:
    """Evidence of the embedded tasks, by these embeddings."""
    place = {t: i for i, t in enumerate(evidence.task_ids)}
    rows = np.array([place[t] for t in table.task_ids])
    tasks = evidence.tasks.iloc[rows].reset_index(drop=True)
    own = {c: table.frame[c].to_numpy() for c in ("complexity", "head_error")}
    return replace(
        evidence,
        tasks=tasks.assign(**own),
        class_lineages=tuple(evidence.class_lineages[i] for i in rows),
        symmetric=distance_matrix(table.vectors),
        domain=evidence.domain[np.ix_(rows, rows)],
        embeddings=table,
        errors=evidence.errors[rows],
        moments=None if evidence.moments is None else evidence.moments[rows],
        scores={},
        probes={},
    )


def show(url: str) -> None:
    """Print what each embedding is like, and what each selector does with it."""
    store, profile = Store(url), load_profile("rehearsal")
    evidence = read_compact(HERE / "results" / "rehearsal", profile)
    prints = {way: embed(CONFIG.probe, spec_of(way), url, way) for way in WAYS}
    rows = pa.concat_tables([store.read_table(k) for k in store.list("units/embeddings")])
    selection, base = SelectionSpec(n_bootstrap=2000), {}
    found: list[tuple[str, Evidence, pd.DataFrame]] = []
    for way in WAYS:
        table = EmbeddingTable.of(rows, prints[way])
        part = part_of(evidence, table)
        rule = profile.meta_tasks[0].model_copy(update={"tasks": list(part.task_ids), "n_tasks": None})
        assert isinstance(rule, MetaTaskRule)
        choices = judge_by(part, rule, table, selection, Model2VecSpec(), names=["oracle", "static", *JUDGED]).choices
        found.append((way, part, choices))
        base = base or {(r.reading, r.method, r.task_id): r.error for r in choices.itertuples()}
    print("\n| embedding | s a task | noise | taxonomy | twins | norm and error |\n|---|---:|---:|---:|---:|---:|")
    for way, part, _ in found:
        claims = [taxonomy_agrees(part, selection), twins_are_near(part, selection)]
        claims.append(norm_follows_difficulty(part, selection)[1])
        words = " | ".join(f"{c.value:.2f} [{c.low:.2f}, {c.high:.2f}]" for c in claims)
        frame = part.embeddings.frame
        print(f"| {way} | {frame['seconds'].median():.1f} | {frame['noise_distance'].median():.3f} | {words} |")
    for reading in READINGS:
        print(f"\n{reading}: error, and points more than by `montecarlo`\n")
        print("| embedding | " + " | ".join(JUDGED) + " |\n|---|" + "---:|" * len(JUDGED))
        for way, part, choices in found:
            group, cells = dict(zip(part.task_ids, part.groups, strict=True)), []
            for method in JUDGED:
                own = choices[(choices["reading"] == reading) & (choices["method"] == method)]
                less = np.array([r.error - base[reading, method, r.task_id] for r in own.itertuples()])
                groups = np.array([group[t] for t in own["task_id"]])
                mean, low, high = (100 * v for v in mean_interval(less, groups, selection))
                more = f" ({mean:+.1f} [{low:+.1f}, {high:+.1f}])" if way != "montecarlo" else ""
                cells.append(f"{own['error'].mean():.4f}{more}")
            print(f"| {way} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if sys.argv[1] == "embed":
        embed(CONFIG.probe, spec_of(sys.argv[2]), sys.argv[3], sys.argv[2])
    else:
        show(sys.argv[2])
