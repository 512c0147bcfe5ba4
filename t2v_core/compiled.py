"""Loops over arrays, compiled when they are first run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["compiled"]


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
