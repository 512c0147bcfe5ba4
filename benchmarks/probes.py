"""Embeddings of two meta-tasks' tasks by other probes: what Table 2 compares.

    python benchmarks/probes.py embed efficientnet_lite1 runs/probes/store       goes on where it was
    python benchmarks/probes.py keep runs/probes/store                           writes benchmarks/results/probes/

Same images, heads and estimator as the rehearsal's (examples/rehearsal.yaml); the probe alone differs. Embedded are the
tasks of the meta-task of two sets of emoji, and what its experts were trained on. The error matrix stays that of the
rehearsal: a probe chooses, the experts are the same. Kept are 1,024 filters of each embedding, evenly spaced, as
logarithms, and the same filters of the trivial embedding.

`--seconds S` ends after S seconds, for a machine that is shared; the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from flows._data import Extractor, annotations, load_network
from flows._features import make_features, n_chunks
from flows._keys import embedding_fingerprint, embedding_key, source_prefix
from flows._pack_units import close_unit, plan_key, plan_unit, shard_unit, source_key
from flows._store import Store
from flows._units import embed_unit
from t2v_core.config import EmbeddingSpec, PipelineConfig, ProbeSpec, load_config
from t2v_core.embedding import trivial_embedding
from t2v_core.library import Task
from t2v_core.matrix import wanted_cells
from t2v_core.memory import keep_freed_memory
from t2v_core.reproduce.profile import load_profile
from t2v_core.rules import build_library
from t2v_core.sources import open_source

HERE = Path(__file__).parent
REHEARSAL, RESULTS = HERE / "results" / "rehearsal", HERE / "results" / "probes"
N_FILTERS = 1024


def wanted_tasks() -> list[str]:
    """Tasks of the profile's first meta-task, and those that its experts were trained on."""
    rule = load_profile("rehearsal").meta_tasks[0]
    tasks = pd.read_parquet(REHEARSAL / "tasks.parquet")["task_id"].tolist()
    experts = pd.read_parquet(REHEARSAL / "experts.parquet")
    cells = wanted_cells([rule], experts["expert"].tolist(), tasks)
    judged = set(cells["generic"])
    on = dict(zip(experts["expert"], experts["tasks"], strict=True))
    own = {t for name, its in cells.items() if its for t in on[name]}
    return [t for t in tasks if t in judged | own]


def _pack(store: Store, config: PipelineConfig, names: set[str]) -> dict[str, str]:
    """Pack the sources that are not packed yet; prefix of each."""
    prefixes = {}
    for spec in config.sources:
        if spec.name not in names:
            continue
        prefix = source_prefix(spec, open_source(spec.loader, **spec.options).info.revision)
        prefixes[spec.name] = prefix
        if store.exists(source_key(prefix)):
            continue
        payload = {"source": spec.model_dump(mode="json"), "prefix": prefix}
        plan_unit(store.url, payload)
        for index in range(store.read_json(plan_key(prefix))["n_shards"]):
            shard_unit(store.url, {**payload, "index": index})
        close_unit(store.url, {**payload, "failed": ""})
    return prefixes


def _tasks(store: Store, config: PipelineConfig, prefixes: dict[str, str], wanted: list[str]) -> list[Task]:
    library = build_library(config.library, {n: annotations(store.url, p) for n, p in prefixes.items()})
    of = {t.task_id: t for t in library.tasks}
    missing = [t for t in wanted if t not in of]
    if missing:
        raise SystemExit(f"{len(missing)} tasks are not in the library, e.g. {missing[0]}")
    return [of[t] for t in wanted]


