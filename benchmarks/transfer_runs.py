"""Fig. 4's runs in a small file: what `t2v transfer` made, and the frozen errors of every other start.

    t2v transfer examples/rehearsal.yaml
    python benchmarks/transfer_runs.py runs/rehearsal/store rehearsal   writes benchmarks/results/transfer/runs.parquet

`t2v transfer` fine-tunes the selected and the generic start. The oracle at each size is the best of all frozen starts,
which only takes heads: they are trained here on the features that the store has, on the same samples of images, as
examples/NAME.yaml has it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from flows._data import Extractor, annotations
from flows._features import read_features
from flows._pointers import read_pointer
from flows._reproduction import transfer_runs
from flows._store import Store
from t2v_core.config import load_config
from t2v_core.finetune import even_sample
from t2v_core.heads import balanced_error, fit_head, predict
from t2v_core.library import TaskLibrary, resolve_task

RESULTS = Path(__file__).parent / "results" / "transfer"
KEPT = ["expert", "task_id", "size", "seed", "n_train", "balanced_error", "frozen_balanced_error", "selected", "own"]


def _frozen(store: Store, name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of the starts that were not fine-tuned; their ``balanced_error`` is NaN."""
    spec = load_config(Path(__file__).parents[1] / "examples" / f"{name}.yaml").evaluation
    library = TaskLibrary.from_table(store.read_table(read_pointer(store, name, "library")["manifest"]))
    prefixes = read_pointer(store, name, "sources")["sources"]
    of = {t.task_id: t for t in library.tasks}
    there = set(zip(runs["expert"], runs["task_id"], strict=True))
    wanted = runs[["task_id", "size", "seed"]].drop_duplicates()
    rows = []
    for expert in read_pointer(store, name, "experts")["experts"]:
        extractor = Extractor.model_validate(expert["extractor"])
        for task_id, samples in wanted.groupby("task_id", sort=False):
            if (expert["name"], task_id) in there:
                continue
            task, prefix = of[task_id], prefixes[of[task_id].spec.source]
            resolved = resolve_task(task.spec, annotations(store.url, prefix))
            train, labels, groups = resolved.part(test=False)
            test, answers, _ = resolved.part(test=True)
            which = (store.url, extractor, expert["digest"], prefix)
            features = [
                read_features(*which, wanted_rows, precision=spec.precision)[0] for wanted_rows in (train, test)
            ]
            for sample in samples.itertuples():
                picked = even_sample(labels, sample.size, sample.seed)
                n_classes = len(task.spec.classes)
                head = fit_head(
                    features[0][picked], labels[picked], spec.head, groups=groups[picked], n_classes=n_classes
                )
                said = predict(features[1].astype(np.float64), head.weight, head.bias)
                rows.append(
                    {
                        "expert": expert["name"],
                        "task_id": task_id,
                        "size": sample.size,
                        "seed": sample.seed,
                        "n_train": len(picked),
                        "balanced_error": float("nan"),
                        "frozen_balanced_error": balanced_error(answers, said, n_classes),
                        "selected": False,
                        "own": task_id in expert["tasks"],
                    }
                )
        print(f"{expert['name']}: {len(rows)} frozen errors so far", flush=True)
    return pd.DataFrame(rows, columns=KEPT)


def main(url: str, name: str) -> None:
    """Write the file."""
    store = Store(url)
    runs = transfer_runs(store, name)
    if runs is None:
        raise SystemExit(f"no fine-tuning runs of {name!r} in {url}; t2v transfer makes them")
    RESULTS.mkdir(parents=True, exist_ok=True)
    table = pd.concat([runs[KEPT], _frozen(store, name, runs)], ignore_index=True)
    table.to_parquet(RESULTS / "runs.parquet", index=False, compression="zstd")
    print(f"{len(runs)} runs, {len(table) - len(runs)} frozen errors of other starts")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
