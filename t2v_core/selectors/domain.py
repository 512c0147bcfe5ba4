"""The nearest mean or second moment of features: what the images are like, whatever the labels say."""

from __future__ import annotations

from t2v_core.selectors.method import Cost, Method

__all__ = ["METHODS"]

MEAN = Method(
    "domain distance",
    lambda problem: problem.domain,
    "nearest mean features",
    "Achille et al. 2019, Sect. 3.2 and 5, domain embeddings; mean features in place of the covariances C0 and C1",
    Cost(probe_passes=1),
)
C1 = Method(
    "domain distance, C1",
    lambda problem: problem.moment_distance,
    "nearest second moments of features",
    "Achille et al. 2019, Sect. 3.2 and 5; the diagonal of C1",
    Cost(probe_passes=1),
)
METHODS = (MEAN, C1)
