"""What all stages share: their parameters, their units' way to Dask, their outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import BaseModel, ConfigDict, Field

from flows._activity import active
from flows._cluster import Cluster, shared_cluster
from flows._data import Extractor, load_network
from flows._features import n_chunks
from flows._format import mark_format
from flows._keys import features_key
from flows._pointers import find_pointer, read_pointer, write_pointer
from flows._progress import Progress
from flows._registered import configured
from flows._settings import dask_address
from flows._store import Store
from t2v_core.config import PipelineConfig
from t2v_core.errors import ComputeError, ConfigError, DataError, ProbeError, WeightsError
from t2v_core.fisher import ESTIMATORS
from t2v_core.probes import Probe

__all__ = [
    "Run",
    "StageFailed",
    "StageParams",
    "StageResult",
    "Unit",
    "features_units",
    "open_run",
    "run_units",
    "threads",
]


def threads() -> ThreadPoolTaskRunner:
    """Prefect tasks wait on threads; how many units run at once is the cluster's affair."""
    return ThreadPoolTaskRunner(max_workers=32)


class StageParams(BaseModel):
    """What every stage is told."""

    model_config = ConfigDict(extra="forbid")

    config: str = Field("examples/demo.yaml", description="Configuration file of the pipeline (YAML).")
    store: str = Field(
        "", description="Store URL, a folder or s3://bucket/prefix. Empty: T2V_STORE, else runs/NAME/store."
    )
    dask: str = Field(
        "", description="Address of a Dask scheduler, tcp://host:8786. Empty: T2V_DASK, else a local cluster."
    )
    workers: int = Field(0, ge=0, le=1024, description="Processes of the local cluster; 0: one per core.")


class StageResult(BaseModel):
    """How a stage went."""

    stage: str
    done: int = 0
    reused: int = 0
    failed: int = 0
    seconds: float = 0.0
    busy: float = Field(0.0, description="Seconds that workers spent in units, all workers together.")
    threads: int = Field(0, description="Units that could run at once.")
    failures: list[tuple[str, str]] = Field(default_factory=list, description="Unit and reason.")
    notes: list[str] = Field(default_factory=list)

    def line(self) -> str:
        """In words."""
        told = (
            f"{self.stage}: {self.done} done, {self.reused} there already, {self.failed} failed, {self.seconds:.0f} s"
        )
        if self.seconds > 10 and self.threads:
            told += f", {self.threads} workers busy for {self.busy / self.seconds / self.threads:.0%} of it"
        return told


class StageFailed(RuntimeError):
    """More units of a stage failed than the config allows; the flow ends Failed, and says so."""


@dataclass(frozen=True)
class Unit:
    """One unit of work: its name for people, the key that says it is done, and what it needs."""

    label: str
    key: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A stage's surroundings."""

    config: PipelineConfig
    store: Store
    cluster: Cluster

    @cached_property
    def generic(self) -> Extractor:
        """The probe's network, which is the generic expert's too."""
        p = self.config.probe
        return Extractor(architecture=p.name, weights=p.weights, image_size=p.image_size, seed=p.seed)

    @cached_property
    def probe(self) -> Probe:
        """The probe, for its digest and layout."""
        return load_network(self.store.url, self.generic)

    def check(self) -> None:
        """What can be known to be wrong before any long work.

        Raises:
            T2VError: an unknown probe or estimator, weights that do not fit, a store that cannot be written.
        """
        ESTIMATORS[self.config.embedding.estimator]
        _ = self.probe
        self.store.check_writable()
        mark_format(self.store)

    def point(self, stage: str, value: dict[str, Any]) -> None:
        """Write down this config's newest result of a stage."""
        write_pointer(self.store, self.config.name, stage, value)

    def last(self, stage: str) -> dict[str, Any]:
        """Read it back; empty where the stage has not run yet."""
        return find_pointer(self.store, self.config.name, stage) or {}

    def pointed(self, stage: str) -> dict[str, Any]:
        """Read it back.

        Raises:
            ConfigError: the stage has not run yet.
        """
        return read_pointer(self.store, self.config.name, stage)


@contextmanager
def open_run(params: StageParams) -> Iterator[Run]:
    """Config, store and cluster of a stage; the cluster is shared by nested flows, and starts when it is needed.

    Raises:
        ConfigError: the config is wrong.
    """
    config, store = configured(params.config, params.store)
    with active(store, f"flow of {config.name}"), shared_cluster(dask_address(params.dask), params.workers) as cluster:
        yield Run(config, store, cluster)


_FINAL = (DataError, ConfigError, WeightsError, ProbeError, ComputeError)


