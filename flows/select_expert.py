"""select-expert: which expert for this folder of images?"""

from __future__ import annotations

import json
from typing import Any

from prefect import flow

from flows._pages import show_markdown, show_table
from flows._query import Answer, SelectExpertParams, answer_query

__all__ = ["select_expert"]


def _markdown(path: str, answer: Answer) -> list[str]:
    lines = [f"# Experts for `{path}`", "", answer.verdict(), "", "Nearest tasks of the library:", ""]
    lines += [f"- {reason}" for reason in answer.reasons()]
    if answer.verified:
        predicted = answer.ranking.set_index("expert")["predicted_error"]
        lines += ["", "| tried | error | 90% interval | predicted | seconds |", "|---|---|---|---|---|"]
        lines += [
            f"| {v.expert} | {v.error:.1%} | {v.low:.1%} to {v.high:.1%} | {predicted[v.expert]:.1%} "
            f"| {v.features_seconds + v.head_seconds:.1f} |"
            for v in answer.verified
        ]
    lines += [f"- {expert} could not be tried: {reason}" for expert, reason in answer.refused]
    return [*lines, "", answer.calibration()]


@flow(name="select-expert", flow_run_name="select-expert[{params.path}]", persist_result=False)
def select_expert(params: SelectExpertParams) -> list[dict[str, Any]]:
    """Rank the experts for a folder with a subfolder of images per class."""
    answer = answer_query(params)
    # Through JSON, which has no NaN: what is not known is null.
    rows: list[dict[str, Any]] = json.loads(answer.ranking.head(params.top_k).to_json(orient="records"))
    show_table(rows, "ranking", f"{params.path}: {answer.verdict()}")
    show_markdown(_markdown(params.path, answer), "selection", "Which expert, and why")
    return rows
