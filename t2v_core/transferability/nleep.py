"""N-LEEP: LEEP with clusters of the features in the place of source labels, so that no head is needed.

Li et al., "Ranking Neural Checkpoints", CVPR 2021: principal components with 80% of the variance, a Gaussian mixture of
five components a class, and its posteriors as the source probabilities. Here the covariances are diagonal, and a
component has at least four images: a task of a few dozen images does not bear more.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from t2v_core.config import ScoringSpec
from t2v_core.transferability.base import Labelled
from t2v_core.transferability.leep import log_expected_prediction

__all__ = ["nleep"]

_ENERGY = 0.8
_IMAGES = 4
"""Images for a component, at least."""


def nleep(data: Labelled, spec: ScoringSpec) -> float:
    """LEEP of the posteriors of a Gaussian mixture."""
    n = len(data.labels)
    spread = data.features.std(0)
    if float(spread.max()) <= 1e-7 * float(np.abs(data.features).max()):
        return log_expected_prediction(np.ones((n, 1)), data.labels)  # equal features are one cluster
    reduced = PCA(_ENERGY, svd_solver="full").fit_transform(data.features)
    reduced /= reduced[:, 0].std()  # so that the mixture's floor of a variance means the same for every expert
    components = max(1, min(spec.components * data.n_classes, n // _IMAGES))
    mixture = GaussianMixture(components, covariance_type="diag", random_state=spec.seed, max_iter=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few rounds more change no ranking
        mixture.fit(reduced)
    return log_expected_prediction(mixture.predict_proba(reduced), data.labels)
