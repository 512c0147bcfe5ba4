"""score-experts: methods that look at every expert's features, one block (expert, source) at a time."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows._data import Extractor
from flows._keys import SCORE_UNITS, score_key
from flows._score_units import heads_key, score_unit
from flows._stage import Run, StageParams, StageResult, Unit, open_run, run_units, threads
from flows._units import compact_unit
from flows.ingest import library_of
from t2v_core.library import Task
from t2v_core.matrix import wanted_cells

__all__ = ["score_experts"]


def _unit(run: Run, expert: dict[str, Any], source: str, prefix: str, tasks: list[Task]) -> Unit:
    extractor, config = Extractor.model_validate(expert["extractor"]), run.config
    heads = heads_key(run.store, extractor)
    made_of = (config.scoring, config.evaluation.precision, heads)
    key = score_key(expert["name"], expert["digest"], extractor.image_size, prefix, tasks, *made_of)
    payload = {
        "key": key,
        "expert": expert["name"],
        "digest": expert["digest"],
        "extractor": extractor.model_dump(),
        "heads": heads,
        "prefix": prefix,
        "tasks": [t.spec.model_dump(mode="json") for t in tasks],
        "task_fingerprints": [t.fingerprint for t in tasks],
        "scoring": config.scoring.model_dump(mode="json"),
        "evaluation": config.evaluation.model_dump(mode="json"),
    }
    return Unit(f"{expert['name']} on {source}", key, payload)


@flow(name="score-experts", flow_run_name="score-experts[{params.config}]", task_runner=threads(), persist_result=False)
def score_experts(params: StageParams) -> StageResult:
    """Score every expert for every task that it was tried on, by the methods of the config; none: nothing is done."""
    with open_run(params) as run:
        if not run.config.scoring.methods:
            get_run_logger().info("score experts: the config names no methods in scoring.methods; nothing to do")
            return StageResult(stage="score experts")
        sources, experts = run.pointed("sources")["sources"], run.pointed("experts")["experts"]
        library = library_of(run)
        rules, names = run.config.evaluation.meta_tasks, [e["name"] for e in experts]
        wanted = {e: set(t) for e, t in wanted_cells(rules, names, [t.task_id for t in library.tasks]).items()}
        units = [
            _unit(run, expert, name, sources[name], own)
            for name, tasks in library.by_source().items()
            for expert in experts
            if (own := [t for t in tasks if t.task_id in wanted[expert["name"]]])
        ]
        # A unit needs no GPU: the features are in the store since the experts were evaluated.
        result = run_units(run, "score experts", score_unit, units, folder=SCORE_UNITS)
        compact_unit(run.store.url, {"dataset": "transferability"})
        failed = {unit for unit, _ in result.failures}
        run.point("scores", {"blocks": sorted(u.key for u in units if u.label not in failed)})
        return result
