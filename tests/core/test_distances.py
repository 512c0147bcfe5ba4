"""Distances against hand-worked cases and against the formulas as the paper writes them."""

from __future__ import annotations

from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
import torch
from oracles import cosine_distance_naive

from t2v_core.distances import (
    ALPHA,
    EXACT_BELOW,
    _plain,
    asymmetric_distance,
    cosine_matrix,
    distance_matrix,
    symmetric_distance,
    symmetric_matrix,
    taxonomic_distance,
    taxonomic_matrix,
    transfer_distance,
)
from t2v_core.errors import ConfigError, DataError, UnknownNameError
from t2v_core.pairs import pair_matrix


@dataclass
class Fake:
    """What the distances want of a `TaskEmbedding`."""

    vector: np.ndarray
    trivial: np.ndarray
    domain: np.ndarray
    probe: str = "p:1"


def vectors(n: int, p: int, seed: int = 0) -> np.ndarray:
    """As heavy-tailed as Fisher values are."""
    return np.exp(2 * np.random.default_rng(seed).normal(size=(n, p)))


def exact_distance(a: np.ndarray, b: np.ndarray) -> float:
    """In 60 digits."""
    with mpmath.workdps(60):
        pairs = [(mpmath.mpf(float(x)), mpmath.mpf(float(y))) for x, y in zip(a, b, strict=True)]
        u, v = [x / (x + y) for x, y in pairs], [y / (x + y) for x, y in pairs]
        uv, uu, vv = mpmath.fdot(u, v), mpmath.fdot(u, u), mpmath.fdot(v, v)
        return float(1 - uv / mpmath.sqrt(uu * vv))


def test_two_filters_by_hand() -> None:
    """u = (1/4, 3/4), v = (3/4, 1/4): cos = (6/16) / (10/16)."""
    assert symmetric_distance([1, 3], [3, 1]) == pytest.approx(0.4, abs=1e-15)


def test_three_filters_by_hand() -> None:
    """u = (1/2, 1/4, 1/2), v = (1/2, 3/4, 1/2): cos = (11/16) / (sqrt(9 17) / 16)."""
    assert symmetric_distance([1, 1, 2], [1, 3, 2]) == pytest.approx(1 - 11 / np.sqrt(153), abs=1e-15)


def test_asymmetric_by_hand() -> None:
    """d_sym((1, 3), (1, 1)): u = (1/2, 3/4), v = (1/2, 1/4), cos = 7 / sqrt(65). Only the source's complexity counts."""
    source, target, t0 = np.array([1.0, 3]), np.array([3.0, 1]), np.array([1.0, 1])
    complexity = 1 - 7 / np.sqrt(65)
    assert ALPHA == 0.15
    assert asymmetric_distance(source, target, trivial=t0) == pytest.approx(0.4 - 0.15 * complexity, abs=1e-15)
    assert asymmetric_distance(source, target, 2.0, trivial=t0) == pytest.approx(0.4 - 2 * complexity, abs=1e-15)
    lopsided = np.array([1.0, 30])
    there, back = (asymmetric_distance(a, b, trivial=t0) for a, b in ((lopsided, target), (target, lopsided)))
    both = symmetric_distance(lopsided, target)
    assert there == pytest.approx(both - 0.15 * symmetric_distance(lopsided, t0))
    assert back == pytest.approx(both - 0.15 * symmetric_distance(target, t0))
    assert there < back  # the complex source is nearer


def test_equal_to_the_formula_of_the_paper() -> None:
    a, b = vectors(12, 300), vectors(7, 300, 1)
    wanted = [[cosine_distance_naive(x, y) for y in b] for x in a]
    assert np.abs(symmetric_matrix(a, b) - wanted).max() < 1e-12


@pytest.mark.parametrize("nearness", [1e-2, 1e-4, 1e-6])
def test_near_embeddings_keep_their_relative_precision(nearness: float) -> None:
    """1 - cos cancels to nothing here: at 1e-6 the distance is 1e-13."""
    [a] = vectors(1, 200)
    b = a * (1 + nearness * np.random.default_rng(1).normal(size=200))
    wanted = exact_distance(a, b)
    assert wanted < nearness**2
    assert symmetric_distance(a, b) == pytest.approx(wanted, rel=1e-6)


