"""Probes: the same function as the network given, which stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from oracles import TinyNet, layer_names, random_head, random_images, seeded, tiny_probe, transform, without_head
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision.models import WeightsEnum, resnet18

from t2v_core.errors import MissingPackageError, ProbeError, UnknownNameError, WeightsError
from t2v_core.fisher import fisher_filters
from t2v_core.images import ImageTransform
from t2v_core.probes import PROBES, Probe, build_network, load_probe, probe_from_module

PAPER = {"resnet34": 8512}
"""Filters of the convolutions of ResNet-34: the length of the reference's embedding."""


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def assert_contract(probe: Probe, net: nn.Module, head: str, size: int) -> None:
    """What every probe promises of the network it was made from."""
    assert not probe.network.training
    assert not any(m.training for m in probe.network.modules() if not isinstance(m, nn.Identity))
    assert {u.name for u in probe.units} == layer_names(net, head)
    stops = [0, *(u.stop for u in probe.units)]
    assert [u.start for u in probe.units] == stops[:-1]
    assert probe.n_filters == stops[-1]
    for unit, scale in zip(probe.units, probe.scales, strict=True):
        original = net.get_submodule(unit.name).weight
        assert (unit.n_filters, unit.filter_size) == (len(original), original[0].numel())
        assert unit.mean_square == pytest.approx(float(original.detach().double().square().mean()), rel=1e-12)
        assert scale.shape == (unit.n_filters,)
        shape = (-1, *[1] * (original.dim() - 1))
        assert torch.allclose(probe.weight_of(unit), original * scale.view(shape), rtol=1e-5, atol=0)
    images = random_images(2, size).to(probe.dtype)
    with torch.no_grad():
        assert relative_difference(probe.network(images), without_head(net, head)(images)) < 1e-4
        assert probe.network(images).shape == (2, probe.n_features)


@pytest.mark.parametrize("name", list(PROBES))
def test_contract_over_the_registry(name: str) -> None:
    architecture = PROBES[name]
    if name.startswith("vgg"):  # 0.5 GB of linear layers: enough to look at the skeleton
        with torch.device("meta"):
            net = architecture.build()
        head = net.get_submodule(architecture.head)
        assert isinstance(head, nn.Linear)
        assert head.out_features == 1000
        assert [n for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1] == architecture.head
    else:
        net = seeded(architecture.build)
        probe = probe_from_module(net, architecture.head, name=name, transform=transform(32))
        assert_contract(probe, net, architecture.head, 32)
        assert probe.n_filters == PAPER.get(name, probe.n_filters)
        assert net.get_submodule(architecture.head).out_features == 1000
    assert architecture.image_size >= 224
    assert len(architecture.mean) == len(architecture.std) == 3


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_batchnorm_folds_away_and_the_function_stays(name: str) -> None:
    architecture = PROBES[name]
    net = seeded(architecture.build).double()
    probe = probe_from_module(net, architecture.head, transform=transform(32))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in probe.network.modules())
    images = random_images(3, 32)
    with torch.no_grad():
        assert relative_difference(probe.network(images), without_head(net, architecture.head)(images)) < 1e-12


