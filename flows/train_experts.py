"""train-experts: fine-tune each expert of the config from the probe's weights; weights in the store as safetensors."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows._keys import expert_key
from flows._shelf import from_outside, generic, trained_here
from flows._stage import Run, StageParams, StageResult, Unit, open_run, run_units, threads
from flows._units import train_unit
from flows.ingest import library_of
from t2v_core.config import HeadSpec
from t2v_core.experts import GENERIC, ExpertSpec, expert_rules, expert_specs
from t2v_core.library import Task

__all__ = ["train_experts"]


def _unit(run: Run, spec: ExpertSpec, tasks: dict[str, Task], sources: dict[str, str]) -> Unit:
    folder = expert_key(spec)
    payload = {
        "key": folder,
        "expert": spec.model_dump(mode="json"),
        "extractor": run.generic.model_dump(),
        # Heads that are to predict choose their L2, whatever those of embeddings do. The same for all configs, since an
        # expert's key does not hold it.
        "head": HeadSpec().model_dump(mode="json"),
        "tasks": [(tasks[t].spec.model_dump(mode="json"), sources[tasks[t].spec.source]) for t in spec.tasks],
    }
    return Unit(spec.name, f"{folder}/expert.json", payload)


@flow(name="train-experts", flow_run_name="train-experts[{params.config}]", task_runner=threads(), persist_result=False)
def train_experts(params: StageParams) -> StageResult:
    """Fine-tune the experts that are not in the store yet; take those from outside as they are.

    The generic one is the probe's own weights. An expert from outside that cannot be had is left out and said.
    """
    with open_run(params) as run:
        sources = run.pointed("sources")["sources"]
        tasks = {t.task_id: t for t in library_of(run).tasks}
        fingerprints = {t: task.fingerprint for t, task in tasks.items()}
        rules = expert_rules(run.config.experts, list(tasks.values()))
        specs, unmatched = expert_specs(rules, fingerprints, run.probe, run.config.experts.training)
        trained = [s for s in specs if s.name != GENERIC]
        outside, refused = from_outside(run, list(tasks))
        units = [_unit(run, s, tasks, sources) for s in trained]
        result = run_units(run, "train experts", train_unit, units, folder="experts", gpu=True)
        for name, reason in [*unmatched, *refused]:
            get_run_logger().warning("expert %s left out: %s", name, reason)
        result.notes = [f"expert {name} left out: {reason}" for name, reason in [*unmatched, *refused]]
        failed = {unit for unit, _ in result.failures}
        here = [trained_here(run, s) for s in trained if s.name not in failed]
        run.point("experts", {"experts": [generic(run), *here, *outside]})
        return result
