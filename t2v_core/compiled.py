"""Loops over arrays, compiled when they are first run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

__all__ = ["compiled", "on_threads"]


@cache
def compiled(loop: Callable[..., None]) -> Callable[..., None]:
    """The loop as machine code: compiled in a second or two, and kept on disk where a folder for it can be written.

    The compiler is imported where it is needed only. Sums may be taken in another order than is written.
    """
    import numba

    # The numpy error model leaves out the check for division by zero, which would keep a loop from using vectors.
    options: Any = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
    try:
        made: Callable[..., None] = numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        made = numba.njit(**options)(loop)
    return made


@cache
def _helpers(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that stay, of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(threads)


_within = threading.local()


def on_threads(n: int, run: Callable[[slice], None]) -> None:
    """``run`` rows 0 to n in as many parts as torch has threads, side by side; it should release the GIL. Within such a
    part, all rows are one part."""
    threads = torch.get_num_threads()
    bounds = np.linspace(0, n, max(1, min(threads, n)) + 1).astype(int).tolist()
    first, *rest = [slice(a, b) for a, b in pairwise(bounds)]
    if not rest or getattr(_within, "part", False):
        run(slice(0, n))
        return

    def one(part: slice) -> None:
        _within.part = True
        try:
            run(part)
        finally:
            _within.part = False

    helpers = _helpers(os.getpid(), threads - 1)
    others = [helpers.submit(one, part) for part in rest]
    try:
        one(first)
    finally:
        wait(others)
    for other in others:
        other.result()
