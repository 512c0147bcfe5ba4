"""Fine-tuning: an expert from the probe's weights on a task or a collection of related tasks, resumable to the byte."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from t2v_core.config import HeadSpec, TrainingSpec
from t2v_core.errors import ComputeError, ConfigError, WeightsError
from t2v_core.features import extract_features
from t2v_core.heads import balanced_error, fit_head, predict, validation_mask
from t2v_core.probes import Probe

__all__ = [
    "FrozenNorms",
    "State",
    "TrainedExpert",
    "TrainingData",
    "TransferRun",
    "even_sample",
    "train_expert",
    "transfer_run",
]

State = Mapping[str, torch.Tensor]
"""Tensors by name."""


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
    groups: np.ndarray | None = None
    """``[N]`` of any type; rows of a group are held out together. Default: each row alone."""


@dataclass(frozen=True, eq=False)
class TrainedExpert:
    """The weights of an expert, and its original heads."""

    state: State
    """State dict of the extractor, without a head."""
    heads: State
    """``{task_id}.weight`` and ``{task_id}.bias``: the heads it was trained with."""
    first_loss: float
    """Mean training loss of the first tenth of the steps, nats."""
    last_loss: float
    """Of the last tenth."""
    steps: int
    """Steps taken."""
    best_step: int
    """After which the weights are those kept: the last, or the best on the held-out images."""
    held_out_loss: float
    """Mean over tasks of the cross entropy on the held-out images then, nats; NaN where none were held out."""
    seconds: float


class FrozenNorms:
    """A network whose BatchNorms keep their running statistics, run with them folded into the convolutions.

    Each step folds anew, so that weights, gamma and beta all train as they would apart: a third less time a step with
    EfficientNet-Lite0, whose BatchNorms alone would take as long as its convolutions.

    Args:
        probe: what to start from; it stays as it is.
    """

    def __init__(self, probe: Probe) -> None:
        self.trained: nn.Module = copy.deepcopy(probe.original).requires_grad_(True).eval()
        """The network as trained, nothing folded."""
        self._run = copy.deepcopy(probe.network).eval()
        self._folded = dict(probe.folded)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features ``[N, D]`` of images ``[N, 3, H, W]``."""
        parameters: dict[str, torch.Tensor] = {}
        for name, _ in self._run.named_parameters():
            layer, _, kind = name.rpartition(".")
            if layer not in self._folded:
                parameters[name] = self.trained.get_parameter(name)
            elif kind == "weight":
                conv, norm = self.trained.get_submodule(layer), self.trained.get_submodule(self._folded[layer])
                assert isinstance(conv, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d)
                assert norm.running_mean is not None
                assert norm.running_var is not None
                s = torch.rsqrt(norm.running_var + norm.eps)
                s = s if norm.weight is None else s * norm.weight
                shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
                parameters[name] = conv.weight * s[:, None, None, None]
                parameters[f"{layer}.bias"] = shift * s if norm.bias is None else shift * s + norm.bias
        out: torch.Tensor = functional_call(self._run, parameters, (images,))
        return out


