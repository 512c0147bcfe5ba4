"""Experts: feature extractors fine-tuned from the probe's architecture on a task or a collection of related tasks."""

from __future__ import annotations

import fnmatch
import glob
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from t2v_core.config import ExpertRule, ExpertsSpec, FrozenModel, HeadSpec, TrainingSpec
from t2v_core.errors import ComputeError, ConfigError
from t2v_core.fingerprints import readable
from t2v_core.heads import fit_head
from t2v_core.library import Task
from t2v_core.probes import PROBES, Probe

__all__ = ["GENERIC", "ExpertSpec", "TrainedExpert", "TrainingData", "expert_rules", "expert_specs", "train_expert"]

GENERIC = "generic"
"""The expert that was never fine-tuned: the probe's own weights."""


class ExpertSpec(FrozenModel):
    """What an expert is: enough to make it again."""

    name: str = Field(description="Name of the expert.")
    architecture: str = Field(description="Architecture, the probe's.")
    parent: str = Field(description="Digest of the weights that fine-tuning starts from.")
    tasks: tuple[str, ...] = Field((), description="Tasks it is trained on; none for the generic one.")
    task_fingerprints: tuple[str, ...] = Field((), description="Their fingerprints, in the same order.")
    image_size: int = Field(description="Side of its input, in pixels.")
    training: TrainingSpec | None = Field(None, description="Fine-tuning; none for the generic one.")


@dataclass(frozen=True, eq=False)
class TrainingData:
    """One task's training images, as the expert sees them."""

    task_id: str
    images: np.ndarray
    """``[N, H, W, 3]`` uint8."""
    labels: np.ndarray
    """``[N]`` int64."""
    features: np.ndarray
    """``[N, D]`` of the network that training starts from; the head is first fitted on them."""


@dataclass(frozen=True, eq=False)
class TrainedExpert:
    """The weights of an expert, and its original heads."""

    state: Mapping[str, torch.Tensor]
    """State dict of the extractor, without a head."""
    heads: Mapping[str, torch.Tensor]
    """``{task_id}.weight`` and ``{task_id}.bias``: the heads it was trained with."""
    first_loss: float
    """Mean training loss of the first tenth of the steps, nats."""
    last_loss: float
    """Of the last tenth."""
    seconds: float


def expert_rules(spec: ExpertsSpec, library: Sequence[Task]) -> list[ExpertRule]:
    """The experts of a config by name: its rules, then those that its collections make of the library.

    Args:
        spec: the rules.
        library: all tasks.

    Raises:
        ConfigError: two experts of one name.
    """
    rules = list(spec.rules)
    for collection in spec.collections:
        groups: dict[str, list[Task]] = {}
        for task in library:
            if not fnmatch.fnmatchcase(task.task_id, collection.tasks):
                continue
            shared = task.spec.lineage[: collection.depth]
            if collection.by == "task":
                groups[task.task_id] = [task]
            elif len(shared) == collection.depth:
                groups.setdefault("/".join((task.spec.source, *shared)), []).append(task)
        for tasks in groups.values():
            tasks.sort(key=lambda t: (-sum(t.train_counts), t.task_id))
        # The size of a collection is that of the tasks it is trained on.
        ranked = sorted(groups.items(), key=lambda g: (-_images(g[1][: collection.max_tasks]), g[0]))
        rules += [
            ExpertRule(name=readable(name), tasks=[glob.escape(t.task_id) for t in tasks[: collection.max_tasks]])
            for name, tasks in ranked[: collection.largest]
        ]
    names = [rule.name for rule in rules]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ConfigError(
            f"two rules make an expert {double[0]!r}; narrow a pattern of experts.collections, or rename a rule"
        )
    return rules


def _images(tasks: Sequence[Task]) -> int:
    return sum(sum(t.train_counts) for t in tasks)


def expert_specs(
    rules: Sequence[ExpertRule], tasks: Mapping[str, str], probe: Probe, training: TrainingSpec
) -> tuple[list[ExpertSpec], list[tuple[str, str]]]:
    """The experts that the rules name; the generic one comes first.

    Args:
        rules: names and task patterns.
        tasks: task id to fingerprint, the library.
        probe: what training starts from.
        training: settings of fine-tuning.

    Returns:
        Specs, and (name, reason) of rules that match no task of the library.
    """
    common = {"architecture": probe.name, "parent": probe.digest, "image_size": probe.transform.size}
    specs = [ExpertSpec(name=GENERIC, **common)]
    unmatched: list[tuple[str, str]] = []
    for rule in rules:
        matched = [t for t in tasks if any(fnmatch.fnmatchcase(t, pattern) for pattern in rule.tasks)]
        if not matched:
            unmatched.append((rule.name, f"no task of the library matches {', '.join(rule.tasks)}"))
            continue
        specs.append(
            ExpertSpec(
                name=rule.name,
                tasks=tuple(matched),
                task_fingerprints=tuple(tasks[t] for t in matched),
                training=training,
                **common,
            )
        )
    return specs, unmatched


