"""The reference implementation's head recipe, to compare with: stochastic steps on class-balanced batches."""

from __future__ import annotations

import numpy as np
import torch

from t2v_core.errors import ComputeError, TaskError
from t2v_core.heads import HeadFit

__all__ = ["fit_reference_head"]


def fit_reference_head(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int = 10,
    epoch_size: int = 10_000,
    batch_size: int = 64,
    learning_rate: float = 4e-4,
    weight_decay: float = 1e-4,
    seed: int = 0,
    n_classes: int | None = None,
) -> HeadFit:
    """A linear head by Adam from its default initialisation; classes are drawn equally often, with replacement.

    It stops after its epochs wherever it is, so that ``converged`` is False; `t2v_core.heads.fit_head` is the head of
    all other embeddings.

    Args:
        features: ``[N, D]``.
        labels: ``[N]`` integers in ``[0, C)``.
        epochs: of ``epoch_size`` images each.
        epoch_size: images drawn in an epoch.
        batch_size: images in a step.
        learning_rate: of Adam.
        weight_decay: added to the gradient, as Adam's own; reported as ``l2``.
        seed: of the initialisation and the batches; the caller's random state is left as it was.
        n_classes: C, where it is more than the largest label + 1.

    Raises:
        TaskError: fewer than two classes.
        ComputeError: features, or the loss, not finite.
    """
    y = np.asarray(labels, dtype=np.int64)
    counts = np.bincount(y)
    if (counts > 0).sum() < 2:
        raise TaskError(f"a head needs at least two classes, got {int((counts > 0).sum())} in {len(y)} rows")
    x = torch.as_tensor(np.asarray(features, dtype=np.float32))
    if not torch.isfinite(x).all():
        raise ComputeError(f"{int((~torch.isfinite(x)).any(1).sum())} of {len(x)} feature rows are not finite")
    target, balance = torch.as_tensor(y), torch.as_tensor((1.0 / np.maximum(counts, 1))[y])
    steps = 0
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        head = torch.nn.Linear(x.shape[1], n_classes or len(counts))
        optimiser = torch.optim.Adam(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
        for _ in range(epochs):
            drawn = torch.multinomial(balance, epoch_size, replacement=True)
            for start in range(0, epoch_size, batch_size):
                rows = drawn[start : start + batch_size]
                loss = torch.nn.functional.cross_entropy(head(x[rows]), target[rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                steps += 1
    with torch.no_grad():
        log_p = torch.log_softmax(head(x).double(), dim=1)
        final = float(torch.nn.functional.nll_loss(log_p, target))
    if not np.isfinite(final):
        raise ComputeError("the head's loss is not finite; look for huge features")
    nan = float("nan")
    return HeadFit(
        weight=head.weight.detach().double().numpy(),
        bias=head.bias.detach().double().numpy(),
        l2=weight_decay,
        loss=final,
        accuracy=float((log_p.argmax(1) == target).double().mean()),
        held_out_loss=nan,
        held_out_error=nan,
        iterations=steps,
        converged=False,
    )