@dataclass(eq=False)
class _Progress:
    """All that changes while training, but the generator's state."""

    network: FrozenNorms
    heads: nn.ModuleList
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    losses: list[float] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_step: int = 0
    best_loss: float = float("inf")
    looks: int = 0
    """Looks since the best one."""

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the network's and the heads' tensors."""
        both = {"network": self.network.trained.state_dict(), "heads": self.heads.state_dict()}
        return {
            f"{part}/{k}": v.detach().cpu().contiguous().clone()
            for part, state in both.items()
            for k, v in state.items()
        }

    def save(self) -> dict[str, torch.Tensor]:
        """Everything as tensors."""
        out = {f"now/{k}": v for k, v in self.weights().items()} | {f"best/{k}": v for k, v in self.best.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            out |= {
                f"optimiser/{i}/{k}": torch.as_tensor(v).cpu().contiguous().clone()
                for k, v in state.items()
                if v is not None
            }
        out["generator"] = self.generator.get_state()
        out["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        out["best_of"] = torch.tensor([self.best_step, self.best_loss, self.looks], dtype=torch.float64)
        return out

    def load(self, saved: State) -> None:
        """Go on where `save` was called.

        Raises:
            WeightsError: the tensors are not those of this training.
        """
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in saved.items():
            part, _, name = key.partition("/")
            groups.setdefault(part, {})[name] = value
        try:
            now = groups["now"]
            for part, module in (("network", self.network.trained), ("heads", self.heads)):
                module.load_state_dict(
                    {k.removeprefix(f"{part}/"): v for k, v in now.items() if k.startswith(f"{part}/")}
                )
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in groups.get("optimiser", {}).items():
                index, _, name = key.partition("/")
                state.setdefault(int(index), {})[name] = value
            self.optimiser.load_state_dict(
                {"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]}
            )
            # A fused step walks through memory: a moment must lie there as its weight does.
            for parameter, moments in self.optimiser.state.items():
                for name, value in moments.items():
                    if value.shape == parameter.shape:
                        moments[name] = torch.empty_like(parameter).copy_(value)
            self.generator.set_state(saved["generator"])
            step, loss, looks = saved["best_of"].tolist()
            self.losses, self.best = saved["losses"].tolist(), groups.get("best", {})
        except (KeyError, ValueError, RuntimeError) as error:
            raise WeightsError(f"the checkpoint is of another training, or damaged: {error}") from error
        self.best_step, self.best_loss, self.looks = int(step), loss, int(looks)


def _shifted(images: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Each image translated by up to ``shift`` pixels, edges repeated."""
    if shift == 0:
        return images
    n, _, h, w = images.shape
    padded = F.pad(images, (shift,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * shift + 1, (n, 2), generator=generator).tolist()
    moved = [padded[i, :, top : top + h, left : left + w] for i, (top, left) in enumerate(offsets)]
    return torch.stack(moved).contiguous(memory_format=torch.channels_last)


def _rate(spec: TrainingSpec, step: int, steps: int) -> float:
    """The learning rate at a step, as a share of the peak."""
    if spec.schedule == "step":
        return 1.0 if step < 2 * steps / 3 else 0.1
    decay = 0.5 * (1 + np.cos(np.pi * min(1.0, (step + 1) / steps))) + 1e-3
    return float(min((step + 1) / max(1, steps // 10), decay))


def _optimiser(spec: TrainingSpec, network: nn.Module, heads: nn.Module) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in network.parameters() if p.requires_grad]},
        {"params": list(heads.parameters())},
    ]
    if spec.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay)
    return torch.optim.AdamW(groups, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True)


def _fitted_heads(data: Sequence[TrainingData], held: Sequence[np.ndarray], spec: HeadSpec | None) -> nn.ModuleList:
    """A linear layer a task, fitted to convergence on the features of the rows that train."""
    heads = nn.ModuleList()
    for task, out in zip(data, held, strict=True):
        groups = None if task.groups is None else task.groups[~out]
        fit = fit_head(
            task.features[~out], task.labels[~out], spec, groups=groups, n_classes=int(task.labels.max()) + 1
        )
        layer = nn.Linear(fit.weight.shape[1], fit.weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(fit.weight))
            layer.bias.copy_(torch.as_tensor(fit.bias))
        heads.append(layer)
    return heads


@torch.inference_mode()
def _held_out_loss(
    now: _Progress, probe: Probe, data: Sequence[TrainingData], held: Sequence[np.ndarray], size: int
) -> float:
    """Mean over tasks of the cross entropy on the rows held out."""
    losses = []
    for task, out, head in zip(data, held, now.heads, strict=True):
        rows = np.flatnonzero(out)
        total = 0.0
        for part in (rows[i : i + size] for i in range(0, len(rows), size)):
            z = now.network(probe.transform.to_tensor(task.images[part]).to(probe.device))
            labels = torch.as_tensor(task.labels[part], device=probe.device)
            total += float(F.cross_entropy(head(z), labels, reduction="sum"))
        if len(rows):
            losses.append(total / len(rows))
    return float(np.mean(losses))


