"""A run that is killed half-way and started again ends with the same bytes: on a finished store, at its real size.

    python benchmarks/again.py examples/rehearsal.yaml runs/rehearsal/store [FOLDER]      after `make rehearsal`

A second store gets hard links to all objects of the first, but those of a sample of units: 100 embeddings, 3 experts
(or a tenth of what there is) with all their blocks, and 10 blocks of others. The pipeline runs on it; when a third of
the sample is there, everything is killed by SIGKILL, and it is started again. Then the sample's objects are compared
with the first store's, byte for byte but for what tells wall times. FOLDER is kept; default: a temporary one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def units(store: Path) -> list[str]:
    """Keys of the sample, in the order of the stages."""
    rng = np.random.default_rng(0)

    def some(keys: list[str], n: int) -> list[str]:
        return sorted(rng.choice(sorted(keys), min(n, max(1, len(keys) // 10)), replace=False).tolist())

    def below(folder: str, pattern: str) -> list[str]:
        return [str(p.relative_to(store)) for p in (store / folder).glob(pattern)]

    embeddings = some(below("units/embeddings", "*/*.parquet"), 100)
    experts = [key.rsplit("/", 1)[0] for key in some(below("experts", "*/expert.json"), 3)]
    names = {e.split("/")[1].rsplit("-", 1)[0] for e in experts}
    blocks = below("units/error_matrix", "*/*.parquet")
    theirs = [b for b in blocks if b.split("/")[2] in names]
    others = some([b for b in blocks if b not in theirs], 10)
    files = [f"{e}/{f}" for e in experts for f in ("weights.safetensors", "heads.safetensors", "expert.json")]
    return [*embeddings, *files, *sorted(theirs), *others]


def link(store: Path, to: Path, without: set[str]) -> int:
    """Hard links to all objects but some; returns how many."""
    made = 0
    for path in store.rglob("*"):
        key = str(path.relative_to(store))
        if path.is_file() and key not in without:
            (to / key).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, to / key)
            made += 1
    return made


def main(config: str, url: str, folder: str = "") -> None:
    """Print what happened."""
    place, store = Path(folder or tempfile.mkdtemp(prefix="t2v-again-")), Path(url).resolve()
    sample, second = units(store), place.resolve() / "store"
    print(f"{link(store, second, set(sample)):,} objects linked, {len(sample)} of the sample are to be made again")
    command = [sys.executable, "-m", "flows.cli", "run", str(Path(config).resolve()), "--force", "--store", str(second)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "T2V_STORE": str(second)}

    def there() -> int:
        return sum((second / key).exists() for key in sample)

    for kill in (True, False):
        began = time.perf_counter()
        with open(place / f"run-{'first' if kill else 'second'}.log", "w") as log:
            run = subprocess.Popen(
                command, cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            while run.poll() is None and not (kill and there() >= len(sample) / 3):
                time.sleep(0.5)
            if kill and run.poll() is None:
                # Workers have sessions of their own: whoever has our store in its environment goes.
                os.killpg(run.pid, signal.SIGKILL)
                for process in started_with(str(second)):
                    os.kill(process, signal.SIGKILL)
            code = run.wait()
        print(f"{'killed' if kill else 'ended'} with {code} after {time.perf_counter() - began:.0f} s: {there()} there")
    if there() < len(sample):
        raise SystemExit(f"{len(sample) - there()} are missing; see {place}")
    sys.path.append(str(ROOT / "tests"))
    from same_objects import same

    from flows._store import Store

    differ = [key for key in sample if not same(Store(str(store)), Store(str(second)), key)]
    print(f"{len(sample) - len(differ)} of {len(sample)} are equal{': ' if differ else ''}{', '.join(differ[:10])}")


def started_with(store: str) -> list[int]:
    """Processes with this store in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int(path.name) != os.getpid() and store.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
