"""Slow, exact answers in float64, written from the definitions and not from the code under test; and tiny networks."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from t2v_core.images import ImageTransform
from t2v_core.probes import Probe, probe_from_module

Head = tuple[torch.Tensor, torch.Tensor]


def transform(size: int = 8) -> ImageTransform:
    return ImageTransform(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def without_head(net: nn.Module, head: str) -> nn.Module:
    """A copy of ``net`` in eval mode that gives features."""
    out = copy.deepcopy(net).eval()
    parent, _, child = head.rpartition(".")
    setattr(out.get_submodule(parent), child, nn.Identity())
    return out


def fisher_oracle(net: nn.Module, names: Sequence[str], head: Head, images: torch.Tensor, at: str = "fc") -> np.ndarray:
    """``F_o = mean_n sum_y p(y|x_n) mean_k (d log p(y|x_n) / d w_ok)^2`` by one autograd call for each (n, y).

    On the network as it is, BatchNorm and all, in float64.

    Args:
        net: images to logits; its head is replaced by ``head``.
        names: layers whose filters are wanted, in order.
        head: ``[C, D]`` and ``[C]``.
        images: ``[N, 3, H, W]``.
        at: dotted name of the head.
    """
    network = without_head(net, at).double()
    weights = [network.get_submodule(name).weight.requires_grad_() for name in names]
    w, b = (x.double() for x in head)
    total = [torch.zeros(len(weight), dtype=torch.float64) for weight in weights]
    for image in images.double():
        log_p = torch.log_softmax(network(image[None]) @ w.T + b, dim=1)[0]
        for y in range(len(b)):
            gradients = torch.autograd.grad(log_p[y], weights, retain_graph=True, allow_unused=True)
            for sums, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sums += log_p[y].exp().detach() * gradient.square().flatten(1).mean(1)
    return torch.cat(total).numpy() / len(images)


def layer_names(net: nn.Module, head: str) -> set[str]:
    """All convolutions and linear layers but the head."""
    return {n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and n != head}


def shake(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm running statistics and affine parameters that matter; some gains are negative."""
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            size = m.running_mean.shape
            m.running_mean.copy_(0.3 * torch.randn(size, generator=g))
            m.running_var.copy_(0.5 + 1.5 * torch.rand(size, generator=g))
            sign = torch.where(torch.rand(size, generator=g) < 0.2, -1.0, 1.0)
            with torch.no_grad():
                m.weight.copy_(sign * (0.5 + torch.rand(size, generator=g)))
                m.bias.copy_(0.3 * torch.randn(size, generator=g))
    return net


def seeded(build: type[nn.Module] | object, *args: object, seed: int = 0) -> nn.Module:
    """``build(*args)`` with weights of a seed, BatchNorm shaken, in eval mode; the global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(*args)  # type: ignore[operator]
    return shake(net, seed).eval()


class TinyNet(nn.Module):
    """Two convolutions with BatchNorm, one of them strided; P = 5 + 6."""

    def __init__(self, n_classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.bn1(self.conv1(x)))
        x = torch.tanh(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def tiny_probe(dtype: torch.dtype = torch.float64, seed: int = 0) -> Probe:
    return probe_from_module(seeded(TinyNet, seed=seed).to(dtype), transform=transform(), name="tiny")


def random_head(n_classes: int, n_features: int, *, seed: int = 0, scale: float = 1.0) -> Head:
    g = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(n_classes, n_features, generator=g, dtype=torch.float64)
    return weight, 0.3 * torch.randn(n_classes, generator=g, dtype=torch.float64)


def random_images(n: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_l2(got: np.ndarray | torch.Tensor, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted))


def median_relative(got: np.ndarray | torch.Tensor, wanted: np.ndarray) -> float:
    live = wanted > 1e-12 * wanted.max()
    return float(np.median(np.abs(np.asarray(got) - wanted)[live] / wanted[live]))


def cosine_distance_naive(a: np.ndarray, b: np.ndarray) -> float:
    """1 - cos(a/(a+b), b/(a+b)) over the filters that are not zero in both, in extended precision."""
    a, b = np.asarray(a, np.longdouble), np.asarray(b, np.longdouble)
    keep = a + b > 0
    u, v = a[keep] / (a + b)[keep], b[keep] / (a + b)[keep]
    return float(1 - (u * v).sum() / np.sqrt((u * u).sum() * (v * v).sum()))
