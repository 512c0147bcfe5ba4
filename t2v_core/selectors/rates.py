"""What a selector's answer costs for a task that is new."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QueryRates"]


@dataclass(frozen=True)
class QueryRates:
    """What a new task would cost, measured on those of the library: the median task, and seconds."""

    n_images: float
    """Train images."""
    probe_image: float
    """Features of an image by the probe; a run's records know the price of its median expert, whose network is the
    probe's but for those from outside."""
    embedding: float
    """Head and Fisher information, once the features are there."""
    embedding_passes: float
    """Images that pass through the probe for that, with gradients."""
    expert_image: float
    """Features of an image by an expert."""
    head: float
    """A head on an expert's features."""
