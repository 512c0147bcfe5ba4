"""All selectors by name."""

from __future__ import annotations

from t2v_core.registry import Registry
from t2v_core.selectors import (
    asymmetric,
    domain,
    generic,
    landmarks,
    largest,
    layer_weights,
    learned,
    neighbours,
    oracle,
    scaled,
    stack,
    static,
    symmetric,
    taxonomic,
)
from t2v_core.selectors.method import Method

__all__ = ["SELECTORS"]

SELECTORS: Registry[Method] = Registry("selector")
"""In the order of the tables."""

for _method in (
    oracle.METHOD,
    generic.METHOD,
    static.METHOD,
    largest.METHOD,
    *domain.METHODS,
    taxonomic.METHOD,
    symmetric.METHOD,
    scaled.METHOD,
    layer_weights.METHOD,
    asymmetric.FIXED,
    asymmetric.LEARNED,
    *learned.METHODS,
    *stack.METHODS,
    *neighbours.METHODS,
    *landmarks.METHODS,
):
    SELECTORS.add(_method.name, _method)
