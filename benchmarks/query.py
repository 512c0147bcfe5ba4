"""How long `t2v select` takes on 1,000 images of 224 pixels, and where the time goes.

The folder is made of OpenMoji drawings at 224 pixels, as PNG, in subfolders by category. With a store (of `make demo`,
say), the whole query is timed as people ask it, then once more with the first three experts tried. A second table has
the embedding alone with images brought to 224 pixels, for a pipeline with a probe of that size, by the estimators that
configs name. Run with `python benchmarks/query.py runs/demo/store`; docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from flows._query import SelectExpertParams, answer_query
from t2v_core.config import EmbeddingSpec
from t2v_core.memory import keep_freed_memory
from t2v_core.probes import load_probe
from t2v_core.query import embed_images, read_folder
from t2v_core.sources import each_image, open_source

IMAGES = 1000


def make_folder(root: Path) -> None:
    """A thousand drawings, an even sample of all, in a subfolder for each category."""
    raws = list(each_image(open_source("openmoji", pixels=224)))
    for i in range(IMAGES):
        raw = raws[i * 7919 % len(raws)]
        folder = root / str(raw.labels["category"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:04d}.png").write_bytes(raw.read())


def query(root: Path, store: str, verify: int) -> None:
    """One row a part."""
    answer = answer_query(SelectExpertParams(path=str(root), store=store, verify=verify))
    tried = f", {verify} experts tried" if verify else ""
    print(f"\n{answer.folder.n_images} images, probe at {answer.selector.image_size} pixels{tried}\n\n| | seconds |")
    print("|---|---:|")
    for what, seconds in answer.parts.items():
        print(f"| {what} | {seconds:.1f} |")
    print(f"| in all | {answer.seconds:.1f} |")


def embedding(root: Path, estimator: str) -> None:
    """Reading, features, head and Fisher at 224 pixels."""
    keep_freed_memory()
    probe = load_probe("efficientnet_lite0", image_size=224)
    ends: dict[str, float] = {}
    began = time.perf_counter()
    images = read_folder(str(root), probe.transform)
    ends["images"] = time.perf_counter()
    told = lambda what, done, total: ends.__setitem__(what, time.perf_counter())  # noqa: E731
    embedded = embed_images(images, probe, EmbeddingSpec(estimator=estimator), progress=told)
    last = began
    for what, end in ends.items():
        print(f"| {estimator} | {what} | {end - last:.1f} |")
        last = end
    print(f"| {estimator} | in all, {embedded.embedding.n_passes} passes | {last - began:.1f} |")


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "drawings"
        make_folder(root)
        print(f"{torch.get_num_threads()} threads")
        if len(sys.argv) > 1:
            query(root, sys.argv[1], 0)
            query(root, sys.argv[1], 3)
        print("\nprobe at 224 pixels\n\n| estimator | | seconds |\n|---|---|---:|")
        for estimator in ("montecarlo", "variational"):
            embedding(root, estimator)


if __name__ == "__main__":
    main()
