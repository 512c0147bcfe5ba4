"""The nearest mean features: what the images are like, whatever the labels say."""

from __future__ import annotations

from t2v_core.selectors.method import Cost, Method

__all__ = ["METHOD"]

METHOD = Method(
    "domain distance",
    lambda problem: problem.domain,
    "nearest mean features",
    "Achille et al. 2019, Sect. 3.2 and 5, domain embeddings; mean features in place of the covariances C0 and C1",
    Cost(probe_passes=1),
)
