"""Features of an extractor on a source: made once, in chunks, in half precision; read by the rows that are asked for.

`benchmarks/precision.py` measures what half precision does to the errors of heads. Memory is that of a chunk and of the
rows asked for, whatever the size of the source.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from safetensors.numpy import load, save

from flows._data import Extractor, load_extractor, load_images, load_outside, source_record
from flows._keys import features_key
from flows._store import Store
from t2v_core.errors import StoreError
from t2v_core.features import GivesFeatures, extract_features
from t2v_core.library import Task

__all__ = ["BLOCK", "CHUNK", "blocks", "make_features", "n_chunks", "read_features"]

CHUNK = 65_536
"""Images whose features are one object."""
BLOCK = 262_144
"""Rows of features that a block may use: what bounds its memory."""
_DECODED = 1024
"""Images that are decoded at once."""


def n_chunks(store_url: str, prefix: str) -> int:
    """Objects that the features of a packed source are kept in."""
    return max(1, -(-int(source_record(store_url, prefix)["n_images"]) // CHUNK))


@lru_cache(maxsize=3)
def _network(store_url: str, extractor: Extractor, precision: str) -> GivesFeatures:
    network = (load_outside if extractor.outside else load_extractor)(store_url, extractor)
    return network if precision == "float32" else network.to(torch.bfloat16)


def make_features(
    store_url: str,
    extractor: Extractor,
    digest: str,
    prefix: str,
    chunk: int,
    batch_size: int = 64,
    precision: str = "float32",
) -> float:
    """Make one chunk where it is not in the store; returns seconds, 0 where it was there.

    Raises:
        ComputeError: features that are not finite, or beyond half precision.
    """
    store, key = Store(store_url), features_key(digest, extractor.image_size, prefix, chunk, precision)
    if store.exists(key):
        return 0.0
    began = time.perf_counter()
    network = _network(store_url, extractor, precision)
    first, last = chunk * CHUNK, min((chunk + 1) * CHUNK, source_record(store_url, prefix)["n_images"])
    out = np.empty((last - first, network.n_features), np.float16)
    for start in range(first, last, _DECODED):
        rows = np.arange(start, min(start + _DECODED, last))
        images = load_images(store_url, prefix, network.transform, rows)
        values = extract_features(network, images, batch_size=batch_size)
        out[rows - first] = np.clip(values, -_LARGEST, _LARGEST)
    seconds = time.perf_counter() - began
    store.put(key, save({"features": out}))
    return seconds


_LARGEST = float(np.finfo(np.float16).max)


@lru_cache(maxsize=4)
def _chunk(store_url: str, key: str) -> np.ndarray:
    return np.asarray(load(Store(store_url).read(key))["features"])


def read_features(
    store_url: str,
    extractor: Extractor,
    digest: str,
    prefix: str,
    rows: np.ndarray,
    batch_size: int = 64,
    precision: str = "float32",
) -> tuple[np.ndarray, float]:
    """Features ``[M, D]`` float32 of some rows; chunks of theirs that are not in the store are made.

    Returns:
        The features as they are stored, and the seconds that making them took.

    Raises:
        StoreError: what is stored does not fit the source.
        ComputeError: features that are not finite.
    """
    n = source_record(store_url, prefix)["n_images"]
    chunk_of = rows // CHUNK
    parts: dict[int, np.ndarray] = {}
    seconds = 0.0
    for chunk in np.unique(chunk_of).tolist():
        seconds += make_features(store_url, extractor, digest, prefix, chunk, batch_size, precision)
        key = features_key(digest, extractor.image_size, prefix, chunk, precision)
        values, wanted = _chunk(store_url, key), min(CHUNK, n - chunk * CHUNK)
        if len(values) != wanted:
            raise StoreError(f"{key} holds {len(values)} rows where {wanted} belong; delete it and run again")
        parts[chunk] = values[rows[chunk_of == chunk] - chunk * CHUNK].astype(np.float32)
    out = np.empty((len(rows), next(iter(parts.values())).shape[1] if parts else 0), np.float32)
    for chunk, values in parts.items():
        out[chunk_of == chunk] = values
    return out, seconds


def blocks(tasks: Sequence[Task], n_images: int) -> list[list[Task]]:
    """The tasks of a source in as few blocks as keep to `BLOCK` rows, in order; a larger task is a block by itself."""
    out: list[list[Task]] = []
    rows = 0
    for task in tasks:
        own = sum(task.train_counts) + sum(task.test_counts)
        if not out or (rows + own > BLOCK and n_images > BLOCK):
            out.append([])
            rows = 0
        out[-1].append(task)
        rows += own
    return out
