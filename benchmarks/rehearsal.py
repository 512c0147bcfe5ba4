"""The rehearsal's results in a few MB, and what its error matrix shows.

    python benchmarks/rehearsal.py keep runs/rehearsal/store       writes benchmarks/results/rehearsal/
    python benchmarks/rehearsal.py layout                          writes what the probe and the annotation files say
    python benchmarks/rehearsal.py show                            prints the tables of docs/rehearsal.md from there

Kept: tasks, experts, both error matrices (tasks x experts), each layer's mean of every embedding, 1,024 of its filters
(evenly spaced, logarithms), and distances between tasks, symmetric, of domains and of second moments: the upper
triangle row by row. And what the pipeline's selectors do on all tasks, by all filters: table and paired differences.
`layout`: layer and trivial embedding of those filters, and the place of each task's classes in the taxonomy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

RESULTS = Path(__file__).parent / "results" / "rehearsal"
N_FILTERS = 1024
SETS = ("openmoji", "noto", "twemoji")


def _write(name: str, table: pa.Table | pd.DataFrame) -> None:
    table = pa.Table.from_pandas(table, preserve_index=False) if isinstance(table, pd.DataFrame) else table
    table = table.replace_schema_metadata(None)
    pq.write_table(table, RESULTS / f"{name}.parquet", compression="zstd", compression_level=19)


def _wide(names: tuple[str, ...], columns: tuple[str, ...], values: np.ndarray) -> pa.Table:
    return pa.table({"task_id": list(names)} | {c: values[:, i].astype(np.float32) for i, c in enumerate(columns)})


def keep(url: str) -> None:
    """Write the compact results of a store."""
    from flows._data import annotations, read_cells
    from flows._keys import BLOCK_UNITS
    from flows._moments import read_moments
    from flows._pointers import read_pointer
    from flows._store import Store
    from flows._units import compact_unit
    from t2v_core.distances import cosine_matrix, symmetric_matrix
    from t2v_core.library import TaskLibrary, resolve_task
    from t2v_core.matrix import ErrorMatrix
    from t2v_core.records import EmbeddingTable

    store = Store(url)

    def last(stage: str) -> dict:
        return read_pointer(store, "rehearsal", stage)

    RESULTS.mkdir(parents=True, exist_ok=True)
    sources = last("sources")["sources"]
    library = TaskLibrary.from_table(store.read_table(last("library")["manifest"]))
    embeddings = EmbeddingTable.of(store.read_table("embeddings/part-0.parquet"), last("embeddings")["embeddings"])
    shelf = last("experts")["experts"]
    rows = []
    for task in library.tasks:
        found = resolve_task(task.spec, annotations(url, sources[task.spec.source]))
        rows.append(
            {
                "task_id": task.task_id,
                "source": task.spec.source,
                "label": task.spec.label,
                "kind": task.spec.kind,
                "classes": len(task.spec.classes),
                "lineage": "/".join(task.spec.lineage),
                "n_train": sum(task.train_counts),
                "n_test": sum(task.test_counts),
                "test_groups": len(np.unique(found.groups[found.test])),
            }
        )
    scalars = ["task_id", "complexity", "noise_distance", "head_loss", "head_error", "n_passes", "seconds"]
    _write("tasks", pd.DataFrame(rows).merge(embeddings.frame[scalars], on="task_id", how="left", validate="1:1"))
    _write(
        "experts",
        pd.DataFrame({"expert": e["name"], "tasks": list(e["tasks"]), "seconds": e["seconds"]} for e in shelf),
    )
    compact_unit(url, {"dataset": "error_matrix"})  # also of a run that is not at its end
    cells = read_cells(store, store.list(BLOCK_UNITS))
    trained_on = {e["name"]: e["tasks"] for e in shelf}
    for metric in ("balanced_error", "error"):
        matrix = ErrorMatrix.of(cells, embeddings.task_ids, trained_on, metric)
        _write(metric, _wide(matrix.task_ids, matrix.experts, matrix.errors))
    vectors = embeddings.vectors.astype(np.float64)
    means = np.stack([vectors[:, x.start : x.stop].mean(1) for x in embeddings.layers], 1)
    _write("layer_means", _wide(embeddings.task_ids, tuple(x.name for x in embeddings.layers), means))
    picked = np.linspace(0, vectors.shape[1] - 1, N_FILTERS).round().astype(int)
    filters = np.log10(vectors[:, picked]).astype(np.float16)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(filters.reshape(-1)), N_FILTERS)
    _write("filters", pa.table({"task_id": list(embeddings.task_ids), "log10": flat}))
    upper = np.triu_indices(len(vectors), 1)
    distances = {
        "symmetric": symmetric_matrix(vectors, vectors)[upper],
        "domain": cosine_matrix(*[embeddings.domains.astype(np.float64)] * 2)[upper],
    }
    moments = read_moments(store, last("moments")["units"], embeddings.frame["task_fingerprint"].to_list())
    if moments is not None:
        distances["second_moments"] = cosine_matrix(*[moments.astype(np.float64)] * 2)[upper]
    _write("distances", pa.table({k: v.astype(np.float16) for k, v in distances.items()}))
    selection = last("selection")["prefix"]
    _write("selection", store.read_table(f"{selection}/table.parquet"))
    _write("selection_pairs", store.read_table(f"{selection}/pairs.parquet"))
    for file in sorted(RESULTS.glob("*.parquet")):
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")


def layout() -> None:
    """Write what is known without a store: of the probe's filters, and of the taxonomy."""
    from t2v_core.config import load_config
    from t2v_core.embedding import trivial_embedding
    from t2v_core.preview import preview_library
    from t2v_core.probes import load_probe

    config = load_config(RESULTS.parents[2] / "examples" / "rehearsal.yaml")
    spec = config.probe
    probe = load_probe(spec.name, spec.weights, image_size=spec.image_size)
    picked = np.linspace(0, probe.n_filters - 1, N_FILTERS).round().astype(int)
    layer = np.concatenate([np.full(u.stop - u.start, u.name, object) for u in probe.units])
    trivial = np.log10(trivial_embedding(probe, config.embedding).astype(np.float64))
    _write("layout", pa.table({"filter": picked, "layer": layer[picked].tolist(), "trivial_log10": trivial[picked]}))
    found = preview_library(config.sources, config.library)
    if found.absent:
        raise SystemExit(f"missing {found.absent[0]}; t2v fetch emoji stamps fashion-mnist")

    def pair(task_id: str) -> str:
        """A pair's name does not say which class has more images: pictures that come twice may turn it round."""
        head, equals, tail = task_id.rpartition("=")
        return head + equals + "+".join(sorted(tail.split("+")))

    of = {pair(t.task_id): [list(c) for c in t.spec.class_lineage] for t in found.library.tasks}
    ids = pd.read_parquet(RESULTS / "tasks.parquet")["task_id"]
    places = pa.array([of[pair(t)] for t in ids], pa.list_(pa.list_(pa.string())))
    _write("taxonomy", pa.table({"task_id": ids.tolist(), "class_lineage": places}))


