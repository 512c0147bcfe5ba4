"""Trying an expert on the images of a query: a head on its features, and the error on images held out."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from t2v_core.config import HeadSpec
from t2v_core.errors import TaskError
from t2v_core.features import GivesFeatures, extract_features
from t2v_core.heads import validation_mask
from t2v_core.library import TaskRows
from t2v_core.query import FolderImages
from t2v_core.transfer import evaluate_cell

__all__ = ["Verified", "split_of", "verify_expert"]

TEST_SHARE = 0.4
"""Share of the groups that are held out where the folder does not say; that of `SourceSpec.test_share`."""


@dataclass(frozen=True)
class Verified:
    """What one expert did on the query's held-out images."""

    expert: str
    error: float
    """In the metric of the error matrix that experts were ranked by."""
    low: float
    """Lower end of its 90% interval for this number of test images (Wilson)."""
    high: float
    n_train: int
    n_test: int
    features_seconds: float
    head_seconds: float


def split_of(folder: FolderImages, seed: int = 0) -> np.ndarray:
    """Test rows ``[N]`` bool: the folder's own, else a share of the groups with every class on both sides.

    Raises:
        TaskError: no group can be held out.
    """
    if folder.test.any() and not folder.test.all():
        return folder.test
    held = validation_mask(folder.labels, folder.groups, TEST_SHARE, seed)
    if not held.any():
        raise TaskError(
            f"{folder.path!r} has {len(folder.labels)} images of {len(folder.classes)} classes, of which none can be "
            "held out; add images, two or more of each class, to try experts on them"
        )
    return held


def verify_expert(
    expert: str,
    network: GivesFeatures,
    folder: FolderImages,
    test: np.ndarray,
    head: HeadSpec,
    metric: str,
    batch_size: int = 64,
) -> Verified:
    """Train a head on the expert's features of the train rows and count its errors on the test rows.

    The recipe is that of a cell of the error matrix: features in half precision, L2 strength chosen on groups of the
    train rows.

    Args:
        expert: name.
        network: images to features.
        folder: read with the network's transform.
        test: ``[N]`` bool.
        head: how cells are made.
        metric: ``error`` or ``balanced_error``.
        batch_size: images in a forward pass.

    Raises:
        TaskError: fewer than two classes to train on.
        ComputeError: features that are not finite.
    """
    began = time.perf_counter()
    features = extract_features(network, folder.images, batch_size=batch_size)
    largest = float(np.finfo(np.float16).max)
    features = np.clip(features, -largest, largest).astype(np.float16).astype(np.float32)
    features_seconds = time.perf_counter() - began
    rows = TaskRows(np.arange(len(folder.labels)), folder.labels, test, folder.groups)
    cell = evaluate_cell(expert, folder.path, features, rows, head)
    error = float(getattr(cell, metric))
    interval = binomtest(round(error * cell.n_test), cell.n_test).proportion_ci(0.9, method="wilson")
    return Verified(
        expert,
        error,
        min(float(interval.low), error),
        max(float(interval.high), error),
        cell.n_train,
        cell.n_test,
        features_seconds,
        cell.seconds,
    )
