"""Packing and reading: images a second against the disk's own rate, and the memory of workers.

    python benchmarks/ingest.py [--root FOLDER] [--images N]

Packs Fashion-MNIST (70,000 real images; `t2v fetch fashion-mnist` brings them) with the ingest flow on a local Dask
cluster of one and of two workers, into a folder and into a local S3 server, then reads a balanced sample, and all of
it in order, as for embedding. docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]


def peak() -> float:
    """Largest resident memory of this process so far, MiB; ru_maxrss would be handed down by the process before."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@contextmanager
def s3() -> Iterator[str]:
    """A bucket on a local S3 server."""
    import s3fs

    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "s3_server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    os.environ.update(
        AWS_ENDPOINT_URL=server.stdout.readline().strip(),
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        AWS_DEFAULT_REGION="us-east-1",
    )
    s3fs.S3FileSystem().mkdir("bench")
    try:
        yield "s3://bench/store"
    finally:
        server.kill()


def cold_read(paths: list[Path]) -> float:
    """MB/s of the disk itself: whole files, dropped from the page cache first."""
    total, seconds = 0, 0.0
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for path in paths:
        began = time.perf_counter()
        total += len(path.read_bytes())
        seconds += time.perf_counter() - began
    return total / seconds / 1e6


def write_rate(folder: Path, data: bytes) -> float:
    """MB/s of writing and syncing one file."""
    began = time.perf_counter()
    with (folder / "probe.bin").open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    return len(data) / (time.perf_counter() - began) / 1e6


def pack(config: str, url: str, workers: int) -> tuple[dict[str, Any], float, float, float, float]:
    """Run the flow; the source's record, seconds, and the peak memory of the flow, of a worker, and of an idle one."""
    from flows._cluster import shared_cluster
    from flows._stage import StageParams
    from flows._store import Store
    from flows.ingest import ingest

    with shared_cluster("", workers) as cluster:
        client = cluster.client()
        client.run(__import__, "flows._pack_units")  # what a worker imports once, before the clock runs
        idle = max(client.run(peak).values())
        began = time.perf_counter()
        ingest(StageParams(config=config, store=url, workers=workers))
        seconds = time.perf_counter() - began
        worker = max(client.run(peak).values())
    store = Store(url)
    [prefix] = store.read_json("latest/bench/sources.json")["sources"].values()
    return {"prefix": prefix, **store.read_json(f"{prefix}/source.json")}, seconds, peak(), worker, idle


def read(url: str, prefix: str, rows: np.ndarray) -> float:
    """Seconds to read and decode rows at 64 pixels, as a worker does for images that it does not keep."""
    from flows import _data
    from t2v_core.images import ImageTransform

    transform = ImageTransform(size=64, mean=(0, 0, 0), std=(1, 1, 1))
    began = time.perf_counter()
    for start in range(0, len(rows), 4096):
        _data._decode_rows(url, prefix, transform, rows[start : start + 4096])
    return time.perf_counter() - began


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default="~/.cache/t2v/fashion-mnist")
    parser.add_argument("--images", type=int, default=70_000)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="t2v-ingest-"))
    config = folder / "bench.yaml"
    source = {"name": "fashion_mnist", "options": {"root": given.root}, "limit": given.images}
    library = {"rules": [{"source": "fashion_mnist", "label": "item"}]}
    config.write_text(yaml.safe_dump({"name": "bench", "sources": [source], "library": library}))
    os.chdir(folder)
    from flows._settings import embedded_services

    embedded_services("bench")
    lines, reads = [], []
    try:
        with s3() as bucket:
            places = [("folder", str(folder / "one"), 1), ("folder", str(folder / "two"), 2), ("S3", bucket, 2)]
            for place, url, workers in places:
                record, seconds, flow, worker, idle = pack(str(config), url, workers)
                n = record["n_images"]
                lines.append(
                    f"| {place} | {workers} | {seconds:.1f} | {n / seconds:,.0f} "
                    f"| {record['bytes'] / seconds / 1e6:.1f} | {flow:.0f} | {worker:.0f} |"
                )
                rng = np.random.default_rng(0)
                sample = np.sort(rng.choice(n, min(2048, n), replace=False))
                for what, rows in (("in order", np.arange(min(20_000, n))), ("a sample of 2,048", sample)):
                    reads.append((place, workers, what, len(rows) / read(url, record["prefix"], rows)))
            shards = sorted(Path(folder / "two").glob("sources/*/shard-*.parquet"))
            disk = cold_read(shards)
            written = write_rate(folder, b"".join(p.read_bytes() for p in shards))
            size = sum(p.stat().st_size for p in shards) / n
        print(
            f"{n:,} images, {record['n_duplicates']} come twice, {size:.0f} bytes each; an idle worker {idle:.0f} MiB\n"
        )
        print("| store | workers | seconds | images/s | MB/s | flow, MiB | worker, MiB |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        print("\n".join(lines))
        print("\n| read | from | images/s | MB/s |\n|---|---|---:|---:|")
        for place, workers, what, rate in reads:
            if workers == 2:
                print(f"| {what} | {place} | {rate:,.0f} | {rate * size / 1e6:.1f} |")
        print(f"\nthe disk itself: reads {disk:,.0f} MB/s (cold), writes {written:,.0f} MB/s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
