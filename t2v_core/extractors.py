"""Feature extractors from outside: any network of torchvision or timm, a file of weights, an exported program.

An extractor only gives features, so that it may hold what a probe may not (attention, a program whose layers cannot be
addressed). Weights are read by safetensors or with ``weights_only=True``; of a program, what is pickled is refused, but
it is code all the same: add programs of people that you would run a script of.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2v_core.architectures import IMAGENET_MEAN, IMAGENET_STD, architecture_of, build_network
from t2v_core.errors import ProbeError, WeightsError
from t2v_core.fingerprints import digest_bytes, fingerprint
from t2v_core.images import ImageTransform
from t2v_core.networks import channels_last, features_without_head, fold_batchnorm, weights_digest

__all__ = ["FeatureExtractor", "check_extractor", "extractor_of_network", "extractor_of_program"]

Channels = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A frozen network that gives features, and no more."""

    name: str
    """Architecture, or file of the program."""
    digest: str
    """Hash of the extractor's weights, the head not among them; of a program, of the file."""
    network: nn.Module
    """Images ``[N, 3, S, S]`` to features ``[N, D]``."""
    n_features: int
    """D."""
    transform: ImageTransform
    """From an image to the input."""
    device: torch.device
    """Where the weights are."""
    dtype: torch.dtype = torch.float32
    """Floating type of the input."""

    @property
    def identity(self) -> str:
        """Hash of all that its features are a function of, beside the image: weights, size, mean and deviation."""
        return fingerprint("extractor", self.digest, self.transform)

    def to(self, target: torch.device | torch.dtype) -> FeatureExtractor:
        """A copy on another device, or in another floating type; this one stays as it is."""
        network = copy.deepcopy(self.network).to(target)
        if isinstance(target, torch.dtype):
            return replace(self, network=network, dtype=target)
        return replace(self, network=network, device=target)


def extractor_of_network(
    architecture: str,
    weights: str | Mapping[str, torch.Tensor] = "imagenet",
    *,
    image_size: int | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
    seed: int = 0,
) -> FeatureExtractor:
    """A network by name, its head cut off, BatchNorm folded where that changes nothing.

    Args:
        architecture: one of `PROBES`, ``timm/NAME`` or ``torchvision/NAME``.
        weights: ``"imagenet"``, ``"random"``, a path, or a state dict.
        image_size: side of the input in pixels; default: what the ImageNet weights were trained on.
        mean: subtracted per channel, on a scale of 0 to 1; default: the architecture's.
        std: divided by per channel; default: the architecture's.
        seed: of random weights.

    Raises:
        UnknownNameError: no such architecture.
        WeightsError: weights missing, unreadable, of another architecture, or not finite.
        ProbeError: its head is not its last layer, or it does not run on images of that size.
    """
    built = architecture_of(architecture, image_size)
    network = build_network(architecture, weights, seed, image_size=image_size)
    size = image_size or built.image_size
    cut = copy.deepcopy(network).eval()
    example, before = features_without_head(network, cut, built.head, size)
    digest, n_features = weights_digest(cut), before.shape[1]
    folded, _, _ = fold_batchnorm(cut, example, before)
    transform = ImageTransform(size=size, mean=mean or built.mean, std=std or built.std)
    channels_last(folded)
    return FeatureExtractor(architecture, digest, folded.eval(), n_features, transform, torch.device("cpu"))