def test_identity_symmetry_scale_and_range() -> None:
    a, b = vectors(2, 50)
    assert symmetric_distance(a, a) == 0
    assert symmetric_distance(a, b) == pytest.approx(symmetric_distance(b, a), rel=1e-14)
    assert symmetric_distance(3e-9 * a, 3e-9 * b) == pytest.approx(symmetric_distance(a, b), rel=1e-10)
    d = symmetric_matrix(vectors(30, 20), vectors(30, 20, 1))
    assert ((d >= 0) & (d <= 1)).all()
    assert symmetric_distance([1, 0], [0, 5]) == 1  # no filter is shared
    assert symmetric_distance([0, 0], [1, 5]) == 1


def test_filters_that_are_zero_in_both_are_left_out() -> None:
    a, b = np.array([1.0, 0, 1, 0, 2]), np.array([1.0, 0, 3, 0, 2])
    assert symmetric_distance(a, b) == pytest.approx(1 - 11 / np.sqrt(153), abs=1e-15)
    # Zero in one of them only: u = (1/2, 0), v = (1/2, 1).
    assert symmetric_distance([2, 0], [2, 7]) == pytest.approx(1 - 0.25 / np.sqrt(0.25 * 1.25), abs=1e-15)


def test_matrix_is_the_pairs() -> None:
    v, t0 = vectors(6, 40), vectors(1, 40, 9)[0]
    symmetric, asymmetric = distance_matrix(v), distance_matrix(v, "asymmetric", trivial=t0, alpha=0.3)
    for i in range(6):
        for j in range(6):
            assert symmetric[i, j] == pytest.approx(symmetric_distance(v[i], v[j]), rel=1e-12, abs=1e-15)
            # Row = source, column = target.
            assert asymmetric[i, j] == pytest.approx(asymmetric_distance(v[i], v[j], 0.3, trivial=t0), abs=1e-14)
    assert np.array_equal(symmetric, symmetric.T)
    assert not np.allclose(asymmetric, asymmetric.T, atol=1e-3)


def test_embeddings_bring_their_own_trivial_and_domain() -> None:
    t0, v = vectors(1, 10, 5)[0], vectors(3, 10)
    domains = np.array([[1.0, 0], [1, 1], [0, -2]])
    made = [Fake(x.astype(np.float32), t0, d) for x, d in zip(v, domains, strict=True)]
    plain = np.stack([m.vector for m in made])
    assert np.array_equal(distance_matrix(made), distance_matrix(plain))
    assert np.array_equal(distance_matrix(made, "asymmetric"), distance_matrix(plain, "asymmetric", trivial=t0))
    assert asymmetric_distance(made[0], made[1]) == asymmetric_distance(plain[0], plain[1], trivial=t0)
    wanted = [[0, 1 - np.sqrt(0.5), 1], [1 - np.sqrt(0.5), 0, 1 + np.sqrt(0.5)], [1, 1 + np.sqrt(0.5), 0]]
    assert distance_matrix(made, "domain") == pytest.approx(np.array(wanted), abs=1e-15)
    assert cosine_matrix(domains[:1], domains) == pytest.approx(np.array(wanted[:1]), abs=1e-15)


def test_taxonomic_by_hand() -> None:
    sparrow, eagle, cat = ("animal", "bird", "sparrow"), ("animal", "bird", "eagle"), ("animal", "mammal", "cat")
    rose = ("plant", "rosales", "rose")
    assert taxonomic_distance([sparrow, cat], [eagle]) == 1
    assert taxonomic_distance([sparrow], [cat]) == 2
    assert taxonomic_distance([sparrow], [rose]) == 3
    assert taxonomic_distance([sparrow, eagle], [rose, sparrow]) == 0
    homonym = ("plant", "bird", "sparrow")
    assert taxonomic_distance([sparrow], [homonym]) == 3
    with pytest.raises(DataError, match=r"lineages of lengths \[2, 3\]"):
        taxonomic_distance([sparrow], [("animal", "bird")])
    with pytest.raises(DataError):
        taxonomic_distance([], [sparrow])