def _worth_retrying(_: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Wrong input stays wrong, and a unit past its deadline would be again; a slow store may be well tomorrow."""
    try:
        state.result()
    except _FINAL:
        return False
    except Exception:  # noqa: BLE001  anything else may pass
        return True
    return False


@task(
    name="unit",
    task_run_name="{label}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=_worth_retrying,
)
def run_unit(
    label: str, function: Callable[..., dict[str, Any]], store: str, payload: Any, cluster: Any, gpu: bool
) -> dict[str, Any]:
    """Submit one pure function to Dask, wait for it, and say again what it logged."""
    answer: dict[str, Any] = cluster.run(function, store, payload, gpu=gpu, label=label)
    for level, message in answer.pop("records"):
        get_run_logger().log(level, message)
    return answer


def features_units(
    run: Run,
    label: str,
    extractor: Extractor,
    digest: str,
    prefix: str,
    batch_size: int,
    precision: str = "float32",
) -> list[Unit]:
    """A unit for each chunk of an extractor's features on a source, of `flows._units.features_unit`."""
    units = []
    for chunk in range(n := n_chunks(run.store.url, prefix)):
        payload = {
            "key": features_key(digest, extractor.image_size, prefix, chunk, precision),
            "extractor": extractor.model_dump(),
            "digest": digest,
            "prefix": prefix,
            "chunk": chunk,
            "batch_size": batch_size,
            "precision": precision,
        }
        units.append(Unit(f"{label}, part {chunk + 1} of {n}" if n > 1 else label, payload["key"], payload))
    return units


def slug(stage: str) -> str:
    """A stage's name as Prefect's tags and artifact keys want it."""
    return stage.lower().replace(" ", "-")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


def run_units(
    run: Run,
    stage: str,
    function: Callable[..., dict[str, Any]],
    units: list[Unit],
    *,
    folder: str,
    gpu: bool = False,
    preparing: bool = False,
) -> StageResult:
    """Run the units whose keys are not in the store, inside a flow. One that fails never takes the others along.

    Args:
        run: the stage's surroundings.
        stage: for people.
        function: of `flows._units`.
        units: all units of the stage.
        folder: where their keys are; listed once.
        gpu: whether a unit wants a GPU where the cluster has any.
        preparing: whether another stage follows that needs what this one makes: units that fail are then said, and the
            later units that need them fail and are counted; the others go on.

    Raises:
        StageFailed: more than `max_failed_share` of the units failed.
    """
    began, busy = time.perf_counter(), run.cluster.busy
    result = StageResult(stage=stage)
    there = set(run.store.list(folder))
    missing = [u for u in units if u.key not in there]
    result.reused += len(units) - len(missing)
    progress = Progress(stage, len(missing))
    if missing:
        run.cluster.client()  # a scheduler that does not answer is one error, not one of every unit
        artifact = create_progress_artifact(0.0, key=slug(stage), description=f"{stage}: {len(missing)} units")
        named = run_unit.with_options(name=stage, tags=[slug(stage)])
        futures = {
            named.submit(u.label, function, run.store.url, quote(u.payload), quote(run.cluster), gpu): u
            for u in missing
        }
        told = time.perf_counter()
        try:
            for future in as_completed(list(futures)):
                unit = futures[future]
                answer = future.result(raise_on_failure=False)
                if isinstance(answer, dict):
                    result.done += 1
                else:
                    error = answer if isinstance(answer, BaseException) else RuntimeError(str(answer))
                    result.failed += 1
                    result.failures.append((unit.label, _reason(error)))
                progress.advance()
                if time.perf_counter() - told > 2 or progress.done == progress.total:
                    told = time.perf_counter()
                    update_progress_artifact(artifact, 100.0 * progress.done / progress.total)
        except BaseException:  # interrupted: let go of the threads that wait, or they hold the process for hours
            run.cluster.abort()
            raise
        result.failures.sort()
    result.seconds += time.perf_counter() - began
    result.busy, result.threads = run.cluster.busy - busy, run.cluster.threads
    finish(run, result, len(units), preparing)
    return result


def finish(run: Run, result: StageResult, total: int, preparing: bool = False) -> None:
    """Log the outcome, show failures as a table, and decide whether the stage failed.

    Raises:
        StageFailed: more than `max_failed_share` of the units failed.
    """
    logger = get_run_logger()
    logger.info(result.line())
    if not result.failures:
        return
    create_table_artifact(
        [{"unit": unit, "reason": reason} for unit, reason in result.failures],
        key=f"{slug(result.stage)}-failures",
        description=f"Units of {result.stage} that failed",
    )
    for unit, reason in result.failures:
        logger.warning("%s: %s failed: %s", result.stage, unit, reason)
    if not preparing and result.failed > run.config.max_failed_share * total:
        shown = "; ".join(f"{unit}: {reason}" for unit, reason in result.failures[:3])
        raise StageFailed(
            f"{result.stage}: {result.failed} of {total} units failed, more than the "
            f"{run.config.max_failed_share:.0%} that max_failed_share allows. {shown}"
        )