def _unpickled(data: bytes, name: str) -> None:
    """Refuse an archive that torch would unpickle more than tensors of.

    Raises:
        WeightsError: no archive, or one with pickled objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            configs = [json.loads(archive.read(n)) for n in names if n.endswith("_config.json")]
            samples = [archive.read(n) for n in names if "/sample_inputs/" in n and n.endswith(".pt")]
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{name} is no program of torch.export ({error}); save it with torch.export.save") from error
    if not configs:
        raise WeightsError(f"{name} is no program of torch.export: it lists no weights; save it with torch.export.save")
    objects = [n for n in names if Path(n).name.startswith(("custom_obj", "opaque_obj"))]
    pickled = [key for config in configs for key, entry in _entries(config) if entry.get("use_pickle")]
    try:
        for sample in samples:
            torch.load(io.BytesIO(sample), weights_only=True)
    except Exception:  # noqa: BLE001 - whatever it is, it is no plain tensor
        pickled.append("sample inputs")
    if objects or pickled:
        raise WeightsError(
            f"{name} holds pickled objects ({', '.join([*objects, *pickled][:3])}), which could run code; export the "
            "network with plain tensors only"
        )


def _entries(config: Any) -> list[tuple[str, dict[str, Any]]]:
    found = config.get("config", {}) if isinstance(config, dict) else {}
    return [(str(k), v) for k, v in found.items() if isinstance(v, dict)]


def extractor_of_program(
    data: bytes, name: str, *, image_size: int, mean: Channels | None = None, std: Channels | None = None
) -> FeatureExtractor:
    """A program of `torch.export`, images ``[N, 3, S, S]`` to features ``[N, D]``, N of any size.

    Args:
        data: the file's bytes.
        name: for messages.
        image_size: S.
        mean: subtracted per channel, on a scale of 0 to 1; default: ImageNet's.
        std: divided by per channel; default: ImageNet's.

    Raises:
        WeightsError: no such program, or one with pickled objects.
        ProbeError: it does not run on two sizes of batch, or gives no features.
    """
    _unpickled(data, name)
    try:
        network = torch.export.load(io.BytesIO(data)).module()
    except Exception as error:
        raise WeightsError(f"cannot load the program {name}: {str(error) or type(error).__name__}") from error
    for n in (2, 5):
        example = torch.randn(n, 3, image_size, image_size, generator=torch.Generator().manual_seed(n))
        try:
            with torch.no_grad():
                features: object = network(example)
        except Exception as error:
            raise ProbeError(
                f"the program {name} does not run on {n} images of {image_size} pixels "
                f"({(str(error) or type(error).__name__).splitlines()[0]}); export it with a batch of any size: "
                "torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), and name the image "
                "size that it was exported for"
            ) from error
        if not isinstance(features, torch.Tensor) or features.dim() != 2 or len(features) != n:
            got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ProbeError(f"the program {name} gives {got} for {n} images; wanted features of shape ({n}, D)")
        n_features = features.shape[1]
    transform = ImageTransform(size=image_size, mean=mean or IMAGENET_MEAN, std=std or IMAGENET_STD)
    return FeatureExtractor(name, digest_bytes(data), network, n_features, transform, torch.device("cpu"))


def check_extractor(extractor: FeatureExtractor, digest: str = "") -> None:
    """What every expert from outside must keep to.

    Args:
        extractor: to be checked.
        digest: what its digest must be; empty: anything.

    Raises:
        WeightsError: another digest.
        ProbeError: features that are not finite, or that depend on what else is in the batch.
    """
    if digest and extractor.digest != digest:
        raise WeightsError(
            f"the weights of {extractor.name} have the digest {extractor.digest}, and {digest} is pinned: they are not "
            "the ones that were registered. Get those, or register these anew"
        )
    size = extractor.transform.size
    images = torch.rand(6, 3, size, size, generator=torch.Generator().manual_seed(0)).to(extractor.device)
    with torch.no_grad():
        together, alone = extractor.network(images), extractor.network(images[:2])
    if not torch.isfinite(together).all():
        raise ProbeError(f"{extractor.name} gives features that are not finite; its training diverged")
    if not torch.allclose(together[:2], alone, rtol=1e-3, atol=1e-4 * float(together.abs().max())):
        raise ProbeError(
            f"the features that {extractor.name} gives of an image depend on the others in the batch; export it in "
            "eval mode"
        )
