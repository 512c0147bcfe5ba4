"""evaluate-experts: the model x task error matrix, one block (expert, source) at a time."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows._data import Extractor, source_record
from flows._features import blocks
from flows._keys import BLOCK_UNITS, block_key
from flows._stage import Run, StageParams, StageResult, Unit, features_units, open_run, run_units, threads
from flows._units import compact_unit, evaluate_unit, features_unit
from flows.ingest import library_of
from t2v_core.library import Task
from t2v_core.matrix import wanted_cells

__all__ = ["evaluate_experts"]


def _large_features(
    run: Run, pairs: list[tuple[dict[str, Any], str, list[Task]]], sources: dict[str, str]
) -> list[Unit]:
    """Features of experts on sources of several chunks, a unit each; a block makes those of smaller ones as it goes."""
    units = []
    for expert, name, _ in pairs:
        extractor, spec = Extractor.model_validate(expert["extractor"]), run.config.evaluation
        label, of = f"features of {expert['name']} on {name}", (expert["digest"], sources[name])
        parts = features_units(run, label, extractor, *of, spec.batch_size, spec.precision)
        units += parts if len(parts) > 1 else []
    return units


def _unit(run: Run, expert: dict[str, Any], source: str, prefix: str, tasks: list[Task], part: str) -> Unit:
    extractor = Extractor.model_validate(expert["extractor"])
    key = block_key(expert["name"], expert["digest"], extractor.image_size, prefix, tasks, run.config.evaluation)
    payload = {
        "key": key,
        "expert": expert["name"],
        "digest": expert["digest"],
        "extractor": extractor.model_dump(),
        "prefix": prefix,
        "tasks": [t.spec.model_dump(mode="json") for t in tasks],
        "task_fingerprints": [t.fingerprint for t in tasks],
        "evaluation": run.config.evaluation.model_dump(mode="json"),
    }
    return Unit(f"{expert['name']} on {source}{part}", key, payload)


@flow(
    name="evaluate-experts",
    flow_run_name="evaluate-experts[{params.config}]",
    task_runner=threads(),
    persist_result=False,
)
def evaluate_experts(params: StageParams) -> StageResult:
    """Features of each expert on each source, once; then a head and a test error for every task of the source."""
    with open_run(params) as run:
        sources, experts = run.pointed("sources")["sources"], run.pointed("experts")["experts"]
        library = library_of(run)
        by_source = library.by_source()
        rules, names = run.config.evaluation.meta_tasks, [e["name"] for e in experts]
        wanted = {e: set(t) for e, t in wanted_cells(rules, names, [t.task_id for t in library.tasks]).items()}
        pairs = [
            (expert, name, own)
            for name, tasks in by_source.items()
            for expert in experts
            if (own := [t for t in tasks if t.task_id in wanted[expert["name"]]])
        ]
        if large := _large_features(run, pairs, sources):
            run_units(run, "expert features", features_unit, large, folder="features", gpu=True, preparing=True)
        units = []
        for expert, name, own in pairs:
            parts = blocks(own, source_record(run.store.url, sources[name])["n_images"])
            for i, part in enumerate(parts):
                said = f", part {i + 1} of {len(parts)}" if len(parts) > 1 else ""
                units.append(_unit(run, expert, name, sources[name], part, said))
        result = run_units(run, "evaluate experts", evaluate_unit, units, folder=BLOCK_UNITS, gpu=True)
        compact_unit(run.store.url, {"dataset": "error_matrix"})
        failed = {unit for unit, _ in result.failures}
        run.point("error_matrix", {"blocks": sorted(u.key for u in units if u.label not in failed)})
        return result
