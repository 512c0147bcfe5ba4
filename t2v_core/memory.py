"""Keeping freed memory for the next batch, where the C library would give it back to the system."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory(limit: int = 2**30) -> bool:
    """Let this process keep up to ``limit`` bytes that it has freed, for its next allocations.

    A network's layers allocate and free the same few hundred megabytes for every batch. By default glibc returns them
    to the system, which clears each page anew: more than half of the time of features on a CPU. The process looks
    larger, by at most the limit.

    Returns:
        Whether the C library took the settings; only glibc has them, others are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, limit)) and bool(mallopt(_MMAP_THRESHOLD, limit))
