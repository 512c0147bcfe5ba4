"""Every way to a per-sample norm gives the same number; the products that they are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from t2v_core.fisher import gemm, norms
from t2v_core.fisher.norms import filter_norms, position_norms
from t2v_core.fisher.recorder import LayerCall

Geometry = tuple[int, int, tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], int]

# channels, filters, kernel, stride, padding, dilation, groups
GEOMETRIES: dict[str, Geometry] = {
    "3x3": (6, 8, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "no padding": (6, 8, (3, 2), (1, 1), (0, 0), (1, 1), 1),
    "wide": (4, 3, (5, 1), (1, 1), (2, 0), (1, 1), 1),
    "strided": (6, 8, (3, 3), (2, 3), (1, 0), (1, 1), 1),
    "dilated": (6, 8, (3, 3), (1, 1), (2, 4), (2, 4), 1),
    "grouped": (6, 8, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "one row short of a tile": (5, 3, (3, 3), (1, 1), (0, 0), (1, 1), 1),
    "1x1": (6, 8, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x1, padded": (6, 8, (1, 1), (1, 1), (1, 1), (1, 1), 1),
    "depthwise": (6, 12, (3, 3), (2, 1), (1, 1), (1, 1), 6),
    "depthwise, dilated": (6, 6, (3, 2), (1, 2), (2, 1), (2, 3), 6),
}


def layer(name: str) -> tuple[LayerCall, torch.Tensor, torch.Tensor]:
    c, o, kernel, stride, padding, dilation, groups = GEOMETRIES[name]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, c, 10, 9, generator=g, dtype=torch.float64)
    weight = torch.randn(o, c // groups, *kernel, generator=g, dtype=torch.float64)
    y = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    dy = torch.randn(y.shape, generator=g, dtype=torch.float64)
    return LayerCall(x, kernel, stride, dilation, groups, padding), dy, weight


def by_autograd(call: LayerCall, dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = []
    for x, d in zip(call.x, dy, strict=True):
        w = weight.clone().requires_grad_()
        y = F.conv2d(x[None], w, None, call.stride, call.padding, call.dilation, call.groups)
        (gradient,) = torch.autograd.grad(y, w, d[None])
        out.append(gradient.square().sum((1, 2, 3)))
    return torch.stack(out)


WINOGRAD = ["3x3", "one row short of a tile"]
PIXEL = ["3x3", "no padding", "one row short of a tile", "wide", "dilated", "1x1", "1x1, padded"]  # stride 1, one group


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((n, w) for n in GEOMETRIES for w in ("direct", "gram", "batched")),
        *((n, "pixel") for n in PIXEL),
        *((n, "winograd") for n in WINOGRAD),
    ],
)
def test_every_way(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, dy, weight = layer(name)
    if way == "batched":  # what a GPU does in the direct way
        monkeypatch.setattr(norms, "_direct_norms", norms._batched_norms)
    monkeypatch.setattr(norms, "_cheapest", lambda *_: "direct" if way == "batched" else way)
    got = filter_norms(call, dy)
    assert got == pytest.approx(by_autograd(call, dy, weight), rel=1e-11)


@pytest.mark.parametrize("name", ["depthwise", "depthwise, dilated"])
def test_depthwise_norms_are_one_number_compiled_by_threads_or_formed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, dy, weight = layer(name)
    wanted = by_autograd(call, dy, weight)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert filter_norms(call, dy) == pytest.approx(wanted, rel=1e-11)
    monkeypatch.setattr(norms, "add_depthwise_norms", None)
    half = dataclasses.replace(call, x=call.x.bfloat16())
    assert filter_norms(half, dy.bfloat16()).double() == pytest.approx(wanted, rel=0.1)
    x, d = (t.permute(0, 2, 3, 1).contiguous() for t in (call.padded(), dy))
    x = x.repeat_interleave(d.shape[-1] // x.shape[-1], dim=-1)
    assert norms._formed_depthwise_norms(call, x, d) == pytest.approx(wanted, rel=1e-11)


@pytest.mark.parametrize("name", ["3x3", "strided"])
@pytest.mark.parametrize("way", ["gram", "pixel"])
def test_what_the_input_alone_decides_is_made_once(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, dy, weight = layer(name)
    way = way if call.stride == (1, 1) else "gram"
    monkeypatch.setattr(norms, "_cheapest", lambda *_: way)
    keeping = LayerCall(call.x, call.kernel, call.stride, call.dilation, call.groups, call.padding, keep=True)
    first = filter_norms(keeping, dy)
    keeping.x.zero_()  # the second gradient must not look at it
    assert filter_norms(keeping, 2 * dy) == pytest.approx(4 * first)
    assert keeping._made
    assert not call._made


@pytest.mark.parametrize("padding", [(1, 1), (0, 2), (2, 0)])
@pytest.mark.parametrize("size", [(3, 3), (8, 8), (9, 14)])
def test_winograd_in_float32_keeps_six_digits(padding: tuple[int, int], size: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, *size, generator=g, dtype=torch.float64)
    weight = torch.randn(12, 16, 3, 3, generator=g, dtype=torch.float64)
    dy = torch.randn(F.conv2d(x, weight, padding=padding).shape, generator=g, dtype=torch.float64)
    wanted = by_autograd(LayerCall(x, (3, 3), padding=padding), dy, weight)
    got = norms.winograd_norms(x.float(), dy.float(), padding)
    assert got.double() == pytest.approx(wanted, rel=3e-6)
    spread = x[:, :, :1] * torch.logspace(-3, 3, 16, dtype=torch.float64)[:, None, None] + x * 0  # channels far apart
    wanted = by_autograd(LayerCall(spread, (3, 3), padding=padding), dy, weight)
    got = norms.winograd_norms(spread.float(), dy.float(), padding)
    assert got.double() == pytest.approx(wanted, rel=3e-6)


def test_the_model_of_costs_knows_late_layers_from_early_ones() -> None:
    def way(channels: int, size: int) -> str:
        x = torch.empty(1, channels, size, size)
        return norms._cheapest(LayerCall(x, (3, 3), padding=(1, 1)), channels, size, size)

    assert way(64, 56) == "winograd"
    assert norms._cheapest(LayerCall(torch.empty(1, 8, 56, 56), (7, 7)), 8, 50, 50) == "direct"
    assert way(512, 7) == "pixel"


@pytest.mark.parametrize("name", GEOMETRIES)
def test_position_norms_are_those_of_noise_at_each_position(name: str) -> None:
    """``sum_l dY^2 S``, with S from the convolution of x^2 with ones."""
    call, dy, weight = layer(name)
    power = F.conv2d(
        call.x.square(), torch.ones_like(weight), None, call.stride, call.padding, call.dilation, call.groups
    )
    assert position_norms(call, dy) == pytest.approx((dy.square() * power).sum((2, 3)), rel=1e-11)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
def test_position_norms_of_linear_layers(shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    x, dy = torch.randn(3, *shape, generator=g), torch.randn(3, *shape[:-1], 7, generator=g)
    wanted = (dy.square() * x.square().sum(-1, keepdim=True)).reshape(3, -1, 7).sum(1)
    assert position_norms(LayerCall(x, (0, 0)), dy) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 70, 90, 80)])
def test_products(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    n, m, length, k = shape
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, m, k, generator=g, dtype=dtype), torch.randn(n, length, k, generator=g, dtype=dtype)
    for left, right in ((a, b), (a.transpose(1, 2).contiguous().transpose(1, 2), b)):
        got = gemm.product_transposed(left, right)
        assert got == pytest.approx(torch.einsum("nmk,nlk->nml", a, b), rel=1e-4, abs=1e-4)
        assert got.shape == (n, m, length)
    assert m * k * length > gemm._SMALL or m < 70


def test_without_onednn_the_usual_product_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    a: Callable[[], torch.Tensor] = lambda: torch.ones(1, 80, 80)  # noqa: E731
    monkeypatch.setattr(gemm, "_ONEDNN", False)
    assert torch.equal(gemm.product_transposed(a(), a()), torch.full((1, 80, 80), 80.0))
