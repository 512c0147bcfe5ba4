"""A small pipeline on real data: digits, and a folder of photographs' stand-ins with files of every bad kind."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from PIL import Image

if TYPE_CHECKING:
    from flows._stage import StageParams


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A temporary Prefect API on sqlite, once for the whole test run (it takes several seconds to start)."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def dask_cluster() -> Iterator[str]:
    """Address of a local cluster of two processes, shared by the tests that do not harm it."""
    from flows._cluster import Cluster

    cluster = Cluster("", 2)
    yield cluster.client().scheduler.address
    cluster.close()


def _png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def shape(kind: str, rng: np.random.Generator, size: int = 40) -> Image.Image:
    """A drawn square, disc or cross on a noisy ground: small, real enough, and learnable."""
    pixels = rng.integers(0, 90, (size, size, 3)).astype(np.uint8)
    y, x = np.mgrid[:size, :size] - rng.integers(15, 25, 2)[:, None, None]
    r = int(rng.integers(6, 12))
    inside = {
        "square": (abs(x) < r) & (abs(y) < r),
        "disc": x**2 + y**2 < r**2,
        "cross": ((abs(x) < 3) | (abs(y) < 3)) & (abs(x) < r) & (abs(y) < r),
    }[kind]
    pixels[inside] = rng.integers(150, 255, 3)
    return Image.fromarray(pixels)


BAD = ("truncated.png", "zero.png", "text.png", "bomb.png", "page.html")
ODD = ("cmyk.jpg", "grey.png", "palette.png", "deep.png", "moving.gif", "turned.jpg")


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 24 images; among the discs every odd image that must be read, and every bad one that must not."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    rng = np.random.default_rng(0)
    for kind in ("square", "disc", "cross"):
        (root / kind).mkdir(parents=True)
        for i in range(24):
            (root / kind / f"{i:02d}.png").write_bytes(_png(shape(kind, rng)))
    disc, image = root / "disc", shape("disc", rng)
    whole = _png(image)
    (disc / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (disc / "zero.png").write_bytes(b"")
    (disc / "text.png").write_bytes(b"this is no image")
    (disc / "page.html").write_bytes(b"<html>neither</html>")
    (disc / "bomb.png").write_bytes(_png(Image.new("1", (9000, 9000))))
    (disc / "cmyk.jpg").write_bytes(_png(image.convert("CMYK"), "JPEG"))
    (disc / "grey.png").write_bytes(_png(image.convert("L")))
    (disc / "palette.png").write_bytes(_png(image.convert("P")))
    (disc / "deep.png").write_bytes(_png(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)))
    (disc / "moving.gif").write_bytes(
        _png(image.convert("P"), "GIF", save_all=True, append_images=[image.convert("P")])
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    (disc / "turned.jpg").write_bytes(_png(image, "JPEG", exif=exif))
    return root


def settings(shapes: Path) -> dict[str, Any]:
    """The config of the small pipeline."""
    return {
        "name": "mini",
        "sources": [
            {"name": "digits", "limit": 300},
            {
                "name": "shapes",
                "kind": "folder",
                "options": {"path": str(shapes)},
                "max_pixels": 50_000_000,
                "image_size": 32,
            },
            {"name": "gone", "kind": "folder", "options": {"path": str(shapes / "nowhere")}, "optional": True},
        ],
        "library": {
            "min_train": 6,
            "min_test": 3,
            "max_per_class": 20,
            "rules": [
                {"source": "digits", "label": "digit"},
                {"source": "digits", "label": "digit", "kind": "one_vs_rest", "values": ["3", "8"]},
                {"source": "shapes", "label": "label"},
                {"source": "shapes", "label": "label", "kind": "one_vs_rest", "values": ["disc", "cross"]},
                # One class only: skipped, and said so.
                {"source": "shapes", "label": "label", "where": {"label": ["disc"]}},
            ],
        },
        "probe": {"name": "efficientnet_lite0", "image_size": 32},
        "embedding": {"max_images": 24, "variational": {"images": 16, "max_passes": 3}},
        "experts": {
            "training": {"steps": 2, "batch_size": 8},
            "rules": [
                {"name": "digits-expert", "tasks": ["digits/digit"]},
                {"name": "shapes-expert", "tasks": ["shapes/label*"]},
            ],
        },
        "selection": {"n_bootstrap": 200},
        "model2vec": {"l2": [0.1]},
        "max_failed_share": 0.05,
    }


@pytest.fixture(scope="session")
def mini_settings(shapes_folder: Path) -> dict[str, Any]:
    """The config of the small pipeline, for stores that several tests share."""
    return settings(shapes_folder)


@pytest.fixture
def config(tmp_path: Path, shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write the small pipeline's config, with changes at dotted places, and work in a folder of one's own."""
    monkeypatch.chdir(tmp_path)
    for name in ("T2V_STORE", "T2V_DASK", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def write(**changes: Any) -> str:
        content = settings(shapes_folder)
        for place, value in changes.items():
            *parents, last = place.split("__")
            inside: Any = content
            for parent in parents:
                inside = inside[int(parent) if parent.isdigit() else parent]
            inside[int(last) if last.isdigit() else last] = value
        path = tmp_path / "mini.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.fixture
def params(config: Callable[..., str], tmp_path: Path, prefect_api: None, dask_cluster: str) -> StageParams:
    """The small pipeline with one expert of its own, its sources packed."""
    from flows._stage import StageParams
    from flows.ingest import ingest

    path = config(experts__rules=[{"name": "digits-expert", "tasks": ["digits/digit"]}])
    params = StageParams(config=path, store=str(tmp_path / "store"), dask=dask_cluster)
    ingest(params)
    return params
