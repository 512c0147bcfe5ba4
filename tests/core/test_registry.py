"""Registries: a collision raises, a miss suggests; and the errors survive a pickle."""

from __future__ import annotations

import pickle

import pytest

from t2v_core import errors
from t2v_core.errors import ConfigError, T2VError, UnknownNameError
from t2v_core.registry import Registry


def registry() -> Registry[int]:
    made: Registry[int] = Registry("probe")
    made.add("resnet34", 34)
    made.add("resnet18", 18)
    return made


def test_looks_up_and_lists_in_order() -> None:
    r = registry()
    assert r["resnet18"] == 18
    assert list(r) == ["resnet34", "resnet18"]
    assert "resnet34" in r
    assert "resnet50" not in r


def test_collision_raises_and_changes_nothing() -> None:
    r = registry()
    with pytest.raises(ConfigError, match="probe 'resnet34' is registered already"):
        r.add("resnet34", 0)
    assert r["resnet34"] == 34


def test_miss_suggests() -> None:
    with pytest.raises(UnknownNameError, match="^unknown probe 'resnet43'; did you mean 'resnet34'\\?$"):
        registry()["resnet43"]
    with pytest.raises(UnknownNameError, match="^unknown probe 'xyz'; known: resnet18, resnet34$"):
        registry()["xyz"]


def test_unknown_name_survives_a_pickle() -> None:
    """Errors cross process borders on Dask."""
    error = UnknownNameError("probe", "resnet43", ["resnet34"])
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(again) == str(error)
    assert (again.kind, again.name, again.known) == ("probe", "resnet43", ["resnet34"])


def test_one_tree_of_errors() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, T2VError)
        if kind is not UnknownNameError:
            assert str(pickle.loads(pickle.dumps(kind("why")))) == "why"  # noqa: S301
    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert defined == set(errors.__all__)