def test_transfer_by_hand() -> None:
    """(mean(0.3, 0.5) - 0.2) / 0.2; negative where transfer helps."""
    assert transfer_distance([0.3, 0.5], [0.2, 0.1, 0.3]) == pytest.approx(1.0)
    assert transfer_distance([0.1], [0.4]) == pytest.approx(-0.75)
    for transferred, direct in (([], [0.1]), ([0.1], []), ([0.1], [0.0])):
        with pytest.raises(DataError):
            transfer_distance(transferred, direct)


def test_different_probes_do_not_compare() -> None:
    with pytest.raises(DataError, match="embeddings of 3 and 4 filters; only embeddings of the same probe compare"):
        symmetric_distance(np.ones(3), np.ones(4))
    with pytest.raises(DataError, match="3 and 4 filters"):
        asymmetric_distance(np.ones(3), np.ones(3), trivial=np.ones(4))


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_matrix_of_different_probes(kind: str) -> None:
    with pytest.raises(DataError, match="same probe"):
        distance_matrix([np.ones(3), np.ones(4)], kind, trivial=np.ones(3))


def test_different_probes_of_one_length_do_not_compare() -> None:
    a, b = (Fake(np.ones(3), np.ones(3), np.ones(2), probe=p) for p in ("resnet34:1", "resnet34:2"))
    with pytest.raises(DataError, match="probe"):
        symmetric_distance(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e-9])
def test_values_that_no_fisher_has(bad: float) -> None:
    for a, b in (([1, bad], [1, 1]), ([1, 1], [1, bad])):
        with pytest.raises(DataError, match="negative or not finite"):
            symmetric_distance(a, b)


def test_other_errors() -> None:
    with pytest.raises(DataError, match="zero in every filter"):
        symmetric_distance([0, 0], [0, 0])
    with pytest.raises(DataError, match=r"shape \(2, 2\); wanted one vector"):
        symmetric_distance(np.ones((2, 2)), np.ones(2))
    with pytest.raises(ConfigError, match="needs trivial="):
        asymmetric_distance([1, 2], [2, 1])
    with pytest.raises(ConfigError, match="needs trivial="):
        distance_matrix(vectors(3, 4), "asymmetric")
    with pytest.raises(UnknownNameError, match="did you mean 'symmetric'"):
        distance_matrix(vectors(3, 4), "symetric")


def test_domain_embeddings_of_different_probes_do_not_compare() -> None:
    with pytest.raises(DataError, match="same probe"):
        distance_matrix([np.ones(3), np.ones(4)], "domain")
    with pytest.raises(DataError, match="probes resnet34:1, resnet34:2"):
        distance_matrix(
            [Fake(np.ones(3), np.ones(3), np.ones(2), probe=p) for p in ("resnet34:1", "resnet34:2")], "domain"
        )


