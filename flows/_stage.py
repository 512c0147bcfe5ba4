"""What all stages share: their parameters, their units' way to Dask, their outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
from typing import Any, Literal

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import BaseModel, ConfigDict, Field

from flows._activity import active
from flows._cluster import Cluster, shared_cluster
from flows._data import Extractor, load_network
from flows._features import n_chunks
from flows._format import mark_format
from flows._keys import features_key
from flows._outcome import StageFailed, StageResult, failed_in_words, slug, too_many_failed
from flows._pages import StageProgress, show_cluster, show_failures, show_stage
from flows._pointers import find_pointer, read_pointer, write_pointer
from flows._progress import Progress
from flows._registered import configured
from flows._settings import dask_address, max_in_flight
from flows._store import Store
from t2v_core.config import EmbeddingSpec, PipelineConfig
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
    """Prefect tasks wait on threads, one for each unit in flight; `run_units` sees to it that there are no more."""
    return ThreadPoolTaskRunner(max_workers=max_in_flight())


EstimatorChoice = Literal["as configured", "variational", "montecarlo", "exact", "montecarlo_plain", "reference"]
"""The estimators, as a form offers them; a test compares with the registry."""


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
    workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="Processes of the local cluster, beside one for each GPU of the machine; 0: one per core.",
    )
    estimator: EstimatorChoice = Field(
        "as configured",
        description="Estimator of the Fisher information in place of the config's. Its embeddings have keys of their "
        "own, and `latest` then points at them.",
    )
    deadline: int = Field(
        0,
        ge=0,
        le=7 * 86_400,
        description="Seconds after which one unit is given up; 0: T2V_UNIT_DEADLINE, or an hour.",
    )

    def applied(self, config: PipelineConfig) -> PipelineConfig:
        """The config as these parameters change it."""
        if self.estimator == "as configured":
            return config
        spec = EmbeddingSpec.model_validate({**config.embedding.model_dump(), "estimator": self.estimator})
        return config.model_copy(update={"embedding": spec})


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
    of_cluster = (dask_address(params.dask), params.workers, params.deadline)
    with active(store, f"flow of {config.name}"), shared_cluster(*of_cluster) as cluster:
        yield Run(params.applied(config), store, cluster)


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
    task_run_name="{stage}: {label}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=_worth_retrying,
)
def run_unit(
    stage: str, label: str, function: Callable[..., dict[str, Any]], store: str, payload: Any, cluster: Any, gpu: bool
) -> dict[str, Any]:
    """Submit one pure function to Dask, wait for it, and say again what it logged; `stage` is for the run's name."""
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
    answers: dict[str, dict[str, Any]] | None = None,
) -> StageResult:
    """Run the units whose keys are not in the store, inside a flow. One that fails never takes the others along.

    Args:
        run: the stage's surroundings.
        stage: for people.
        function: of `flows._units`.
        units: all units of the stage.
        folder: where their keys are; listed once.
        gpu: whether a unit wants a GPU where the cluster has any; others keep to workers without one.
        preparing: whether another stage follows that needs what this one makes: units that fail are then said, and the
            later units that need them fail and are counted; the others go on.
        answers: gets what units that ran said, by their keys.

    Raises:
        StageFailed: more than `max_failed_share` of the units failed, or all.
    """
    began, busy = time.perf_counter(), dict(run.cluster.busy)
    result = StageResult(stage=stage)
    there = set(run.store.list(folder))
    missing = [u for u in units if u.key not in there]
    result.reused += len(units) - len(missing)
    progress, bar = Progress(stage, len(missing)), StageProgress(stage, len(missing), result.reused)
    if missing:
        run.cluster.client()  # a scheduler that does not answer is one error, not one of every unit
        show_cluster(run.cluster)
        with closing(_answers(run, stage, function, missing, gpu)) as ended:
            for unit, answer in ended:
                if isinstance(answer, dict):
                    result.done += 1
                    if answers is not None:
                        answers[unit.key] = answer
                else:
                    error = answer if isinstance(answer, BaseException) else RuntimeError(str(answer))
                    result.failed += 1
                    result.failures.append((unit.label, _reason(error)))
                progress.advance()
                bar.tell(progress.done)
        result.failures.sort()
    result.seconds += time.perf_counter() - began
    result.devices = {d: s - busy.get(d, 0.0) for d, s in run.cluster.busy.items() if s > busy.get(d, 0.0)}
    result.busy, result.threads = sum(result.devices.values()), run.cluster.threads
    finish(run, result, len(units), folder, preparing)
    return result


def _answers(
    run: Run, stage: str, function: Callable[..., dict[str, Any]], units: list[Unit], gpu: bool
) -> Generator[tuple[Unit, Any], None, None]:
    """Each unit with its answer or its error, as they end; no more of them begin than the cluster can take."""
    named = run_unit.with_options(name=stage, tags=["t2v", slug(stage)])
    waiting, ended = list(reversed(units)), SimpleQueue[PrefectFuture[Any]]()
    futures: dict[PrefectFuture[Any], Unit] = {}
    try:
        while waiting or futures:
            while waiting and len(futures) < run.cluster.in_flight(gpu):
                unit = waiting.pop()
                payload = quote(unit.payload), quote(run.cluster)
                future = named.submit(stage, unit.label, function, run.store.url, *payload, gpu)
                futures[future] = unit
                future.add_done_callback(ended.put)
            future = ended.get()
            yield futures.pop(future), future.result(raise_on_failure=False)
    except BaseException:  # interrupted: let go of the threads that wait, or they hold the process for hours
        run.cluster.abort()
        raise


def finish(run: Run, result: StageResult, total: int, folder: str, preparing: bool = False) -> None:
    """Log the outcome, show it and its failures, and decide whether the stage failed.

    Raises:
        StageFailed: more than `max_failed_share` of the units failed, or all.
    """
    get_run_logger().info(result.line())
    if result.failures:
        show_failures(result.stage, result.failures)
    if preparing:
        return
    share, failed = run.config.max_failed_share, ""
    if too_many_failed(result.failed, total, share):
        failed = failed_in_words(f"{result.failed} of {total} units", result.failures, total, share)
    show_stage(run.store, result, folder, failed)
    if failed:
        raise StageFailed(f"{result.stage}: {failed}")
