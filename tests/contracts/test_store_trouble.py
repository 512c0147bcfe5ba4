"""An object store that is overloaded, slow, silent, or refuses: it is asked again, and then a clear error says what."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from flows._store import Store
from t2v_core.errors import StoreError


@pytest.mark.parametrize(
    ("bucket", "said"),
    [
        ("down", r"SlowDown\]; the object store is overloaded, and stayed so through all retries"),
        ("refused", r"InvalidAccessKeyId\]; the credentials were refused: check the key"),
        ("skewed", r"RequestTimeTooSkewed\]; the clock of this machine and that of the object store differ"),
    ],
)
def test_what_refuses_is_said_in_time(
    s3_bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, bucket: str, said: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    store = Store(f"{s3_bucket(bucket)}/prefix")
    began = time.monotonic()
    for ask in (store.check_writable, lambda: store.read("units/a"), lambda: store.put("units/a", b"x")):
        with pytest.raises(StoreError, match=said) as caught:
            ask()
        assert "AKIA" not in str(caught.value)
    assert time.monotonic() - began < 60


def test_a_slow_store_is_waited_for(s3_bucket: Callable[[str], str]) -> None:
    store = Store(f"{s3_bucket('slow')}/prefix")
    began = time.monotonic()
    assert store.put("units/a", b"slowly")
    assert store.read("units/a") == b"slowly"
    assert not store.put("units/a", b"again")
    assert time.monotonic() - began > 3  # it really was


def test_a_silent_store_does_not_hang_us(s3_bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2V_STORE_TIMEOUT", "0.5")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store(f"{s3_bucket('hung')}/prefix")
    began = time.monotonic()
    with pytest.raises(StoreError, match="said nothing for T2V_STORE_TIMEOUT seconds, at every retry"):
        store.read("units/a")
    assert 4 < time.monotonic() - began < 30  # nine times half a second, and the waits between
