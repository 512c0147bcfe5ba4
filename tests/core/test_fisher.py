"""The Fisher information against one autograd call per (image, label) on the network as it was given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import (
    TinyNet,
    fisher_oracle,
    layer_names,
    median_relative,
    random_head,
    random_images,
    relative_l2,
    seeded,
    tiny_probe,
    transform,
    without_head,
)
from torch import nn
from torchvision.models import resnet18

from t2v_core import winograd
from t2v_core.errors import ComputeError, ConfigError, DataError, UnknownNameError
from t2v_core.fisher import ESTIMATORS, estimate_fisher, fisher_filters
from t2v_core.fisher.cotangents import relative_importance
from t2v_core.fisher.draws import Draws, importance_draws, model_draws
from t2v_core.fisher.montecarlo import early_units
from t2v_core.fisher.passes import entries, sample_filter_norms
from t2v_core.probes import build_network, probe_from_module

ZOO: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False),
    "dense, wide kernel and no padding": lambda: nn.Conv2d(6, 4, (5, 3)),
    "strided": lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "strided unevenly": lambda: nn.Conv2d(6, 8, (3, 2), stride=(1, 3), padding=(2, 0)),
    "dilated": lambda: nn.Conv2d(6, 8, 3, dilation=2, padding=2, bias=False),
    "grouped": lambda: nn.Conv2d(6, 8, 3, groups=2, padding=1, bias=False),
    "grouped, 1x1, strided": lambda: nn.Conv2d(6, 9, 1, groups=3, stride=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1, bias=False),
    "depthwise, strided, even kernel": lambda: nn.Conv2d(6, 6, (2, 3), groups=6, stride=(2, 1), padding=1),
    "depthwise, dilated": lambda: nn.Conv2d(6, 6, 3, groups=6, dilation=2, bias=False),
    "depthwise, two filters a channel": lambda: nn.Conv2d(6, 12, 3, groups=6, padding=1, bias=False),
    "1x1": lambda: nn.Conv2d(6, 8, 1, bias=False),
    "1x1, strided": lambda: nn.Conv2d(6, 8, 1, stride=2),
    "1x1, padded": lambda: nn.Conv2d(6, 8, 1, padding=1, bias=False),
    "same": lambda: nn.Conv2d(6, 8, 3, padding="same", bias=False),
    "same, even kernel": lambda: nn.Conv2d(6, 8, (4, 2), padding="same", dilation=(1, 3)),
    "valid": lambda: nn.Conv2d(6, 8, 3, padding="valid"),
    "reflected": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "one position left": lambda: nn.Conv2d(6, 8, 9),
}


class ZooNet(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(6)
        self.layer = layer()
        channels = self.layer.out_channels
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.silu(self.bn(self.layer(x)))
        return self.fc(x.mean((2, 3)))


class Linears(nn.Module):
    """Linear layers on ``[N, L, C]``, on ``[N, H, W, C]`` and on ``[N, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, stride=2)
        self.spatial = nn.Linear(4, 5)
        self.tokens = nn.Linear(5, 7, bias=False)
        self.flat = nn.Linear(7, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.spatial(self.conv(x).permute(0, 2, 3, 1)))
        x = torch.tanh(self.tokens(x.flatten(1, 2)))
        return self.fc(torch.tanh(self.flat(x.mean(1))))


class Dense(nn.Module):
    """Pre-activation BatchNorm and concatenation, as in DenseNet: no BatchNorm has a convolution of its own before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3))
        self.last = nn.BatchNorm2d(18)
        self.fc = nn.Linear(18, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(F.relu(self.last(x), inplace=True).mean((2, 3)))


class Skip(nn.Module):
    """The convolution's output feeds a BatchNorm *and* a skip connection: folding it would change the function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 1)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y = y + F.relu(self.bn(y))
        return self.fc(F.relu(self.bn2(self.conv2(y))).mean((2, 3)))


