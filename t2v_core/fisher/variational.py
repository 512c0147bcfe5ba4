r"""The variational estimator: the precision of the noise that the network can bear (Sect. 3.1).

With Gaussian noise of one variance ``v_o = 1 / Lambda_o`` a filter on the probe's weights, the objective is, in nats a
sample,

.. math:: J(v) = \frac{1}{N} \sum_n E_{w \sim N(\hat w, v)} \ell_n(w)
          + \kappa\, KL(N(\hat w, v) \,\|\, N(0, \lambda^{-2}))

By the derivative of a Gaussian expectation, dJ/dv = 0 where :math:`\kappa \Lambda = F(v) + \kappa \lambda^2`, with F(v)
the mean curvature of the loss under that noise; its Gauss-Newton part is the Fisher information under the noise,
positive, and what is used here. So instead of descending on J, the optimum is found as a fixed point: estimate F under
the present noise, set the precision it asks for, repeat. It starts from noise, never from F without noise: a confident
head has F near zero, and would ask for noise without end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from t2v_core.errors import ConfigError
from t2v_core.fisher.accumulate import (
    Accumulator,
    FisherEstimate,
    FisherInput,
    batch_of,
    clean_features,
    prior_weight,
)
from t2v_core.fisher.cotangents import exact_cotangent, importance, sampled_cotangents
from t2v_core.fisher.draws import check_importance, systematic
from t2v_core.fisher.passes import Noise, sample_filter_norms
from t2v_core.probes import Probe

__all__ = ["divergence", "folded_variances", "prior_precision", "start_variance", "variational"]

IMPORTANCE_SHARE = 0.5
"""Share of the images of a pass that are drawn by the importance they have without noise; the rest uniformly, since
noise makes images uncertain that were not."""
AVERAGED = 3
"""Passes whose Fisher is averaged in the result: the last ones, at the fixed point."""


def prior_precision(probe: Probe) -> torch.Tensor:
    """lambda^2 ``[P]`` float64: of each filter's layer, ``1 / mean squared weight``, of the weights as trained."""
    parts = [torch.full((u.n_filters,), 1.0 / max(u.mean_square, 1e-30), dtype=torch.float64) for u in probe.units]
    return torch.cat(parts)


def start_variance(probe: Probe, share: float) -> torch.Tensor:
    """``share`` of the variance of each filter's weights, of the weights as trained, ``[P]`` float64."""
    parts = []
    for unit in probe.units:
        weight = probe.original.get_submodule(unit.name).weight
        assert isinstance(weight, torch.Tensor)
        weight = weight.detach().double().cpu().flatten(1)
        variance = weight.var(1, unbiased=False) if unit.filter_size > 1 else weight.square().mean(1)
        parts.append(share * torch.where(variance > 0, variance, unit.mean_square) + 1e-30)
    return torch.cat(parts)


def folded_variances(probe: Probe, variance: torch.Tensor) -> list[torch.Tensor]:
    """Variances ``[P]`` of the weights as trained, as those of the weights that the network holds, per unit."""
    return [
        (variance[u.start : u.stop].to(s.device) * s.double() ** 2).to(probe.dtype)
        for u, s in zip(probe.units, probe.scales, strict=True)
    ]


