"""Features of an extractor over images, in batches, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import nn

from t2v_core.errors import ComputeError
from t2v_core.fisher.recorder import fast_convolutions
from t2v_core.images import ImageTransform

__all__ = ["GivesFeatures", "extract_features"]


class GivesFeatures(Protocol):
    """What features are taken of: a `Probe`, or an `Extractor` from outside."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def network(self) -> nn.Module:
        """Images ``[N, 3, S, S]`` to features ``[N, D]``."""

    @property
    def n_features(self) -> int:
        """D."""

    @property
    def transform(self) -> ImageTransform:
        """From an image to the input."""

    @property
    def device(self) -> torch.device:
        """Where the input must be."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the input."""


@torch.inference_mode()
def extract_features(
    probe: GivesFeatures,
    images: np.ndarray,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Features ``[N, D]`` float32 of images ``[N, H, W, 3]`` uint8, already of the probe's size.

    Args:
        probe: the extractor.
        images: as `ImageTransform.to_uint8` gives them.
        batch_size: images in a forward pass; does not change the result beyond rounding.
        progress: called with (images done, images in all) after each batch.

    Raises:
        ComputeError: features that are not finite.
    """
    out = np.empty((len(images), probe.n_features), dtype=np.float32)
    faster = fast_convolutions(probe.network)
    for start in range(0, len(images), batch_size):
        batch = probe.transform.to_tensor(images[start : start + batch_size], dtype=probe.dtype).to(probe.device)
        with faster:
            features = probe.network(batch)
        out[start : start + batch_size] = features.float().cpu().numpy()
        if progress:
            progress(min(start + batch_size, len(images)), len(images))
    if not np.isfinite(out).all():
        raise ComputeError(f"{probe.name}: features of {int((~np.isfinite(out)).any(1).sum())} images are not finite")
    return out
