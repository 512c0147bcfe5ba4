"""Cotangents on the features whose squared gradients sum to the Fisher information of the network.

With head (W [C, D], b), p = softmax(W z + b), the score of class c with respect to the features z is
``a_c = W'(e_c - p)``, and for a weight w of the feature extractor
``F_w = sum_c p_c (dz/dw . a_c)^2`` (Sect. 3, y ~ p_w(y|x)). Each term is the squared gradient of one backward pass
with the cotangent ``sqrt(p_c) a_c``. For two classes both terms are parallel, and one pass with
``sqrt(p_0 p_1) (w_1 - w_0)`` is exact.
"""

from __future__ import annotations

import torch

__all__ = [
    "Head",
    "exact_cotangent",
    "importance",
    "probabilities",
    "relative_importance",
    "sampled_cotangents",
    "sampling_importance",
]

Head = tuple[torch.Tensor, torch.Tensor]
"""(weight ``[C, D]``, bias ``[C]``)"""


def probabilities(head: Head, features: torch.Tensor) -> torch.Tensor:
    """p_w(y|z), ``[N, C]``."""
    return torch.softmax(features @ head[0].T + head[1], dim=1)


def exact_cotangent(head: Head, features: torch.Tensor, c: int) -> torch.Tensor:
    """Term c of the exact sum over y, ``[N, D]``; for two classes the one term, c = 0, that stands for both."""
    weight = head[0]
    p = probabilities(head, features)
    if weight.shape[0] == 2:
        return (p[:, :1] * p[:, 1:]).sqrt() * (weight[1] - weight[0])
    return p[:, c : c + 1].sqrt() * (weight[c] - p @ weight)


def importance(head: Head, features: torch.Tensor) -> torch.Tensor:
    """``lambda[n, c] = p_c ||a_c||^2``, the squared length of each exact cotangent, ``[N, C]``.

    With G = W W': ``||a_c||^2 = G_cc - 2 (G p)_c + p'G p``.
    """
    weight = head[0]
    p = probabilities(head, features)
    gram = weight @ weight.T
    gp = p @ gram
    squared = gram.diagonal()[None] - 2 * gp + (gp * p).sum(1, keepdim=True)
    return p * squared.clamp_min(0.0)


def relative_importance(head: Head, features: torch.Tensor) -> torch.Tensor:
    """What each pair adds to the features' own Fisher information, each feature on its own scale, ``[N, C]`` float64.

    ``rho[n, c] = sum_o p_c a_co^2 |z_no| / F_o`` with ``F_o`` the mean over n of the sum over c of the numerator. A
    feature stands for the last filter that feeds it, and passes a gradient on where it is active. Distances compare
    filters by their ratios [Sect. 3.3], so pairs matter that rule a filter, however small it is.
    """
    weight, z = head[0].double(), features.double()
    p = probabilities((weight, head[1].double()), z)
    mean, squares = p @ weight, weight.square()
    active = z.abs()
    scale = (active * (p @ squares - mean.square()).clamp_min_(0.0)).mean(0)
    active = torch.where(scale > 0, active / scale, 0.0)
    each = active @ squares.T - 2 * (active * mean) @ weight.T + (active * mean.square()).sum(1, keepdim=True)
    return p * each.clamp_min_(0.0)


def sampling_importance(head: Head, features: torch.Tensor) -> torch.Tensor:
    """What pairs are drawn by: half by the length of their cotangent, half by `relative_importance`; ``[N, C]``."""
    absolute, relative = importance(head, features).double(), relative_importance(head, features)
    total = absolute.sum(), relative.sum()
    return absolute / total[0] + relative / total[1] if min(total) > 0 else absolute


def sampled_cotangents(head: Head, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """``sqrt(p_c) a_c`` for one class c per row, ``[N, D]``."""
    weight = head[0]
    p = probabilities(head, features)
    root = p.gather(1, classes[:, None]).sqrt()
    return root * (weight[classes] - p @ weight)