def lognormal(n: int, p: int, spread: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (1e-6 * np.exp(rng.normal(0, 2, p) + rng.normal(0, spread, (n, p)))).astype(np.float32)


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    off = wanted > 0
    assert np.array_equal(got[~off] < 1e-12, np.ones((~off).sum(), bool))
    return float(np.abs(got[off] / wanted[off] - 1).max())


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("zeros", ["none", "some in each", "some in all"])
def test_compiled_pairs_are_the_plain_ones(spread: float, zeros: str) -> None:
    x = lognormal(37, 1100, spread)
    rng = np.random.default_rng(1)
    x[1] = x[0] * (1 + 1e-4 * rng.random(1100))
    x[3] = 50 * x[2] * (1 + 1e-2 * rng.random(1100))  # near in direction, not in size
    if zeros == "some in each":
        x[rng.random(x.shape) < 0.2] = 0
    elif zeros == "some in all":
        x[:, rng.random(1100) < 0.3] = 0
    wanted = _plain(x, x)
    np.fill_diagonal(wanted, 0.0)
    got = pair_matrix(x, None)
    assert np.array_equal(got, got.T)
    assert relative(got, wanted) < 1e-7  # the plain formula does not centre
    assert relative(pair_matrix(x[:5], x[5:]), _plain(x[:5], x[5:])) < 1e-7
    assert np.array_equal(pair_matrix(x.astype(np.float64), None), got)  # float32 is only how they are stored


def test_compiled_pairs_of_numbers_that_float32_does_not_hold() -> None:
    x = lognormal(5, 300).astype(np.float64)
    for scale in (1e-60, 1e60):
        assert relative(pair_matrix(scale * x, None), np.where(np.eye(5), 0, _plain(x, x))) < 1e-9
    small = (x * 1e-30).astype(np.float32)
    assert relative(pair_matrix(small, None), np.where(np.eye(5), 0, _plain(small, small))) < 1e-9


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_pairs_take_the_compiled_loop(threads: int) -> None:
    x = lognormal(95, 6000)
    assert len(x) ** 2 * x.shape[1] > EXACT_BELOW
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        d = distance_matrix(x)
        asymmetric = distance_matrix(x, "asymmetric", trivial=x[3])
    finally:
        torch.set_num_threads(before)
    wanted = _plain(x[:7], x)
    assert relative(d[:7], np.where(np.eye(7, 95), 0, wanted)) < 1e-9
    assert np.abs(asymmetric[:7] - (wanted - 0.15 * _plain(x[:7], x[3:4]))).max() < 1e-12
    assert np.array_equal(d, pair_matrix(x, None))


def test_few_pairs_are_float64_rows_to_the_bit() -> None:
    x = lognormal(90, 6000)
    assert len(x) ** 2 * x.shape[1] < EXACT_BELOW
    wanted = _plain(x, x)
    assert np.array_equal(symmetric_matrix(x, x), wanted)
    assert np.array_equal(distance_matrix(x), (wanted + wanted.T) / 2)
    assert not np.array_equal(wanted, pair_matrix(x, None))  # or the above would show nothing


def test_two_zero_rows_among_many() -> None:
    x = lognormal(95, 6000)
    x[[4, 50]] = 0
    with pytest.raises(DataError, match="zero in every filter"):
        distance_matrix(x)


def centred(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """d_sym in long double, u of the smaller embedding: `_plain` itself loses digits where sizes differ by 10^3 and more."""
    out = np.empty((len(a), len(b)))
    for i, x in enumerate(a.astype(np.longdouble)):
        for j, y in enumerate(b.astype(np.longdouble)):
            live = x + y > 0
            u, v = x[live] / (x + y)[live], y[live] / (x + y)[live]
            w = u if u.sum() < v.sum() else v
            uu, vv, uv = (u * u).sum(), (v * v).sum(), (u * v).sum()
            r = np.sqrt(uu * vv)
            out[i, j] = len(u) * ((w - w.mean()) ** 2).sum() / (r * (r + uv)) if r > 0 else 1
    return out


def test_the_reference_in_long_double_is_right() -> None:
    a, b = lognormal(2, 60).astype(np.float64)
    for scale in (1.0, 1e6):
        assert centred(a[None], scale * b[None])[0, 0] == pytest.approx(exact_distance(a, scale * b), rel=1e-13)


@pytest.mark.parametrize("decades", [1, 2, 4, 5])
@pytest.mark.parametrize("spread", [0.1, 0.3, 1.0])
def test_compiled_pairs_of_embeddings_of_different_sizes(decades: int, spread: float) -> None:
    """A small u keeps its digits; one minus a u near 1 does not."""
    sizes = 10 ** np.random.default_rng(2).uniform(-decades, decades, (14, 1))
    x = (lognormal(14, 1100, spread) * sizes).astype(np.float32)
    wanted = np.where(np.eye(14), 0, centred(x, x))
    assert relative(pair_matrix(x, None), wanted) < 1e-12
    assert relative(pair_matrix(x[:5], x[5:]), wanted[:5, 5:]) < 1e-12


def test_compiled_pairs_of_two_values() -> None:
    """Here roundings are the same in many filters and do not average out."""
    rng = np.random.default_rng(3)
    x = (rng.choice([1.0, 1.1], (30, 2000)) * rng.uniform(0.1, 10, (30, 1))).astype(np.float32)
    assert relative(pair_matrix(x, None), np.where(np.eye(30), 0, centred(x, x))) < 1e-9


@pytest.mark.parametrize("share", [0.01, 0.02, 0.04])
def test_compiled_pairs_with_a_few_filters_far_apart(share: float) -> None:
    """The geometric means are then a poor centre."""
    a, rng = np.full((8, 3000), 1e-29), np.random.default_rng(5)
    b = a * np.exp(rng.normal(0, 0.1, (8, 3000)))
    b[rng.random(b.shape) < share] = 1e29
    a, b = a.astype(np.float32), b.astype(np.float32)
    assert relative(pair_matrix(a, b), centred(a, b)) < 1e-9


@pytest.mark.parametrize("decades", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_compiled_pairs_whose_zeros_mislead_the_choice_of_the_smaller(decades: int, share: float) -> None:
    """a is larger, but tiny where b is zero: its geometric mean is the smaller one. In float32 that cost 2%."""
    rng = np.random.default_rng(6)
    b = np.exp(rng.normal(0, 0.3, (2, 2000)))
    a = b * np.exp(rng.normal(0, 0.3, b.shape)) * 10.0**decades
    hidden = rng.random(2000) < share
    a[:, hidden] *= 1e-25
    b[:, hidden] = 0
    a, b = a.astype(np.float32), b.astype(np.float32)
    assert relative(pair_matrix(a, b), centred(a, b)) < 1e-8
    assert relative(pair_matrix(b, a), centred(b, a)) < 1e-8


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_compiled_pairs_with_an_embedding_of_zeros_or_of_one_filter(kind: type) -> None:
    x = lognormal(20, 1100).astype(kind)
    x[:, np.random.default_rng(4).random(1100) < 0.9] = 0
    [live] = x[0].nonzero()
    zeros, single = np.zeros((1, 1100), kind), np.zeros((1, 1100), kind)
    single[0, live[0]] = 1e-6
    assert (pair_matrix(zeros, x) == 1).all()
    assert (pair_matrix(x, zeros) == 1).all()
    d = pair_matrix(single, x)
    assert relative(d, centred(single, x)) < 1e-12
    assert (d <= 1).all()


def test_one_zero_row_among_many() -> None:
    x = lognormal(95, 6000)
    x[4] = 0
    with pytest.raises(DataError, match="zero in every filter"):
        distance_matrix(x)


AVES = ("animal", "chordate", "bird")


def test_taxonomic_matrix_by_hand() -> None:
    sparrow, crow = (*AVES, "perching", "sparrow"), (*AVES, "perching", "crow")
    duck, cat = (*AVES, "fowl", "duck"), ("animal", "chordate", "mammal", "carnivore", "cat")
    tasks = [[sparrow, crow], [sparrow, ()], [crow], [duck, cat], [cat], [()]]
    wanted = [
        [0, 0, 0, 2, 3],
        [0, 0, 1, 2, 3],
        [0, 1, 0, 2, 3],
        [2, 2, 2, 0, 0],
        [3, 3, 3, 0, 0],
    ]
    got = taxonomic_matrix(tasks)
    np.testing.assert_array_equal(got[:5, :5], wanted)
    assert np.isnan(got[5]).all()
    assert np.isnan(got[:, 5]).all()


def test_taxonomic_matrix_is_the_pairwise_distance() -> None:
    rng = np.random.default_rng(0)
    tasks = [[tuple(f"{d}{rng.integers(2)}" for d in range(4)) for _ in range(rng.integers(1, 4))] for _ in range(12)]
    # One name, one place: the name holds its whole path.
    tasks = [[tuple("/".join(c[: d + 1]) for d in range(4)) for c in classes] for classes in tasks]
    got = taxonomic_matrix(tasks)
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks):
            assert got[i, j] == taxonomic_distance(a, b)


def test_taxonomies_meet_by_name() -> None:
    """A bird archive whose lineages begin at the order, beside a taxonomy of all that lives."""
    crow_here, crow_there = ("perching", "crow"), (*AVES, "perching", "crow")
    got = taxonomic_matrix([[crow_here], [crow_there], [("perching", "jay")], [(*AVES, "fowl", "duck")]])
    np.testing.assert_array_equal(got[0], [0, 0, 1, 2])
    apart = taxonomic_matrix([[("perching", "crow")], [("spoon", "silver", "small")]])
    assert apart[0, 1] == 3  # no common ancestor: all levels of the longer one
    with pytest.raises(DataError, match="stands below itself"):
        taxonomic_matrix([[("a", "b", "c")], [("b", "a", "d")]])
