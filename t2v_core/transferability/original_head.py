"""The head that a network came with, for LEEP: of the generic expert, and of experts from outside."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from t2v_core.architectures import architecture_of, build_network

__all__ = ["heads_of_state", "original_head"]


def original_head(
    architecture: str, weights: str | Mapping[str, torch.Tensor], image_size: int, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight ``[C, D]`` and bias ``[C]`` of the head that came with some weights, as a list of one; else an empty one.

    Args:
        architecture: one of `PROBES`, ``timm/NAME`` or ``torchvision/NAME``.
        weights: ``"imagenet"``, ``"random"`` (whose head means nothing), a path, or a state dict.
        image_size: side of the input in pixels.
        seed: that the network is built with, before its weights are loaded.

    Raises:
        T2VError: as `build_network`.
    """
    if isinstance(weights, str) and weights == "random":
        return []
    name = architecture_of(architecture, image_size).head
    loaded, fresh = (
        build_network(architecture, w, seed, image_size=image_size).get_submodule(name) for w in (weights, "random")
    )
    weight, bias = loaded.weight, loaded.bias
    assert isinstance(weight, torch.Tensor)
    # Files may lack the head's tensors: what the network was built with is then still there.
    if isinstance(fresh.weight, torch.Tensor) and torch.equal(weight, fresh.weight):
        return []
    flat = weight.detach().reshape(len(weight), -1).double().numpy()
    return [(flat, bias.detach().double().numpy() if isinstance(bias, torch.Tensor) else np.zeros(len(flat)))]


def heads_of_state(state: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The heads that an expert was trained with, from ``{task_id}.weight`` and ``{task_id}.bias``."""
    tasks = sorted(key.removesuffix(".weight") for key in state if key.endswith(".weight"))
    return [(np.asarray(state[f"{t}.weight"], np.float64), np.asarray(state[f"{t}.bias"], np.float64)) for t in tasks]
