"""What workers read from the store: images, annotations, features, networks. Cached per process; keys never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.numpy import load

from flows._keys import ERROR_MATRIX, TRANSFERABILITY
from flows._store import Store
from t2v_core.annotations import Annotations
from t2v_core.config import FrozenModel
from t2v_core.errors import WeightsError
from t2v_core.extractors import FeatureExtractor, check_extractor, extractor_of_network, extractor_of_program
from t2v_core.images import ImageTransform, decode_image
from t2v_core.packing import ROWS_IN_GROUP
from t2v_core.probes import Probe, load_probe
from t2v_core.transferability.block import scores_matrix

__all__ = [
    "Extractor",
    "annotations",
    "decode_rows",
    "load_extractor",
    "load_images",
    "load_network",
    "load_outside",
    "read_cells",
    "read_scores",
    "source_record",
    "weights_of",
]

CACHED_BYTES = 512 * 2**20
"""A source whose decoded images are smaller is kept decoded in the worker."""
READERS = 8
"""Shards that are read at once from a store behind a network."""


class Extractor(FrozenModel):
    """A network by name: its architecture and where its weights are; or a program."""

    architecture: str
    weights: str
    """``imagenet``, ``random``, a file, or ``store:KEY`` for an expert's."""
    image_size: int
    seed: int = 0
    outside: bool = False
    """It was not made here: it gives features, and need be no probe."""
    program: str = ""
    """A file or ``store:KEY``, instead of an architecture."""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    digest: str = ""
    """Of an extractor from outside: its weights must have it."""


@lru_cache(maxsize=64)
def source_record(store_url: str, prefix: str) -> dict[str, Any]:
    """A packed source's record: shards, rejects, domain."""
    record: dict[str, Any] = Store(store_url).read_json(f"{prefix}/source.json")
    return record


@lru_cache(maxsize=16)
def annotations(store_url: str, prefix: str) -> Annotations:
    """A packed source's annotation table."""
    record = source_record(store_url, prefix)
    table = Store(store_url).read_table(f"{prefix}/annotations.parquet")
    taxonomy = {c: {v: tuple(place) for v, place in p.items()} for c, p in record["taxonomy"].items()}
    return Annotations(record["name"], record["domain"], table, taxonomy)


def weights_of(store_url: str, weights: str) -> str | dict[str, torch.Tensor]:
    """Weights as `load_probe` wants them."""
    if not weights.startswith("store:"):
        return weights
    data = Store(store_url).read(weights.removeprefix("store:"))
    return {k: torch.from_numpy(v) for k, v in load(data).items()}


@lru_cache(maxsize=2)
def load_outside(store_url: str, extractor: Extractor) -> FeatureExtractor:
    """An extractor from outside, checked, on a GPU where this worker has one.

    Raises:
        WeightsError: what it is made of is missing, damaged, or not what was registered.
        ProbeError: it gives no proper features.
    """
    x = extractor
    if x.program:
        where = x.program.removeprefix("store:")
        data = Store(store_url).read(where) if where != x.program else _file(where)
        made = extractor_of_program(data, x.program, image_size=x.image_size, mean=x.mean, std=x.std)
    else:
        weights = weights_of(store_url, x.weights)
        made = extractor_of_network(
            x.architecture, weights, image_size=x.image_size, mean=x.mean, std=x.std, seed=x.seed
        )
    check_extractor(made, x.digest)
    return made.to(torch.device("cuda")) if torch.cuda.is_available() else made


def _file(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read {path!r}: {error.strerror or error}; name a file, or store:KEY") from error


@lru_cache(maxsize=3)
def load_network(store_url: str, extractor: Extractor) -> Probe:
    """The network, where it was built: for its digest and layout, or to embed one folder."""
    return load_probe(
        extractor.architecture,
        weights_of(store_url, extractor.weights),
        seed=extractor.seed,
        image_size=extractor.image_size,
    )


@lru_cache(maxsize=3)
def load_extractor(store_url: str, extractor: Extractor) -> Probe:
    """The network, on a GPU where this worker has one."""
    probe = load_network(store_url, extractor)
    return probe.to(torch.device("cuda")) if torch.cuda.is_available() else probe


def decode_rows(store_url: str, prefix: str, transform: ImageTransform, rows: np.ndarray) -> np.ndarray:
    """Images of the rows given, reading only the row groups that hold them."""
    record = source_record(store_url, prefix)
    shards = record["shards"]
    starts = np.cumsum([0] + [s["rows"] for s in shards])
    out = np.empty((len(rows), transform.size, transform.size, 3), np.uint8)
    shard_of = np.searchsorted(starts, rows, side="right") - 1

    def read(shard: int) -> None:
        wanted = np.flatnonzero(shard_of == shard)
        inside = rows[wanted] - starts[shard]
        with Store(store_url).open_parquet(shards[shard]["key"]) as file:
            for group in np.unique(inside // ROWS_IN_GROUP):
                column = file.read_row_group(int(group), columns=["image"])["image"]
                here = np.flatnonzero(inside // ROWS_IN_GROUP == group)
                for i in here:
                    image = decode_image(
                        column[int(inside[i] % ROWS_IN_GROUP)].as_py(), max_pixels=record["max_pixels"]
                    )
                    out[wanted[i]] = transform.to_uint8(image)

    needed = np.unique(shard_of).tolist()
    if "://" in store_url:  # a few round trips at a time
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(read, needed))
    else:
        for shard in needed:
            read(shard)
    return out


@lru_cache(maxsize=2)
def _all_images(store_url: str, prefix: str, transform: ImageTransform) -> np.ndarray:
    return decode_rows(store_url, prefix, transform, np.arange(source_record(store_url, prefix)["n_images"]))


def load_images(store_url: str, prefix: str, transform: ImageTransform, rows: np.ndarray) -> np.ndarray:
    """Images ``[M, S, S, 3]`` uint8 of the rows of a packed source, as the extractor wants them."""
    n = source_record(store_url, prefix)["n_images"]
    if n * transform.size**2 * 3 <= CACHED_BYTES:
        return np.asarray(_all_images(store_url, prefix, transform)[rows])
    return decode_rows(store_url, prefix, transform, rows)


def read_cells(store: Store, blocks: list[str]) -> pa.Table:
    """All cells of some blocks of the error matrix, failed ones too."""
    cells = store.read_table(ERROR_MATRIX)
    return cells.filter(pc.is_in(cells["unit"], pa.array(blocks)))


def read_scores(
    store: Store, blocks: Sequence[str], task_ids: Sequence[str], experts: Sequence[str]
) -> Mapping[str, np.ndarray]:
    """Method to the scores ``[T, E]`` of some blocks, lower is better (`scores_matrix`); none where there are no
    blocks."""
    if not blocks:
        return {}
    rows = store.read_table(TRANSFERABILITY)
    return scores_matrix(rows.filter(pc.is_in(rows["unit"], pa.array(blocks))), task_ids, experts)
