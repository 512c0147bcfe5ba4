"""The reference implementation's Monte Carlo recipe, so that old results can be compared.

Classes are drawn equally often, with replacement; labels are drawn from the model; the squares are of the *batch-mean*
gradient, one a step. Since the expected score under y ~ p is zero, that is F / B in expectation: right up to the batch
size, but noisy, one sample a batch. The result here is multiplied by the batch size, which makes it per sample, like
the other estimators' (divide by it to get the original's numbers).
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from t2v_core.errors import ComputeError, DataError
from t2v_core.fisher.accumulate import N_GROUPS, FisherEstimate, FisherInput

__all__ = ["reference"]


def _balanced_batches(labels: torch.Tensor, n: int, size: int, generator: torch.Generator) -> list[torch.Tensor]:
    counts = torch.bincount(labels).double()
    weights = (1.0 / counts.clamp_min(1))[labels]
    drawn = torch.multinomial(weights, n, replacement=True, generator=generator)
    return [drawn[start : start + size] for start in range(0, n, size)]


def reference(task: FisherInput) -> FisherEstimate:
    """Mean over steps of the squared batch-mean gradient, times the batch size.

    Raises:
        DataError: no labels.
        ComputeError: predictions that are not finite.
    """
    if task.labels is None:
        raise DataError("the reference recipe draws classes equally often; give labels=, [N] integers")
    probe, settings = task.probe, task.spec.reference
    network: nn.Module = copy.deepcopy(probe.original)
    network.train(settings.batchnorm == "train")
    weights: list[torch.Tensor] = []
    for unit in probe.units:
        weight = network.get_submodule(unit.name).weight
        assert isinstance(weight, torch.Tensor)
        weights.append(weight.requires_grad_())
    generator = torch.Generator().manual_seed(task.spec.seed)
    batches = _balanced_batches(task.labels, settings.epoch_size, settings.batch_size, generator)
    n_groups = min(N_GROUPS, len(batches))
    groups = torch.zeros(n_groups, probe.n_filters, dtype=torch.float64)
    for step, rows in enumerate(batches):
        z = network(task.images[rows].to(probe.device, probe.dtype))
        log_p = torch.log_softmax(z @ task.head[0].T + task.head[1], dim=1)
        if not torch.isfinite(log_p).all():
            raise ComputeError("predictions are not finite; look for huge pixel values or a diverged head")
        y = torch.multinomial(log_p.detach().exp().double().cpu(), 1, generator=generator)
        loss = -log_p.gather(1, y.to(log_p.device)).mean()
        gradients = torch.autograd.grad(loss, weights)
        squares = [g.flatten(1).square().mean(1).double().cpu() for g in gradients]
        groups[step % n_groups] += torch.cat(squares) * len(rows)
    sizes = torch.bincount(torch.arange(len(batches)) % n_groups, minlength=n_groups).double()
    filters = groups.sum(0) / len(batches)
    unique = int((torch.bincount(torch.cat(batches)) > 0).sum())
    return FisherEstimate(filters, groups / sizes[:, None], unique, settings.epoch_size, exact=False)
