"""Loops over arrays, compiled when they are first run."""

from __future__ import annotations

import os
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


def on_threads(n: int, run: Callable[[slice], None]) -> None:
    """``run`` rows 0 to n in as many parts as torch has threads, side by side; it should release the GIL."""
    threads = max(1, min(torch.get_num_threads(), n))
    if threads == 1:
        run(slice(0, n))
        return
    bounds = np.linspace(0, n, threads + 1).astype(int).tolist()
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    others = [_helpers(os.getpid(), threads - 1).submit(run, part) for part in parts[1:]]
    try:
        run(parts[0])
    finally:
        wait(others)
    for other in others:
        other.result()
