"""What a Dask cluster is made of: plain workers, and workers with a GPU; and a local cluster of both.

A worker with a GPU says so by the resource ``GPU``. Where a cluster has both kinds, units that want no GPU go to plain
workers alone: these get a resource of ours, which also workers that join later, or come back after a kill, are given.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Client, Nanny, Scheduler, SpecCluster, WorkerPlugin

__all__ = ["GPU", "PLAIN", "Census", "count", "local_cluster", "mark_plain_workers"]

GPU = "GPU"
"""Resource of a worker that has a GPU."""
PLAIN = "t2v-plain"
"""Resource of a worker that has none; as many as it has threads."""


@dataclass(frozen=True)
class Census:
    """Units that a cluster can run at once, by kind of worker."""

    gpus: int = 0
    """GPUs, all workers together."""
    plain: int = 0
    """Threads of workers without a GPU."""

    @property
    def mixed(self) -> bool:
        """Whether there are workers of both kinds."""
        return self.gpus > 0 and self.plain > 0

    @property
    def threads(self) -> int:
        """Units that can run at once."""
        return max(1, self.gpus + self.plain)

    def resources(self, gpu: bool) -> dict[str, float] | None:
        """What a unit asks Dask for.

        A unit that wants a GPU gets one where there is any. One that wants none keeps off the workers that have one;
        where there are no others it asks for a GPU too: any unit may use the card that its worker sees, two may not.
        """
        if self.gpus == 0:
            return None
        return {PLAIN: 1} if self.mixed and not gpu else {GPU: 1}

    def slots(self, gpu: bool) -> int:
        """Units of a kind that can run at once."""
        return max(1, (self.gpus if gpu else self.plain) if self.mixed else self.gpus or self.plain)


def count(workers: Mapping[str, Mapping[str, Any]]) -> Census:
    """The census of a scheduler's workers, as ``scheduler.identity()["workers"]`` lists them."""
    gpus = sum(int(w.get("resources", {}).get(GPU, 0)) for w in workers.values())
    plain = sum(int(w.get("nthreads", 1)) for w in workers.values() if not w.get("resources", {}).get(GPU, 0))
    return Census(gpus, plain)


class _MarkPlain(WorkerPlugin):
    """Gives a worker without a GPU the resource of ours, when it starts."""

    name = "t2v-plain-workers"
    idempotent = True

    async def setup(self, worker: Any) -> None:
        if not worker.state.total_resources.get(GPU, 0):
            await worker.set_resources(**{PLAIN: worker.state.nthreads})


def mark_plain_workers(client: Client) -> None:
    """Have the plain workers of a cluster say that they are, those that join later too."""
    client.register_plugin(_MarkPlain())


def local_cluster(plain: int, gpus: Sequence[str] = ()) -> SpecCluster:
    """A cluster on this machine: processes of one thread each, on loopback.

    Args:
        plain: processes without a GPU.
        gpus: ids as ``CUDA_VISIBLE_DEVICES`` names them; each has a process of its own that sees no other. The plain
            processes then see none.
    """
    common = {"host": "127.0.0.1", "nthreads": 1, "memory_limit": 0, "silence_logs": logging.ERROR}
    hidden = {"env": {"CUDA_VISIBLE_DEVICES": ""}} if gpus else {}
    workers: dict[str, Any] = {
        f"cpu-{i}": {"cls": Nanny, "options": {**common, **hidden, "resources": {PLAIN: 1}}} for i in range(plain)
    }
    for device in gpus:
        options = {**common, "env": {"CUDA_VISIBLE_DEVICES": device}, "resources": {GPU: 1}}
        workers[f"gpu-{device}"] = {"cls": Nanny, "options": options}
    scheduler = {"host": "127.0.0.1", "port": 0, "dashboard": True, "dashboard_address": "127.0.0.1:0"}
    return SpecCluster(
        workers=workers,
        scheduler={"cls": Scheduler, "options": scheduler},
        silence_logs=logging.ERROR,
        name="t2v",
    )
