"""Embedding a task: what it is made of, and what must not matter."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from oracles import TinyNet, fisher_oracle, relative_l2, seeded, tiny_probe, transform, without_head
from PIL import Image
from sklearn.datasets import load_digits

from t2v_core.config import EmbeddingSpec, HeadSpec, ReferenceSpec
from t2v_core.distances import symmetric_distance
from t2v_core.embedding import TaskEmbedding, canonical_labels, embed_features, embed_task, trivial_embedding
from t2v_core.errors import DataError, TaskError, UnknownNameError
from t2v_core.features import extract_features
from t2v_core.heads import fit_head
from t2v_core.images import encode_png
from t2v_core.probes import Probe, load_probe, probe_from_module

ARRAYS = ("vector", "trivial", "noise", "groups", "domain")


@cache
def probe() -> Probe:
    return tiny_probe(torch.float32)


def task(n: int = 40, n_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Coloured noise: a class has a mean colour; overlapping."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    colours = rng.uniform(60, 190, (n_classes, 1, 1, 3))
    images = np.clip(colours[labels] + rng.normal(0, 60, (n, 8, 8, 3)) + rng.normal(0, 25, (n, 1, 1, 1)), 0, 255)
    return images.astype(np.uint8), labels


def same_bytes(a: TaskEmbedding, b: TaskEmbedding) -> bool:
    return all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ARRAYS)


def test_it_is_the_fisher_of_the_trained_head_plus_the_prior() -> None:
    net = seeded(TinyNet)
    images, labels = task()
    spec = EmbeddingSpec(beta=1e-3, head=HeadSpec(l2=(1e-2,)))
    made = embed_task(probe(), (images, labels), "exact", spec=spec)
    x = transform().to_tensor(images, torch.float64).contiguous()
    with torch.no_grad():
        features = without_head(net, "fc").double()(x).numpy()
    head = fit_head(features, labels, spec.head)
    wanted = fisher_oracle(net, ["conv1", "conv2"], (torch.tensor(head.weight), torch.tensor(head.bias)), x)
    mean_square = [float(net.get_submodule(n).weight.detach().double().square().mean()) for n in ("conv1", "conv2")]
    t0 = np.repeat([2e-3 / m for m in mean_square], [5, 6])
    assert made.trivial == pytest.approx(t0, rel=1e-6)
    assert np.array_equal(made.trivial, trivial_embedding(probe(), 1e-3))
    assert relative_l2(made.vector, wanted + t0) < 1e-4
    assert relative_l2(made.vector - made.trivial, wanted) < 1e-3
    assert made.domain == pytest.approx(features.mean(0), rel=1e-4, abs=1e-5)
    assert made.complexity == pytest.approx(wanted.sum(), rel=1e-3)
    assert (made.vector.dtype, made.trivial.dtype, made.noise.dtype) == (np.float32,) * 3
    assert [(x.name, x.start, x.stop) for x in made.layers] == [("conv1", 0, 5), ("conv2", 5, 11)]
    assert made.vector[made.layers[1].slice].shape == (6,)
    assert made.probe == f"tiny:{probe().digest}"
    assert made.head_loss == pytest.approx(head.loss, rel=1e-3)
    assert (made.n_classes, made.n_images, made.n_passes, made.exact) == (3, 40, 120, True)
    assert (made.estimator, made.beta, made.seed, made.head_l2) == ("exact", 1e-3, 0, 1e-2)


def test_noise_is_the_standard_error_over_the_groups() -> None:
    made = embed_task(probe(), task(), "exact")
    assert made.groups.shape == (8, 11)
    wanted = made.groups.astype(np.float64).std(0, ddof=1) / np.sqrt(8)
    assert made.noise == pytest.approx(wanted, rel=1e-4)
    assert relative_l2(made.groups.mean(0), made.vector) < 1e-6  # 40 images: equal groups


@pytest.mark.parametrize(("estimator", "most"), [("montecarlo", 1.6), ("variational", 2.5)])
def test_noise_says_how_far_the_sampled_value_is_from_the_truth(estimator: str, most: float) -> None:
    """Over seeds of the sample of images, the deviation of the vector is about the noise that it reports.

    Systematic sampling over all images is less noisy than over the groups apart: what is reported is on the safe side.
    """
    images, labels = task(n=400)
    spec = EmbeddingSpec(estimator=estimator, max_images=48, draws=48, head=HeadSpec(l2=(1e-2,)))
    runs = [embed_task(probe(), (images, labels), spec=spec, seed=s) for s in range(30)]
    deviation = np.std([r.vector for r in runs], axis=0, ddof=1).mean()
    assert 0.6 < np.mean([r.noise for r in runs]) / deviation < most
    between = np.mean([symmetric_distance(a, b) for a, b in zip(runs[::2], runs[1::2], strict=True)])
    assert 0.4 < np.mean([r.noise_distance for r in runs]) / between < 2.5


@pytest.mark.parametrize("estimator", ["exact", "montecarlo", "montecarlo_plain", "variational", "reference"])
def test_embed_twice_same_bytes(estimator: str) -> None:
    spec = EmbeddingSpec(draws=32, max_images=30, reference=ReferenceSpec(epoch_size=320))
    runs = [embed_task(probe(), task(), estimator, seed=s, spec=spec) for s in (5, 5, 6)]
    assert same_bytes(runs[0], runs[1])
    assert not same_bytes(runs[0], runs[2])


def test_embedding_one_task_leaves_nothing_for_the_next() -> None:
    alone = embed_task(probe(), task(seed=1))
    embed_task(probe(), task(n_classes=5, seed=2))
    assert same_bytes(alone, embed_task(probe(), task(seed=1)))


@pytest.mark.parametrize("estimator", ["exact", "montecarlo"])
@pytest.mark.parametrize("names", [["b", "a", "c"], [7, -1, 3], ["10", "9", "8"], [True, False, None]])
def test_permuted_label_names_same_bytes(estimator: str, names: list[Any]) -> None:
    images, labels = task()
    spec = EmbeddingSpec(draws=32)
    renamed = [(image, names[label]) for image, label in zip(images, labels, strict=True)]
    one = embed_task(probe(), (images, labels), estimator, spec=spec)
    assert same_bytes(one, embed_task(probe(), renamed, estimator, spec=spec))


def test_labels_are_numbered_by_first_appearance() -> None:
    assert canonical_labels(["x", "b", "x", "a"]).tolist() == [0, 1, 0, 2]
    assert canonical_labels(np.array([9, 3, 9, 1])).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    spec = EmbeddingSpec(draws=32, head=HeadSpec(tolerance=1e-7))
    one = embed_task(probe(), task(), spec=spec)
    other = embed_task(probe(), task(), spec=spec.model_copy(update={"batch_size": batch_size}))
    assert relative_l2(other.vector, one.vector) < 1e-5
    assert relative_l2(other.domain, one.domain) < 1e-5


@pytest.mark.parametrize("n_classes", [2, 3, 9])
def test_shape_knows_nothing_of_the_number_of_classes(n_classes: int) -> None:
    made = embed_task(probe(), task(n_classes=n_classes))
    assert made.vector.shape == made.trivial.shape == made.noise.shape == (11,)
    assert made.n_classes == n_classes


@pytest.mark.parametrize("estimator", ["exact", "montecarlo", "montecarlo_plain"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_constant_loss_gives_exactly_the_trivial_embedding(estimator: str, n_classes: int) -> None:
    images = task()[0][:1].repeat(40, 0)
    made = embed_task(probe(), (images, np.arange(40) % n_classes), estimator, spec=EmbeddingSpec(draws=16))
    assert made.vector.tobytes() == made.trivial.tobytes()
    assert (made.noise == 0).all()
    assert made.complexity == 0
    assert made.head_loss == pytest.approx(np.log(n_classes))


def test_without_prior_the_trivial_embedding_is_zero() -> None:
    assert not trivial_embedding(probe(), 0.0).any()


def test_norm_grows_with_the_difficulty_of_the_task() -> None:
    """0 or 1, under more and more noise, at one strength of L2, on real weights."""
    digits = load_digits()
    rows = np.flatnonzero(digits.target < 2)[:100]
    clean, labels = digits.images[rows] * (255 / 16), digits.target[rows]
    rng = np.random.default_rng(0)
    lite = load_probe("efficientnet_lite0", image_size=32)
    norms = []
    for level in (0, 20, 40, 80, 120):
        noisy = np.clip(clean + rng.normal(0, level, clean.shape), 0, 255).astype(np.uint8)
        norms.append(embed_task(lite, (noisy, labels), "exact", head=HeadSpec(l2=(1e-3,))).complexity)
    assert np.all(np.diff(norms) > 0)
    assert norms[-1] > 10 * norms[0]


def test_images_of_every_kind_are_the_same_task() -> None:
    images, labels = task(12, 2)
    as_floats = np.moveaxis(images, 3, 1) / 255.0

    class Dataset:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.as_tensor(as_floats[i]).float(), torch.tensor(labels[i])

    one = embed_task(probe(), (images, labels))
    for other in (
        [(Image.fromarray(x), int(y)) for x, y in zip(images, labels, strict=True)],
        [(encode_png(x), int(y)) for x, y in zip(images, labels, strict=True)],
        (as_floats, labels),
        Dataset(),
    ):
        assert same_bytes(one, embed_task(probe(), other))


def test_grey_images_are_three_equal_channels() -> None:
    grey, labels = task(12, 2)[0][..., 0], np.arange(12) % 2
    one = embed_task(probe(), (grey[..., None].repeat(3, 3), labels))
    assert same_bytes(one, embed_task(probe(), (grey, labels)))
    assert same_bytes(one, embed_task(probe(), (grey[..., None], labels)))


def test_images_are_brought_to_the_probes_size() -> None:
    images, labels = task(12, 2)
    big = np.stack([np.array(Image.fromarray(x).resize((40, 56))) for x in images])
    small = np.stack([transform().to_uint8(Image.fromarray(x)) for x in big])
    assert same_bytes(embed_task(probe(), (big, labels)), embed_task(probe(), (small, labels)))


def test_at_most_max_images_each_class_in_its_share() -> None:
    images, _ = task(100)
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    asked: list[np.ndarray] = []

    def load(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return images[rows]

    features = extract_features(probe(), images)
    made = embed_features(probe(), features, labels, load, EmbeddingSpec(max_images=20, estimator="exact"))
    [rows] = asked
    assert np.bincount(labels[rows]).tolist() == [12, 6, 2]
    assert np.array_equal(rows, np.unique(rows))
    assert made.n_images == 20
    embed_features(probe(), features, labels, load, EmbeddingSpec(max_images=100, estimator="exact"))
    assert np.array_equal(asked[1], np.arange(100))
    embed_features(probe(), features, labels, load, EmbeddingSpec(max_images=20, estimator="exact", seed=1))
    assert not np.array_equal(asked[2], rows)


def test_a_rare_class_keeps_an_image() -> None:
    images, _ = task(300)
    labels = np.repeat([0, 1], [298, 2])
    asked: list[np.ndarray] = []

    def load(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return images[rows]

    embed_features(probe(), extract_features(probe(), images), labels, load, EmbeddingSpec(max_images=20))
    assert set(labels[asked[0]]) == {0, 1}


def test_groups_reach_the_choice_of_the_heads_strength() -> None:
    """Each image four times under labels of noise; see the test of the heads."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8).repeat(4, 0)
    labels, groups = rng.integers(0, 2, 30).repeat(4), np.arange(30).repeat(4)
    features = rng.normal(size=(30, 64)).repeat(4, 0).astype(np.float32)
    spec = EmbeddingSpec(head=HeadSpec(l2=(1e-4, 1.0)))
    wide = probe_from_module(seeded(Wide), transform=transform())
    chosen = [
        embed_features(wide, features, labels, lambda r: images[r], spec, groups=g).head_l2 for g in (groups, None)
    ]
    assert chosen == [1.0, 1e-4]


