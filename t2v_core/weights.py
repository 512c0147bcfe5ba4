"""Weights: tensors from a file, without running code, and into a network that they were made for.

A file is read by safetensors or by ``torch.load(weights_only=True)``, and by nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from t2v_core.errors import WeightsError

__all__ = ["fits", "load_state", "read_weights"]

_NESTED = ("state_dict", "model")
"""Where a training script's checkpoint keeps the state dict."""


def read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in a file, also one under ``state_dict`` or ``model`` in a training script's checkpoint.

    Args:
        path: a .safetensors file, or what `torch.save` wrote.

    Raises:
        WeightsError: no such file, not tensors, damaged, or a pickle of more than tensors, which could run code.
    """
    if not path.is_file():
        raise WeightsError(f"no weights at {str(path)!r}; wanted 'imagenet', 'random', or a .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's message advises to load it all the same
        raise WeightsError(
            f"cannot read weights from {str(path)!r}: it is damaged, or holds more than tensors, which could run code; "
            "save the network's state dict alone, with torch.save(net.state_dict(), ...) or safetensors"
        ) from error
    except Exception as error:
        why = str(error) or type(error).__name__
        raise WeightsError(f"cannot read weights from {str(path)!r}: {why}; wanted a state dict of tensors") from error
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in loaded.items()
    ):
        raise WeightsError(f"{str(path)!r} holds {type(loaded).__name__}, wanted a state dict of tensors")
    return loaded


def _in_todays_names(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo what renames all tensors: DataParallel's prefix, and the names in torchvision's own DenseNet files."""
    prefix = "module."
    if all(k.startswith(prefix) for k in state) and not any(k.startswith(prefix) for k in wanted):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", k): v for k, v in state.items()}


def _misfits(given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], head: str) -> str:
    """What does not fit: how many tensors of each kind, and the first in the network's order. Empty where all fit."""
    missing: list[str] = []
    others: list[str] = []
    for key, tensor in wanted.items():
        shape = tuple(tensor.shape)
        # Counters of batches do not matter in eval mode, and files of old versions lack them.
        if key.startswith(head + ".") or (key not in given and key.endswith("num_batches_tracked")):
            continue
        if key not in given:
            missing.append(f"{key!r}, wanted {shape}")
        elif given[key].shape != tensor.shape:
            others.append(f"{key!r} is {tuple(given[key].shape)}, wanted {shape}")
    extra = [f"{key!r}" for key in given if key not in wanted and not key.startswith(head + ".")]
    kinds = {"of another shape": others, "missing": missing, "not wanted": extra}
    return "; ".join(
        f"{len(found)} tensor{'s' * (len(found) > 1)} {kind}{', the first' * (len(found) > 1)}: {found[0]}"
        for kind, found in kinds.items()
        if found
    )


def fits(network: nn.Module, state: Mapping[str, torch.Tensor], head: str) -> bool:
    """Whether `load_state` finds all tensors but the head's, each in its shape, and no others."""
    wanted = network.state_dict()
    return not _misfits(_in_todays_names(state, wanted), wanted, head)


def load_state(network: nn.Module, state: Mapping[str, torch.Tensor], head: str, what: str) -> None:
    """Load ``state``; the head's tensors may be missing or of another size, everything else must fit.

    Args:
        network: it is changed.
        state: tensors by name.
        head: dotted name of the head.
        what: words for the state, for error messages.

    Raises:
        WeightsError: no tensors, those of another architecture, or values that are not finite; names the first
            tensor, in the network's order.
    """
    if not state:
        raise WeightsError(f"{what} are an empty state dict; wanted the network's tensors, by name")
    wanted = network.state_dict()
    given = _in_todays_names(state, wanted)
    if misfits := _misfits(given, wanted, head):
        raise WeightsError(f"{what} belong to another architecture: {misfits}. Name the architecture that they are of")
    fitting = {k: given[k] for k in wanted if k in given and given[k].shape == wanted[k].shape}
    for key, tensor in fitting.items():
        # The extremes are NaN where any value is.
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise WeightsError(
                f"{what} hold values in {key!r} that are not finite; the training they are from diverged"
            )
    network.load_state_dict({**wanted, **fitting})
