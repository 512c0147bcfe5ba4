"""Replicas of the paper's datasets in their official layouts: small ones with images, and annotation files at full size.

`full_size(FOLDER)` writes the annotation files of all four at the size of the real ones (about 1.5 GB), without images:

    python tests/replicas.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2v_core.images import encode_png
from t2v_core.sources.cub import taxonomy

__all__ = [
    "full_cub",
    "full_deepfashion",
    "full_imaterialist",
    "full_inaturalist",
    "small_cub",
    "small_deepfashion",
    "small_imaterialist",
    "small_inaturalist",
]

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")


def picture(path: Path, seed: int) -> None:
    """A small image of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)))


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Lines with a newline each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --- CUB-200-2011 -------------------------------------------------------------------------------------------------


def cub_files(root: Path, classes: Sequence[str], per_class: int) -> list[str]:
    """The annotation files; the images' paths."""
    images = [f"{c}/{c[4:]}_{i:04d}_{i}.jpg" for c in classes for i in range(per_class)]
    labels = np.repeat(np.arange(1, len(classes) + 1), per_class)
    write_text(root / "classes.txt", (f"{i} {c}" for i, c in enumerate(classes, start=1)))
    write_text(root / "images.txt", (f"{i} {path}" for i, path in enumerate(images, start=1)))
    write_text(root / "image_class_labels.txt", (f"{i} {c}" for i, c in enumerate(labels, start=1)))
    write_text(root / "train_test_split.txt", (f"{i} {int(i % 2)}" for i in range(1, len(images) + 1)))
    write_text(root / "bounding_boxes.txt", (f"{i} 2.0 1.0 5.0 6.0" for i in range(1, len(images) + 1)))
    return images


def small_cub(root: Path, classes: int = 12, per_class: int = 4) -> Path:
    """The first classes, with images."""
    for seed, path in enumerate(cub_files(root, list(taxonomy())[:classes], per_class)):
        picture(root / "images" / path, seed)
    return root


def full_cub(root: Path) -> Path:
    """All 200 classes, 11,800 images (the archive has 11,788)."""
    cub_files(root, list(taxonomy()), 59)
    return root


# --- iNaturalist --------------------------------------------------------------------------------------------------


def inaturalist_categories(orders: Sequence[int]) -> list[dict[str, Any]]:
    """So many species in each order; ids from 0."""
    out: list[dict[str, Any]] = []
    for o, species in enumerate(orders):
        for s in range(species):
            lineage = (f"K{o % 6}", f"P{o % 6}.{o % 20}", f"C{o % 6}.{o % 20}.{o % 50}", f"O{o}", f"F{o}.{s // 9}")
            names = dict(zip(RANKS, (*lineage, f"G{o}.{s // 3}"), strict=True))
            out.append({"id": len(out), "name": f"Spécies {o} {s}", "supercategory": f"S{o % 14}", **names})
    return out


def inaturalist_split(path: Path, counts: np.ndarray, start: int, folder: str, categories: Any = ()) -> list[str]:
    """One annotation file, its annotations in another order than its images; the file names."""
    of = np.repeat(np.arange(len(counts)), counts)
    names = [f"{folder}/{c}/{start + i:07d}.jpg" for i, c in enumerate(of.tolist())]
    head = f'{{"info":{{"year":2018}},"categories":{json.dumps(list(categories))},"images":['
    images = ",".join(
        f'{{"id":{start + i},"file_name":"{name}","width":800,"height":600,"license":3,"rights_holder":"someone"}}'
        for i, name in enumerate(names)
    )
    order = np.random.default_rng(len(of)).permutation(len(of)).tolist()
    labels = of.tolist()
    annotations = ",".join(f'{{"id":{start + i},"image_id":{start + i},"category_id":{labels[i]}}}' for i in order)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head}{images}],"annotations":[{annotations}]}}', encoding="utf-8")
    return names


