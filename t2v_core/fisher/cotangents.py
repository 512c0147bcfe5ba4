"""Cotangents on the features whose squared gradients sum to the Fisher information of the network.

With head (W [C, D], b), p = softmax(W z + b), the score of class c with respect to the features z is
``a_c = W'(e_c - p)``, and for a weight w of the feature extractor
``F_w = sum_c p_c (dz/dw . a_c)^2`` (Sect. 3, y ~ p_w(y|x)). Each term is the squared gradient of one backward pass
with the cotangent ``sqrt(p_c) a_c``. For two classes both terms are parallel, and one pass with
``sqrt(p_0 p_1) (w_1 - w_0)`` is exact.
"""

from __future__ import annotations

import torch

__all__ = ["Head", "exact_cotangent", "importance", "probabilities", "sampled_cotangents"]

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


def sampled_cotangents(head: Head, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """``sqrt(p_c) a_c`` for one class c per row, ``[N, D]``."""
    weight = head[0]
    p = probabilities(head, features)
    root = p.gather(1, classes[:, None]).sqrt()
    return root * (weight[classes] - p @ weight)
