"""Packing a source in three units: plan it, pack its shards (any number of workers at once), close it.

Each writes its record last, so a run that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import json
import time
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from flows._store import Store
from t2v_core.config import SourceSpec
from t2v_core.errors import SourceError
from t2v_core.packing import RejectedImage, mark_duplicates, pack_shard, plan_source, write_parquet_bytes
from t2v_core.sources import Source, open_source

__all__ = ["close_unit", "plan_key", "plan_unit", "shard_key", "shard_unit", "source_key"]

_REJECTS = pa.schema([("image_id", pa.string()), ("reason", pa.string())])


def plan_key(prefix: str) -> str:
    """Record of a plan."""
    return f"{prefix}/plan.json"


def shard_key(prefix: str, index: int) -> str:
    """Record of a shard; the images are beside it."""
    return f"{prefix}/shard-{index:05d}.json"


def source_key(prefix: str) -> str:
    """Record of a source that is packed."""
    return f"{prefix}/source.json"


@lru_cache(maxsize=4)
def _opened(loader: str, options: str) -> Source:
    """One source per worker process: its files are opened once, not once a shard."""
    return open_source(loader, **json.loads(options))


def _source(spec: SourceSpec) -> Source:
    return _opened(spec.loader, json.dumps(spec.options, sort_keys=True))


def _answer(key: str, wrote: bool, *messages: str) -> dict[str, Any]:
    return {"key": key, "wrote": wrote, "records": [(20, m) for m in messages]}


def plan_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Read a source's annotations, choose images and splits, and cut the work into shards."""
    spec, prefix = SourceSpec.model_validate(payload["source"]), payload["prefix"]
    store, key = Store(store_url), plan_key(payload["prefix"])
    if store.exists(key):
        return _answer(key, False)
    began = time.perf_counter()
    source = open_source(spec.loader, **spec.options)  # not the worker's copy: it may be older than the data
    source.check_images()
    plan = plan_source(source, limit=spec.limit, test_share=spec.test_share, seed=spec.seed)
    info = source.info
    store.replace(f"{prefix}/plan.parquet", store.table_bytes(plan.table, spec.shard_rows))
    record = {
        "name": spec.name,
        "domain": info.domain,
        "licence": info.licence,
        "homepage": info.homepage,
        "revision": info.revision,
        "taxonomy": {c: {v: list(place) for v, place in places.items()} for c, places in info.taxonomy.items()},
        "n_images": len(plan.table),
        "n_shards": -(-len(plan.table) // spec.shard_rows),
        "rejects": [[r.image_id, r.reason] for r in plan.rejects],
    }
    wrote = store.put_json(key, record)
    seconds = time.perf_counter() - began
    return _answer(key, wrote, f"{spec.name}: {len(plan.table)} images to pack, annotations read in {seconds:.1f} s")


def shard_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Pack one shard."""
    spec, prefix, index = SourceSpec.model_validate(payload["source"]), payload["prefix"], payload["index"]
    store, key = Store(store_url), shard_key(prefix, index)
    if store.exists(key):
        return _answer(key, False)
    began = time.perf_counter()
    with store.open_parquet(f"{prefix}/plan.parquet") as file:
        planned = file.read_row_group(index)
    shard = pack_shard(_source(spec), planned, image_size=spec.image_size, max_pixels=spec.max_pixels)
    images = f"{prefix}/shard-{index:05d}.parquet"
    data = write_parquet_bytes(shard.table)
    store.replace(images, data)
    rejects = [[r.image_id, r.reason] for r in shard.rejects]
    record = {"key": images, "rows": len(shard.table), "bytes": len(data), "rejects": rejects}
    wrote = store.put_json(key, record)
    rate = len(planned) / max(time.perf_counter() - began, 1e-9)
    return _answer(
        key,
        wrote,
        f"{spec.name} shard {index}: {len(shard.table)} images, {len(rejects)} rejected, {rate:.0f} a second",
    )


def _labels(store: Store, key: str) -> pa.Table:
    """A shard's rows without the images, which are not read."""
    with store.open_parquet(key) as file:
        return file.read(columns=[name for name in file.schema_arrow.names if name != "image"])


def close_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Gather the shards' annotations, mark pictures that come twice, list what was left out; the record comes last.

    Raises:
        SourceError: an earlier unit of this source failed, or no image can be used.
    """
    spec, prefix = SourceSpec.model_validate(payload["source"]), payload["prefix"]
    store, key = Store(store_url), source_key(prefix)
    if store.exists(key):
        return _answer(key, False)
    if payload["failed"]:
        raise SourceError(f"source {spec.name!r} is not complete, run again to go on: {payload['failed']}")
    plan = store.read_json(plan_key(prefix))
    records = [store.read_json(shard_key(prefix, i)) for i in range(plan["n_shards"])]
    table = mark_duplicates(pa.concat_tables([_labels(store, record["key"]) for record in records]))
    rejects = [RejectedImage(*pair) for pair in [*plan["rejects"], *(r for x in records for r in x["rejects"])]]
    copies = np.array(table["duplicate_of"].to_pylist(), object)
    if len(table) == 0:
        first = f"{rejects[0].image_id}: {rejects[0].reason}" if rejects else "it has none"
        raise SourceError(f"source {spec.name!r}: none of its {len(rejects)} images can be used ({first})")
    twice = [
        RejectedImage(name, f"the same picture as {original}")
        for name, original in zip(table["image_id"].to_pylist(), copies, strict=True)
        if original
    ]
    listed = [{"image_id": r.image_id, "reason": r.reason} for r in [*rejects, *twice]]
    store.replace(f"{prefix}/annotations.parquet", store.table_bytes(table, 2**16))
    store.replace(f"{prefix}/rejects.parquet", store.table_bytes(pa.Table.from_pylist(listed, schema=_REJECTS)))
    record = {
        **{k: plan[k] for k in ("name", "domain", "licence", "homepage", "revision", "taxonomy")},
        "max_pixels": spec.max_pixels,
        "n_images": len(table),
        "n_test": int(np.sum(np.array(table["split"].to_pylist()) == "test")),
        "n_rejected": len(rejects),
        "n_duplicates": len(twice),
        "bytes": sum(r["bytes"] for r in records),
        "shards": [{"key": r["key"], "rows": r["rows"]} for r in records],
    }
    wrote = store.put_json(key, record)
    return _answer(
        key,
        wrote,
        f"{spec.name}: {len(table)} images packed, {len(rejects)} rejected, {len(twice)} pictures come twice",
    )
