"""What people do with a store in which a pipeline has run; one store for all tests, its experts scored by features."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from flows._plan import Speed, make_plan, probe_of
from flows._registered import configured
from flows._stage import StageParams
from flows._store import Store
from flows.pipeline import PipelineParams, pipeline
from flows.score_experts import score_experts
from t2v_core.transferability import METHODS

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, mini_settings: dict[str, Any], prefect_api: None, dask_cluster: str
) -> Iterator[tuple[PipelineParams, dict[str, Any]]]:
    """The small pipeline, run with every scoring method: its parameters and its summary."""
    folder = tmp_path_factory.mktemp("use")
    content = copy.deepcopy(mini_settings) | {"scoring": {"methods": list(METHODS), "max_images": 30}}
    (folder / "mini.yaml").write_text(yaml.safe_dump(content))
    here = Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("T2V_STORE", "T2V_DASK", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        params = PipelineParams(config=str(folder / "mini.yaml"), store=str(folder / "store"), dask=dask_cluster)
        yield params, pipeline(params)
    os.chdir(here)


Made = tuple[PipelineParams, dict[str, Any]]


def test_scores_are_a_stage_with_rows_selectors_and_a_plan(made: Made) -> None:
    params, summary = made
    store = Store(params.store)
    stages = {s["stage"]: (s["done"], s["failed"]) for s in summary["stages"]}
    assert stages["score experts"] == (6, 0)  # three experts, two sources
    rows = pd.read_parquet(store.path("transferability"))
    assert len(rows) == 6 * 3 * len(list(METHODS))  # tasks x experts x methods
    assert rows.groupby("method")["task_id"].nunique().to_dict() == dict.fromkeys(METHODS, 6)
    assert set(rows["source"]) == {"digits", "shapes"}
    assert (rows["n_images"] <= 30).all()
    assert (rows["seconds"] > 0).all()
    # Heads of all three are known: those that two were trained with, and ImageNet's of the generic one.
    assert rows[rows["method"] == "leep"]["score"].map(math.isfinite).all()
    assert (rows["reason"] != "").sum() == rows["score"].isna().sum()
    table = pd.DataFrame(summary["table"])
    titles = {m.title for m in (METHODS[name] for name in METHODS)}
    for _, part in table.groupby("reading"):
        assert titles <= set(part["method"])
    # Again: nothing is left to do, and the plan knows it.
    again = score_experts(StageParams(**params.model_dump()))
    assert (again.done, again.reused, again.failed) == (0, 6, 0)
    config, place = configured(params.config, params.store)
    lines = {x.stage: x for x in make_plan(config, place, probe_of(config, place), Speed(100.0, 10.0)).lines}
    assert (lines["score experts"].units, lines["score experts"].there) == (6, 6)


def test_no_methods_no_stage(made: Made, tmp_path: Path) -> None:
    params, _ = made
    content = yaml.safe_load(Path(params.config).read_text()) | {"scoring": {}}
    (tmp_path / "off.yaml").write_text(yaml.safe_dump(content))
    result = score_experts(params.model_copy(update={"config": str(tmp_path / "off.yaml")}))
    assert (result.done, result.reused, result.failed) == (0, 0, 0)
