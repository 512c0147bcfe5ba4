"""k-NN: how often the nearest other images are of the same class.

Nearest neighbours on an expert's features as its measure: e.g. Puigcerver et al., "Scalable Transfer Learning with
Expert Models", ICLR 2021. Each image is left out in turn, and its whole group with it, so that a second picture of the
same thing gives nothing away.
"""

from __future__ import annotations

from sklearn.metrics.pairwise import cosine_distances
from sklearn.neighbors import KNeighborsClassifier

from t2v_core.config import ScoringSpec
from t2v_core.heads import balanced_error
from t2v_core.transferability.base import Labelled

__all__ = ["knn"]

_FAR = 4.0
"""Farther than any cosine distance of images, which is at most 2."""


def knn(data: Labelled, spec: ScoringSpec) -> float:
    """Balanced accuracy of ``spec.k`` neighbours by cosine distance of centred features, the image's group left out."""
    distances = cosine_distances(data.features - data.features.mean(0))
    distances[data.groups[:, None] == data.groups[None]] = _FAR
    k = min(spec.k, int((distances < _FAR).sum(1).min()))
    if k < 1:
        return 0.0  # one group holds all images; nothing can be left out
    # Nearer ones weigh more: an even vote would go to the class with the lower number.
    model = KNeighborsClassifier(k, weights="distance", metric="precomputed").fit(distances, data.labels)
    return 1 - balanced_error(data.labels, model.predict(distances), data.n_classes)
