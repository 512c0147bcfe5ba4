"""Descent on the variational objective itself, by stochastic gradients: what the fixed point is checked against.

The log-variances of the noise are parameters; their gradients come from the reparametrised noise (Kingma et al.,
*Variational dropout and the local reparameterization trick*, NeurIPS 2015). It is slow, and here to compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from t2v_core.fisher.accumulate import FisherInput, batch_of, prior_weight
from t2v_core.fisher.passes import noisy_output, noisy_weight
from t2v_core.fisher.recorder import LayerCall, Recorder
from t2v_core.fisher.variational import divergence, prior_precision, start_variance

__all__ = ["Descent", "descend", "expected_loss", "objective"]


@dataclass(frozen=True, eq=False)
class Descent:
    """Where the descent ended."""

    variance: torch.Tensor
    """``[P]`` float64."""
    losses: tuple[float, ...]
    """Of each step's batch, nats, without the divergence."""


def _noisy_features(
    task: FisherInput, images: torch.Tensor, variance: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Features under noise, differentiable in the variances ``[P]``."""
    probe = task.probe
    parts = [
        (variance[u.start : u.stop] * s.double() ** 2).to(probe.dtype)
        for u, s in zip(probe.units, probe.scales, strict=True)
    ]
    by_position = task.spec.variational.diagonal == "positions"

    def on_call(unit: int, call: LayerCall, output: torch.Tensor) -> torch.Tensor:
        return noisy_output(call, output, parts[unit], generator) if by_position else output

    def substitute(unit: int, weight: torch.Tensor) -> torch.Tensor:
        return noisy_weight(weight, parts[unit], generator)

    with Recorder(task.weights, on_call, None if by_position else substitute):
        features: torch.Tensor = probe.network(images)
    return features


def _loss(task: FisherInput, features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    assert task.labels is not None
    return F.cross_entropy(features @ task.head[0].T + task.head[1], task.labels[rows].to(features.device))


@torch.no_grad()
def expected_loss(task: FisherInput, variance: torch.Tensor, *, repeats: int = 1, seed: int = 0) -> float:
    """Mean loss over all images under noise of variance ``[P]``, nats; every batch draws its own noise."""
    generator = torch.Generator(device=task.probe.device).manual_seed(seed)
    total, size = 0.0, task.spec.variational.batch_size
    for _ in range(repeats):
        for start in range(0, len(task.images), size):
            rows = torch.arange(start, min(start + size, len(task.images)))
            z = _noisy_features(task, batch_of(task.probe, task.images, rows), variance, generator)
            total += float(_loss(task, z, rows)) * len(rows)
    return total / (repeats * len(task.images))


def descend(
    task: FisherInput,
    *,
    steps: int,
    learning_rate: float = 1e-2,
    decay: bool = False,
    start: torch.Tensor | None = None,
    prior: Literal["fixed", "learned"] = "fixed",
    progress: Callable[[int, torch.Tensor], None] | None = None,
) -> Descent:
    """Adam on the log-variances, a batch of images a step, drawn uniformly.

    The reference implementation's settings are the default learning rate, the start at 0.05 of the variance of a
    filter's weights, batches of 64 and a ``learned`` prior: one scalar a layer, which for given variances is best at
    the mean over the layer of ``w^2 + v``, and is set to it.

    Args:
        task: with labels; its spec's ``variational.diagonal`` says where the noise is, and ``beta`` its weight.
        steps: of Adam.
        learning_rate: of the log-variances.
        decay: cosine decay of the learning rate.
        start: variances ``[P]``; default: as said.
        prior: ``fixed``: `prior_precision`.
        progress: gets the step and the variances now and then.
    """
    probe, spec = task.probe, task.spec
    kappa, precision = prior_weight(spec, len(task.images)), prior_precision(probe).to(probe.device)
    first = start_variance(probe, spec.variational.start) if start is None else start
    log_variance = first.log().to(probe.device).requires_grad_()
    optimiser = torch.optim.Adam([log_variance], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps) if decay else None
    size = torch.cat([torch.full((u.n_filters,), float(u.filter_size)) for u in probe.units]).double().to(probe.device)
    generator = torch.Generator(device=probe.device).manual_seed(spec.seed)
    rng = np.random.default_rng(spec.seed)
    losses = []
    for step in range(steps):
        rows = torch.as_tensor(rng.choice(len(task.images), min(spec.batch_size, len(task.images)), replace=False))
        variance = log_variance.exp()
        if prior == "learned":
            with torch.no_grad():
                for u in probe.units:
                    precision[u.start : u.stop] = 1.0 / (u.mean_square + variance[u.start : u.stop].mean())
        loss = _loss(task, _noisy_features(task, batch_of(probe, task.images, rows), variance, generator), rows)
        ratio = precision * variance
        cost = loss.double() + kappa * 0.5 * (size * (ratio - ratio.log())).sum()
        optimiser.zero_grad()
        cost.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if schedule is not None:
            schedule.step()
        losses.append(float(loss.detach()))
        if progress and (step + 1) % 25 == 0:
            progress(step + 1, log_variance.detach().exp().cpu())
    return Descent(log_variance.detach().exp().cpu(), tuple(losses))


def objective(task: FisherInput, variance: torch.Tensor, *, repeats: int = 1, seed: int = 0) -> float:
    """J(v): `expected_loss` plus kappa times the divergence from the prior, nats a sample."""
    kappa = prior_weight(task.spec, len(task.images))
    precision = prior_precision(task.probe)
    return expected_loss(task, variance, repeats=repeats, seed=seed) + kappa * divergence(
        task.probe, variance, precision
    )