def train_expert(
    probe: Probe,
    data: Sequence[TrainingData],
    spec: TrainingSpec,
    *,
    head: HeadSpec | None = None,
    resume: State | None = None,
    save: Callable[[State], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedExpert:
    """Fine-tune: heads first (to convergence, on the start's features), then all layers, with joint heads.

    BatchNorm stays frozen (eval mode, running statistics of the start): re-estimating them on small tasks of another
    look than the pretraining's ruins the network. A batch holds (task, image) pairs, as many of each task; the loss is
    the mean cross entropy of each pair under its task's head. Images are in channels-last memory format.

    On a CPU the same input gives the same bytes, also where training was stopped and went on from a checkpoint.

    Args:
        probe: what to start from, on the device to train on; it stays as it is.
        data: the tasks.
        spec: steps, rates, augmentation, early stop, seed.
        head: settings of the heads' first fit.
        resume: what ``save`` was last given by the same training; it goes on after that step.
        save: called with all of the training's state every ``checkpoint_every`` steps.
        progress: called with (steps done, steps in all).

    Raises:
        ConfigError: no data.
        ComputeError: the loss is not finite.
        WeightsError: ``resume`` is of another training, or damaged.
    """
    if not data:
        raise ConfigError("an expert needs at least one task to train on")
    began = time.perf_counter()
    device = probe.device
    network = FrozenNorms(probe)
    held = [np.zeros(len(task.labels), bool) for task in data]
    if spec.validation_share:
        held = [
            validation_mask(
                t.labels, np.arange(len(t.labels)) if t.groups is None else t.groups, spec.validation_share, 0
            )
            for t in data
        ]
    looks = any(out.any() for out in held)
    train = [np.flatnonzero(~out) for out in held]
    steps = spec.steps or max(1, round(spec.epochs * sum(map(len, train)) / spec.batch_size))
    heads = _fitted_heads(data, held, head).to(device)
    assert isinstance(heads, nn.ModuleList)
    now = _Progress(network, heads, _optimiser(spec, network.trained, heads), torch.Generator().manual_seed(spec.seed))
    if resume is not None:
        now.load(resume)

    def loss_of_a_batch() -> torch.Tensor:
        tasks = torch.randint(0, len(data), (spec.batch_size,), generator=now.generator).sort().values.tolist()
        batch: list[np.ndarray] = []
        labels: list[torch.Tensor] = []
        present = sorted(set(tasks))
        for t in present:
            rows = train[t][torch.randint(0, len(train[t]), (tasks.count(t),), generator=now.generator).numpy()]
            batch.append(data[t].images[rows])
            labels.append(torch.as_tensor(data[t].labels[rows], device=device))
        images = probe.transform.to_tensor(np.concatenate(batch))
        images = _shifted(images, spec.shift, now.generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.mixed_precision and device.type == "cuda"):
            features = network(images)
        terms = [
            F.cross_entropy(heads[t](z), y, reduction="sum")
            for t, z, y in zip(
                present,
                features.float().split(  # type: ignore[no-untyped-call]
                    [len(part) for part in labels]
                ),
                labels,
                strict=True,
            )
        ]
        return torch.stack(terms).sum() / spec.batch_size

    while len(now.losses) < steps and not (looks and now.looks >= spec.patience):
        step = len(now.losses)
        for group in now.optimiser.param_groups:
            group["lr"] = spec.learning_rate * _rate(spec, step, steps)
        loss = loss_of_a_batch()
        if not torch.isfinite(loss):
            raise ComputeError(
                f"the loss is {float(loss.detach())} at step {step} of {steps}; lower experts.training.learning_rate"
            )
        now.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        now.optimiser.step()
        now.losses.append(float(loss.detach()))
        if looks and ((step + 1) % spec.look_every == 0 or step + 1 == steps):
            seen = _held_out_loss(now, probe, data, held, spec.batch_size)
            now.looks += 1
            if seen < now.best_loss:
                now.best, now.best_step, now.best_loss, now.looks = now.weights(), step + 1, seen, 0
        if save and (step + 1) % spec.checkpoint_every == 0 and step + 1 < steps:
            save(now.save())
        if progress:
            progress(step + 1, steps)
    kept = now.best or now.weights()
    tenth = max(1, len(now.losses) // 10)
    return TrainedExpert(
        state={k.removeprefix("network/"): v for k, v in kept.items() if k.startswith("network/")},
        heads={
            f"{task.task_id}.{name}": kept[f"heads/{i}.{name}"]
            for i, task in enumerate(data)
            for name in ("weight", "bias")
        },
        first_loss=float(np.mean(now.losses[:tenth])),
        last_loss=float(np.mean(now.losses[-tenth:])),
        steps=len(now.losses),
        best_step=now.best_step if now.best else len(now.losses),
        held_out_loss=now.best_loss if now.best else float("nan"),
        seconds=time.perf_counter() - began,
    )


@dataclass(frozen=True)
class TransferRun:
    """Test errors on a task after one training run from one start."""

    error: float
    """Share of wrong test images, all layers fine-tuned."""
    balanced_error: float
    """Mean over classes of the class's error."""
    frozen_error: float
    """Of a head on the start's features, fitted on the same train images."""
    frozen_balanced_error: float
    n_train: int
    n_test: int
    steps: int
    seconds: float


def even_sample(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Rows ``[min(n, N)]`` of a random sample, ascending, as many of each class as can be.

    Args:
        labels: ``[N]`` integers.
        n: rows wanted; 0: all.
        seed: of the sample. A larger n with the same seed holds the smaller one.
    """
    if n == 0 or n >= len(labels):
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # the how manieth of its class a row is
    for c in np.unique(labels):
        of_class = order[labels[order] == c]
        turn[of_class] = np.arange(len(of_class))
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels))
    return np.sort(np.lexsort((place, turn))[:n])


def transfer_run(
    start: Probe,
    train: TrainingData,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    spec: TrainingSpec,
    *,
    head: HeadSpec | None = None,
) -> TransferRun:
    """Fine-tune a start on a task, all layers, and count the errors on its test split: a term of D_ft (Sect. 2).

    Args:
        start: what to start from; it stays as it is.
        train: the task's train images, features by ``start``.
        test_images: ``[M, H, W, 3]`` uint8.
        test_labels: ``[M]`` integers.
        spec: of the fine-tuning.
        head: settings of the head that comes first.

    Raises:
        ComputeError: the loss is not finite.
    """
    began = time.perf_counter()
    n_classes = int(max(train.labels.max(), test_labels.max())) + 1
    fit = fit_head(train.features, train.labels, head, groups=train.groups, n_classes=n_classes)
    before = predict(extract_features(start, test_images).astype(np.float64), fit.weight, fit.bias)
    trained = train_expert(start, [train], spec, head=head)
    tuned = replace(start, network=_with_weights(start, trained.state))
    weight, bias = (trained.heads[f"{train.task_id}.{name}"].double().numpy() for name in ("weight", "bias"))
    after = predict(extract_features(tuned, test_images).astype(np.float64), weight, bias)
    return TransferRun(
        error=float((after != test_labels).mean()),
        balanced_error=balanced_error(test_labels, after, n_classes),
        frozen_error=float((before != test_labels).mean()),
        frozen_balanced_error=balanced_error(test_labels, before, n_classes),
        n_train=len(train.labels),
        n_test=len(test_labels),
        steps=trained.steps,
        seconds=time.perf_counter() - began,
    )


def _with_weights(start: Probe, state: State) -> nn.Module:
    network = copy.deepcopy(start.original)
    network.load_state_dict(dict(state))
    return network.eval()
