"""t2v: task embeddings and expert selection (Achille et al., "Task2Vec", ICCV 2019)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2v_core.distances import asymmetric_distance, distance_matrix, symmetric_distance
    from t2v_core.embedding import TaskEmbedding, embed_task, trivial_embedding
    from t2v_core.fisher import fisher_filters
    from t2v_core.memory import keep_freed_memory
    from t2v_core.probes import Probe, load_probe, probe_from_module

__all__ = [
    "Probe",
    "TaskEmbedding",
    "asymmetric_distance",
    "distance_matrix",
    "embed_task",
    "fisher_filters",
    "keep_freed_memory",
    "load_probe",
    "probe_from_module",
    "symmetric_distance",
    "trivial_embedding",
]
__version__ = "0.1.0"

_HOME = {
    "asymmetric_distance": "distances",
    "distance_matrix": "distances",
    "symmetric_distance": "distances",
    "TaskEmbedding": "embedding",
    "embed_task": "embedding",
    "trivial_embedding": "embedding",
    "fisher_filters": "fisher",
    "keep_freed_memory": "memory",
    "Probe": "probes",
    "load_probe": "probes",
    "probe_from_module": "probes",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that reading a config does not import torch."""
    if name in _HOME:
        return getattr(import_module(f"t2v_core.{_HOME[name]}"), name)
    raise AttributeError(f"module 't2v_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
