"""Always the expert that was never fine-tuned."""

from __future__ import annotations

import numpy as np

from t2v_core.selectors.method import Method

__all__ = ["METHOD", "generic_scores"]


def generic_scores(errors: np.ndarray, generic: int = 0) -> np.ndarray:
    """Always the generic expert, ``[T, E]``; NaN for all others."""
    out = np.full(errors.shape, np.nan)
    out[:, generic] = 0.0
    return out


METHOD = Method(
    "generic",
    lambda problem: generic_scores(problem.errors, problem.generic),
    "never fine-tuned",
    'Achille et al. 2019, Table 1, "ImageNet"',
)
