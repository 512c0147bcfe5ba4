"""Linear probe: train a head on a part of the sample by the error matrix's own recipe, and look at the rest."""

from __future__ import annotations

import math

from t2v_core.config import ScoringSpec
from t2v_core.errors import TaskError
from t2v_core.heads import fit_head
from t2v_core.transferability.base import Labelled

__all__ = ["linear_probe"]


def linear_probe(data: Labelled, spec: ScoringSpec) -> float:
    """Minus the cross entropy on held-out groups, at the L2 strength for which it is lowest; see `fit_head`.

    The loss and not the error, which on a few dozen held-out images is the same for many experts.

    Raises:
        TaskError: no group can be held out.
    """
    loss = fit_head(data.features, data.labels, spec.head, groups=data.groups, n_classes=data.n_classes).held_out_loss
    if math.isnan(loss):
        raise TaskError("no group of images can be held out; a linear probe has nothing to look at")
    return -loss
