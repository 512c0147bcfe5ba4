"""The filter-wise Fisher information of a probe with a head: one interface over the estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import ValidationError

from t2v_core.config import EmbeddingSpec, explain_validation_error
from t2v_core.errors import ConfigError, DataError
from t2v_core.fisher.accumulate import FisherEstimate, FisherInput
from t2v_core.fisher.cotangents import Head
from t2v_core.fisher.exact import exact
from t2v_core.fisher.montecarlo import montecarlo, montecarlo_plain
from t2v_core.fisher.reference import reference
from t2v_core.fisher.variational import variational
from t2v_core.probes import Probe
from t2v_core.registry import Registry

__all__ = ["ESTIMATORS", "Estimator", "estimate_fisher", "fisher_filters"]

Estimator = Callable[[FisherInput], FisherEstimate]

ESTIMATORS: Registry[Estimator] = Registry("estimator")
ESTIMATORS.add("variational", variational)
ESTIMATORS.add("montecarlo", montecarlo)
ESTIMATORS.add("exact", exact)
ESTIMATORS.add("montecarlo_plain", montecarlo_plain)
ESTIMATORS.add("reference", reference)


def _check(probe: Probe, head: Head, images: torch.Tensor, labels: Any) -> tuple[Head, torch.Tensor | None]:
    weight, bias = head
    if weight.dim() != 2 or weight.shape[1] != probe.n_features or bias.shape != weight.shape[:1]:
        raise DataError(
            f"got a head of shapes {tuple(weight.shape)} and {tuple(bias.shape)}; "
            f"wanted [C, {probe.n_features}] and [C] for probe {probe.name!r}"
        )
    if images.dim() != 4 or images.shape[1] != 3 or len(images) == 0:
        raise DataError(f"got images of shape {tuple(images.shape)}; wanted [N, 3, H, W] with N > 0")
    placed = weight.detach().to(probe.device, probe.dtype), bias.detach().to(probe.device, probe.dtype)
    if labels is None:
        return placed, None
    known = torch.as_tensor(labels, dtype=torch.int64)
    if known.shape != (len(images),) or int(known.min()) < 0 or int(known.max()) >= len(weight):
        raise DataError(
            f"got labels of shape {tuple(known.shape)} in [{int(known.min())}, {int(known.max())}]; wanted "
            f"[{len(images)}] in [0, {len(weight) - 1}]"
        )
    return placed, known


def _checked(probe: Probe, features: Any, n: int) -> torch.Tensor | None:
    if features is None:
        return None
    found = torch.as_tensor(features)
    if found.shape != (n, probe.n_features):
        raise DataError(
            f"got features of shape {tuple(found.shape)}; wanted [{n}, {probe.n_features}], one row an image"
        )
    return found


def estimate_fisher(
    probe: Probe,
    head: Head,
    images: torch.Tensor,
    estimator: str | None = None,
    *,
    labels: Any = None,
    features: Any = None,
    spec: EmbeddingSpec | None = None,
    **settings: Any,
) -> FisherEstimate:
    r"""The filter-wise Fisher information of the probe's weights for a task (Sect. 3, 3.1).

    .. math:: F_o = \frac{1}{K_o N} \sum_{k, n} E_{y \sim p_w(y|x_n)} (\partial_{w_{ok}} \log p_w(y|x_n))^2

    Per sample: squares are of single images, and the batch size does not change the result beyond rounding
    (``reference`` alone squares batch means, as its original does).

    Args:
        probe: the fixed network.
        head: the task's head, weight ``[C, D]`` and bias ``[C]``.
        images: ``[N, 3, H, W]``, normalised as the probe wants them.
        estimator: ``exact``, ``montecarlo``, ``variational``, ``montecarlo_plain`` or ``reference``, in place of the
            spec's.
        labels: ``[N]`` integers in ``[0, C)``; ``reference`` balances the classes by them, and ``variational`` takes
            its loss on them (without them, on the head's own predictions).
        features: ``[N, D]`` of the images, where they are at hand: spares the samplers a forward pass of all of them.
        spec: all settings; default `EmbeddingSpec()`.
        settings: any of the spec's fields, in its place: ``draws``, ``seed``, ``batch_size``, ``beta``, ...

    Raises:
        UnknownNameError: no such estimator.
        ConfigError: no such setting, or a value out of its range.
        DataError: shapes do not fit the probe, or labels are missing that the estimator needs.
        ComputeError: the result is not finite.
    """
    if estimator is not None:
        settings["estimator"] = estimator
    unknown = sorted(set(settings) - set(EmbeddingSpec.model_fields))
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r}; known: {', '.join(EmbeddingSpec.model_fields)}")
    values = (spec or EmbeddingSpec()).model_dump() | settings
    try:
        chosen = EmbeddingSpec.model_validate(values)
    except ValidationError as error:
        raise explain_validation_error(error, EmbeddingSpec, "settings of the Fisher information") from error
    method = ESTIMATORS[chosen.estimator]
    placed, known = _check(probe, head, images, labels)
    return method(FisherInput(probe, placed, images, known, chosen, _checked(probe, features, len(images))))


def fisher_filters(
    probe: Probe,
    head: Head,
    images: torch.Tensor,
    estimator: str = "montecarlo",
    *,
    labels: Any = None,
    features: Any = None,
    spec: EmbeddingSpec | None = None,
    **settings: Any,
) -> torch.Tensor:
    """`estimate_fisher`'s values alone: ``[P]`` float64, mean over images and over each filter's weights."""
    given = {"labels": labels, "features": features, "spec": spec, **settings}
    return estimate_fisher(probe, head, images, estimator, **given).filters
