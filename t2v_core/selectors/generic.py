"""Always the expert that was never fine-tuned."""

from __future__ import annotations

from t2v_core.baselines import generic_scores
from t2v_core.selectors.method import Method

__all__ = ["METHOD"]

METHOD = Method(
    "generic",
    lambda problem: generic_scores(problem.errors, problem.generic),
    "never fine-tuned",
    'Achille et al. 2019, Table 1, "ImageNet"',
)
