"""Dask: an existing cluster by its address, or a local one that starts when the first unit needs it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask
from distributed import Client, Future, KilledWorker, SpecCluster, get_worker
from distributed import TimeoutError as DaskTimeoutError

from flows._settings import gpu_ids, max_in_flight, unit_deadline
from flows._workers import GPU, Census, count, local_cluster, mark_plain_workers
from t2v_core.errors import ComputeError, ConfigError

__all__ = ["Cluster", "shared_cluster"]

_KEEP = str(2**30)
"""Bytes that a worker's allocator keeps for the next batch."""
_NANNY = "distributed.nanny.pre-spawn-environ"
dask.config.set(
    {
        # A scheduler without workers fails its tasks after a while, instead of letting a flow wait for ever.
        "distributed.scheduler.no-workers-timeout": "300 s",
        "distributed.scheduler.allowed-failures": 3,
        # Dask's own 64 KiB give every layer's buffers back to the system, which then clears them for the next layer:
        # measured, more than half of a fine-tuning step's time.
        f"{_NANNY}.MALLOC_TRIM_THRESHOLD_": _KEEP,
        f"{_NANNY}.MALLOC_MMAP_THRESHOLD_": _KEEP,
        f"{_NANNY}.MALLOC_ARENA_MAX": "1",
    }
)


_CENSUS_AGE = 5.0
"""Seconds after which the workers of a cluster are counted again."""