class DoubleUse(nn.Module):
    """A BatchNorm that may not be folded: its convolution's output is used a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.fc((y + torch.relu(self.bn(y))).mean((2, 3)))


def test_batchnorm_that_must_not_fold_is_kept() -> None:
    net = seeded(DoubleUse)
    probe = probe_from_module(net, transform=transform())
    assert isinstance(probe.network.bn, nn.BatchNorm2d)
    assert_contract(probe, net, "fc", 8)


def test_the_network_given_is_untouched() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(), nn.Linear(144, 2)
    )
    net.train()
    net[0].eval()
    net[1].weight.requires_grad_(False)
    net[5].register_forward_hook(lambda *_: None)
    before = copy.deepcopy(net.state_dict())
    modules = {n: (type(m), m.training, len(m._forward_hooks)) for n, m in net.named_modules()}
    frozen = {n: p.requires_grad for n, p in net.named_parameters()}
    state = torch.random.get_rng_state()
    probe = probe_from_module(net, head="5", transform=transform())
    fisher_filters(probe, random_head(3, 144), random_images(4).float(), "montecarlo", draws=5)
    assert {n: (type(m), m.training, len(m._forward_hooks)) for n, m in net.named_modules()} == modules
    assert {n: p.requires_grad for n, p in net.named_parameters()} == frozen
    assert net[2].inplace
    assert all(p.grad is None for p in net.parameters())
    assert all(not m._forward_pre_hooks and not m._backward_hooks for m in net.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_probe_leaves_no_hooks_on_itself() -> None:
    probe = tiny_probe()
    fisher_filters(probe, random_head(3, 6), random_images(4), "exact")
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in probe.network.modules())


def test_all_weights_are_frozen() -> None:
    probe = tiny_probe()
    fisher_filters(probe, random_head(3, 6), random_images(4), "exact")
    assert not [n for n, p in probe.network.named_parameters() if p.requires_grad or p.grad is not None]


def test_to_another_type_is_a_copy() -> None:
    probe = tiny_probe(torch.float32)
    double = probe.to(torch.float64)
    assert (probe.dtype, double.dtype) == (torch.float32, torch.float64)
    assert {s.dtype for s in probe.scales} == {torch.float32}
    assert {s.dtype for s in double.scales} == {torch.float64}
    assert (double.units, double.digest) == (probe.units, probe.digest)


def test_photographs_get_their_imagenet_classes() -> None:
    net = build_network("efficientnet_lite0")
    architecture = PROBES["efficientnet_lite0"]
    see = ImageTransform(size=architecture.image_size, mean=architecture.mean, std=architecture.std)
    images = np.stack([see.to_uint8(Image.fromarray(load_sample_image(n))) for n in ("flower.jpg", "china.jpg")])
    with torch.no_grad():
        logits = net(see.to_tensor(images))
    assert logits.argmax(1).tolist() == [985, 698]  # daisy, palace


def test_imagenet_probe_has_the_features_of_the_imagenet_network() -> None:
    probe = load_probe("efficientnet_lite0", image_size=64)
    assert (probe.name, probe.transform.size, probe.n_filters, probe.n_features) == (
        "efficientnet_lite0",
        64,
        21008,
        1280,
    )
    assert_contract(probe, build_network("efficientnet_lite0"), "classifier", 64)
    assert load_probe("efficientnet_lite0").transform.size == 224


def test_random_weights_are_seeded_and_leave_the_callers_random_state() -> None:
    state = torch.random.get_rng_state()
    digests = [load_probe("resnet18", "random", seed=s, image_size=32).digest for s in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert digests[0] == digests[1] != digests[2]


def test_digest_follows_every_weight_but_the_heads() -> None:
    net = seeded(TinyNet)
    digests = {probe_from_module(net, transform=transform()).digest}
    state = net.state_dict()
    for name, tensor in state.items():
        tensor.view(-1)[0] += 1
        digest = probe_from_module(net, transform=transform()).digest
        assert (digest in digests) == name.startswith("fc."), name
        digests.add(digest)
    assert len(digests) == 1 + len(state) - 2


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_round_trip_without_a_head(tmp_path: Path, suffix: str) -> None:
    net = seeded(resnet18)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    images = random_images(2, 32).float()
    wanted = without_head(net, "fc")(images).detach()
    for weights in (str(path), state):
        probe = load_probe("resnet18", weights, image_size=32)
        assert relative_difference(probe.network(images).detach(), wanted) < 1e-4


def test_head_of_another_size_is_passed_over() -> None:
    net = seeded(resnet18)
    state = {**net.state_dict(), "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    loaded = build_network("resnet18", state)
    assert loaded.fc.out_features == 1000
    assert torch.equal(loaded.layer4[1].conv2.weight, net.layer4[1].conv2.weight)


def test_weights_of_another_architecture_name_examples(tmp_path: Path) -> None:
    path = tmp_path / "r18.safetensors"
    save_file(resnet18().state_dict(), path)
    with pytest.raises(WeightsError, match="belong to another architecture") as caught:
        load_probe("resnet34", str(path))
    message = str(caught.value)
    assert str(path) in message
    assert "asked for resnet34" in message
    assert "96 missing (e.g. layer1.2.bn1.bias)" in message
    changed = dict(resnet18().state_dict())
    changed["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    changed["extra"] = torch.zeros(1)
    wanted = (
        r"1 unexpected \(e.g. extra\), 1 of another shape \(e.g. conv1.weight \(64, 1, 7, 7\) for \(64, 3, 7, 7\)\)"
    )
    with pytest.raises(WeightsError, match=wanted):
        build_network("resnet18", changed)


def test_weights_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights at 'nowhere.pt'; wanted 'imagenet', 'random'"):
        load_probe("resnet18", "nowhere.pt")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not tensors")
    with pytest.raises(WeightsError, match="cannot read weights from .*garbage"):
        load_probe("resnet18", str(garbage))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds list, wanted a state dict of tensors"):
        load_probe("resnet18", str(tmp_path / "list.pt"))


def test_weights_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.mkdir, (tmp_path / "evil",)  # type: ignore[return-value]

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="cannot read weights"):
        load_probe("resnet18", str(tmp_path / "evil.pt"))
    assert not (tmp_path / "evil").exists()


def test_offline_says_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: WeightsEnum, *args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(WeightsError) as caught:
        load_probe("resnet34")
    message = str(caught.value)
    for part in (
        "resnet34",
        "no route to host",
        "connect this machine to the internet",
        "weights: path/to/resnet34.pth",
    ):
        assert part in message


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name.startswith("efficientnet_lite1"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingPackageError, match=r"efficientnet_lite1.*pip install 't2v\[demo\]'"):
        load_probe("efficientnet_lite1")


def test_unknown_probe_suggests() -> None:
    with pytest.raises(UnknownNameError, match="unknown probe 'resnet43'; did you mean 'resnet34'"):
        load_probe("resnet43")


def test_head_that_is_not_there_lists_the_linear_layers() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ProbeError, match=r"no layer 'fc' for a head; its linear layers: 1, 3"):
        probe_from_module(net, transform=transform())
    with pytest.raises(ProbeError, match=r"the head '2' is a ReLU; wanted a torch.nn.Linear"):
        probe_from_module(net, head="2", transform=transform())
    with pytest.raises(ProbeError, match=r"without its head '1' the network gives"):
        probe_from_module(
            nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Linear(192, 2)), "1", transform=transform()
        )
    bare = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 8))
    with pytest.raises(ProbeError, match="no convolution or linear layer before the head"):
        probe_from_module(bare, "2", transform=transform())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.shared = nn.Conv2d(6, 6, 3)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.shared(self.shared(self.stem(x))).mean((2, 3)))


class Tied(nn.Module):
    """Two layers, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.a = nn.Conv2d(6, 6, 3)
        self.b = nn.Conv2d(6, 6, 3)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.b(self.a(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize(("net", "name"), [(Twice, "shared"), (Tied, "[ab]")])
def test_layer_used_twice(net: type[nn.Module], name: str) -> None:
    with pytest.raises(ProbeError, match=f"layer '{name}' is used twice in one forward pass"):
        probe_from_module(net(), transform=transform())


class OddNet(nn.Module):
    """Networks that cannot serve as probes, each for one reason."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6, track_running_stats=why != "batch statistics")
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = self.bn1 if why == "shared norm" else nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = self.fc(x.mean((2, 3)))
        return x.softmax(1) if self.why == "softmax after the head" else x


def test_batchnorm_without_running_statistics_is_refused() -> None:
    with pytest.raises(ProbeError):
        probe_from_module(OddNet("batch statistics"), transform=transform())


def test_a_network_of_a_head_alone() -> None:
    with pytest.raises(ProbeError, match="no convolution or linear layer before the head"):
        probe_from_module(nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), "1", transform=transform())


def test_an_inner_layer_is_no_head_whatever_its_size() -> None:
    with pytest.raises(ProbeError, match="last layer"):
        probe_from_module(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 2)), "1", transform=transform())


def test_anything_after_the_head_is_refused() -> None:
    with pytest.raises(ProbeError, match="last layer"):
        probe_from_module(OddNet("softmax after the head"), transform=transform())


def test_a_batchnorm_shared_by_two_convolutions() -> None:
    net = seeded(OddNet, "shared norm")
    assert_contract(probe_from_module(net, transform=transform()), net, "fc", 8)


class Windows(nn.Module):
    """A linear layer over four windows of each image, as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fc = nn.Linear(48, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = x.reshape(len(x) * 4, 48)
        return self.fc(self.inner(windows).reshape(len(x), 4, 6).mean(1))


class Attention(nn.Module):
    """Attention over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.attention, self.fc = (
            nn.Linear(3, 4),
            nn.MultiheadAttention(4, 1, batch_first=True),
            nn.Linear(4, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x.flatten(2).transpose(1, 2))
        return self.fc(self.attention(z, z, z)[0].mean(1))


@pytest.mark.parametrize(("kind", "said"), [(Windows, "sees 8 rows for 2 images"), (Attention, "MultiheadAttention")])
def test_layers_that_cannot_be_watched_are_refused(kind: type[nn.Module], said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        probe_from_module(seeded(kind), transform=transform())
