"""The variational estimator against quadrature, against descent on its objective, and in its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import TinyNet, random_head, random_images, relative_l2, seeded, tiny_probe, transform
from scipy.optimize import brentq
from torch import nn

from t2v_core.config import EmbeddingSpec
from t2v_core.embedding import trivial_embedding
from t2v_core.errors import ConfigError
from t2v_core.fisher import estimate_fisher, fisher_filters, prior_weight
from t2v_core.fisher.accumulate import FisherInput
from t2v_core.fisher.sgvb import descend, objective
from t2v_core.fisher.variational import divergence, prior_precision, start_variance
from t2v_core.probes import Probe, probe_from_module

DIAGONALS = ["positions", "weights"]


class OneLayer(nn.Module):
    """A convolution and a mean over positions: what follows is linear, and Gauss-Newton is the whole curvature."""

    def __init__(self, filters: int, kernel: int, n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, filters, kernel)
        self.fc = nn.Linear(filters, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def spec(beta: float, diagonal: str, **settings: object) -> EmbeddingSpec:
    return EmbeddingSpec.model_validate(
        {"estimator": "variational", "beta": beta, "variational": {"diagonal": diagonal, **settings}}
    )


def labels_of(probe: Probe, head: tuple[torch.Tensor, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (probe.network(images) @ head[0].T + head[1]).argmax(1)


@pytest.mark.parametrize("diagonal", DIAGONALS)
def test_one_filter_by_quadrature(diagonal: str) -> None:
    """One filter that sees the whole image of 2 x 2 pixels, one Gaussian activation: the fixed point is one equation in v, solved here by Gauss-Hermite quadrature."""
    probe = probe_from_module(seeded(OneLayer, 1, 2, 2).double(), transform=transform(2))
    image, (weight, bias) = random_images(1, 2), random_head(2, 1)
    power, beta = float(image.square().sum()), 0.02
    with torch.no_grad():
        centre = float(probe.network(image).item())
    nodes, mass = np.polynomial.hermite_e.hermegauss(80)
    slope = float((weight[1] - weight[0]).item())

    def fisher(v: float) -> float:
        margin = slope * (centre + np.sqrt(v * power) * nodes) + float(bias[1] - bias[0])
        p = 1 / (1 + np.exp(-margin))
        return float((mass * p * (1 - p)).sum() / mass.sum()) * slope**2 * power / 12

    prior = float(prior_precision(probe)[0])
    v = brentq(lambda v: 2 * beta * (1 / v - prior) - fisher(v), 1e-9, 10)
    assert fisher(v) < 0.9 * fisher(0) or fisher(v) > 1.1 * fisher(0)  # the noise matters
    images = image.repeat(4000, 1, 1, 1)
    settings = spec(beta, diagonal, images=4000, batch_size=1 if diagonal == "weights" else 100)
    got = fisher_filters(probe, (weight, bias), images, "variational", spec=settings)
    assert float(got) == pytest.approx(fisher(v), rel=0.03)


@pytest.mark.parametrize("diagonal", DIAGONALS)
def test_the_fixed_point_is_where_descent_ends(diagonal: str) -> None:
    """Stochastic gradients of the objective, by reparametrised noise, end at the same precisions."""
    probe = probe_from_module(seeded(OneLayer, 5, 3, 3).double(), transform=transform(6))
    images, head = random_images(64, 6), random_head(3, 5)
    settings = spec(1e-3, diagonal, images=64, batch_size=8, max_passes=60, tolerance=1e-6)
    task = FisherInput(probe, head, images, labels_of(probe, head, images), settings)
    filters = torch.stack(
        [
            fisher_filters(probe, head, images, "variational", labels=task.labels, spec=settings, seed=s)
            for s in range(8)
        ]
    ).mean(0)
    fixed = 1 / (prior_precision(probe) + filters / (2 * settings.beta))
    ended = descend(task, steps=1500, learning_rate=3e-2, decay=True)
    assert (ended / start_variance(probe, 0.05)).log().abs().min() > 0.3  # it went somewhere
    assert (ended / fixed).log().abs().max() < 0.15


@pytest.mark.parametrize("diagonal", DIAGONALS)
def test_descent_does_not_better_the_fixed_point(diagonal: str) -> None:
    """In a network where Gauss-Newton is not all of the curvature, the objective is about as low as long descent gets it.

    With labels that the head's own predictions explain: those of a head that is sure and wrong have curvature that the
    Fisher information does not see.
    """
    probe, images, head = tiny_probe(), random_images(96), random_head(4, 6, scale=2.0)
    with torch.no_grad():
        p = torch.softmax(probe.network(images) @ head[0].T + head[1], 1)
    labels = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    settings = spec(1e-3, diagonal, images=96, batch_size=8, max_passes=30)
    task = FisherInput(probe, head, images, labels, settings)
    found = estimate_fisher(probe, head, images, "variational", labels=task.labels, spec=settings)
    fixed = 1 / (prior_precision(probe) + found.filters / (2 * settings.beta))
    values = {
        "start": objective(task, start_variance(probe, 0.05), repeats=20),
        "fixed": objective(task, fixed, repeats=20),
        "descent": objective(task, descend(task, steps=600, learning_rate=3e-2, decay=True), repeats=20),
    }
    assert values["fixed"] < values["start"]
    assert values["fixed"] <= values["descent"] + 0.1 * (values["start"] - values["descent"])
    assert found.converged
    assert found.objective[-1] == pytest.approx(values["fixed"], rel=0.1)
    assert found.objective[-1] < found.objective[0]


def test_divergence_by_hand() -> None:
    """KL of two Gaussians in one dimension, summed over weights."""
    probe = tiny_probe()
    precision, variance = prior_precision(probe), start_variance(probe, 0.3)
    wanted = 0.0
    for unit in probe.units:
        weights = probe.original.get_submodule(unit.name).weight.detach().flatten(1).double()
        for row, o in zip(weights, range(unit.start, unit.stop), strict=True):
            prior = torch.distributions.Normal(0.0, float(precision[o]) ** -0.5)
            for w in row:
                noisy = torch.distributions.Normal(float(w), float(variance[o]) ** 0.5)
                wanted += float(torch.distributions.kl_divergence(noisy, prior))
    assert float(divergence(probe, variance, precision)) == pytest.approx(wanted, rel=1e-6)


def test_start_is_a_share_of_the_variance_of_the_weights_as_trained() -> None:
    net = seeded(TinyNet).double()
    got = start_variance(probe_from_module(net, transform=transform()), 0.05)
    assert got[2] == pytest.approx(0.05 * float(net.conv1.weight[2].detach().var(unbiased=False)), rel=1e-9)


@pytest.mark.parametrize("diagonal", DIAGONALS)
def test_a_large_beta_lets_the_prior_dominate(diagonal: str) -> None:
    probe, images, head = tiny_probe(), random_images(20), random_head(4, 6)
    shares = []
    for beta in (1e-6, 1e-2, 1e2):
        settings = spec(beta, diagonal)
        f = fisher_filters(probe, head, images, "variational", spec=settings)
        shares.append(float((f.numpy() / (f.numpy() + trivial_embedding(probe, settings))).mean()))
    assert shares[0] > 0.9 > shares[1] > shares[2]
    assert shares[2] < 1e-3


def test_many_samples_give_the_exact_fisher_up_to_the_prior() -> None:
    """In the form of Sect. 3.1 the noise that a task can bear falls with N; with it goes what it does to F."""
    probe, images, head = tiny_probe(), random_images(16), random_head(4, 6)
    wanted = fisher_filters(probe, head, images, "exact").numpy()
    errors = []
    for repeats in (1, 10_000):
        settings = spec(1.0, "weights", images=20_000, batch_size=16).model_copy(update={"beta_scale": "dataset"})
        # N as the prior sees it; the images themselves need not be there ten thousand times.
        settings = settings.model_copy(update={"beta": settings.beta / repeats})
        runs = [fisher_filters(probe, head, images, "variational", spec=settings, seed=s) for s in range(30)]
        errors.append(relative_l2(torch.stack(runs).mean(0), wanted))
    assert errors[1] < 0.08 < errors[0]


def test_both_forms_of_beta_are_one_prior() -> None:
    """beta of Sect. 3.1, for the dataset, is 4 N times the reference implementation's, for a sample."""
    sample, dataset = EmbeddingSpec(beta=1e-4), EmbeddingSpec(beta=4 * 25 * 1e-4, beta_scale="dataset")
    assert prior_weight(sample, 25) == pytest.approx(prior_weight(dataset, 25))
    assert prior_weight(sample, 50) == pytest.approx(2 * prior_weight(dataset, 50))
    probe = tiny_probe()
    assert trivial_embedding(probe, sample, 25) == pytest.approx(trivial_embedding(probe, dataset, 25))


