"""Thumbnails: which images are picked, and that a strip holds them in order."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from t2v_core.errors import ConfigError
from t2v_core.library import TaskRows
from t2v_core.thumbnails import make_thumbnail, pick_images, thumbnail_size


def rows(numbers: list[int], labels: list[int], test: list[bool] | None = None) -> TaskRows:
    return TaskRows(
        np.array(numbers),
        np.array(labels),
        np.array(test or [False] * len(numbers)),
        np.array([str(n) for n in numbers], object),
    )


def test_classes_take_turns_and_stand_together() -> None:
    task = rows([9, 3, 7, 1, 5, 8], [0, 0, 0, 1, 1, 1])
    assert pick_images(task, 4) == [(3, 0), (7, 0), (1, 1), (5, 1)]
    assert pick_images(task, 3) == [(3, 0), (7, 0), (1, 1)]


def test_training_images_only_unless_there_are_none() -> None:
    assert pick_images(rows([1, 2, 3], [0, 0, 1], [True, False, False]), 9) == [(2, 0), (3, 1)]
    assert pick_images(rows([4, 2], [0, 1], [True, True]), 9) == [(4, 0), (2, 1)]


def test_of_many_classes_evenly_spaced_ones() -> None:
    assert pick_images(rows(list(range(11)), list(range(11))), 3) == [(0, 0), (5, 5), (10, 10)]


def test_a_small_class_leaves_its_place_to_others() -> None:
    assert pick_images(rows([1, 2, 3, 4], [0, 1, 1, 1]), 4) == [(1, 0), (2, 1), (3, 1), (4, 1)]


def test_a_strip_holds_the_images_in_order_on_white() -> None:
    strip = make_thumbnail([Image.new("RGB", (40, 20), "red"), Image.new("RGB", (8, 8), "blue")], ["a", "b"], 40)
    image = Image.open(io.BytesIO(strip.strip))
    assert (image.format, image.size, strip.names, strip.pixels) == ("WEBP", (80, 40), ("a", "b"), 40)
    pixels = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels[20, 20] - [255, 0, 0]).max() < 12  # the wide image is fitted, not cut
    assert np.abs(pixels[3, 20] - 255).max() < 12  # white above it
    assert np.abs(pixels[20, 60] - [0, 0, 255]).max() < 12


def test_the_paper_s_library_stays_within_its_budget() -> None:
    """Noise compresses worst: 1,460 tasks of it stay below 11 MB in the page, which leaves 4 MB for all else."""
    size = thumbnail_size(1460)
    noise = np.random.default_rng(0).integers(0, 256, (size.images, 60, 60, 3), dtype=np.uint8)
    strip = make_thumbnail([Image.fromarray(pixels) for pixels in noise], ["x"] * size.images, size.pixels)
    assert len(strip.strip) * 4 / 3 * 1460 < 11e6
    assert [thumbnail_size(n).images for n in (1, 150, 151, 501)] == [8, 8, 6, 4]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 0 images of a task"):
        pick_images(rows([1], [0]), 0)
    with pytest.raises(ConfigError, match="got 1 images and 0 names"):
        make_thumbnail([Image.new("RGB", (2, 2))], [], 8)
