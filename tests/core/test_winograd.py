"""3 x 3 convolutions by minimal filtering: the same numbers as the framework's, forwards and backwards."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2v_core import winograd
from t2v_core.compiled import on_threads
from t2v_core.fisher.recorder import fast_convolutions
from t2v_core.winograd import convolution, is_faster


def frozen(o: int, c: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    g = torch.Generator().manual_seed(1)
    return nn.Parameter(torch.randn(o, c, 3, 3, generator=g, dtype=dtype), requires_grad=False)


def images(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("padding", [(1, 1), (0, 0), (2, 1), (0, 2)])
@pytest.mark.parametrize("size", [(3, 3), (4, 9), (14, 14), (8, 5)])
def test_output_and_gradient_are_the_framework_s(
    size: tuple[int, int], padding: tuple[int, int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []

    def counted(n: int, run: Callable[[slice], None]) -> None:
        parts.append(n)
        on_threads(n, run)

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(winograd, "on_threads", counted)
    monkeypatch.setattr(winograd, "_WIDE", 1)
    monkeypatch.setattr(winograd, "_ROWS", 2)
    x, weight, bias = images(19, 6, *size).requires_grad_(), frozen(7, 6), images(7)
    wanted = F.conv2d(x, weight, bias, padding=padding)
    got = convolution(x, weight, bias, padding)
    assert got.detach() == pytest.approx(wanted.detach(), rel=1e-11, abs=1e-12)
    assert sum(parts) == 38  # each image on its way in and on its way out
    assert len(parts) >= 4
    assert not got._is_view()
    dy = images(*wanted.shape)
    (of_wanted,), (of_got,) = torch.autograd.grad(wanted, x, dy), torch.autograd.grad(got, x, dy)
    assert of_got == pytest.approx(of_wanted, rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_float32_it_keeps_six_digits(layout: torch.memory_format) -> None:
    x = images(4, 64, 28, 28, dtype=torch.float32).relu().contiguous(memory_format=layout)
    weight, dy = frozen(64, 64, torch.float32), images(4, 64, 28, 28, dtype=torch.float32)
    errors = []
    for run in (F.conv2d, convolution):
        inputs = x.clone().requires_grad_()
        y = run(inputs, weight, None, padding=(1, 1))
        (gradient,) = torch.autograd.grad(y, inputs, dy)
        inputs = x.double().requires_grad_()
        exact = F.conv2d(inputs, weight.double(), padding=1)
        (wanted,) = torch.autograd.grad(exact, inputs, dy.double())
        errors += [float((a - b).detach().norm() / b.detach().norm()) for a, b in ((y, exact), (gradient, wanted))]
    assert max(errors[2:]) < 5 * max(errors[:2])
    assert max(errors[2:]) < 1e-6


def test_one_bad_image_leaves_the_others_alone() -> None:
    x = images(3, 4, 9, 9)
    wanted = convolution(x, frozen(5, 4), None, (1, 1))
    x[1, 0, 4, 4] = torch.nan
    got = convolution(x, frozen(5, 4), None, (1, 1))
    assert not got[1].isfinite().all()
    assert torch.equal(got[[0, 2]], wanted[[0, 2]])


def test_filters_that_are_kept_follow_the_weight() -> None:
    x, weight = images(2, 4, 8, 8), frozen(3, 4)
    gc.collect()
    kept = len(winograd._transformed)
    convolution(x, weight, None, (1, 1))
    assert len(winograd._transformed) == kept + 1
    with torch.no_grad():
        weight.mul_(2)
    assert convolution(x, weight, None, (1, 1)) == pytest.approx(F.conv2d(x, weight, padding=1), rel=1e-11, abs=1e-12)
    weight.data = weight.data.float()  # as Module.float() does
    assert convolution(x.float(), weight, None, (1, 1)) == pytest.approx(
        F.conv2d(x.float(), weight, padding=1), abs=1e-4
    )
    weight.data = weight.data + 1
    assert convolution(x.float(), weight, None, (1, 1)) == pytest.approx(
        F.conv2d(x.float(), weight, padding=1), abs=1e-4
    )
    convolution(x.float(), weight.detach() + 1, None, (1, 1))  # noisy weights live for a pass
    assert len(winograd._transformed) == kept + 1
    del weight
    gc.collect()
    assert len(winograd._transformed) == kept


def test_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.empty(8, 64, 56, 56), torch.empty(64, 64, 3, 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not is_faster(x, weight, None, (1, 1))  # the transforms do not share out well
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert is_faster(x, weight, None, (1, 1))
    assert is_faster(x, weight, torch.empty(64), (2, 0))
    assert not is_faster(x, weight, None, (3, 3))
    assert not is_faster(x, torch.empty(64, 32, 3, 3), None, (1, 1))  # two groups
    assert not is_faster(x, torch.empty(64, 64, 3, 1), None, (1, 1))
    assert not is_faster(x.bfloat16(), weight.bfloat16(), None, (1, 1))
    assert not is_faster(x.double(), weight, None, (1, 1))
    assert not is_faster(x[0], weight, None, (1, 1))
    assert not is_faster(x[:0], weight, None, (1, 1))
    assert not is_faster(x, weight, torch.empty(63), (1, 1))
    assert not is_faster(x, weight, torch.empty(64, dtype=torch.float64), (1, 1))
    with torch.autocast("cpu"):
        assert not is_faster(x, weight, None, (1, 1))
    assert not is_faster(torch.empty(8, 512, 2, 2), torch.empty(512, 512, 3, 3), None, (1, 1))  # mostly border
    weight.requires_grad_()
    assert not is_faster(x, weight, None, (1, 1))
    with torch.no_grad():
        assert is_faster(x, weight, None, (1, 1))


class Two(nn.Module):
    """A convolution that can be done so, and one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding="same")
        self.second = nn.Conv2d(16, 16, 3, padding=1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu_())


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_within_a_network(guard: type, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, ...]] = []

    def counted(*args: object) -> torch.Tensor:
        done.append(args[1].shape)  # type: ignore[attr-defined]
        return convolution(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(winograd, "convolution", counted)
    monkeypatch.setattr(winograd, "_saves", lambda *_: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.manual_seed(0)
    network, x = Two().double(), images(3, 16, 12, 12)
    with guard():
        wanted = network(x)
        with fast_convolutions(network):
            got = network(x)
    assert got == pytest.approx(wanted, rel=1e-11, abs=1e-12)
    assert done == [(16, 16, 3, 3)]
    with fast_convolutions(network), guard():
        assert network(x[0]) == pytest.approx(wanted[0], rel=1e-11, abs=1e-12)
        assert network(x[:0]).shape == wanted[:0].shape
    with fast_convolutions(network):
        network(x).sum().backward()  # in training the framework's own, or the weights would learn nothing
    assert len(done) == 1
    assert network.first.weight.grad is not None


def _parts(threads: int) -> list[slice]:
    seen: list[slice] = []
    torch.set_num_threads(threads)
    on_threads(5, seen.append)
    return sorted(seen, key=lambda part: part.start)


def test_threads_do_all_rows_once_also_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda n: monkeypatch.setattr(torch, "get_num_threads", lambda: n))
    assert _parts(1) == [slice(0, 5)]
    assert _parts(2) == [slice(0, 2), slice(2, 5)]

    def fail(part: slice) -> None:
        if part.start:
            raise ArithmeticError(f"rows from {part.start}")

    with pytest.raises(ArithmeticError, match="rows from 2"):
        on_threads(5, fail)
    seen: list[slice] = []
    on_threads(2, lambda part: on_threads(4, seen.append))
    assert seen == [slice(0, 4)] * 2  # no part waits for a thread that another holds
    child = multiprocessing.get_context("fork").Process(target=_parts, args=(2,))
    child.start()
    child.join(30)
    stuck = child.is_alive()
    child.kill()
    assert not stuck
    assert child.exitcode == 0