class InPlace(nn.Module):
    """Operations in place right after a convolution, by function and by module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3)
        self.relu = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(6, 6, 3)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.conv(x)), inplace=True)
        y = self.relu(self.conv2(x))
        z = self.conv3(y)
        z += y[:, :, 1:-1, 1:-1]
        return self.fc(torch.relu_(z).mean((2, 3)))


def assert_exact(
    net: nn.Module, head_at: str, size: int, n_images: int = 3, n_classes: int = 3, median: float = 1e-5
) -> None:
    images = random_images(n_images, size)
    probe = probe_from_module(net.double(), head=head_at, transform=transform(size))
    names = [u.name for u in probe.units]
    assert set(names) == layer_names(net, head_at)
    head = random_head(n_classes, probe.n_features)
    wanted = fisher_oracle(net, names, head, images, head_at)
    assert (wanted > 0).mean() > 0.4  # ReLU6 of random weights is often dead
    got = fisher_filters(probe, head, images, "exact").numpy()
    for unit in probe.units:  # layer by layer: their scales differ by many powers of ten
        part = slice(unit.start, unit.stop)
        assert relative_l2(got[part], wanted[part]) < 1e-10, unit.name
    # Isolated filters move by more in float32 where the mask of a ReLU flips.
    single = probe_from_module(net.float(), head=head_at, transform=transform(size))
    got = fisher_filters(single, head, images.float(), "exact")
    assert got.dtype == torch.float64
    assert median_relative(got, wanted) < median
    assert relative_l2(got, wanted) < 1e-3


@pytest.fixture(params=["framework", "minimal"])
def convolutions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """3 x 3 convolutions by the one way only, whatever is faster."""
    monkeypatch.setattr(winograd, "_saves", lambda *_: request.param == "minimal")
    way: str = request.param
    return way


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.usefixtures("convolutions")
@pytest.mark.parametrize("kind", ZOO)
def test_exact_on_every_kind_of_convolution(kind: str) -> None:
    assert_exact(seeded(ZooNet, ZOO[kind]), "fc", size=9, n_images=4)


@pytest.mark.usefixtures("convolutions")
@pytest.mark.parametrize("net", [Linears, Dense, Skip, InPlace, TinyNet])
def test_exact_on_small_networks(net: type[nn.Module]) -> None:
    assert_exact(seeded(net), "fc", size=8, n_images=4)


def test_exact_on_resnet18(convolutions: str) -> None:
    # Minimal filtering is not taken on images as small as these.
    assert_exact(seeded(resnet18), "fc", size=32, median=1e-5 if convolutions == "framework" else 3e-5)


def test_exact_on_efficientnet_lite0() -> None:
    """The demo's probe with its ImageNet weights; with random ones its Fisher values are near 1e-19, all rounding."""
    assert_exact(build_network("efficientnet_lite0"), "classifier", size=48)


def test_zero_gain_gives_a_zero_block_before_it() -> None:
    net = seeded(TinyNet).double()
    with torch.no_grad():
        net.bn2.weight[2] = 0.0
    probe = probe_from_module(net, transform=transform())
    head = random_head(3, 6)
    got = fisher_filters(probe, head, random_images(4), "exact")
    assert got[5 + 2] == 0
    assert relative_l2(got, fisher_oracle(net, ["conv1", "conv2"], head, random_images(4))) < 1e-10


def test_one_binary_cotangent_equals_the_two_term_sum() -> None:
    """Against C = 3 with a class of no probability, which takes the general path of one pass a class."""
    probe, images = tiny_probe(), random_images(5)
    weight, bias = random_head(2, 6)
    binary = estimate_fisher(probe, (weight, bias), images, "exact")
    third = (torch.cat([weight, weight[:1]]), torch.cat([bias, torch.tensor([-800.0], dtype=torch.float64)]))
    general = estimate_fisher(probe, third, images, "exact")
    assert (binary.n_passes, general.n_passes) == (5, 15)
    assert relative_l2(binary.filters, general.filters.numpy()) < 1e-12


