"""Dask: an existing cluster by its address, or a local one that starts when the first unit needs it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask
from distributed import Client, Future, KilledWorker, LocalCluster
from distributed import TimeoutError as DaskTimeoutError

from flows._settings import unit_deadline
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


def _timed(function: Callable[..., dict[str, Any]], *args: Any) -> tuple[dict[str, Any], float]:
    """Call, and say how many seconds the worker took."""
    began = time.perf_counter()
    return function(*args), time.perf_counter() - began


class Cluster:
    """Runs pure functions on Dask workers; one client per process, started when it is first used.

    Args:
        address: of a scheduler (``tcp://host:8786``); empty for a local cluster.
        workers: processes of the local cluster; 0: one per core.
    """

    def __init__(self, address: str = "", workers: int = 0) -> None:
        self.address = address
        self.workers = workers or max(1, os.cpu_count() or 1)
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._local: LocalCluster | None = None
        self._gpus = False
        self._aborted = False
        self._waiting: set[Future] = set()
        self.busy = 0.0
        """Seconds that workers spent in units, all together."""
        self.threads = 0
        """Units that can run at once; 0 before the client is started."""
        self._slots = threading.Semaphore(1)

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
                    self._local = LocalCluster(
                        n_workers=self.workers,
                        threads_per_worker=1,
                        processes=True,
                        dashboard_address="127.0.0.1:0",
                        host="127.0.0.1",
                        memory_limit=0,
                        silence_logs=logging.ERROR,
                    )
                    self._client = Client(self._local, set_as_default=False)
                info = self._client.scheduler_info(n_workers=-1)["workers"]
                self._gpus = any("GPU" in w.get("resources", {}) for w in info.values())
                # Two units for each thread of a worker: one runs, one is ready. More would only wait past its deadline.
                self.threads = max(1, sum(w.get("nthreads", 1) for w in info.values()))
                self._slots = threading.Semaphore(2 * self.threads)
            return self._client

    def run(
        self, function: Callable[..., dict[str, Any]], *args: Any, gpu: bool = False, label: str = ""
    ) -> dict[str, Any]:
        """Run one unit and wait for it; its seconds on the worker are added to `busy`.

        Args:
            function: pure and importable by the workers.
            *args: small and picklable; tensors do not cross Dask.
            gpu: ask for a GPU where the cluster has any.
            label: for error messages.

        Raises:
            ComputeError: the unit passed its deadline, or killed its workers.
        """
        client = self.client()
        resources = {"GPU": 1} if gpu and self._gpus else None
        with self._slots:
            if self._aborted:
                raise ComputeError("the run was interrupted before this unit began")
            future = client.submit(_timed, function, *args, pure=False, resources=resources)
            self._waiting.add(future)
            try:
                result: dict[str, Any]
                result, seconds = future.result(timeout=unit_deadline())
                with self._lock:
                    self.busy += seconds
                return result
            except DaskTimeoutError:
                raise ComputeError(
                    f"{label or function.__name__} passed its deadline of {unit_deadline():.0f} s; "
                    "raise T2V_UNIT_DEADLINE or make the unit smaller"
                ) from None
            except KilledWorker:
                raise ComputeError(
                    f"{label or function.__name__} killed every worker that it ran on; "
                    "most often the memory was too small for it"
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
def shared_cluster(address: str, workers: int = 0) -> Iterator[Cluster]:
    """One cluster for all flows of this process: nested flows share the outermost one's."""
    key = (address, workers)
    with _shared_lock:
        cluster, users = _shared.get(key, (Cluster(address, workers), 0))
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
