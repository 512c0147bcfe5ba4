"""One contract over every registered probe, and over networks of timm of each kind.

What is right is taken from the framework (modules, hooks, autograd), and not from the code under test.
"""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from t2v_core.fisher import fisher_filters
from t2v_core.probes import PROBES, Probe, build_network, load_probe, probe_from_module

P = {
    "efficientnet_lite0": 21008,
    "efficientnet_lite1": 26832,
    "efficientnet_lite2": 29048,
    "resnet18": 4800,
    "resnet34": 8512,  # the paper's
    "resnet50": 26560,
    "vgg13": 11136,
    "vgg13_bn": 11136,
    "densenet121": 10240,
    "timm/vit_tiny_patch16_224": 20928,
    "timm/swin_tiny_patch4_window7_224": 41184,  # windows as rows
    "timm/convnext_atto": 11640,
    "timm/mobilenetv3_small_050": 5840,
    "timm/regnetx_002": 10424,
    "timm/resnetblur18": 4800,  # with convolutions of fixed filters, which are none of its own
    "timm/dla46_c": 4032,  # its head is a 1x1 convolution
}
"""Length of the embedding."""

SIZES = {"timm/vit_tiny_patch16_224": 64, "timm/swin_tiny_patch4_window7_224": 64}
"""Side of the images, pixels; else 32."""

EXACT = ("resnet18", "timm/vit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224", "timm/convnext_atto")
"""Whose Fisher information is compared with one autograd call for each image and class."""

Head = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A probe and the network that it was made of."""

    name: str
    size: int
    head: str
    net: nn.Module
    before: dict[str, object]
    """`state_of` the network before the probe was made of it."""
    probe: Probe

    def images(self, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(n, 3, self.size, self.size, generator=torch.Generator().manual_seed(1)).to(dtype)

    def new_head(self, n_classes: int) -> Head:
        """Random, with logits near 1, so that no class is certain."""
        g = torch.Generator().manual_seed(2)
        with torch.no_grad():
            length = self.probe.network(self.images(1)).norm()
        weight = torch.randn(n_classes, self.probe.n_features, generator=g) / length
        return weight, 0.1 * torch.randn(n_classes, generator=g)

    def evaluated(self) -> nn.Module:
        """A copy of the network in eval mode."""
        return copy.deepcopy(self.net).eval()


def checksum(tensor: torch.Tensor) -> int:
    """Of the bytes as they lie, without a copy: VGG's are half a gigabyte."""
    return zlib.crc32(torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy())


def state_of(net: nn.Module) -> dict[str, object]:
    """All of a network that its owner could find changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "tensors": {k: checksum(v) for k, v in net.state_dict().items()},
        "objects": {k: id(v) for k, v in [*net.named_parameters(), *net.named_buffers(), *net.named_modules()]},
        "strides": {k: p.stride() for k, p in net.named_parameters()},
        "requires_grad": {k: p.requires_grad for k, p in net.named_parameters()},
        "gradients": {k: p.grad for k, p in net.named_parameters()},
        "training": {k: m.training for k, m in net.named_modules()},
        "inplace": {k: getattr(m, "inplace", None) for k, m in net.named_modules()},
        "hooks": {k: [list(getattr(m, h)) for h in hooks] for k, m in net.named_modules()},
    }


def shaken(net: nn.Module) -> nn.Module:
    """BatchNorm with statistics, gains and shifts that matter, as after training."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                size = m.running_mean.shape
                m.running_mean.copy_(0.1 * torch.randn(size, generator=g))
                m.running_var.copy_(0.7 + 0.6 * torch.rand(size, generator=g))
                m.weight.copy_(0.8 + 0.4 * torch.rand(size, generator=g))
                m.bias.copy_(0.1 * torch.randn(size, generator=g))
    return net


@pytest.fixture(scope="module", params=list(P))
def case(request: pytest.FixtureRequest) -> Case:
    name = request.param
    size, head = SIZES.get(name, 32), PROBES[name].head
    net = shaken(build_network(name, "random", image_size=size))
    net.train()  # a caller's network is seldom all in one state
    next(net.children()).eval()
    next(net.parameters()).requires_grad_(False)
    net.get_submodule(head).register_forward_hook(lambda *_: None)
    before = state_of(net)
    return Case(name, size, head, net, before, load_probe(name, net.state_dict(), image_size=size))


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def test_every_registered_probe_is_here() -> None:
    assert not set(PROBES) - set(P)