def test_without_labels_the_loss_is_on_the_heads_own_predictions() -> None:
    """F needs no labels; the objective does, and takes the head's predictions for want of them."""
    probe, images, head = tiny_probe(), random_images(20), random_head(4, 6)
    settings = spec(1e-5, "positions")
    known = estimate_fisher(probe, head, images, "variational", labels=np.arange(20) % 4, spec=settings)
    unknown = estimate_fisher(probe, head, images, "variational", spec=settings)
    assert known.objective[0] != unknown.objective[0]
    n = min(len(known.objective), len(unknown.objective))
    assert n >= 3
    one = settings.model_copy(update={"variational": settings.variational.model_copy(update={"max_passes": 2})})
    runs = [
        estimate_fisher(probe, head, images, "variational", labels=labels, spec=one).filters
        for labels in (None, np.arange(20) % 4)
    ]
    assert torch.equal(*runs)


def test_too_few_passes_say_so() -> None:
    probe, images, head = tiny_probe(), random_images(20), random_head(4, 6)
    got = estimate_fisher(probe, head, images, "variational", spec=spec(1e-5, "positions", max_passes=2))
    assert not got.converged
    assert len(got.objective) == 2
    assert got.n_passes == 40


def test_images_drawn_by_importance_are_unbiased() -> None:
    """Where a pass takes a sample of the images, its mean over seeds is that of all images."""
    probe, images, head = tiny_probe(), random_images(40), random_head(4, 6, scale=4.0)
    settings = {"images": 10, "max_passes": 6, "tolerance": 1e-9}
    few = spec(1e-8, "positions", **settings)
    every = spec(1e-8, "positions", **{**settings, "images": 40})
    runs = [
        torch.stack([fisher_filters(probe, head, images, "variational", spec=s, seed=seed) for seed in range(n)]).mean(
            0
        )
        for s, n in ((few, 150), (every, 40))
    ]
    assert relative_l2(runs[0], runs[1].numpy()) < 0.08


def test_beta_zero_is_an_error() -> None:
    with pytest.raises(ConfigError, match="needs a prior, got beta=0"):
        fisher_filters(tiny_probe(), random_head(3, 6), random_images(4), "variational", beta=0.0)
