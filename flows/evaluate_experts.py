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

__all__ = ["evaluate_experts"]


def _large_features(run: Run, experts: list[dict[str, Any]], sources: dict[str, str]) -> list[Unit]:
    """Features of sources of several chunks, a unit each; a block makes those of smaller ones as it goes."""
    units = []
    for expert in experts:
        for name, prefix in sources.items():
            extractor = Extractor.model_validate(expert["extractor"])
            label, spec = f"features of {expert['name']} on {name}", run.config.evaluation
            parts = features_units(run, label, extractor, expert["digest"], prefix, spec.batch_size, spec.precision)
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
        by_source = library_of(run).by_source()
        wanted = {name: sources[name] for name in by_source}
        if large := _large_features(run, experts, wanted):
            run_units(run, "expert features", features_unit, large, folder="features", gpu=True, preparing=True)
        units = []
        for name, tasks in by_source.items():
            parts = blocks(tasks, source_record(run.store.url, sources[name])["n_images"])
            names = [f", part {i + 1} of {len(parts)}" if len(parts) > 1 else "" for i in range(len(parts))]
            units += [
                _unit(run, e, name, sources[name], part, said)
                for e in experts
                for part, said in zip(parts, names, strict=True)
            ]
        result = run_units(run, "evaluate experts", evaluate_unit, units, folder=BLOCK_UNITS, gpu=True)
        compact_unit(run.store.url, {"dataset": "error_matrix"})
        failed = {unit for unit, _ in result.failures}
        run.point("error_matrix", {"blocks": sorted(u.key for u in units if u.label not in failed)})
        return result
