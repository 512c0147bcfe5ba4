"""score-experts: methods that look at every expert's features, one block (expert, source) at a time."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows._blocks import block_payload, wanted_blocks
from flows._data import Extractor
from flows._keys import SCORE_UNITS, score_key
from flows._score_units import heads_key, score_unit
from flows._stage import Run, StageParams, StageResult, Unit, open_run, run_units, threads
from flows._units import compact_unit
from t2v_core.library import Task

__all__ = ["score_experts"]


def _unit(run: Run, expert: dict[str, Any], source: str, prefix: str, tasks: list[Task]) -> Unit:
    extractor, config = Extractor.model_validate(expert["extractor"]), run.config
    heads = heads_key(run.store, extractor)
    made_of = (config.scoring, config.evaluation.precision, heads)
    key = score_key(expert["name"], expert["digest"], extractor.image_size, prefix, tasks, *made_of)
    payload = block_payload(run, key, expert, prefix, tasks)
    payload |= {"heads": heads, "scoring": config.scoring.model_dump(mode="json")}
    return Unit(f"{expert['name']} on {source}", key, payload)


@flow(name="score-experts", flow_run_name="score-experts[{params.config}]", task_runner=threads(), persist_result=False)
def score_experts(params: StageParams) -> StageResult:
    """Score every expert for every task that it was tried on, by the methods of the config; none: nothing is done."""
    with open_run(params) as run:
        if not run.config.scoring.methods:
            get_run_logger().info("score experts: the config names no methods in scoring.methods; nothing to do")
            return StageResult(stage="score experts")
        units = [_unit(run, *block) for block in wanted_blocks(run)]
        # A unit needs no GPU: the features are in the store since the experts were evaluated.
        result = run_units(run, "score experts", score_unit, units, folder=SCORE_UNITS)
        compact_unit(run.store.url, {"dataset": "transferability"})
        failed = {unit for unit, _ in result.failures}
        run.point("scores", {"blocks": sorted(u.key for u in units if u.label not in failed)})
        return result
