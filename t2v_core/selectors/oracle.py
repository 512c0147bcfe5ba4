"""The errors themselves: the best there is, found by trying all."""

from __future__ import annotations

from t2v_core.selectors.method import Cost, Method

__all__ = ["METHOD"]

METHOD = Method(
    "oracle",
    lambda problem: problem.errors,
    "the best candidate, found by trying all",
    "Achille et al. 2019, Sect. 4.2; Table 1 is relative to it",
    Cost(experts_tried=-1),
    sees_own_errors=True,
)
