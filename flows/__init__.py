"""The flows: thin stages over `t2v_core`, and the only code that knows a store, a cluster or a tracker.

`select_experts` answers a query from Python: ``from flows import select_experts``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows._query import Answer, select_experts

__all__ = ["Answer", "select_experts"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: a worker that runs units needs none of it."""
    if name in __all__:
        from flows import _query

        return getattr(_query, name)
    raise AttributeError(f"module 'flows' has no attribute {name!r}")
