"""Methods that look at every expert's features: one small file each, one interface, higher is better.

They cost one pass of every expert over the task's images, where TASK2VEC is one pass of the probe. None of them sees
the test split, and none trains the expert.
"""

from __future__ import annotations

import time

from t2v_core.config import ScoringSpec
from t2v_core.errors import T2VError
from t2v_core.registry import Registry
from t2v_core.transferability.base import Labelled, Method, Score
from t2v_core.transferability.hscore import hscore
from t2v_core.transferability.knn import knn
from t2v_core.transferability.leep import leep
from t2v_core.transferability.linear_probe import linear_probe
from t2v_core.transferability.logme import logme
from t2v_core.transferability.nleep import nleep
from t2v_core.transferability.parc import parc

__all__ = ["METHODS", "Labelled", "Method", "Score", "score"]

METHODS: Registry[Method] = Registry("scoring method")
"""Name to method; `ScoringSpec.methods` names them."""

METHODS.add("logme", Method("LogME", "You et al., ICML 2021", logme))
METHODS.add("hscore", Method("H-score", "Bao et al., ICIP 2019; shrunk: Ibrahim et al., ECML 2022", hscore))
METHODS.add("leep", Method("LEEP", "Nguyen et al., ICML 2020", leep, needs_head=True))
METHODS.add("nleep", Method("N-LEEP", "Li et al., CVPR 2021", nleep))
METHODS.add("parc", Method("PARC", "Bolya et al., NeurIPS 2021", parc))
METHODS.add("knn", Method("k-NN", "e.g. Puigcerver et al., ICLR 2021", knn))
METHODS.add("linear_probe", Method("linear probe", "the error matrix's own recipe, on a sample", linear_probe))


def score(method: str, data: Labelled, spec: ScoringSpec | None = None) -> Score:
    """How fit an expert is for a task, by its features; one that has no answer gives NaN and its reason.

    Args:
        method: name in `METHODS`.
        data: the task's images as the expert sees them.
        spec: settings of the methods.

    Raises:
        UnknownNameError: no such method.
    """
    run, began = METHODS[method].run, time.perf_counter()
    try:
        return Score(run(data, spec or ScoringSpec()), time.perf_counter() - began)
    except T2VError as error:
        return Score(float("nan"), time.perf_counter() - began, str(error))