def _device() -> str:
    """``gpu`` on a worker that has one or has used one, else ``cpu``."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return "gpu"
    return "gpu" if get_worker().state.total_resources.get(GPU, 0) else "cpu"


def _timed(function: Callable[..., dict[str, Any]], *args: Any) -> tuple[dict[str, Any], float, str]:
    """Call, and say how many seconds the worker took, and on what."""
    began = time.perf_counter()
    answer = function(*args)
    return answer, time.perf_counter() - began, _device()


def _visible_gpus() -> list[str]:
    """Ids of the GPUs of this machine that PyTorch sees."""
    import torch

    return gpu_ids(torch.cuda.device_count())


class Cluster:
    """Runs pure functions on Dask workers; one client per process, started when it is first used.

    Args:
        address: of a scheduler (``tcp://host:8786``); empty for a local cluster.
        workers: processes of the local cluster without a GPU; 0: one for each core that no process with a GPU has.
        gpus: ids of the local cluster's GPUs; None: those that PyTorch sees.
        deadline: seconds after which a unit is given up; 0: T2V_UNIT_DEADLINE.
    """

    def __init__(
        self, address: str = "", workers: int = 0, gpus: Sequence[str] | None = None, deadline: float = 0
    ) -> None:
        self.address, self.deadline = address, deadline or unit_deadline()
        self._workers, self._gpus = workers, gpus
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._client: Client | None = None
        self._local: SpecCluster | None = None
        self._census, self._counted, self._marked = Census(), float("-inf"), False
        self._aborted = self._shown = False
        self._waiting: set[Future] = set()
        self.busy: dict[str, float] = {}
        """Seconds that workers spent in units, all together, by device: cpu and gpu."""

    def client(self) -> Client:
        """The client, started once.

        Raises:
            ConfigError: no scheduler answers at the address.
        """
        with self._lock:
            if self._client is None:
                logging.getLogger("distributed").setLevel(logging.WARNING)
                if self.address:
                    try:
                        self._client = Client(self.address, set_as_default=False, timeout="10 s")
                    except (OSError, DaskTimeoutError, ValueError, TypeError) as error:  # TypeError: TLS without files
                        raise ConfigError(
                            f"no Dask scheduler answers at {self.address!r} ({type(error).__name__}); start one with "
                            "`dask scheduler` and workers with `dask worker ADDRESS --nthreads 1 --preload-nanny "
                            "flows._cluster`, or leave --dask out"
                            + ("; tls:// wants DASK_DISTRIBUTED__COMM__TLS__*" if "tls" in self.address else "")
                        ) from error
                else:
                    gpus = _visible_gpus() if self._gpus is None else self._gpus
                    self._local = local_cluster(self._workers or max(1, (os.cpu_count() or 1) - len(gpus)), gpus)
                    self._client = Client(self._local, set_as_default=False)
            return self._client

    def census(self) -> Census:
        """The workers, counted again every few seconds: workers join, and die."""
        client = self.client()
        with self._lock:
            scheduler = client.scheduler  # None while it is away; what is sent to it will say so
            if scheduler is not None and time.monotonic() - self._counted >= _CENSUS_AGE:
                try:
                    found = count(client.sync(scheduler.identity, n_workers=-1)["workers"])
                except (OSError, DaskTimeoutError):
                    return self._census
                self._counted = time.monotonic()
                if found.mixed and not self._marked:
                    mark_plain_workers(client)
                    self._marked = True
                self._census = found
            return self._census

    @property
    def threads(self) -> int:
        """Units that can run at once, as last counted; 0 before the client is started."""
        return self._census.threads if self._client is not None else 0

    def in_flight(self, gpu: bool = False) -> int:
        """Units of a kind to have at the cluster at once: for each place one that runs and one that is ready.

        More would only wait past their deadline.
        """
        return min(2 * self.census().slots(gpu), max_in_flight())

    @property
    def where(self) -> str:
        """The scheduler's address, in words."""
        return self.address or "a local cluster"

    def first_shown(self) -> bool:
        """True the first time it is asked: a cluster is shown once."""
        with self._lock:
            first, self._shown = not self._shown, True
            return first

    @property
    def dashboard(self) -> str:
        """Address of Dask's page; empty before the client is started, or where there is none."""
        return (self._client.dashboard_link or "") if self._client is not None else ""

    def run(
        self, function: Callable[..., dict[str, Any]], *args: Any, gpu: bool = False, label: str = ""
    ) -> dict[str, Any]:
        """Run one unit and wait for it; its seconds on the worker are added to `busy`.

        Dask blames every unit that waited at a worker when that died. Units that it gives up run once more, one after
        another, so that the one that kills is named, and its neighbours finish.

        Args:
            function: pure and importable by the workers.
            *args: small and picklable; tensors do not cross Dask.
            gpu: ask for a GPU where the cluster has any.
            label: for error messages.

        Raises:
            ComputeError: the unit passed its deadline, or killed its workers.
        """
        name = label or function.__name__
        try:
            return self._once(function, args, gpu, name)
        except KilledWorker:
            pass
        with self._alone:
            try:
                return self._once(function, args, gpu, name)
            except KilledWorker as error:
                raise ComputeError(
                    f"{name} killed every worker that it ran on, {2 * (error.allowed_failures + 1)} times, at last "
                    "with no other suspect beside it; most often the memory was too small for it: see the worker's "
                    "log, and give workers more memory or make the unit smaller"
                ) from None

    def _once(
        self, function: Callable[..., dict[str, Any]], args: tuple[Any, ...], gpu: bool, name: str
    ) -> dict[str, Any]:
        client, resources = self.client(), self.census().resources(gpu)
        if self._aborted:
            raise ComputeError("the run was interrupted before this unit began")
        future = client.submit(_timed, function, *args, pure=False, resources=resources)
        self._waiting.add(future)
        try:
            result: dict[str, Any]
            result, seconds, device = future.result(timeout=self.deadline)
            with self._lock:
                self.busy[device] = self.busy.get(device, 0.0) + seconds
            return result
        except DaskTimeoutError:
            raise ComputeError(
                f"{name} passed its deadline of {self.deadline:.0f} s; raise T2V_UNIT_DEADLINE, or the parameter "
                "`deadline` of the flow, or make the unit smaller"
            ) from None
        finally:
            self._waiting.discard(future)
            future.cancel(force=True)

    def abort(self) -> None:
        """Cancel all units: those that wait never begin, and whoever waits for one is let go. For Ctrl-C."""
        self._aborted = True
        for future in list(self._waiting):
            future.cancel(force=True)

    def close(self) -> None:
        """Stop what was started; an existing cluster goes on."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None
            if self._local is not None:
                self._local.close()
                self._local = None


_shared: dict[tuple[str, int], tuple[Cluster, int]] = {}
_shared_lock = threading.Lock()


@contextmanager
def shared_cluster(address: str, workers: int = 0, deadline: float = 0) -> Iterator[Cluster]:
    """One cluster for all flows of this process: nested flows share the outermost one's, its deadline too."""
    key = (address, workers)
    with _shared_lock:
        cluster, users = _shared.get(key, (Cluster(address, workers, deadline=deadline), 0))
        _shared[key] = (cluster, users + 1)
    try:
        yield cluster
    finally:
        with _shared_lock:
            cluster, users = _shared[key]
            if users == 1:
                del _shared[key]
            else:
                _shared[key] = (cluster, users - 1)
        if users == 1:
            cluster.close()
