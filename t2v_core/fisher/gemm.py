"""Batched matrix products ``a b'`` at the speed of the machine.

PyTorch's `bmm` on a CPU is MKL's, which on processors of other makers than its own runs at half of what they can do;
the oneDNN that the convolutions use runs at full speed. It is reached through an operator that PyTorch's own compiler
emits; where that is missing, or for small products, `bmm` serves.
"""

from __future__ import annotations

import torch

__all__ = ["product_transposed"]

_SMALL = 1 << 18
"""Multiplications of one product below which the call costs more than it saves."""


def _works() -> bool:
    try:
        a = torch.eye(2)
        return bool(torch.equal(torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], ""), a))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


_ONEDNN = _works()


def product_transposed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a b'`` for a ``[N, M, K]`` and b ``[N, L, K]``: ``[N, M, L]``."""
    n, m, k = a.shape
    length = b.shape[1]
    if not _ONEDNN or a.device.type != "cpu" or a.dtype != torch.float32 or m * k * length < _SMALL:
        return torch.bmm(a, b.transpose(1, 2))
    a, b = a.contiguous(), b.contiguous()
    out = torch.empty(n, m, length)
    for i in range(n):
        out[i] = torch.ops.mkldnn._linear_pointwise(a[i], b[i], None, "none", [], "")
    return out