class TwoLayer(nn.Module):
    """Sect. 3.2: z = sigmoid(W x), p = sigmoid(w.z); the two-class softmax with rows 0 and w is the same."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 16, hidden, bias=False)
        self.fc = nn.Linear(hidden, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.sigmoid(self.first(x.flatten(1))))


def test_closed_form_of_the_two_layer_network() -> None:
    r"""F = E[(y-p)^2 S (x) xx'], S = ww' * zz' * (1-z)(1-z)', and E[(y-p)^2] = p (1-p) for y ~ p."""
    net = seeded(TwoLayer, 5).double()
    images = 3 * random_images(20, 4)
    w = torch.tensor([1.5, -2.0, 0.0, 0.3, 4.0], dtype=torch.float64)
    head = (torch.stack([torch.zeros(5, dtype=torch.float64), w]), torch.tensor([0.0, 0.2], dtype=torch.float64))
    x = images.flatten(1)
    z = torch.sigmoid(x @ net.first.weight.detach().T)
    p = torch.sigmoid(z @ w + 0.2)
    s = torch.einsum("k,l,nk,nl,nk,nl->nkl", w, w, z, z, 1 - z, 1 - z)
    full = torch.einsum("n,nkl,ni,nj->kilj", p * (1 - p), s, x, x).reshape(5 * 48, 5 * 48) / len(x)
    wanted = full.diagonal().reshape(5, 48).mean(1)
    probe = probe_from_module(net, transform=transform(4))
    got = fisher_filters(probe, head, images, "exact")
    assert relative_l2(got, wanted.numpy()) < 1e-12
    assert got[2] == 0  # a feature that does not matter for y has a zero block
    assert (got[[0, 1, 3, 4]] > 0).all()


class OneWeightFilters(nn.Module):
    """A depthwise 1x1 layer in the middle: each of its filters is one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.single = nn.Conv2d(6, 6, 1, groups=6, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.bn(self.conv(x)))
        return self.fc(torch.tanh(self.bn2(self.single(x))).mean((2, 3)))


def kl_after(
    features: nn.Module, weight: torch.Tensor, at: tuple[int, ...], h: float, head: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """mean_x KL(p_{w + h e_at}(y|x) || p_w(y|x))."""
    images = random_images(6)
    with torch.no_grad():
        log_p = torch.log_softmax(features(images) @ head[0].T + head[1], 1)
        before = weight[at].item()
        weight[at] = before + h
        log_q = torch.log_softmax(features(images) @ head[0].T + head[1], 1)
        weight[at] = before
    return float((log_q.exp() * (log_q - log_p)).sum(1).mean())


def test_kl_divergence_is_half_the_fisher_to_third_order() -> None:
    net = seeded(OneWeightFilters).double()
    probe = probe_from_module(net, transform=transform())
    head = random_head(3, 6, scale=2.0)
    fisher = fisher_filters(probe, head, random_images(6), "exact")
    features = without_head(net, "fc")
    for o in range(6):
        value = float(fisher[6 + o])
        errors = []
        for h in (0.02, 0.01):
            kl = kl_after(features, features.single.weight, (o, 0, 0, 0), h, head)
            assert kl == pytest.approx(0.5 * value * h**2, rel=0.1)
            errors.append(kl - 0.5 * value * h**2)
        assert 5 < errors[0] / errors[1] < 12  # halving the step divides the rest by 8


def test_filter_value_is_the_mean_over_its_weights_of_the_kl_curvature() -> None:
    net = seeded(OneWeightFilters).double()
    head = random_head(3, 6, scale=2.0)
    fisher = fisher_filters(probe_from_module(net, transform=transform()), head, random_images(6), "exact")
    features = without_head(net, "fc")
    for o in (0, 4):
        curvature = [
            kl_after(features, features.conv.weight, (o, *map(int, k)), h, head) / h**2
            for k in np.ndindex(3, 3, 3)
            for h in (1e-3, -1e-3)
        ]
        assert np.mean(curvature) == pytest.approx(0.5 * float(fisher[o]), rel=1e-4)


def mean_over_seeds(
    name: str, n: int, draws: int, scale: float = 1.0, rough: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact values, and mean and deviation over seeds of an estimator; ``rough``: it is told features with noise."""
    probe, images, head = tiny_probe(torch.float32), random_images(24).float(), random_head(6, 6, scale=scale)
    exact = fisher_filters(probe, head, images, "exact").numpy()
    features = None
    if rough is not None:
        features = probe.network(images) + rough * torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    runs = [fisher_filters(probe, head, images, name, features=features, draws=draws, seed=s).numpy() for s in range(n)]
    return exact, np.mean(runs, axis=0), np.std(runs, axis=0, ddof=1)


@pytest.mark.parametrize("rough", [None, 0.0, 0.3])
@pytest.mark.parametrize(("name", "draws"), [("montecarlo", 32), ("montecarlo_plain", 32), ("montecarlo_plain", 10)])
def test_sampling_is_unbiased(name: str, draws: int, rough: float | None) -> None:
    """The mean over seeds converges to the exact value at the rate of its standard error; 10 draws see not all images.

    Features that are at hand say what is drawn, and need not be right for that.
    """
    n = 300
    exact, mean, deviation = mean_over_seeds(name, n, draws, rough=rough)
    z = (mean - exact) / (deviation / np.sqrt(n))
    assert np.abs(z).max() < 4
    assert (deviation / np.sqrt(n) / exact).max() < 0.1  # the test could see a bias of some per cent


@pytest.mark.parametrize("draw", [importance_draws, model_draws])
@pytest.mark.parametrize("n_draws", [7, 40])
def test_every_pair_weighs_one_nth_on_average(draw: Callable[[np.ndarray, int, int], Draws], n_draws: int) -> None:
    """F is the sum over pairs of weight x what its pass gives: unbiased for any F if E[weight] = 1/N of each pair."""
    values = np.exp(2 * np.random.default_rng(0).normal(size=(10, 4)))
    values /= values.sum(1, keepdims=True)
    if draw is importance_draws:
        values *= np.geomspace(1, 1000, 10)[:, None]
        values[3, 1] = values[4] = 0
    n = 4000
    weights = np.zeros((n, 10, 4))
    for seed in range(n):
        drawn = draw(values, n_draws, seed)
        assert len(set(zip(drawn.images, drawn.classes, strict=True))) == len(drawn.images) <= n_draws
        assert (np.diff(drawn.images) >= 0).all()
        weights[seed, drawn.images, drawn.classes] = drawn.weights
    mean, error = weights.mean(0), weights.std(0) / np.sqrt(n)
    assert (weights[:, values == 0] == 0).all()
    z = (mean - 0.1)[values > 0] / error[values > 0]
    assert np.abs(z).max() < 4
    assert np.median(error[values > 0]) < 0.02


@pytest.mark.parametrize("name", ["montecarlo", "montecarlo_plain", "variational"])
def test_features_at_hand_spare_a_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, images, head = tiny_probe(torch.float32), random_images(24).float(), random_head(3, 6)
    seen: list[int] = []
    forward = probe.network.forward
    monkeypatch.setattr(probe.network, "forward", lambda x: seen.append(len(x)) or forward(x))
    given = {"labels": torch.arange(24) % 3, "draws": 8}
    alone = fisher_filters(probe, head, images, name, **given)
    passes = sum(seen)
    with torch.no_grad():
        features = probe.network(images)
    seen.clear()
    assert torch.equal(fisher_filters(probe, head, images, name, features=features, **given), alone)
    assert sum(seen) == passes - 24
    with pytest.raises(DataError, match=r"features of shape \(23, 6\); wanted \[24, 6\]"):
        fisher_filters(probe, head, images, name, features=features[1:], **given)


def test_nothing_to_draw_where_nothing_matters() -> None:
    assert len(importance_draws(np.zeros((4, 3)), 5, 0).images) == 0


def test_relative_importance_by_hand_and_whatever_a_features_unit() -> None:
    # Two classes, two features. Image 0 has only feature 0, image 1 only feature 1, so that each image alone rules one
    # filter: with F_o the mean over the two images, each image's classes add up to 2.
    head = (torch.tensor([[1.0, 5.0], [-1.0, -5.0]]), torch.zeros(2))
    rho = relative_importance(head, torch.tensor([[1e-3, 0.0], [0.0, 2.0]]))
    assert torch.allclose(rho.sum(1), torch.tensor([2.0, 2.0], dtype=torch.float64))
    # sum_c p_c a_co^2 with a_c = (1 - p_c) (w_c - w_other): of class c the share 1 - p_c
    p = torch.softmax(torch.tensor([[1e-3, -1e-3], [10.0, -10.0]], dtype=torch.float64), 1)
    assert torch.allclose(rho, 2 * (1 - p), atol=1e-6)

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(9, 7, generator=generator, dtype=torch.float64)
    z[:, 3] = 0  # of a feature that no image has
    weight, bias = torch.randn(4, 7, generator=generator, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    p = torch.softmax(z @ weight.T, 1)
    each = p[:, :, None] * (weight - (p @ weight)[:, None]).square() * z.abs()[:, None]
    naive = (each / each.sum(1).mean(0).where(z.any(0), torch.ones(7))).sum(2)
    assert torch.allclose(relative_importance((weight, bias), z), naive)
    unit = torch.rand(7, generator=generator, dtype=torch.float64) * 1e3
    assert torch.allclose(relative_importance((weight / unit, bias), z * unit), naive)


def test_importance_sampling_beats_plain_draws_on_a_confident_head() -> None:
    _, _, plain = mean_over_seeds("montecarlo_plain", 40, 48, scale=8.0)
    exact, _, importance = mean_over_seeds("montecarlo", 40, 48, scale=8.0)
    assert (importance < plain).all()
    assert np.linalg.norm(importance) < 0.4 * np.linalg.norm(plain)
    assert np.linalg.norm(importance) < 0.5 * np.linalg.norm(exact)


def test_montecarlo_is_exact_where_that_costs_no_more() -> None:
    probe, images = tiny_probe(), random_images(8)
    for n_classes, passes in ((2, 8), (4, 32)):
        head = random_head(n_classes, 6)
        exact = estimate_fisher(probe, head, images, "exact")
        cheap = estimate_fisher(probe, head, images, "montecarlo", draws=passes)
        sampled = estimate_fisher(probe, head, images, "montecarlo", draws=passes - 1)
        assert cheap.exact
        assert exact.exact
        assert not sampled.exact
        assert cheap.n_passes == exact.n_passes == passes
        assert sampled.n_passes <= passes - 1
        assert torch.equal(cheap.filters, exact.filters)
        assert not torch.equal(sampled.filters, exact.filters)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_batch_size_does_not_matter(name: str) -> None:
    probe, images, head = tiny_probe(), random_images(13), random_head(4, 6)
    labels = torch.arange(13) % 4
    runs = [estimate_fisher(probe, head, images, name, draws=30, batch_size=b, labels=labels) for b in (1, 5, 64)]
    for other in runs[1:]:
        assert relative_l2(other.filters, runs[0].filters.numpy()) < 1e-12
        assert relative_l2(other.groups, runs[0].groups.numpy()) < 1e-12
        assert (other.n_passes, other.n_images) == (runs[0].n_passes, 13)
        assert np.allclose(other.objective, runs[0].objective, rtol=1e-12)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_same_seed_same_bytes_and_another_seed_another_sample(name: str) -> None:
    probe, images, head = tiny_probe(torch.float32), random_images(13).float(), random_head(4, 6)
    labels = np.arange(13) % 4
    first, again, other = (
        fisher_filters(probe, head, images, name, draws=30, seed=s, labels=labels) for s in (3, 3, 4)
    )
    assert first.numpy().tobytes() == again.numpy().tobytes()
    assert torch.equal(first, other) == (name == "exact")


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "reference"])  # whose groups are of steps
@pytest.mark.parametrize("n_images", [1, 5, 19])
def test_groups_are_the_same_quantity_on_fewer_images(name: str, n_images: int) -> None:
    probe, images, head = tiny_probe(), random_images(n_images), random_head(3, 6)
    estimate = estimate_fisher(probe, head, images, name, draws=12)
    members = [
        np.arange(n_images)[np.arange(n_images) % len(estimate.groups) == g] for g in range(len(estimate.groups))
    ]
    share = np.array([len(m) / n_images for m in members])
    assert relative_l2(share @ estimate.groups.numpy(), estimate.filters.numpy()) < 1e-12
    if name == "exact":
        for rows, group in zip(members, estimate.groups, strict=True):
            assert relative_l2(group, fisher_filters(probe, head, images[rows], "exact").numpy()) < 1e-12


def test_permuted_classes_do_not_matter() -> None:
    probe, images, (weight, bias) = tiny_probe(), random_images(6), random_head(5, 6)
    order = torch.tensor([3, 1, 4, 0, 2])
    one = fisher_filters(probe, (weight, bias), images, "exact")
    assert relative_l2(fisher_filters(probe, (weight[order], bias[order]), images, "exact"), one.numpy()) < 1e-12


@pytest.mark.parametrize("n_classes", [2, 3, 17])
def test_shape_knows_nothing_of_the_number_of_classes(n_classes: int) -> None:
    got = fisher_filters(tiny_probe(), random_head(n_classes, 6), random_images(3), "exact")
    assert got.shape == (11,)


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("n_classes", [2, 4])
def test_constant_loss_has_no_information(name: str, n_classes: int) -> None:
    probe, images = tiny_probe(torch.float32), random_images(9).float()
    weight, bias = random_head(1, 6)
    constant = (weight.expand(n_classes, 6), bias.expand(n_classes))
    usual = fisher_filters(probe, random_head(n_classes, 6), images, "exact")
    got = fisher_filters(probe, constant, images, name, draws=7, labels=np.arange(9) % n_classes)
    assert (got <= 1e-12 * usual.max()).all()
    if n_classes == 2:
        assert (got == 0).all()


def test_confident_examples_contribute_by_p_times_one_minus_p() -> None:
    """Binary: an image's share is p (1 - p) times what its features say, whatever moved p."""
    probe, images = tiny_probe(), random_images(1)
    weight, _ = random_head(2, 6)
    with torch.no_grad():
        margin = float((probe.network(images) @ (weight[1] - weight[0])).item())
    unsure = fisher_filters(probe, (weight, torch.tensor([margin, 0.0]).double()), images, "exact")
    for logit in (1.0, -6.0, 20.0):
        p = 1 / (1 + np.exp(-logit))
        sure = fisher_filters(probe, (weight, torch.tensor([margin - logit, 0.0]).double()), images, "exact")
        assert sure.numpy() == pytest.approx(4 * p * (1 - p) * unsure.numpy(), rel=1e-6)


def test_unknown_estimator_suggests() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'montecarlo'"):
        fisher_filters(tiny_probe(), random_head(3, 6), random_images(2), "monte-carlo")


@pytest.mark.parametrize(
    "head", [random_head(3, 5), (torch.zeros(3, 6), torch.zeros(4)), (torch.zeros(6), torch.zeros(6))]
)
def test_head_of_a_wrong_shape(head: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(DataError, match=r"head of shapes .* wanted \[C, 6\] and \[C\] for probe 'tiny'"):
        fisher_filters(tiny_probe(), head, random_images(2))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 8, 8), (2, 1, 8, 8)])
def test_images_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"images of shape .*wanted \[N, 3, H, W\]"):
        fisher_filters(tiny_probe(), random_head(3, 6), torch.zeros(shape))


