"""The nearest expert's task by d_sym."""

from __future__ import annotations

from t2v_core.selectors.method import Cost, Method

__all__ = ["METHOD"]

METHOD = Method(
    "TASK2VEC",
    lambda problem: problem.symmetric,
    "nearest by d_sym to the expert's task",
    "Achille et al. 2019, Sect. 3.3",
    Cost(probe_passes=2),
)
