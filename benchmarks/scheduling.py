"""What scheduling costs: units that sleep, through Prefect and Dask, on 1, 2 and 4 workers.

    python benchmarks/scheduling.py

A unit that sleeps needs no core, so that 4 workers can be told from 2 on a machine of two cores. Overhead is the share
of the workers' time that was not spent in units, from the first submission to the last answer.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from prefect import flow

from flows._settings import embedded_services
from flows._stage import StageParams, Unit, open_run, run_units, threads

LENGTHS = {"0.5 s": 0.5, "2 s": 2.0}


def sleep_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Sleep, and say so."""
    time.sleep(payload["seconds"])
    return {"key": payload["key"], "wrote": True, "records": []}


@flow(name="scheduling", task_runner=threads(), persist_result=False)
def scheduling(params: StageParams, length: float, n: int) -> float:
    """Seconds of a stage of ``n`` units; the cluster is started before."""
    with open_run(params) as run:
        warm = [Unit(f"w{i}", f"w/{i}", {"key": f"w/{i}", "seconds": 0.0}) for i in range(8)]
        run_units(run, "warm", sleep_unit, warm, folder="w")
        units = [Unit(f"u{i}", f"u/{i}", {"key": f"u/{i}", "seconds": length}) for i in range(n)]
        began = time.perf_counter()
        run_units(run, "sleep", sleep_unit, units, folder="u")
        return time.perf_counter() - began


def main() -> None:
    """Print a table."""
    print("| units | workers | units in all | wall, s | ideal, s | overhead |\n|---|---:|---:|---:|---:|---:|")
    for name, length in LENGTHS.items():
        for workers in (1, 2, 4):
            n = round(20 * workers / length)
            with tempfile.TemporaryDirectory() as place:
                params = StageParams(config="examples/demo.yaml", store=place, workers=workers)
                wall = scheduling(params, length, n)
            ideal = n * length / workers
            print(f"| {name} | {workers} | {n} | {wall:.1f} | {ideal:.1f} | {1 - ideal / wall:.1%} |", flush=True)


if __name__ == "__main__":
    embedded_services("scheduling")
    main()