@pytest.mark.parametrize("setting", ["draws", "batch_size"])
def test_settings_out_of_range(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting}: .*got 0"):
        fisher_filters(tiny_probe(), random_head(3, 6), random_images(2), **{setting: 0})


@pytest.mark.parametrize(
    "name",
    [
        "exact",
        "montecarlo",
        "montecarlo_plain",
    ],
)
@pytest.mark.parametrize("broken", ["images", "head"])
def test_not_finite_is_an_error_and_never_a_zero_embedding(name: str, broken: str) -> None:
    images, (weight, bias) = random_images(20), random_head(3, 6)
    (images[3] if broken == "images" else weight[0])[0] = torch.nan
    with pytest.raises(ComputeError, match="not finite"):
        fisher_filters(tiny_probe(), (weight, bias), images, name, draws=30)


def test_draws_that_end_early_are_unbiased_and_change_nothing_late() -> None:
    """A share of the draws goes on to the early layers, with its inverse as weight."""
    probe, images, head = tiny_probe(), random_images(30), random_head(5, 6)
    n_early = early_units(probe)
    assert n_early == 0  # five of eleven filters are in the first of two layers
    deep = probe_from_module(seeded(Deep).double(), transform=transform(8))
    cut = deep.units[early_units(deep)].start
    assert 0 < cut <= 0.2 * deep.n_filters
    head = random_head(5, deep.n_features)
    exact = fisher_filters(deep, head, images, "exact").numpy()
    whole, part = (
        [estimate_fisher(deep, head, images, "montecarlo", draws=40, seed=s, early_share=share) for s in range(60)]
        for share in (1.0, 0.25)
    )
    for one, other in zip(whole, part, strict=True):
        assert relative_l2(other.filters[cut:], one.filters[cut:].numpy()) < 1e-12
    early = torch.stack([e.filters[:cut] for e in part])
    assert relative_l2(early.mean(0), exact[:cut]) < 0.1
    spread = [torch.stack([e.filters[:cut] for e in runs]).std(0).mean() for runs in (whole, part)]
    assert spread[1] > 1.3 * spread[0]