def _shifted(images: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Each image translated by up to ``shift`` pixels, edges repeated."""
    if shift == 0:
        return images
    n, _, h, w = images.shape
    padded = F.pad(images, (shift,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * shift + 1, (n, 2), generator=generator).tolist()
    moved = [padded[i, :, top : top + h, left : left + w] for i, (top, left) in enumerate(offsets)]
    return torch.stack(moved).contiguous(memory_format=torch.channels_last)


def train_expert(
    network: nn.Module,
    probe: Probe,
    data: Sequence[TrainingData],
    spec: TrainingSpec,
    *,
    head: HeadSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedExpert:
    """Fine-tune: heads first (to convergence, on the start's features), then all layers, with joint heads.

    BatchNorm stays frozen (eval mode, running statistics of the start): re-estimating them on small tasks of another
    look than the pretraining's ruins the network. A batch holds (task, image) pairs, as many of each task; the loss is
    the mean cross entropy of each pair under its task's head.

    Args:
        network: the whole network to start from (see `build_network`); it is trained in place.
        probe: the same weights as a probe; gives the transform.
        data: the tasks.
        spec: steps, rates, augmentation, seed.
        head: settings of the heads' first fit.
        progress: called with (steps done, steps in all).

    Raises:
        ConfigError: no data.
        ComputeError: the loss is not finite.
    """
    if not data:
        raise ConfigError("an expert needs at least one task to train on")
    began = time.perf_counter()
    device = probe.device
    generator = torch.Generator().manual_seed(spec.seed)
    architecture = PROBES[probe.name]
    parent, _, child = architecture.head.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    heads = nn.ModuleList()
    for task in data:
        fit = fit_head(task.features, task.labels, head)
        layer = nn.Linear(fit.weight.shape[1], fit.weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(fit.weight))
            layer.bias.copy_(torch.as_tensor(fit.bias))
        heads.append(layer.to(device))
    optimiser = torch.optim.AdamW(
        [{"params": [p for p in network.parameters() if p.requires_grad]}, {"params": list(heads.parameters())}],
        lr=spec.learning_rate,
        weight_decay=spec.weight_decay,
    )
    warm = max(1, spec.steps // 10)

    def rate(step: int) -> float:
        return float(min((step + 1) / warm, 0.5 * (1 + np.cos(np.pi * min(1.0, (step + 1) / spec.steps))) + 1e-3))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    losses: list[float] = []
    for step in range(spec.steps):
        tasks = torch.randint(0, len(data), (spec.batch_size,), generator=generator).sort().values.tolist()
        batch: list[np.ndarray] = []
        labels: list[torch.Tensor] = []
        for t in sorted(set(tasks)):
            rows = torch.randint(0, len(data[t].labels), (tasks.count(t),), generator=generator).numpy()
            batch.append(data[t].images[rows])
            labels.append(torch.as_tensor(data[t].labels[rows], device=device))
        images = _shifted(probe.transform.to_tensor(np.concatenate(batch)), spec.shift, generator).to(device)
        features = network(images).split([len(part) for part in labels])
        terms = [
            F.cross_entropy(heads[t](z), y, reduction="sum")
            for t, z, y in zip(sorted(set(tasks)), features, labels, strict=True)
        ]
        loss = torch.stack(terms).sum() / spec.batch_size
        if not torch.isfinite(loss):
            raise ComputeError(f"the loss is not finite at step {step}; lower training.learning_rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if progress:
            progress(step + 1, spec.steps)
    tenth = max(1, spec.steps // 10)
    kept = {
        f"{task.task_id}.{name}": value.detach().cpu().contiguous().clone()
        for task, layer in zip(data, heads, strict=True)
        for name, value in layer.state_dict().items()
    }
    return TrainedExpert(
        state={k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()},
        heads=kept,
        first_loss=float(np.mean(losses[:tenth])),
        last_loss=float(np.mean(losses[-tenth:])),
        seconds=time.perf_counter() - began,
    )
