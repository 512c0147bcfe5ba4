"""Fingerprints: stable, and as sharp as what they are of."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from t2v_core import fingerprints
from t2v_core.config import HeadSpec
from t2v_core.fingerprints import digest_bytes, fingerprint, readable


def test_form() -> None:
    assert digest_bytes(b"abc") == hashlib.sha256(b"abc").hexdigest()[:16]
    assert len(fingerprint()) == 16


def test_key_order_and_kind_of_sequence_do_not_matter() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": (1, 2), "a": 1})
    assert fingerprint(HeadSpec()) == fingerprint(HeadSpec().model_dump())


def test_everything_else_matters() -> None:
    things = [
        (), (1,), ("1",), (1.5,), (None,), (False,), ([],), ([1],), ([[1]],), ([1, 2],), ([2, 1],), (1, 2),
        ({"a": 1},), ({"a": 2},), ({"b": 1},), (HeadSpec(),), (HeadSpec(seed=1),), (HeadSpec(l2=(1.0,)),),
    ]  # fmt: skip
    assert len({fingerprint(*t) for t in things}) == len(things)


def test_schema_version_is_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint("x")
    monkeypatch.setattr(fingerprints, "SCHEMA_VERSION", fingerprints.SCHEMA_VERSION + 1)
    assert fingerprint("x") != before


def test_same_in_another_process() -> None:
    code = "from t2v_core.fingerprints import fingerprint; print(fingerprint({'b': 'é', 'a': [1.5, None]}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == fingerprint({"a": [1.5, None], "b": "é"})


def test_objects_have_no_fingerprint() -> None:
    with pytest.raises(TypeError, match="cannot fingerprint object"):
        fingerprint({"a": [object()]})


def test_readable() -> None:
    assert readable("openmoji/category=food drink/é!") == "openmoji__category=food-drink__"
    assert readable("../x") == "..__x"
