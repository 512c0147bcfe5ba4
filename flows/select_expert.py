"""select-expert: which expert for this folder of images?"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows._query import SelectExpertParams, answer_query

__all__ = ["select_expert"]


@flow(name="select-expert", flow_run_name="select-expert[{params.path}]", persist_result=False)
def select_expert(params: SelectExpertParams) -> list[dict[str, Any]]:
    """Rank the experts for a folder with a subfolder of images per class."""
    answer = answer_query(params)
    rows: list[dict[str, Any]] = answer.ranking.head(params.top_k).to_dict(orient="records")
    create_table_artifact(rows, key="ranking", description=f"{params.path}: {answer.verdict()}")
    return rows
