"""transfer: fine-tuning runs on chosen tasks from chosen experts and the generic one; the transfer distance D_ft."""

from __future__ import annotations

from typing import Any

import pandas as pd
from prefect import flow

from flows._choices import chosen_experts
from flows._data import Extractor
from flows._keys import TRANSFER, TRANSFER_UNITS, transfer_key
from flows._pages import show_table
from flows._pointers import read_pointer
from flows._stage import Run, StageParams, StageResult, Unit, open_run, run_units, threads
from flows._store import Store
from flows._units import compact_unit, transfer_unit
from flows.ingest import library_of
from t2v_core.config import TransferSpec
from t2v_core.distances import transfer_distance
from t2v_core.errors import ConfigError
from t2v_core.experts import GENERIC
from t2v_core.fingerprints import matching
from t2v_core.library import Task

__all__ = ["newest_table", "transfer", "transfer_table"]

SELECTED = "selected"


def _pairs(run: Run, spec: TransferSpec, shelf: dict[str, Any], tasks: list[Task]) -> list[tuple[str, Task]]:
    """(expert, task) of all runs, the generic expert first.

    Raises:
        ConfigError: a name that matches no expert or no task.
    """
    ids = set(matching([t.task_id for t in tasks], spec.tasks))
    wanted = [t for t in tasks if t.task_id in ids]
    if not wanted:
        raise ConfigError(f"transfer.tasks: no task of the library matches {', '.join(spec.tasks)}; see `t2v tasks`")
    patterns = [p for p in spec.starts if p != SELECTED]
    idle = [p for p in patterns if not matching(shelf, [p])]
    if idle:
        raise ConfigError(f"transfer.starts: no expert matches {', '.join(idle)}; see `t2v experts`")
    picked = chosen_experts(run.store, run.config.name) if SELECTED in spec.starts else {}
    named = matching(shelf, patterns)
    outside = [e for e in [*named, *picked.values()] if e and shelf[e]["extractor"].get("outside")]
    if outside:
        raise ConfigError(
            f"transfer.starts: {outside[0]} is from outside; only experts of the probe's architecture are fine-tuned"
        )
    pairs = []
    for task in wanted:
        own = picked.get(task.task_id)
        pairs += [(e, task) for e in dict.fromkeys([GENERIC, *named, *([own] if own else [])])]
    return pairs


def _unit(run: Run, spec: TransferSpec, expert: dict[str, Any], task: Task, prefix: str, size: int, seed: int) -> Unit:
    head = run.config.evaluation.head
    key = transfer_key(expert["name"], expert["digest"], prefix, task, size, seed, spec.training, head)
    payload = {
        "key": key,
        "expert": expert["name"],
        "digest": expert["digest"],
        "extractor": Extractor.model_validate(expert["extractor"]).model_dump(),
        "prefix": prefix,
        "task": task.spec.model_dump(mode="json"),
        "task_fingerprint": task.fingerprint,
        "size": size,
        "seed": seed,
        "training": spec.training.model_dump(mode="json"),
        "head": head.model_dump(mode="json"),
    }
    return Unit(f"{expert['name']} on {task.task_id}, {size or 'all'} images, seed {seed}", key, payload)


def transfer_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of each task, size and start, and D_ft against the generic start.

    Args:
        runs: columns expert, task_id, size, seed, n_train, balanced_error, frozen_balanced_error.

    Returns:
        Columns task_id, n_train, expert, runs, error, spread (standard deviation over seeds), frozen_error, d_ft (NaN
        where the generic start makes no errors, or did not run).
    """
    rows = []
    for (task, size), group in runs.groupby(["task_id", "size"], sort=False):
        generic = group.loc[group["expert"] == GENERIC, "balanced_error"].to_numpy()
        for expert, own in group.groupby("expert", sort=False):
            errors = own["balanced_error"].to_numpy()
            judged = len(generic) > 0 and generic.mean() > 0
            rows.append(
                {
                    "task_id": task,
                    "n_train": int(own["n_train"].iloc[0]),
                    "size": size,
                    "expert": expert,
                    "runs": len(errors),
                    "error": errors.mean(),
                    "spread": errors.std(ddof=1) if len(errors) > 1 else float("nan"),
                    "frozen_error": own["frozen_balanced_error"].mean(),
                    "d_ft": transfer_distance(errors, generic) if judged else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def newest_table(store: Store, name: str) -> pd.DataFrame:
    """`transfer_table` of the runs that a config last asked for.

    Raises:
        ConfigError: it has not asked for any yet.
    """
    runs = store.read_table(TRANSFER).to_pandas()
    return transfer_table(runs[runs["unit"].isin(read_pointer(store, name, "transfer")["units"])])


@flow(name="transfer", flow_run_name="transfer[{params.config}]", task_runner=threads(), persist_result=False)
def transfer(params: StageParams) -> StageResult:
    """Make the fine-tuning runs of the config that are not in the store yet; an artifact shows D_ft of each pair."""
    with open_run(params) as run:
        spec = run.config.transfer
        if spec is None:
            raise ConfigError(f"{params.config} has no `transfer:`; docs/configuration.md has its keys")
        shelf = {e["name"]: e for e in run.pointed("experts")["experts"]}
        sources, tasks = run.pointed("sources")["sources"], library_of(run).tasks
        units = [
            _unit(run, spec, shelf[expert], task, sources[task.spec.source], size, seed)
            for expert, task in _pairs(run, spec, shelf, list(tasks))
            for size in spec.sizes or [0]
            for seed in range(spec.seeds)
        ]
        result = run_units(run, "transfer", transfer_unit, units, folder=TRANSFER_UNITS, gpu=True)
        compact_unit(run.store.url, {"dataset": "transfer"})
        run.point("transfer", {"units": sorted(u.key for u in units)})
        table = newest_table(run.store, run.config.name)
        shown = table.astype(object).where(table.notna(), None).to_dict(orient="records")
        show_table(shown, "transfer", "Errors after fine-tuning, and D_ft")
        return result
