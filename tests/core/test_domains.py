"""Domain embeddings against the moments written out."""

from __future__ import annotations

import numpy as np
import pytest

from t2v_core.distances import cosine_matrix
from t2v_core.domains import domain_embedding
from t2v_core.errors import ComputeError, ConfigError

ROWS = np.random.default_rng(0).normal(0.3, 1.0, (1300, 7))
OTHER = np.random.default_rng(1).normal(-0.2, [1, 2, 1, 1, 3, 1, 1], (600, 7))


def moment(rows: np.ndarray) -> np.ndarray:
    return sum(np.outer(r, r) for r in rows) / len(rows)


def test_moments_by_their_definition() -> None:
    assert domain_embedding(ROWS) == pytest.approx(ROWS.mean(0))
    assert domain_embedding(ROWS, "diagonal") == pytest.approx(np.diag(moment(ROWS)))


def test_full_has_the_inner_products_of_the_matrices() -> None:
    a, b = (domain_embedding(x, "full") for x in (ROWS, OTHER))
    assert len(a) == 28
    assert a @ b == pytest.approx((moment(ROWS) * moment(OTHER)).sum())


def test_sketches_estimate_the_same_inner_products() -> None:
    wanted = (moment(ROWS) * moment(OTHER)).sum()
    got = [domain_embedding(ROWS, "sketch", seed=s) @ domain_embedding(OTHER, "sketch", seed=s) for s in range(40)]
    assert np.mean(got) == pytest.approx(wanted, rel=0.05)
    assert np.std(got) < 0.2 * wanted


def test_sketch_keeps_near_domains_near() -> None:
    halves = [domain_embedding(x, "sketch") for x in (ROWS[::2], ROWS[1::2], OTHER)]
    d = cosine_matrix(np.stack(halves), np.stack(halves))
    assert d[0, 1] < d[0, 2] / 5


@pytest.mark.parametrize("rows", [np.empty((0, 3)), np.full((2, 3), np.nan), np.zeros(4)])
def test_no_or_bad_rows(rows: np.ndarray) -> None:
    with pytest.raises(ComputeError, match="wanted finite"):
        domain_embedding(rows)


def test_too_large_a_matrix_and_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="take kind='sketch'"):
        domain_embedding(np.ones((2, 5000)), "full")
    with pytest.raises(ConfigError, match="wanted mean, diagonal"):
        domain_embedding(np.ones((2, 3)), "median")  # type: ignore[arg-type]
    assert domain_embedding(np.ones((2, 5000)), "sketch", size=16).shape == (16,)
