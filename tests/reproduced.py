"""Hand-made evidence: two domains of one taxonomy with attribute tasks, whose distances are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from t2v_core.config import MetaTaskRule
from t2v_core.embedding import Layer
from t2v_core.records import EmbeddingTable
from t2v_core.reproduce.evidence import Evidence
from t2v_core.reproduce.profile import Profile

TOPS, SUBS, SETS, ASKED = 4, 4, 6, ("tone", "gender", "hair")
PROFILE = Profile(
    name="hand-made",
    title="a hand-made library",
    probe="p0",
    differs="everything",
    taxonomy=["species"],
    attributes=dict.fromkeys(ASKED, "column"),
    twins=["a", "b"],
    meta_tasks=[
        MetaTaskRule(name="both", tasks=["*"], experts=["*"], n_tasks=12, n_experts=6),
        MetaTaskRule(name="mixed", tasks=["b/*"], experts=["*"], n_tasks=8, n_experts=4),
    ],
)


def rows() -> list[dict[str, Any]]:
    """16 places of a taxonomy and 18 attribute tasks (6 sets of images x 3 questions), in each of two domains."""
    out = []
    for source in ("a", "b"):
        for top in range(TOPS):
            for sub in range(SUBS):
                name = f"{source}/top=t{top}/species=s{top}{sub}"
                place = ((f"t{top}", f"s{top}{sub}"), ())
                out.append({"task_id": name, "source": source, "label": "species", "place": place, "topic": (top, sub)})
        for s in range(SETS):
            for ask in ASKED:
                name = f"{source}/set=g{s}/{ask}"
                out.append({"task_id": name, "source": source, "label": ask, "place": (), "topic": (s, ask)})
    return out


def perfect(tasks: list[dict[str, Any]]) -> np.ndarray:
    """Vectors in which tasks are as near as their topics: a task is its own twin, then its top or question."""
    size = 256
    out = np.full((len(tasks), size), 1.0)
    for i, task in enumerate(tasks):
        first, second = task["topic"]
        if task["label"] == "species":
            out[i, 8 * first : 8 * first + 8] = 100.0
            out[i, 40 + 4 * (SUBS * first + second) :][:4] = 100.0
        else:
            out[i, 120 + 8 * ASKED.index(second) :][:8] = 100.0
            out[i, 150 + 2 * (3 * first + ASKED.index(second)) :][:2] = 100.0
        out[i, 240 if task["source"] == "a" else 241] = 20.0
    return out


def evidence(kind: str = "perfect", *, seed: int = 0, **changes: Any) -> Evidence:
    """``perfect``: distances follow the topics; ``random``: they follow nothing; ``reversed``: the opposite."""
    tasks = rows()
    rng = np.random.default_rng(seed)
    n = len(tasks)
    vectors = perfect(tasks) if kind != "random" else rng.gamma(0.5, size=(n, 256)) + 1e-3
    from t2v_core.distances import distance_matrix

    symmetric = distance_matrix(vectors)
    if kind == "reversed":
        symmetric = symmetric.max() - symmetric
        np.fill_diagonal(symmetric, 0.0)
    # The domain embedding knows the images alone: the source, and the set of images.
    images = np.array([t["task_id"].rpartition("/")[0] for t in tasks])
    domain = np.where(images[:, None] == images[None], 0.01, 0.5) + 0.01 * rng.random((n, n))
    domain = np.triu(domain, 1) + np.triu(domain, 1).T
    difficulty = rng.permutation(n) / n
    frame = pd.DataFrame(
        {
            "task_id": [t["task_id"] for t in tasks],
            "source": [t["source"] for t in tasks],
            "label": [t["label"] for t in tasks],
            "n_train": np.arange(n) + 10,
            "complexity": 1 + 10 * (difficulty if kind == "perfect" else rng.random(n)),
            "head_error": 0.1 + 0.4 * difficulty,
        }
    )
    # An expert is good where its own task is near: the generic one is in the middle everywhere.
    trained_on = {"generic": (), **{f"e{k}": (tasks[k]["task_id"],) for k in range(0, n, 5)}}
    errors = np.full((n, len(trained_on)), 0.3)
    for column, k in enumerate(range(0, n, 5), start=1):
        near = perfect(tasks)
        errors[:, column] = 0.1 + 0.4 * distance_matrix(np.stack([near[k], *near]))[0, 1:] / 0.8
    table = EmbeddingTable(
        tuple(frame["task_id"]),
        vectors.astype(np.float32),
        rng.random((n, 8)).astype(np.float32),
        np.full(256, 1e-6, np.float32),
        (Layer("all", 0, 256),),
        frame,
    )
    made = Evidence(
        profile=PROFILE,
        tasks=frame,
        class_lineages=tuple(t["place"] for t in tasks),
        symmetric=symmetric,
        domain=domain,
        embeddings=table,
        trained_on=trained_on,
        errors=errors,
    )
    return replace(made, **changes)


def runs(selected: dict[int, float], generic: dict[int, float], best: dict[int, float]) -> pd.DataFrame:
    """Fine-tuning runs on two tasks and at some sizes: frozen errors as given, fine-tuned ones 0.01 below."""
    out = []
    for task in (f"a/top=t{top}/species=s{top}{sub}" for top, sub in ((0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (2, 1))):
        for expert, errors in (
            ("picked", selected),
            ("generic", generic),
            ("best", best),
            ("own", dict.fromkeys(best, 0.0)),
        ):
            for size, error in errors.items():
                for seed in range(2):
                    out.append(
                        {
                            "expert": expert, "task_id": task, "size": size, "seed": seed, "n_train": size or 500,
                            "frozen_balanced_error": error, "balanced_error": error - 0.01,
                            "selected": expert == "picked", "own": expert == "own",
                        }
                    )  # fmt: skip
    return pd.DataFrame(out)


def write_compact(made: Evidence, folder: Path) -> None:
    """The files that `benchmarks/rehearsal.py keep` writes, of hand-made evidence."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = list(made.task_ids)
    made.tasks.iloc[::-1].to_parquet(folder / "tasks.parquet")  # in another order than the embeddings
    pd.DataFrame({"expert": list(made.experts), "tasks": [list(t) for t in made.trained_on.values()]}).to_parquet(
        folder / "experts.parquet"
    )
    errors = pd.DataFrame(made.errors, columns=list(made.experts))
    errors.insert(0, "task_id", ids)
    errors.to_parquet(folder / "balanced_error.parquet")
    upper = np.triu_indices(len(ids), 1)
    pd.DataFrame({"symmetric": made.symmetric[upper], "domain": made.domain[upper]}).to_parquet(
        folder / "distances.parquet"
    )
    logs = np.log10(made.embeddings.vectors.astype(np.float64))
    pq.write_table(pa.table({"task_id": ids, "log10": [list(row) for row in logs]}), folder / "filters.parquet")
    layout = {"filter": range(256), "layer": ["x"] * 200 + ["y"] * 56, "trivial_log10": [-6.0] * 256}
    pd.DataFrame(layout).to_parquet(folder / "layout.parquet")
    places = pa.array([[list(p) for p in c] for c in made.class_lineages], pa.list_(pa.list_(pa.string())))
    pq.write_table(pa.table({"task_id": ids, "class_lineage": places}), folder / "taxonomy.parquet")