class Wide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 64, 3)
        self.fc = torch.nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def test_progress_counts_images() -> None:
    seen: list[tuple[int, int]] = []
    embed_task(probe(), task(40), spec=EmbeddingSpec(batch_size=16), progress=lambda *x: seen.append(x))
    assert seen == [(16, 40), (32, 40), (40, 40)]


def test_unknown_estimator_suggests_before_any_work() -> None:
    with pytest.raises(UnknownNameError, match="unknown estimator 'exat'; did you mean 'exact'"):
        embed_task(probe(), [], "exat")


def test_tasks_that_are_none() -> None:
    with pytest.raises(TaskError, match="the dataset is empty"):
        embed_task(probe(), [])
    with pytest.raises(TaskError, match="at least two classes, got 1"):
        embed_task(probe(), (task(6)[0], ["a"] * 6))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 4), np.uint8), r"image of shape \(8, 8, 4\)"),
        (np.zeros(8, np.uint8), r"image of shape \(8,\)"),
        (np.full((8, 8, 3), 2.0), r"float64 image with values in \[2, 2\]; wanted uint8 or \[0, 1\]"),
        (np.full((8, 8, 3), -1.0), "give images before normalisation"),
        (np.full((8, 8, 3), 200), "int64 image with values"),
        pytest.param(np.full((8, 8, 3), np.nan), "not finite|nan"),
    ],
)
def test_images_that_are_none(image: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        embed_task(probe(), [(image, 0), (image, 1)])


def test_a_specs_estimator_and_seed_hold_unless_others_are_given() -> None:
    images, labels = task(40)
    spec = EmbeddingSpec(estimator="exact", seed=7)
    made = embed_task(probe(), (images, labels), spec=spec)
    assert (made.estimator, made.seed) == ("exact", 7)
    other = embed_task(probe(), (images, labels), "montecarlo", 3, spec=spec)
    assert (other.estimator, other.seed) == ("montecarlo", 3)