class Deep(nn.Module):
    """Few filters early, many late."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 4, 3, padding=1)
        self.late = nn.Conv2d(4, 24, 3, stride=2, padding=1)
        self.fc = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.tanh(self.late(torch.tanh(self.early(x)))).mean((2, 3)))


def test_one_forward_pass_serves_all_classes_of_an_image() -> None:
    probe, images = tiny_probe(), random_images(12)
    calls: list[int] = []
    hook = probe.network.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    try:
        fisher_filters(probe, random_head(7, 6), images, "exact", batch_size=5)
        assert calls == [5, 5, 2]
        calls.clear()
        got = estimate_fisher(probe, random_head(7, 6), images, "montecarlo", draws=60, early_share=1.0)
        assert sum(calls) <= 24 < got.n_passes  # once for the importance, once for the passes
    finally:
        hook.remove()


class Branches(nn.Module):
    """Residual blocks with a convolution beside each, and activations in place, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.main = nn.ModuleList(nn.Conv2d(4 + i, 5 + i, 3, stride=2, padding=1) for i in range(2))
        self.more = nn.ModuleList(nn.Conv2d(5 + i, 5 + i, 3, padding=1) for i in range(2))
        self.side = nn.ModuleList(nn.Conv2d(4 + i, 5 + i, 1, stride=2) for i in range(2))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x), inplace=True)
        for main, more, side in zip(self.main, self.more, self.side, strict=True):
            x = F.relu(more(F.relu(main(x), inplace=True)) + side(x), inplace=True)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("net", [Branches, Dense, Linears, TinyNet])
