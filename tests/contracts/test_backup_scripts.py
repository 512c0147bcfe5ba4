"""The scripts of infra/backup, as cron runs them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kept_store import fill

from flows._backup import newest, snapshots, verify
from flows._store import Store

SCRIPTS = Path(__file__).parents[2] / "infra" / "backup"


def test_the_backup_script_takes_what_the_environment_names(tmp_path: Path) -> None:
    store, place, files = (Store(str(tmp_path / name)) for name in ("store", "backup", "mlartifacts"))
    fill(store)
    files.put("1/MLmodel", b"flavors: {}")
    for name in ("mlflow.db", "prefect.db"):
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as base:
            base.execute("create table t (x integer)")
            base.commit()
    environment = os.environ | {
        "PYTHONPATH": str(SCRIPTS.parents[1]),
        "T2V": f"{sys.executable} -m flows.cli",
        "T2V_STORE": store.url,
        "T2V_BACKUP": place.url,
        "T2V_BACKUP_KEEP": "1",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}",
        "MLFLOW_ARTIFACTS_DESTINATION": files.url,
    }

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(SCRIPTS / "backup.sh")]
        return subprocess.run(
            command, env=environment | changes, capture_output=True, text=True, check=False, timeout=120
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all digests are right" in done.stdout
    assert newest(place).parts == ["database:mlflow", "database:prefect", "folder:mlartifacts", "store"]
    assert run(MLFLOW_BACKEND_STORE_URI="", PREFECT_API_DATABASE_CONNECTION_URL="").returncode == 0
    assert len(snapshots(place)) == 1
    assert newest(place).parts == ["folder:mlartifacts", "store"]
    assert verify(place, newest(place)) == []
    refused = run(MLFLOW_BACKEND_STORE_URI="mysql://root:hunter2@host/base")
    assert refused.returncode == 2
    assert "hunter2" not in refused.stdout + refused.stderr
    assert run(T2V_BACKUP="").returncode != 0


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_old_runs_of_mlflow_go_and_the_champion_stays(tmp_path: Path) -> None:
    import mlflow
    from mlflow.pyfunc import PythonModel

    class Echo(PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input

    spec = importlib.util.spec_from_file_location("prune_mlflow", SCRIPTS / "prune_mlflow.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    uri, before = f"sqlite:///{tmp_path / 'mlflow.db'}", mlflow.get_tracking_uri()
    registry = mlflow.get_registry_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)  # a flow that ran before in this process has set its own
    try:
        experiment = mlflow.create_experiment("t2v mini", artifact_location=(tmp_path / "artifacts").as_uri())
        runs, client = [], mlflow.MlflowClient()
        for i in range(4):
            with mlflow.start_run(experiment_id=experiment) as run:
                runs.append(run.info.run_id)
                if i != 2:
                    mlflow.pyfunc.log_model(
                        name="selector",
                        python_model=Echo(),
                        registered_model_name="t2v-selector-mini",
                        pip_requirements=[],
                    )
        client.set_registered_model_alias("t2v-selector-mini", "champion", "1")  # of the oldest run
        said = module.prune(uri, 1, delete=False)
        assert [line for line in said if line.startswith("run ")] == [
            f"run {r} of t2v mini" for r in (runs[2], runs[1])
        ]
        assert len(client.search_runs([experiment])) == 4
        assert module.prune(uri, 1, delete=True) == said
        assert {r.info.run_id for r in client.search_runs([experiment])} == {runs[0], runs[3]}
        tool = [str(Path(sys.executable).parent / "mlflow"), "gc", "--backend-store-uri", uri, "--tracking-uri", uri]
        subprocess.run(tool, check=True, capture_output=True, timeout=120)
        assert mlflow.pyfunc.load_model("models:/t2v-selector-mini@champion").predict(3) == 3
        models = [p for p in (tmp_path / "artifacts" / "models").iterdir() if any(f.is_file() for f in p.rglob("*"))]
        assert len(models) == 2
        assert module.prune(uri, 1, delete=True) == []
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri(registry)