def inaturalist_files(root: Path, orders: Sequence[int], train: np.ndarray, val: int, year: int = 2018) -> list[str]:
    """Both annotation files, and ``categories.json`` where the year has one."""
    categories = inaturalist_categories(orders)
    inside: Any = categories if year in (2017, 2021) else [{"id": c["id"], "name": str(c["id"])} for c in categories]
    if year == 2017:
        inside = [{k: c[k] for k in ("id", "name", "supercategory")} for c in categories]
    names = {2021: ("train.json", "val.json")}.get(year, (f"train{year}.json", f"val{year}.json"))
    folder = f"train_val{year}"
    out = inaturalist_split(root / names[0], train, 1, folder, inside)
    out += inaturalist_split(root / names[1], np.full(len(categories), val), len(out) + 1, folder, inside)
    if year in (2018, 2019):
        (root / "categories.json").write_text(json.dumps(categories), encoding="utf-8")
    return out


def small_inaturalist(root: Path, year: int = 2018) -> Path:
    """Four orders of 3, 2, 1 and 4 species, with images."""
    orders = (3, 2, 1, 4)
    train = np.arange(sum(orders)) + 4
    for seed, name in enumerate(inaturalist_files(root, orders, train, 3, year)):
        picture(root / name, seed)
    return root


def inaturalist_orders() -> np.ndarray:
    """8,142 species in 272 orders, 64 of them with one species, heavy-tailed in the others."""
    sizes = 2 + (3000 / (np.arange(208) + 1.5) ** 1.35).astype(int)
    sizes[0] += 8142 - 64 - int(sizes.sum())
    assert sizes[0] > sizes[1]
    return np.concatenate([sizes, np.ones(64, int)])


def full_inaturalist(root: Path) -> Path:
    """437,513 training and 24,426 validation images."""
    orders = inaturalist_orders()
    rng = np.random.default_rng(0)
    counts = np.maximum(2, rng.pareto(1.3, int(orders.sum())) * 16).astype(int)
    counts = np.minimum(counts, 1000)
    counts = np.maximum(2, counts * (437_513 / counts.sum())).astype(int)
    counts[0] += 437_513 - int(counts.sum())
    inaturalist_files(root, orders.tolist(), counts, 3)
    return root


# --- iMaterialist -------------------------------------------------------------------------------------------------


def label_map(path: Path) -> None:
    """228 labels in 8 groups; two groups have a label of one name."""
    groups = [f"Type:group {g}" if g else "Gender" for g in range(8)]
    rows = [f"{i},{i % 8 + 1},{'Solid' if i in (8, 9) else f'label {i}'},{groups[i % 8]}" for i in range(1, 229)]
    write_text(path, ["labelId,taskId,labelName,taskName", *rows])


def imaterialist_part(path: Path, n: int, mean: float, rng: np.random.Generator, *, official: bool = True) -> None:
    """One annotation file, in the spelling of the files (strings) or of their description (numbers)."""
    popular = 228 * rng.beta(0.7, 2.0, int(n * mean * 1.2) + n)
    lengths = np.maximum(1, rng.poisson(mean, n))
    labels = (1 + popular.astype(int)).tolist()
    ends = np.cumsum(lengths).tolist()
    image, label = ("imageId", "labelId") if official else ("image_id", "label_id")
    quote = '"' if official else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info":{"year":2018},"images":[')
        file.write(
            ",".join(f'{{"url":"https://shop.example/{i}.jpg","{image}":{quote}{i}{quote}}}' for i in range(1, n + 1))
        )
        file.write('],"annotations":[')
        start = 0
        for i in range(n):
            own = sorted(set(labels[start : ends[i]]))
            start = ends[i]
            values = ",".join(f"{quote}{v}{quote}" for v in own)
            file.write(f'{"," if i else ""}{{"{label}":[{values}],"{image}":{quote}{i + 1}{quote}}}')
        file.write("]}")