def embed(
    spec: ProbeSpec, embedding: EmbeddingSpec, url: str, name: str, seconds: float = float("inf")
) -> dict[str, str]:
    """Embed what is missing, until the time is up; fingerprint of each task's embedding."""
    keep_freed_memory()
    began = time.perf_counter()
    config = load_config(HERE.parent / "examples" / "rehearsal.yaml")
    wanted, store, prints = wanted_tasks(), Store(url), {}
    prefixes = _pack(store, config, {t.split("/")[0] for t in wanted})
    tasks = _tasks(store, config, prefixes, wanted)
    extractor = Extractor(architecture=spec.name, weights=spec.weights, image_size=spec.image_size, seed=spec.seed)
    digest = load_network(store.url, extractor).digest
    for prefix in prefixes.values():
        for chunk in range(n_chunks(store.url, prefix)):
            if made := make_features(store.url, extractor, digest, prefix, chunk):
                print(f"{name}: features of {prefix}, {made:.0f} s", flush=True)
    for done, task in enumerate(tasks):
        if time.perf_counter() - began > seconds:
            print(f"{name}: {done} of {len(tasks)} embedded, time is up", flush=True)
            return prints
        prints[task.task_id] = made_of = embedding_fingerprint(task, spec, digest, embedding)
        embed_unit(
            store.url,
            {
                "key": embedding_key(task.task_id, spec.name, made_of),
                "task": task.spec.model_dump(mode="json"),
                "task_fingerprint": task.fingerprint,
                "fingerprint": made_of,
                "prefix": prefixes[task.spec.source],
                "extractor": extractor.model_dump(),
                "digest": digest,
                "embedding": embedding.model_dump(mode="json"),
            },
        )
    print(f"{name}: all {len(tasks)} embedded", flush=True)
    return prints


def keep(url: str) -> None:
    """Write each probe's compact embeddings: one row a task, the trivial embedding in a file of all probes."""
    store, config = Store(url), load_config(HERE.parent / "examples" / "rehearsal.yaml")
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows = pd.concat([store.read_table(k).to_pandas() for k in store.list("units/embeddings")])
    trivial = {}
    for name, own in rows.groupby("probe"):
        short = str(name).split(":")[0]
        vectors = np.stack(own["vector"].to_numpy())
        picked = np.linspace(0, vectors.shape[1] - 1, N_FILTERS).round().astype(int)
        flat = pa.array(np.log10(vectors[:, picked].astype(np.float64)).astype(np.float16).reshape(-1))
        table = pa.table(
            {
                "task_id": own["task_id"].tolist(),
                "log10": pa.FixedSizeListArray.from_arrays(flat, N_FILTERS),
                "complexity": own["complexity"].to_numpy(),
                "head_error": own["head_error"].to_numpy(),
                "noise_distance": own["noise_distance"].to_numpy(),
                "seconds": own["seconds"].to_numpy(),
            }
        )
        pq.write_table(table, RESULTS / f"{short}.parquet", compression="zstd", compression_level=19)
        size = config.probe.image_size
        network = load_network(store.url, Extractor(architecture=short, weights="imagenet", image_size=size))
        trivial[short] = np.log10(trivial_embedding(network, config.embedding)[picked].astype(np.float64))
        print(
            f"{short}: {len(own)} tasks, {network.n_filters} filters, {own['seconds'].median():.1f} s a task (median)"
        )
    flat = pa.array(np.concatenate(list(trivial.values())).astype(np.float32))
    table = pa.table({"probe": list(trivial), "log10": pa.FixedSizeListArray.from_arrays(flat, N_FILTERS)})
    pq.write_table(table, RESULTS / "trivial.parquet", compression="zstd", compression_level=19)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("embed")
    verb.add_argument("probe")
    verb.add_argument("store")
    verb.add_argument("--seconds", type=float, default=float("inf"))
    verbs.add_parser("keep").add_argument("store")
    given = parser.parse_args()
    if given.verb == "embed":
        rehearsal = load_config(HERE.parent / "examples" / "rehearsal.yaml")
        by = rehearsal.probe.model_copy(update={"name": given.probe})
        embed(by, rehearsal.embedding, given.store, given.probe, given.seconds)
    else:
        keep(given.store)