def test_the_contract(case: Case) -> None:
    probe, net = case.probe, case.evaluated()
    images = case.images(2)
    assert probe.name == case.name
    assert probe.transform.size == case.size

    # P is fixed, and is the number of rows of all convolutions and linear layers but the head.
    rows = {
        n: len(m.weight) for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and n != case.head
    }
    assert probe.n_filters == sum(rows.values()) == P[case.name]

    # The layer table: names of the network, in the order of its forward pass, without gaps.
    called: list[str] = []
    at_head: list[torch.Tensor] = []
    hooks = [
        net.get_submodule(n).register_forward_pre_hook(lambda _, x, n=n: called.append(n)) for n in [*rows, case.head]
    ]
    hooks.append(net.get_submodule(case.head).register_forward_pre_hook(lambda _, x: at_head.append(x[0])))
    with torch.no_grad():
        logits = net(images)
    for hook in hooks:
        hook.remove()
    assert [*(u.name for u in probe.units), case.head] == called
    stop = 0
    for unit, scale in zip(probe.units, probe.scales, strict=True):
        weight = net.get_submodule(unit.name).weight
        assert (unit.start, unit.n_filters, unit.filter_size) == (stop, len(weight), weight[0].numel())
        # Summed in float64: in float32 the norm of VGG's largest layer, 10^8 weights, is off by a percent.
        norm = float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float64))
        assert unit.mean_square == pytest.approx(norm**2 / weight.numel(), rel=1e-9)
        assert torch.equal(probe.original.get_submodule(unit.name).weight, weight), unit.name
        part = (slice(None), slice(64))  # of each filter: VGG's are many
        folded = scale[:, None] * weight.detach().flatten(1)[part]
        assert torch.allclose(probe.weight_of(unit).flatten(1)[part], folded, rtol=1e-5, atol=0), unit.name
        stop = unit.stop

    # Features are the framework's own, and the head makes the network's logits of them.
    wanted = at_head[0].flatten(1)
    if hasattr(net, "forward_head"):
        with torch.no_grad():
            pre_logits = net.forward_head(net.forward_features(images), pre_logits=True)
        assert relative(pre_logits.flatten(1), wanted) < 1e-6
    parent, _, child = case.head.rpartition(".")
    head = net.get_submodule(case.head)
    setattr(net.get_submodule(parent), child, nn.Identity())
    with torch.no_grad():
        assert relative(net(images), wanted) < 1e-6
        for network in (probe.network, probe.original):
            features = network(images)
            assert features.shape == (2, probe.n_features)
            assert relative(features, wanted) < 1e-4
            assert relative(features @ head.weight.flatten(1).T + head.bias, logits) < 1e-4


def test_the_network_given_is_untouched(case: Case) -> None:
    probe = probe_from_module(case.net, case.head, name=case.name, transform=case.probe.transform)
    assert probe.digest == case.probe.digest
    fisher_filters(probe, case.new_head(2), case.images(1), "exact")
    assert state_of(case.net) == case.before
    own = {t.data_ptr() for t in [*case.net.parameters(), *case.net.buffers()] if t.numel()}
    for network in (probe.network, probe.original):
        assert not own & {t.data_ptr() for t in [*network.parameters(), *network.buffers()]}


def test_eval_mode_frozen_and_nothing_moves(case: Case) -> None:
    probe = case.probe
    before = [state_of(network) for network in (probe.network, probe.original)]
    fisher_filters(probe, case.new_head(2), case.images(2), "exact")
    with torch.no_grad():
        probe.network(case.images(2))
        probe.original(case.images(2))
    assert [state_of(network) for network in (probe.network, probe.original)] == before
    for network in (probe.network, probe.original):
        assert not [n for n, m in network.named_modules() if m.training]
        assert not [n for n, p in network.named_parameters() if p.requires_grad]
    # Folded is a network of its own; where nothing was folded there is but one.
    folded = any((s != 1).any() for s in probe.scales)
    assert (probe.network is probe.original) != folded
    assert folded == any(isinstance(m, nn.BatchNorm2d) for m in probe.original.modules())


def test_digest_is_of_the_weights_before_the_head(case: Case) -> None:
    net = case.evaluated()

    def digest() -> str:
        return probe_from_module(net, case.head, transform=case.probe.transform).digest

    with torch.no_grad():
        net.get_submodule(case.head).weight.add_(1)
        assert digest() == case.probe.digest
        net.get_submodule(case.probe.units[-1].name).weight.view(-1)[-1] += 1e-3
        assert digest() != case.probe.digest


def test_fisher_information_is_finite_and_of_each_image_by_itself(case: Case) -> None:
    head, images = case.new_head(3), case.images(3)
    at_once = fisher_filters(case.probe, head, images, "exact", batch_size=3)
    assert at_once.shape == (P[case.name],)
    assert torch.isfinite(at_once).all()
    assert (at_once > 0).any()
    assert relative(fisher_filters(case.probe, head, images, "exact", batch_size=2), at_once) < 1e-4


@pytest.mark.parametrize("case", EXACT, indirect=True)
def test_fisher_information_is_exact(case: Case) -> None:
    """``mean_n sum_y p(y|x_n) mean_k (d log p(y|x_n) / d w_ok)^2``, layer by layer, in float64."""
    net, images = case.evaluated().double(), case.images(2, torch.float64)
    probe = probe_from_module(net, case.head, transform=case.probe.transform)
    weight, bias = (t.double() for t in case.new_head(3))
    at_head: list[torch.Tensor] = []
    net.get_submodule(case.head).register_forward_pre_hook(lambda _, x: at_head.append(x[0].flatten(1)))
    weights = [net.get_submodule(u.name).weight.requires_grad_() for u in probe.units]
    wanted = [torch.zeros(len(w), dtype=torch.float64) for w in weights]
    for image in images:
        net(image[None])
        log_p = torch.log_softmax(at_head.pop() @ weight.T + bias, dim=1)[0]
        for y in range(3):
            for sums, g in zip(wanted, torch.autograd.grad(log_p[y], weights, retain_graph=True), strict=True):
                sums += log_p[y].exp().detach() * g.square().flatten(1).mean(1) / len(images)
    got = fisher_filters(probe, (weight, bias), images, "exact")
    for unit, values in zip(probe.units, wanted, strict=True):
        assert relative(got[unit.start : unit.stop], values) < 1e-9, unit.name
