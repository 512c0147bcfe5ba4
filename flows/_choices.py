"""Which expert a selector chose for each task, from the newest selection of a config."""

from __future__ import annotations

from flows._pointers import read_pointer
from flows._store import Store
from t2v_core.metatasks import EVERYTHING, LEFT_OUT

__all__ = ["SELECTOR", "chosen_experts"]

SELECTOR = "MODEL2VEC"
"""By which `t2v transfer` selects a start."""


def chosen_experts(store: Store, name: str) -> dict[str, str]:
    """Task to the expert that MODEL2VEC picked among all that were not trained on it.

    Raises:
        ConfigError: the selectors were not compared yet.
    """
    choices = store.read_table(f"{read_pointer(store, name, 'selection')['prefix']}/choices.parquet").to_pandas()
    if "meta_task" in choices:  # parts of the matrix have choices of their own
        choices = choices[choices["meta_task"] == EVERYTHING]
    mine = choices[(choices["reading"] == LEFT_OUT) & (choices["method"] == SELECTOR)]
    return dict(zip(mine["task_id"], mine["expert"], strict=True))