def test_rounds_that_end_early_reach_all_late_units_and_none_before(net: type[nn.Module]) -> None:
    probe = probe_from_module(seeded(net).double(), transform=transform(), name="net")
    weights, images = [probe.weight_of(u) for u in probe.units], random_images(3)
    v = torch.randn(3, probe.n_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for first in range(1, len(weights)):
        got: list[dict[int, torch.Tensor]] = [{}, {}, {}]
        late = entries(probe.network, weights, images[:1], first)
        sample_filter_norms(
            probe.network,
            weights,
            images,
            lambda z, r: v,
            lambda unit, q, r, got=got: got[r].__setitem__(unit, q),
            rounds=3,
            stops=[late, [], late],
        )
        assert list(map(sorted, got)) == [
            [*range(first, len(weights))],
            [*range(len(weights))],
            [*range(first, len(weights))],
        ]
        for unit in got[0]:
            assert torch.allclose(got[0][unit], got[1][unit])
            assert torch.allclose(got[2][unit], got[1][unit])


@pytest.mark.parametrize("n_steps_batch", [1, 8])
def test_reference_recipe_is_the_fisher_of_balanced_classes(n_steps_batch: int) -> None:
    """Squares of batch means, times the batch size, are unbiased for the Fisher of the class-balanced images."""
    probe, images, head = tiny_probe(), random_images(8), random_head(3, 6)
    images[6:] *= 4
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 2])
    weights = np.array([1 / 18] * 6 + [1 / 3] * 2)
    each = np.stack([fisher_filters(probe, head, images[i : i + 1], "exact").numpy() for i in range(8)])
    settings = {"epoch_size": 20_000 if n_steps_batch > 1 else 4_000, "batch_size": n_steps_batch}
    got = estimate_fisher(probe, head, images, "reference", labels=labels, reference=settings)
    assert relative_l2(got.filters, weights @ each) < 0.1
    assert relative_l2(got.filters, each.mean(0)) > 0.1  # balanced, not as they are
    assert got.n_images == 8
    assert got.n_passes == settings["epoch_size"]


