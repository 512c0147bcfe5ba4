"""What a selector answers to bare embeddings, as rows: where it is served, and nothing else of t2v is at hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from t2v_core.selector import Selector

__all__ = ["COLUMNS", "served_answer"]

COLUMNS = {
    "query": "long",
    "rank": "long",
    "expert": "string",
    "distance": "double",
    "probability": "double",
    "predicted_error": "double",
    "low": "double",
    "high": "double",
    "tied": "boolean",
    "reason": "string",
}
"""What comes back for each embedding and expert, with MLflow's types; `Selector.rank` says what they mean."""
_NAMED = 3
"""Tasks of an expert that a reason names."""


def _reason(tasks: tuple[str, ...], distance: float) -> str:
    """What the expert was trained on, and how far that is."""
    if not tasks:
        return "its task is not known"
    more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
    return f"trained on {', '.join(tasks[:_NAMED])}{more}; {distance:.3f} away"


def served_answer(selector: Selector, vectors: np.ndarray, top_k: int, head_error: float = -1.0) -> pd.DataFrame:
    """Rows of `COLUMNS`, ``top_k`` for each embedding.

    Args:
        selector: fitted.
        vectors: ``[N, P]``, or ``[P]``.
        top_k: experts for each.
        head_error: balanced error that the probe's head had on held-out images while embedding; below 0 where it is
            not known: errors are then predicted from the embedding alone.

    Raises:
        DataError: another number of filters.
    """
    tasks = dict(zip(selector.experts, selector.tasks, strict=True))
    ranked = []
    for query, vector in enumerate(np.atleast_2d(np.asarray(vectors))):
        rows = selector.rank(vector, head_error=head_error if head_error >= 0 else float("nan")).head(top_k)
        rows.insert(0, "query", query)
        rows["reason"] = [_reason(tasks[row.expert], row.task_distance) for row in rows.itertuples()]
        ranked.append(rows[list(COLUMNS)])
    return pd.concat(ranked, ignore_index=True)
