"""Selectors: which expert for this task. One file each, one interface: a `Problem` in, scores ``[T, E]`` out."""

from t2v_core.selectors.method import Cost, Method
from t2v_core.selectors.problem import Problem
from t2v_core.selectors.registry import SELECTORS

__all__ = ["SELECTORS", "Cost", "Method", "Problem"]