def _family(tasks: pd.DataFrame) -> pd.Series:
    """The kinds of task that docs/rehearsal.md speaks of."""
    emoji = tasks["source"].isin(SETS)
    names = tasks["label"].where(emoji, tasks["source"])
    return names.where(~emoji | names.isin(["skin_tone", "gender", "keyword", "category", "subcategory"]), "other")


def _family_means(errors: np.ndarray, own: np.ndarray, family: pd.Series) -> np.ndarray:
    """Mean error of each expert over the tasks of each task's family, ``[T, E]``."""
    frame = pd.DataFrame(np.where(own, np.nan, errors))
    return frame.groupby(family.to_numpy()).transform("mean").to_numpy()


def show() -> None:
    """Print the tables."""
    tasks = pd.read_parquet(RESULTS / "tasks.parquet")
    experts = pd.read_parquet(RESULTS / "experts.parquet")
    errors = pd.read_parquet(RESULTS / "balanced_error.parquet").set_index("task_id").loc[tasks["task_id"]]
    tried = errors.notna().all(axis=1).to_numpy()
    print(f"{len(tasks)} tasks were embedded; every expert was tried on {tried.sum()} of them.")
    tasks, errors = tasks[tried].reset_index(drop=True), errors[tried]
    own = np.array([[t in set(on) for on in experts["tasks"]] for t in tasks["task_id"]])
    source_of = experts["tasks"].map(lambda on: on[0].split("/")[0] if len(on) else "")
    own_set = source_of.to_numpy()[None, :] == tasks["source"].to_numpy()[:, None]
    e = errors.to_numpy()
    family = _family(tasks)
    print(f"{len(tasks)} tasks x {len(experts)} experts, {e.size:,} cells\n")

    def best(hidden: np.ndarray) -> np.ndarray:
        return np.asarray(np.nanmin(np.where(hidden, np.nan, e), 1))

    columns = {
        "tasks": np.ones(len(e)),
        "chance": 1 - 1 / tasks["classes"].to_numpy(),
        "generic": e[:, 0],
        "median expert": np.nanmedian(e[:, 1:], 1),
        "worst": np.nanmax(e, 1),
        "best": best(np.zeros_like(own)),
        "best but its own": best(own),
        "best of other sets": best(own_set),
    }
    means = pd.DataFrame(columns).groupby(family.to_numpy()).agg("mean")
    means["tasks"] = family.value_counts()
    means.loc["all"] = [len(e), *(np.mean(v) for k, v in columns.items() if k != "tasks")]
    print("| family | " + " | ".join(means.columns) + " |\n|---|" + "---:|" * len(means.columns))
    for name, row in means.iterrows():
        print(f"| {name} | {row['tasks']:.0f} | " + " | ".join(f"{v:.3f}" for v in row.iloc[1:]) + " |")

    # The best of many experts is partly luck. A fair judge: pick on the same task of another set.
    suffix = tasks["task_id"].str.split("/", n=1).str[1]
    place = {t: i for i, t in enumerate(tasks["task_id"])}
    pairs = [
        (place[f"{a}/{s}"], place[f"{b}/{s}"])
        for a in SETS for b in SETS if a != b
        for s in suffix[tasks["source"] == a] if f"{b}/{s}" in place
    ]  # fmt: skip
    here, twin = np.array(pairs).T
    rng = np.random.default_rng(0)
    concept = suffix.to_numpy()[here]
    print(f"\n{len(pairs)} pairs of a task and the same task in another set; the expert is picked on the other one.\n")
    print("| expert | error | less generic, points | 95% |\n|---|---:|---:|---:|")
    base = e[here, 0]
    static = np.array([np.nanmean(np.where(own[:, i], np.nan, e[:, i])) for i in range(e.shape[1])])
    judges = {
        "picked on the twin": np.where(own[here] | own[twin], np.inf, e[twin]),
        "the same, experts of the task's set left out": np.where(own_set[here] | own[twin], np.inf, e[twin]),
        "static: the lowest mean error over all tasks": np.where(own[here], np.inf, static),
        "static in the family": np.where(own[here], np.inf, _family_means(e, own, family)[here]),
    }
    for name, scores in judges.items():
        chosen = e[here, scores.argmin(1)]
        gain = pd.Series(chosen - base).groupby(concept).mean().to_numpy()
        resampled = [rng.choice(gain, len(gain)).mean() for _ in range(2000)]
        low, high = np.percentile(resampled, [2.5, 97.5])
        print(f"| {name} | {chosen.mean():.3f} | {100 * gain.mean():+.1f} | [{100 * low:+.1f}, {100 * high:+.1f}] |")
    print(f"| generic | {base.mean():.3f} | | |")
    means_of = np.array([np.nanmean(np.where(own[:, i], np.nan, e[:, i])) for i in range(e.shape[1])])
    order = np.argsort(means_of)
    print("\n| place | expert | mean error |\n|---:|---|---:|")
    for i in [*order[:5], *([0] if 0 not in order[:5] else []), *order[-3:]]:
        print(f"| {int(np.flatnonzero(order == i)[0]) + 1} | {experts['expert'][i]} | {means_of[i]:.3f} |")
    winners = np.nanargmin(np.where(own, np.nan, e), 1)
    print(f"\n{len(np.unique(winners))} experts are the best of some task, their own left out.")
    print(f"generic between .10 and .60 on {int(((e[:, 0] > 0.1) & (e[:, 0] < 0.6)).sum())} of {len(e)} tasks")


if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"]:
        keep(sys.argv[2])
    layout() if sys.argv[1:2] in (["keep"], ["layout"]) else show()
