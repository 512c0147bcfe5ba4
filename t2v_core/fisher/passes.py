"""One forward pass and its backward passes: per-sample norms of every filter's gradient, as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from t2v_core.fisher.norms import filter_norms, position_norms
from t2v_core.fisher.recorder import LayerCall, Recorder

__all__ = ["Noise", "entries", "noisy_output", "noisy_weight", "sample_filter_norms"]

Sink = Callable[[int, torch.Tensor, int], None]
"""Gets ``(unit, q [N, n_filters], round)``."""


@dataclass(frozen=True, eq=False)
class Noise:
    """Gaussian noise with one variance a filter."""

    variances: Sequence[torch.Tensor]
    """Per unit ``[n_filters]``, of the weights that the network holds (folded ones where BatchNorm was folded)."""
    diagonal: str
    """weights: one draw of the weights a pass, shared by its images. positions: local reparametrisation, drawn anew at
    each output position of each image."""
    generator: torch.Generator


def _normal(shape: torch.Size, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def noisy_weight(weight: torch.Tensor, variance: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``w + sqrt(v) eps``, one variance for each row of ``w``."""
    deviation = variance.sqrt().to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))
    return weight + deviation * _normal(weight.shape, weight, generator)


def noisy_output(
    call: LayerCall, output: torch.Tensor, variance: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """``y + sqrt(v_o S) eps``: what noise of variance v_o on each weight of filter o does to one output position, with
    S the squared inputs summed over the window. One variance a filter makes the variance map rank one."""
    deviation, power = variance.clamp_min(0).sqrt().to(output.dtype), call.power()
    if call.kernel == (0, 0):
        return output + deviation * (power + 1e-30).sqrt() * _normal(output.shape, output, generator)
    n, o, height, width = output.shape
    # Drawn with channels innermost: filling a channels-last tensor in the order of its axes is several times slower.
    eps = _normal(torch.Size((n, height, width, o)), output, generator).permute(0, 3, 1, 2)
    spread = (power + 1e-30).sqrt()
    if 1 < call.groups < o:
        spread = spread.repeat_interleave(o // call.groups, dim=1)
    return output + deviation[:, None, None] * spread * eps


def entries(network: nn.Module, weights: Sequence[torch.Tensor], image: torch.Tensor, first: int) -> list[int]:
    """Units from ``first`` on that none of these comes before: one, or more where branches lie side by side. A backward
    pass that reaches their outputs has reached all units from ``first`` on."""
    found: list[int] = []

    def on_call(unit: int, call: LayerCall, output: torch.Tensor) -> torch.Tensor:
        if unit < first or output.requires_grad:
            return output
        found.append(unit)
        return output.detach().requires_grad_().clone()

    with torch.enable_grad(), Recorder(weights, on_call):
        network(image)
    return found


def sample_filter_norms(
    network: nn.Module,
    weights: Sequence[torch.Tensor],
    images: torch.Tensor,
    cotangents: Callable[[torch.Tensor, int], torch.Tensor],
    sink: Sink,
    *,
    rounds: int = 1,
    first: int = 0,
    stops: Sequence[Sequence[int]] = (),
    noise: Noise | None = None,
) -> torch.Tensor:
    """Per-sample squared gradient norms of every filter, by one forward pass and ``rounds`` backward passes.

    For image n and unit l with weight ``w_l`` (rows = filters o), with ``z_n`` the features and ``v_n`` the
    cotangent, ``q[n, o] = || d(v_n . z_n) / d w_l[o] ||^2``. Only activations get gradients; weights stay frozen.

    Args:
        network: images to features, frozen, in eval mode.
        weights: weight tensor of each unit.
        images: ``[N, 3, H, W]``.
        cotangents: gets the features ``[N, D]`` and the round, returns the cotangents ``[N, D]``.
        sink: gets ``(unit, q [N, n_filters], round)`` as each layer's gradient arrives.
        rounds: backward passes; what depends on the inputs alone is computed once for all of them.
        first: units before this one get no gradient, and the backward passes end there.
        stops: of each round, the units (see `entries`) at whose outputs it ends already; none: at ``first``.
        noise: run the network with noise on its weights; with ``positions``, q is `position_norms`.

    Returns:
        Features ``[N, D]``, detached, with the noise.
    """
    leaves: list[torch.Tensor] = []
    marked = {unit for stop in stops for unit in stop}
    edges: dict[int, GradientEdge] = {}
    turn = 0
    by_position = noise is not None and noise.diagonal == "positions"
    norms = position_norms if by_position else filter_norms

    def on_call(unit: int, call: LayerCall, output: torch.Tensor) -> torch.Tensor:
        call = replace(call, x=call.x.detach(), keep=rounds > 1 or by_position)
        if noise is not None and by_position:
            output = noisy_output(call, output, noise.variances[unit], noise.generator)
        if unit < first:
            return output
        if not output.requires_grad:
            # Not a leaf, nor a view of one: what follows may work in place on it.
            leaves.append(output.detach().requires_grad_())
            output = leaves[-1].clone()

        def on_gradient(gradient: torch.Tensor) -> None:
            with torch.no_grad():
                sink(unit, norms(call, gradient), turn)

        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        if unit in marked:
            edges[unit] = get_gradient_edge(output)  # of the output as it is now: what follows may work in place on it
        return output

    def substitute(unit: int, weight: torch.Tensor) -> torch.Tensor:
        assert noise is not None
        return noisy_weight(weight, noise.variances[unit], noise.generator)

    by_weight = noise is not None and not by_position
    with torch.enable_grad(), Recorder(weights, on_call, substitute if by_weight else None):
        features: torch.Tensor = network(images)
    detached = features.detach()
    for turn in range(rounds):
        cotangent = cotangents(detached, turn).to(features)
        more = turn < rounds - 1
        if stops and stops[turn]:
            # Asked for the gradients at some outputs alone, the pass runs what they need, and nothing before them.
            torch.autograd.grad(features, [edges[unit] for unit in stops[turn]], cotangent, retain_graph=more)
        else:
            torch.autograd.backward(features, cotangent, retain_graph=more)
        for leaf in leaves:
            leaf.grad = None
    return detached
