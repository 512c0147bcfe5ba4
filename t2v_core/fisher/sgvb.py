"""Descent on the variational objective itself, by stochastic gradients: what the fixed point is checked against.

The log-variances of the noise are parameters; their gradients come from the reparametrised noise (Kingma et al.,
*Variational dropout and the local reparameterization trick*, NeurIPS 2015). It is slow, and here to compare with.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from t2v_core.fisher.accumulate import FisherInput, batch_of, prior_weight
from t2v_core.fisher.passes import noisy_output, noisy_weight
from t2v_core.fisher.recorder import LayerCall, Recorder
from t2v_core.fisher.variational import divergence, folded_variances, prior_precision, start_variance

__all__ = ["descend", "expected_loss", "objective"]


def _noisy_features(
    task: FisherInput, images: torch.Tensor, variance: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Features under noise, differentiable in the variances ``[P]``."""
    parts = folded_variances(task.probe, variance)
    by_position = task.spec.variational.diagonal == "positions"

    def on_call(unit: int, call: LayerCall, output: torch.Tensor) -> torch.Tensor:
        return noisy_output(call, output, parts[unit], generator) if by_position else output

    def substitute(unit: int, weight: torch.Tensor) -> torch.Tensor:
        return noisy_weight(weight, parts[unit], generator)

    with Recorder(task.weights, on_call, None if by_position else substitute):
        features: torch.Tensor = task.probe.network(images)
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


def descend(task: FisherInput, *, steps: int, learning_rate: float = 1e-2, decay: bool = False) -> torch.Tensor:
    """Adam on the log-variances, a batch of ``batch_size`` images a step, drawn uniformly.

    The learning rate and the start are the reference implementation's; its prior is learned, this one is fixed.

    Args:
        task: with labels; its spec's ``variational`` says where the noise is and starts, and ``beta`` its weight.
        steps: of Adam.
        learning_rate: of the log-variances.
        decay: cosine decay of the learning rate.

    Returns:
        Variances ``[P]`` float64, where the descent ended.
    """
    probe, spec = task.probe, task.spec
    kappa, precision = prior_weight(spec, len(task.images)), prior_precision(probe).to(probe.device)
    log_variance = start_variance(probe, spec.variational.start).log().to(probe.device).requires_grad_()
    optimiser = torch.optim.Adam([log_variance], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps) if decay else None
    generator = torch.Generator(device=probe.device).manual_seed(spec.seed)
    rng = np.random.default_rng(spec.seed)
    for _ in range(steps):
        rows = torch.as_tensor(rng.choice(len(task.images), min(spec.batch_size, len(task.images)), replace=False))
        variance = log_variance.exp()
        loss = _loss(task, _noisy_features(task, batch_of(probe, task.images, rows), variance, generator), rows)
        cost = loss.double() + kappa * divergence(probe, variance, precision)
        optimiser.zero_grad()
        cost.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if schedule is not None:
            schedule.step()
    return log_variance.detach().exp().cpu()


def objective(task: FisherInput, variance: torch.Tensor, *, repeats: int = 1, seed: int = 0) -> float:
    """J(v): `expected_loss` plus kappa times the divergence from the prior, nats a sample."""
    prior = float(divergence(task.probe, variance, prior_precision(task.probe)))
    return expected_loss(task, variance, repeats=repeats, seed=seed) + prior_weight(task.spec, len(task.images)) * prior
