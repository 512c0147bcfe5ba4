"""Fine-tuning runs through the flow, and the table of D_ft by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows._keys import TRANSFER
from flows._stage import StageParams
from flows._store import Store
from flows.cli import app
from flows.ingest import ingest
from flows.train_experts import train_experts
from flows.transfer import transfer, transfer_table
from t2v_core.errors import ConfigError

SPEC = {
    "starts": ["digits-*"],
    "tasks": ["digits/digit=3", "shapes/label"],
    "sizes": [12, 0],
    "seeds": 2,
    "training": {"steps": 2, "batch_size": 8},
}


def small(config: Callable[..., str], tmp_path: Path, dask: str, **spec: object) -> StageParams:
    path = config(experts__rules=[{"name": "digits-expert", "tasks": ["digits/digit"]}], transfer={**SPEC, **spec})
    return StageParams(config=path, store=str(tmp_path / "store"), dask=dask)


def test_runs_of_two_starts(
    config: Callable[..., str],
    tmp_path: Path,
    prefect_api: None,
    dask_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = small(config, tmp_path, dask_cluster)
    ingest(params)
    train_experts(params)
    result = transfer(params)
    assert (result.done, result.failed) == (16, 0)  # 2 starts x 2 tasks x 2 sizes x 2 seeds
    runs = Store(params.store).read_table(TRANSFER).to_pandas()
    assert set(runs["expert"]) == {"generic", "digits-expert"}
    assert set(runs.loc[runs["size"] == 12, "n_train"]) == {12}
    assert runs.loc[runs["size"] == 0, "n_train"].min() > 12
    assert runs["balanced_error"].between(0, 1).all()
    one = runs[(runs["task_id"] == "shapes/label") & (runs["size"] == 12) & (runs["expert"] == "generic")]
    assert sorted(one["seed"]) == [0, 1]
    again = transfer(params)
    assert (again.done, again.reused) == (0, 16)
    monkeypatch.setattr("flows.cli.out", Console(highlight=False, width=160))
    answer = CliRunner().invoke(app, ["transfer", params.config, "--store", params.store, "--dask", dask_cluster])
    assert answer.exit_code == 0, answer.output
    assert "digits-expert" in answer.output
    assert "16 there already" in answer.output


def test_names_that_match_nothing(
    config: Callable[..., str], tmp_path: Path, prefect_api: None, dask_cluster: str
) -> None:
    params = small(config, tmp_path, dask_cluster)
    ingest(params)
    train_experts(params)
    for spec, said in (
        ({"tasks": ["nowhere/*"]}, "no task of the library matches nowhere"),
        ({"starts": ["nobody"]}, "no expert matches nobody"),
        ({"starts": ["selected"]}, "selection"),
    ):
        small(config, tmp_path, dask_cluster, **spec)  # writes the config anew
        with pytest.raises(ConfigError, match=said):
            transfer(params)


def test_a_config_without_runs_says_so(config: Callable[..., str], tmp_path: Path, prefect_api: None) -> None:
    with pytest.raises(ConfigError, match="has no `transfer:`"):
        transfer(StageParams(config=config(), store=str(tmp_path / "store")))


def test_the_table_by_hand() -> None:
    runs = pd.DataFrame(
        [
            ("generic", "t", 0, 0, 50, 0.2, 0.3),
            ("generic", "t", 0, 1, 50, 0.4, 0.3),
            ("a", "t", 0, 0, 50, 0.1, 0.5),
            ("a", "t", 0, 1, 50, 0.2, 0.7),
            ("a", "u", 10, 0, 10, 0.2, 0.7),
            ("generic", "v", 10, 0, 10, 0.0, 0.1),
        ],
        columns=["expert", "task_id", "size", "seed", "n_train", "balanced_error", "frozen_balanced_error"],
    )
    table = transfer_table(runs).set_index(["task_id", "expert"])
    assert table.loc[("t", "a"), "d_ft"] == pytest.approx((0.15 - 0.3) / 0.3)
    assert table.loc[("t", "generic"), "d_ft"] == pytest.approx(0)
    assert table.loc[("t", "a"), "spread"] == pytest.approx(np.std([0.1, 0.2], ddof=1))
    assert table.loc[("t", "a"), "frozen_error"] == pytest.approx(0.6)
    assert np.isnan(table.loc[("u", "a"), "d_ft"])  # no generic run
    assert np.isnan(table.loc[("v", "generic"), "d_ft"])  # nothing to divide by
