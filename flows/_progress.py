"""Progress of stages, for the terminal and for the Prefect page."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

__all__ = ["Listener", "Progress", "listen", "terminal_listener"]

Listener = Callable[[str, int, int, float], None]
"""Called with (stage, units done, units in all, seconds since the stage began)."""

_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Have ``listener`` told of all progress in this process; returns what ends it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


class Progress:
    """One stage's progress."""

    def __init__(self, stage: str, total: int) -> None:
        self.stage, self.total, self.done = stage, total, 0
        self.began = time.perf_counter()
        self._lock = threading.Lock()
        self._tell()

    def _tell(self) -> None:
        for listener in list(_listeners):
            listener(self.stage, self.done, self.total, time.perf_counter() - self.began)

    def advance(self) -> None:
        """One unit more is done."""
        with self._lock:
            self.done += 1
            self._tell()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def terminal_listener(stages: list[str]) -> Listener:
    """Lines such as ``[3/8] embed tasks  24/75, 1 min 05 s left``, rewritten in place on a terminal.

    Elsewhere (a log file) a line is printed when a stage begins and ends, and every ten seconds between.
    """
    in_place = sys.stderr.isatty()
    last = {"time": 0.0}

    def told(stage: str, done: int, total: int, seconds: float) -> None:
        now = time.perf_counter()
        edge = done in (0, total)
        if not edge and now - last["time"] < (0.2 if in_place else 10):
            return
        last["time"] = now
        number = f"[{stages.index(stage) + 1}/{len(stages)}] " if stage in stages else ""
        if total == 0:
            text = f"{number}{stage}: nothing to do, all found in the store"
        elif done == total:
            text = f"{number}{stage}: {total} of {total} in {_duration(seconds)}"
        elif done == 0:
            text = f"{number}{stage}: 0 of {total}"
        else:
            text = f"{number}{stage}: {done} of {total}, {_duration(seconds / done * (total - done))} left"
        end = "\n" if not in_place or done == total else ""
        print(f"\r\x1b[2K{text}" if in_place else text, end=end, file=sys.stderr, flush=True)

    return told
