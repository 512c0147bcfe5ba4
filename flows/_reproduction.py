"""Evidence for `t2v reproduce` from the store of a run, and the fine-tuning runs of Fig. 4."""

from __future__ import annotations

import numpy as np
import pandas as pd

from flows._choices import chosen_experts
from flows._data import read_cells, read_scores
from flows._keys import EMBEDDINGS, TRANSFER
from flows._moments import read_moments
from flows._pointers import find_pointer, read_pointer
from flows._store import Store
from t2v_core.distances import cosine_matrix, distance_matrix
from t2v_core.library import TaskLibrary
from t2v_core.matrix import ErrorMatrix
from t2v_core.records import EmbeddingTable
from t2v_core.reproduce.evidence import Evidence
from t2v_core.reproduce.profile import Profile

__all__ = ["read_evidence", "transfer_runs"]


def transfer_runs(store: Store, name: str) -> pd.DataFrame | None:
    """A config's newest fine-tuning runs, with what Fig. 4 needs to know of each start; None where there are none.

    Returns:
        The runs, and the columns ``selected`` (by MODEL2VEC, own experts left out) and ``own`` (trained on the task).
    """
    pointer, selection = (find_pointer(store, name, stage) for stage in ("transfer", "selection"))
    if pointer is None or selection is None:
        return None
    runs = store.read_table(TRANSFER).to_pandas()
    runs = runs[runs["unit"].isin(pointer["units"])].reset_index(drop=True)
    picked = chosen_experts(store, name)
    trained_on = {e["name"]: set(e["tasks"]) for e in read_pointer(store, name, "experts")["experts"]}
    pairs = list(zip(runs["task_id"], runs["expert"], strict=True))
    return runs.assign(
        selected=[picked.get(task) == expert for task, expert in pairs],
        own=[task in trained_on.get(expert, ()) for task, expert in pairs],
    )


def read_evidence(store: Store, name: str, profile: Profile) -> tuple[Evidence, str]:
    """What a run left behind, and its probe's name.

    Args:
        store: of the run.
        name: of its config.
        profile: how its library is read.

    Raises:
        ConfigError: a stage has not run yet.
    """
    library = TaskLibrary.from_table(store.read_table(read_pointer(store, name, "library")["manifest"]))
    table = EmbeddingTable.of(store.read_table(EMBEDDINGS), read_pointer(store, name, "embeddings")["embeddings"])
    shelf = read_pointer(store, name, "experts")["experts"]
    trained_on = {e["name"]: tuple(e["tasks"]) for e in shelf}
    cells = read_cells(store, read_pointer(store, name, "error_matrix")["blocks"])
    matrix = ErrorMatrix.of(cells, table.task_ids, trained_on, "balanced_error")
    of = {t.task_id: t for t in library.tasks}
    tasks = pd.DataFrame(
        {
            "task_id": table.task_ids,
            "source": [of[t].spec.source for t in table.task_ids],
            "label": [of[t].spec.label for t in table.task_ids],
            "n_train": [sum(of[t].train_counts) for t in table.task_ids],
            "complexity": table.frame["complexity"].to_numpy(),
            "head_error": table.frame["head_error"].to_numpy(),
        }
    )
    prints = table.frame["task_fingerprint"].to_list()
    domains = table.domains.astype(np.float64)
    evidence = Evidence(
        profile=profile,
        tasks=tasks,
        class_lineages=tuple(of[t].spec.class_lineage for t in table.task_ids),
        symmetric=distance_matrix(table.vectors),
        domain=cosine_matrix(domains, domains),
        embeddings=table,
        trained_on=trained_on,
        errors=matrix.errors,
        transfer=transfer_runs(store, name),
        scores=read_scores(
            store, (find_pointer(store, name, "scores") or {}).get("blocks", ()), table.task_ids, tuple(trained_on)
        ),
        moments=read_moments(store, (find_pointer(store, name, "moments") or {}).get("units", ()), prints),
    )
    return evidence, str(table.frame["probe"].iloc[0]).split(":")[0]