def small_imaterialist(root: Path, *, official: bool = True, names: bool = True) -> Path:
    """40 and 20 images with some of the 228 labels."""
    rng = np.random.default_rng(0)
    for name, n in (("train", 40), ("validation", 20)):
        imaterialist_part(root / f"{name}.json", n, 5, rng, official=official)
        for i in range(1, n + 1):
            picture(root / name / (f"{i}.png" if i == 3 else f"{i}.jpg"), i + n)
    if names:
        label_map(root / "iMat_fashion_2018_label_map_228.csv")
    return root


def full_imaterialist(root: Path) -> Path:
    """1,014,544 training and 9,897 validation images, about 36 labels each."""
    rng = np.random.default_rng(0)
    imaterialist_part(root / "train.json", 1_014_544, 45, rng)
    imaterialist_part(root / "validation.json", 9_897, 45, rng)
    label_map(root / "iMat_fashion_2018_label_map_228.csv")
    return root


# --- DeepFashion --------------------------------------------------------------------------------------------------


def deepfashion_files(root: Path, n: int, attributes: int, mean: float) -> list[str]:
    """All annotation files; the images' paths."""
    rng = np.random.default_rng(0)
    paths = [f"img/Cloth_{i // 50}/img_{i % 50 + 1:08d}.jpg" for i in range(n)]
    names = [f"attribute no. {a}" for a in range(attributes)]
    if attributes > 3:
        names[3] = names[2]
    write_text(
        root / "Anno" / "list_attr_cloth.txt",
        [str(attributes), "attribute_name  attribute_type", *(f"{a:<30} {i % 5 + 1}" for i, a in enumerate(names))],
    )
    kinds = [f"Kind{k}  {k % 3 + 1}" for k in range(50)]
    write_text(root / "Anno" / "list_category_cloth.txt", ["50", "category_name  category_type", *kinds])
    write_text(
        root / "Anno" / "list_category_img.txt",
        [str(n), "image_name  category_label", *(f"{p:<60} {i % 50 + 1}" for i, p in enumerate(paths))],
    )
    sides = rng.choice(np.array(["train", "val", "test"]), n, p=[0.72, 0.14, 0.14]).tolist()
    write_text(
        root / "Eval" / "list_eval_partition.txt",
        [str(n), "image_name  evaluation_status", *(f"{p:<60} {s}" for p, s in zip(paths, sides, strict=True))],
    )
    share = rng.pareto(1.1, attributes) + 0.12
    chance = np.minimum(0.5, share * mean / share.sum())
    chance = np.maximum(chance, 60 / n) if n > 10_000 else np.full(attributes, 0.4)
    empty = np.full((attributes, 3), (ord(" "), ord("-"), ord("1")), np.uint8)
    with (root / "Anno" / "list_attr_img.txt").open("wb") as file:
        file.write(f"{n}\nimage_name  attribute_labels\n".encode())
        for start in range(0, n, 4096):
            states = np.full((min(4096, n - start), attributes), -1, np.int8)
            draws = rng.random(states.shape)
            states[draws < chance] = 1
            states[draws > 0.999] = 0
            for path, row in zip(paths[start : start + 4096], states, strict=True):
                text = empty.copy()
                text[row == 1] = (ord(" "), ord(" "), ord("1"))
                text[row == 0] = (ord(" "), ord(" "), ord("0"))
                file.write(f"{path:<60}".encode() + text.tobytes() + b"\n")
    return paths


def small_deepfashion(root: Path, n: int = 60, attributes: int = 7) -> Path:
    """Some images and attributes; the fourth attribute has the third one's name."""
    for seed, path in enumerate(deepfashion_files(root, n, attributes, 3)):
        picture(root / "Img" / path, seed)
    return root


def full_deepfashion(root: Path) -> Path:
    """289,222 images, 1,000 attributes."""
    deepfashion_files(root, 289_222, 1000, 3.3)
    return root


def full_size(data: Path) -> None:
    """All four, where `t2v tasks --library paper --data FOLDER` looks for them."""
    full_cub(data / "CUB_200_2011")
    full_inaturalist(data / "inat2018")
    full_deepfashion(data / "deepfashion")
    full_imaterialist(data / "imaterialist")


if __name__ == "__main__":
    full_size(Path(sys.argv[1]))