def test_reference_recipe_with_batchnorm_in_train_mode() -> None:
    """Batch statistics change the result, and not the probe."""
    probe, images, head = tiny_probe(), random_images(64), random_head(3, 6)
    before = {k: v.clone() for k, v in probe.original.state_dict().items()}
    one, other = (
        fisher_filters(
            probe, head, images, "reference", labels=np.arange(64) % 3, reference={"epoch_size": 640, "batchnorm": mode}
        )
        for mode in ("eval", "train")
    )
    assert relative_l2(one, other.numpy()) > 0.1
    assert all(torch.equal(v, before[k]) for k, v in probe.original.state_dict().items())
    assert not probe.original.training


def test_reference_recipe_needs_labels() -> None:
    with pytest.raises(DataError, match="give labels="):
        fisher_filters(tiny_probe(), random_head(3, 6), random_images(4), "reference")


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 3], [0, -1, 1, 2]])
def test_labels_that_do_not_fit(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"labels of shape .* wanted \[4\] in \[0, 2\]"):
        fisher_filters(tiny_probe(), random_head(3, 6), random_images(4), labels=labels)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'drawz'"):
        fisher_filters(tiny_probe(), random_head(3, 6), random_images(4), drawz=3)


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_logits_that_saturate_give_finite_values_or_a_clear_error(name: str, scale: float) -> None:
    probe, images = tiny_probe(torch.float32), random_images(8).float()
    weight, bias = random_head(3, 6)
    try:
        got = fisher_filters(
            probe, (weight * scale, bias), images, name, draws=20, labels=np.arange(8) % 3, reference={"epoch_size": 64}
        )
    except ComputeError as error:
        if scale == 1e30 and "not finite" in str(error):
            return  # squares of it are beyond float32
        raise
    else:
        assert torch.isfinite(got).all()
        assert (got >= 0).all()


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_images_that_are_not_finite(name: str) -> None:
    images = random_images(8)
    images[3, 0, 0, 0] = float("nan")
    with pytest.raises(ComputeError, match="not finite"):
        fisher_filters(tiny_probe(), random_head(3, 6), images, name, draws=16, labels=np.arange(8) % 3)


@pytest.mark.parametrize("name", ["exact", "montecarlo", "variational"])
def test_identical_images(name: str) -> None:
    """Their mean is the value of one."""
    probe, head, image = tiny_probe(), random_head(3, 6), random_images(1)
    got = fisher_filters(probe, head, image.repeat(20, 1, 1, 1), name, draws=30, beta=1e-9)
    wanted = fisher_filters(probe, head, image, "exact")
    assert relative_l2(got, wanted.numpy()) < {"exact": 1e-12, "montecarlo": 0.35, "variational": 1.5}[name]
    assert torch.isfinite(got).all()
