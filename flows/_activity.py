"""Who works in a store: marks that flows and keepers leave there, so that garbage is never collected under a flow.

A flow uses again what it finds in the store, also what nothing refers to yet; no age tells a collector that. Hence each
side writes its mark first and looks for the other's then, so that of two that come at once at least one sees the other:
a collector gives up, a flow waits. A mark is beaten anew once a minute and is dead when it has not been for a quarter
of an hour, by the store's own clock: whoever died leaves no lock behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flows._store import Store
from t2v_core.errors import StoreError

__all__ = ["FOLDER", "Hold", "Mark", "active", "alone", "marks", "store_clock"]

FOLDER = "activity"
BEAT = 60.0
"""Seconds between two beats of a mark."""
DEAD = 900.0
"""Seconds without a beat after which nobody is taken to be behind a mark."""
LATE = 450.0
"""Seconds without a beat after which one no longer relies on one's own mark."""
PATIENCE = 3600.0
"""Seconds that a flow waits for a collector."""
_ALONE = "alone-"
_SHARED = "flow-"
_CLOCK = "clock-"

_log = logging.getLogger(__name__)
_held: dict[str, tuple[Hold, int]] = {}
_lock = threading.RLock()


@dataclass(frozen=True)
class Mark:
    """A mark as others see it."""

    key: str
    age: float
    """Seconds since its last beat, by the store's clock; below 0 where that clock was set back."""
    said: str
    """What works there, where, since when."""

    @property
    def alone(self) -> bool:
        """Whether it wants the store for itself."""
        return self.key.startswith(f"{FOLDER}/{_ALONE}")

    @property
    def alive(self) -> bool:
        """Whether somebody is behind it."""
        return self.age < DEAD


class Hold:
    """A mark of one's own while it lasts; beaten by a thread."""

    def __init__(self, store: Store, kind: str, what: str) -> None:
        self.store, self.key = store, f"{FOLDER}/{kind}{uuid.uuid4().hex}.json"
        self._content = {"what": what, "host": socket.gethostname(), "pid": os.getpid(), "since": _stamp()}
        self._over, self._lost = threading.Event(), False
        store.replace_json(self.key, self._content)
        self._beaten = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name=f"beat of {what}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                if not self.store.exists(self.key):
                    self._lost = True
                    return
                self.store.replace_json(self.key, self._content)
                self._beaten = time.monotonic()
            except StoreError as error:  # a busy minute is no reason to stop
                _log.warning("%s", error)

    def check(self) -> None:
        """See that nobody can have taken this one for dead.

        Raises:
            StoreError: the mark is gone, or was not beaten for so long that it may have been taken for dead.
        """
        late = time.monotonic() - self._beaten > LATE
        if self._lost or late or not self.store.exists(self.key):
            raise StoreError(
                f"the mark {self.key} in {self.store.url} is gone, or was not renewed for {LATE:.0f} s: this "
                "process stood still so long that others took it for dead; run the same command again"
            )

    def end(self) -> None:
        """Take the mark away."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(StoreError):
            self.store.delete(self.key)


def store_clock(store: Store) -> float:
    """Seconds since 1970 by the store's own clock, from an object that is written and deleted.

    Raises:
        StoreError: the store cannot be written.
    """
    key = f"{FOLDER}/{_CLOCK}{uuid.uuid4().hex}"
    store.put(key, b"")
    try:
        return next(entry.modified for entry in store.entries(FOLDER) if entry.key == key)
    finally:
        store.delete(key)


def marks(store: Store, but: str = "", now: float = 0.0) -> list[Mark]:
    """The marks in a store.

    Args:
        store: whose.
        but: key of one's own mark, which is left out and tells the time.
        now: the store's clock, where one has no mark.
    """
    entries = store.entries(FOLDER)
    now = next((entry.modified for entry in entries if entry.key == but), now) or store_clock(store)
    found = []
    for entry in entries:
        age = now - entry.modified
        if entry.key != but and (age >= DEAD or not entry.key.startswith(f"{FOLDER}/{_CLOCK}")):
            found.append(Mark(entry.key, age, _said(store, entry.key)))
    return found


def _said(store: Store, key: str) -> str:
    try:
        said: dict[str, Any] = store.read_json(key)
        return f"{said['what']} on {said['host']} (process {said['pid']}) since {said['since']}"
    except (StoreError, KeyError, TypeError):  # gone meanwhile, or written by another version
        return key


@contextlib.contextmanager
def active(store: Store, what: str) -> Iterator[None]:
    """Work in a store beside others, while no collector may delete there; nested uses in a process are one.

    Raises:
        StoreError: a collector is at work and does not end, or the mark was lost while this process stood still.
    """
    with _lock:
        hold, users = _held[store.url] if store.url in _held else (_begin(store, what), 0)
        _held[store.url] = hold, users + 1
    try:
        yield
        hold.check()
    finally:
        with _lock:
            hold, users = _held.pop(store.url)
            if users > 1:
                _held[store.url] = hold, users - 1
        if users == 1:
            hold.end()


def _begin(store: Store, what: str) -> Hold:
    deadline = time.monotonic() + PATIENCE
    told = False
    while True:
        hold = Hold(store, _SHARED, what)
        try:
            others = [mark for mark in marks(store, but=hold.key) if mark.alone and mark.alive]
        except BaseException:
            hold.end()
            raise
        if not others:
            return hold
        hold.end()  # or the collector, in its own look around, would give up for one that waits
        if time.monotonic() > deadline:
            raise StoreError(f"{others[0].said} has the store {store.url} for itself; wait for its end, and run again")
        if not told:
            _log.warning("waiting: %s has the store %s for itself", others[0].said, store.url)
            told = True
        time.sleep(2)


@contextlib.contextmanager
def alone(store: Store, what: str) -> Iterator[Hold]:
    """Have a store for oneself: to delete in it, or to change its layout. Marks of the dead are cleared away.

    Raises:
        StoreError: a flow or another keeper is at work.
    """
    hold = Hold(store, _ALONE, what)
    try:
        others = marks(store, but=hold.key)
        living = [mark.said for mark in others if mark.alive]
        if living:
            raise StoreError(
                f"{what} wants the store {store.url} for itself, but there is at work: {'; '.join(living)}. Run it "
                f"again when that has ended (who was killed is taken for dead after {DEAD / 60:.0f} minutes). Nothing "
                "was done"
            )
        for mark in others:
            store.delete(mark.key)
        yield hold
    finally:
        hold.end()


def _stamp() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
