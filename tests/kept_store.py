"""A store as two runs of a config leave it, small: what the newest refers to, what an older result does, and garbage."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from flows._keys import (
    BLOCK_UNITS,
    EMBEDDING_UNITS,
    EMBEDDINGS,
    ERROR_MATRIX,
    MOMENT_UNITS,
    SCORE_UNITS,
    TRANSFERABILITY,
)
from flows._pointers import write_pointer
from flows._store import Store
from flows._store_compaction import parsed
from t2v_core.fingerprints import digest_bytes

__all__ = ["GARBAGE", "PROBE", "fill", "fp"]

PROBE = "net"


def fp(text: str) -> str:
    """A fingerprint of one's own choosing."""
    return digest_bytes(text.encode())


GARBAGE = sorted(
    [
        f"{BLOCK_UNITS}/old-expert/digits-{fp('old block')}.parquet",
        f"{EMBEDDING_UNITS}/{PROBE}/digits__one-{fp('old one')}.parquet",
        f"experts/left-{fp('left')}/checkpoint.safetensors",
        f"experts/old-{fp('old')}/expert.json",
        f"experts/old-{fp('old')}/heads.safetensors",
        f"experts/old-{fp('old')}/weights.safetensors",
        f"experts/outside/gone-{fp('gone')}.pt",
        f"features/{fp('old digest')}/digits-{fp('digits')}-{fp('f3')}.safetensors",
        f"features/{fp('new digest')}/digits-{fp('digits of last year')}-{fp('f4')}.safetensors",
        f"libraries/mine-{fp('old library')}.parquet",
        f"reports/mine-{fp('nobody')}.html",
        f"selections/mine-{fp('nobody')}/distances-all-candidates.safetensors",
        f"sources/digits-{fp('digits of last year')}/plan.json",
        f"sources/digits-{fp('digits of last year')}/shard-00000.parquet",
        f"{MOMENT_UNITS}/digits-{fp('old moments')}.safetensors",
        f"{SCORE_UNITS}/old-expert/digits-{fp('old scores')}.parquet",
    ]
)
"""Keys that nothing refers to."""


def _tensors(value: float) -> bytes:
    return save({"x": np.full(8, value, np.float32)})


def _embedding(store: Store, task: str, fingerprint: str, digest: str) -> None:
    table = pa.table(
        {"task_id": [task], "fingerprint": [fingerprint], "probe": [f"{PROBE}:{digest}"], "vector": [[1.0]]}
    )
    store.put_table(f"{EMBEDDING_UNITS}/{PROBE}/digits__{task}-{fingerprint}.parquet", table)


def _block(store: Store, expert: str, name: str, folder: str = BLOCK_UNITS) -> str:
    key = f"{folder}/{expert}/digits-{fp(name)}.parquet"
    store.put_table(key, pa.table({"expert": [expert, expert], "task_id": ["one", "two"], "error": [0.1, 0.2]}))
    return key


def _expert(store: Store, name: str, digest: str) -> str:
    folder = f"experts/{name}-{fp(name)}"
    store.replace(f"{folder}/weights.safetensors", _tensors(len(name)))
    store.replace(f"{folder}/heads.safetensors", _tensors(2.0))
    store.put_json(f"{folder}/expert.json", {"name": name, "digest": digest})
    return folder


def _selection(store: Store, name: str) -> str:
    prefix = f"selections/mine-{fp(name)}"
    for file in ("distances-own-left-out", "model2vec", "selector"):
        store.put(f"{prefix}/{file}.safetensors", _tensors(3.0))
    for file in ("table", "choices"):
        store.put_table(f"{prefix}/{file}.parquet", pa.table({"method": ["MODEL2VEC"]}))
    store.put_json(f"{prefix}/selection.json", {"prefix": prefix, "n_tasks": 2})
    return prefix


