"""t2v: task embeddings and expert selection (Achille et al., "Task2Vec", ICCV 2019)."""

from t2v_core.distances import asymmetric_distance, distance_matrix, symmetric_distance
from t2v_core.embedding import TaskEmbedding, embed_task, trivial_embedding
from t2v_core.fisher import fisher_filters
from t2v_core.probes import Probe, load_probe, probe_from_module

__all__ = [
    "Probe",
    "TaskEmbedding",
    "asymmetric_distance",
    "distance_matrix",
    "embed_task",
    "fisher_filters",
    "load_probe",
    "probe_from_module",
    "symmetric_distance",
    "trivial_embedding",
]
__version__ = "0.1.0"