def divergence(probe: Probe, variance: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    """``KL(N(w, v) || N(0, 1 / lambda^2))`` over all weights of all filters, nats; differentiable in v.

    Args:
        probe: its filters' sizes and mean squared weights.
        variance: v ``[P]``.
        precision: lambda^2 ``[P]``.

    Returns:
        A number, float64.
    """
    size, square = (
        torch.cat([torch.full((u.n_filters,), value(u), dtype=torch.float64) for u in probe.units]).to(variance.device)
        for value in (lambda u: float(u.filter_size), lambda u: u.mean_square)
    )
    ratio = (precision * variance).clamp_min(1e-300)
    return 0.5 * (size * (ratio - 1 - ratio.log() + precision * square)).sum()


@dataclass(frozen=True, eq=False)
class _Pass:
    """What one pass under the present noise has found."""

    estimate: FisherEstimate
    loss: float
    """Mean loss under the noise, nats."""
    loss_error: float
    """Its standard error."""


def _rows(share: np.ndarray, n_rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images of a pass, ascending, and the weight of each: all of them once where they are few."""
    n = len(share)
    if n <= n_rows:
        return np.arange(n), np.full(n, 1.0 / n)
    rows = np.sort(systematic(share[:, None], n_rows, rng)[0])
    return rows, 1.0 / (n * n_rows * share[rows])


def _one_class(task: FisherInput, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A cotangent an image: exact for two classes, else of one class drawn by importance, over the root of its
    probability. Its squared gradient is unbiased for the sum over classes."""
    if task.n_classes == 2:
        return exact_cotangent(task.head, z, 0)
    value = importance(task.head, z).double().cpu()
    share = value / value.sum(1, keepdim=True).clamp_min(1e-300)
    cumulated = share.cumsum(1)
    point = torch.rand(len(z), 1, generator=generator, dtype=torch.float64) * cumulated[:, -1:]
    classes = (point > cumulated).sum(1).clamp(max=task.n_classes - 1)
    picked = share.gather(1, classes[:, None]).clamp_min(1e-300).rsqrt()
    picked = torch.where(value.sum(1, keepdim=True) > 0, picked, 0.0)  # a certain image has no gradient
    return sampled_cotangents(task.head, z, classes.to(z.device)) * picked.to(z)


class _Estimator:
    """Passes under noise over the images of one task."""

    def __init__(self, task: FisherInput) -> None:
        self.task, self.probe, spec = task, task.probe, task.spec
        self.rng = np.random.default_rng(spec.seed)
        self.on_device = torch.Generator(device=self.probe.device).manual_seed(spec.seed)
        self.on_cpu = torch.Generator().manual_seed(spec.seed)
        z = clean_features(task)
        value = importance(task.head, z).sum(1).double().cpu().numpy()
        check_importance(value)
        uniform = np.full(len(value), 1.0 / len(value))
        total = value.sum()
        clean = value / total if total > 0 else uniform
        self.share = IMPORTANCE_SHARE * clean + (1 - IMPORTANCE_SHARE) * uniform
        # Without labels the loss is the cross entropy with the head's own predictions, taken without noise.
        self.target = torch.softmax(z @ task.head[0].T + task.head[1], dim=1)
        if task.labels is not None:
            self.target = F.one_hot(task.labels.to(z.device), task.n_classes).to(z)

    def run(self, variance: torch.Tensor) -> _Pass:
        task, probe = self.task, self.probe
        n, settings = len(task.images), task.spec.variational
        picked, share = _rows(self.share, settings.images, self.rng)
        order = self.rng.permutation(len(picked))  # a batch shares its noise, so it must not be of one kind of image
        rows, weights = torch.as_tensor(picked[order]), torch.as_tensor(share[order])
        accumulate, layers = Accumulator(probe, n), task.weights
        noise = Noise(folded_variances(probe, variance), settings.diagonal, self.on_device)
        losses: list[torch.Tensor] = []
        for start in range(0, len(rows), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            z = sample_filter_norms(
                probe.network,
                layers,
                batch_of(probe, task.images, rows[part]),
                lambda z, r: _one_class(task, z, self.on_cpu),
                accumulate.sink(rows[part], weights[part][None]),
                noise=noise,
            )
            log_p = torch.log_softmax(z @ task.head[0].T + task.head[1], dim=1)
            losses.append(-(self.target[rows[part].to(z.device)] * log_p).sum(1).double().cpu())
        each = torch.cat(losses) * weights * len(rows)  # their plain mean estimates the mean loss
        error = float(each.std(unbiased=True)) / math.sqrt(len(each)) if len(each) > 1 else 0.0
        return _Pass(accumulate.result(n, len(rows), exact=False), float(each.mean()), error)


def variational(task: FisherInput) -> FisherEstimate:
    """F under the noise of the fixed point, so that ``kappa Lambda = F + kappa lambda^2``.

    Raises:
        ConfigError: beta is 0, which asks for no noise at all.
        ComputeError: predictions that are not finite.
    """
    probe, spec, settings = task.probe, task.spec, task.spec.variational
    kappa, precision = prior_weight(spec, len(task.images)), prior_precision(probe)
    if kappa <= 0:
        raise ConfigError(
            f"the variational estimator needs a prior, got beta={spec.beta}; set beta above 0, or take montecarlo"
        )
    estimator, variance = _Estimator(task), start_variance(probe, settings.start)
    history: list[_Pass] = []
    objective: list[float] = []
    passes, settled = 0, 0
    while len(history) < settings.max_passes and settled < AVERAGED:
        found = estimator.run(variance)
        passes += found.estimate.n_passes
        objective.append(found.loss + kappa * float(divergence(probe, variance, precision)))
        history.append(found)
        wanted = 1.0 / (precision + found.estimate.filters / kappa)
        # The first step is whole: the start is far from the fixed point. Then half steps, in the logarithm.
        variance = wanted if len(history) == 1 else (variance * wanted).sqrt()
        settled = settled + 1 if _settled(objective, history, settings.tolerance) else 0
    last = [h.estimate for h in history[-AVERAGED:]]
    return replace(
        last[-1],
        filters=torch.stack([e.filters for e in last]).mean(0),
        groups=torch.stack([e.groups for e in last]).mean(0),
        n_passes=passes,
        objective=tuple(objective),
        converged=settled >= AVERAGED,
    )


def _settled(objective: list[float], history: list[_Pass], tolerance: float) -> bool:
    """Whether the last step changed the objective by less than the tolerance, or than the noise of the difference."""
    if len(objective) < 2:
        return False
    noise = math.hypot(history[-1].loss_error, history[-2].loss_error)
    return abs(objective[-1] - objective[-2]) <= max(tolerance * abs(objective[-1]), 2 * noise)