def fill(store: Store) -> None:
    """Write all of it: garbage, an older result, and the newest."""
    digest, source = fp("new digest"), f"sources/digits-{fp('digits')}"
    for name in ("annotations", "rejects", "plan", "shard-00000"):
        store.put_table(f"{source}/{name}.parquet", pa.table({"image_id": ["a", "b"]}))
    store.put_json(f"{source}/plan.json", {"n_shards": 1})
    store.put_json(f"{source}/shard-00000.json", {"key": f"{source}/shard-00000.parquet", "rows": 2})
    shards = [{"key": f"{source}/shard-00000.parquet", "rows": 2}]
    store.put_json(f"{source}/source.json", {"name": "digits", "shards": shards})
    library = f"libraries/mine-{fp('library')}.parquet"
    store.put_table(library, pa.table({"task_id": ["one", "two"]}))
    store.put(f"features/{digest}/digits-{fp('digits')}-{fp('f1')}.safetensors", _tensors(4.0))
    store.put(f"features/{digest}/digits-{fp('digits')}-{fp('f2')}-00001.safetensors", _tensors(5.0))
    for task in ("one", "two"):
        _embedding(store, task, fp(task), digest)
    expert = _expert(store, "mine", digest)
    outside = f"experts/outside/added-{fp('added')}.pt"
    store.put(outside, b"a program")
    blocks = [_block(store, "mine", "block")]
    scores, moments = (
        [_block(store, "mine", "scores", SCORE_UNITS)],
        f"{MOMENT_UNITS}/digits-{fp('moments')}.safetensors",
    )
    store.put(moments, _tensors(8.0))
    selection, report = _selection(store, "newest"), f"reports/mine-{fp('newest')}.html"
    store.put(report, b"<html>")

    for key in GARBAGE:
        if key.endswith(".parquet") and not key.startswith("units/"):
            store.put_table(key, pa.table({"old": [1]}))
        elif not key.startswith(("units/", "experts/old")):
            store.put(key, _tensors(6.0) if key.endswith(".safetensors") else b"{}")
    _embedding(store, "one", fp("old one"), fp("old digest"))
    _block(store, "old-expert", "old block")
    _block(store, "old-expert", "old scores", SCORE_UNITS)
    store.put(f"{MOMENT_UNITS}/digits-{fp('old moments')}.safetensors", _tensors(7.0))
    _expert(store, "old", fp("old digest"))

    older, page = _selection(store, "older"), f"reports/mine-{fp('older')}.html"
    store.put(page, b"<html>")
    store.replace_json(
        f"results/mine-{fp('older config')}.json", {"prefix": older, "keys": [page, f"{older}/selection.json"]}
    )

    store.compact(EMBEDDING_UNITS, EMBEDDINGS, parsed)
    store.compact(BLOCK_UNITS, ERROR_MATRIX, parsed)
    store.compact(SCORE_UNITS, TRANSFERABILITY, parsed)
    store.put("registered-experts/mine/added.json", b'{"name": "added", "program": "store:%s"}' % outside.encode())
    store.put("registered/mine/cats.json", b'{"source": {"name": "cats"}}')
    store.put("notes/of-another-tool.txt", b"kept, as nobody knows what it is")
    pointers = {
        "sources": {"sources": {"digits": source}, "absent": []},
        "library": {"manifest": library, "skipped": []},
        "embeddings": {"embeddings": {task: fp(task) for task in ("one", "two")}},
        "experts": {
            "experts": [
                {"name": "generic", "digest": digest, "extractor": {"weights": "imagenet"}},
                {"name": "mine", "digest": fp("mine"), "extractor": {"weights": f"store:{expert}/weights.safetensors"}},
            ]
        },
        "error_matrix": {"blocks": blocks},
        "scores": {"blocks": scores},
        "moments": {"units": [moments]},
        "selection": {"prefix": selection},
        "report": {"report": report, "model": "models:/t2v-selector-mine@champion"},
    }
    for stage, value in pointers.items():
        write_pointer(store, "mine", stage, value)
