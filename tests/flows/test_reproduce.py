"""`t2v reproduce` from compact results and from a store: files on disk, errors in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from reproduced import PROFILE, evidence, runs, write_compact
from typer.testing import CliRunner

from flows._keys import EMBEDDINGS, ERROR_MATRIX, TRANSFER
from flows._pointers import write_pointer
from flows._reproduction import read_evidence, transfer_runs
from flows._store import Store
from flows.cli import app
from t2v_core.evaluation import LEFT_OUT
from t2v_core.library import Task, TaskLibrary, TaskSpec
from t2v_core.records import EMBEDDINGS as COLUMNS
from t2v_core.reproduce.evidence import Evidence

CURVE = ({10: 0.3, 100: 0.2}, {10: 0.4, 100: 0.3}, {10: 0.2, 100: 0.1})


def profile_file(folder: Path) -> str:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(PROFILE.model_dump(mode="json")))
    return str(path)


def run(*args: str) -> tuple[int, str, BaseException | None]:
    answer = CliRunner().invoke(app, ["reproduce", *args])
    return answer.exit_code, answer.output, answer.exception


def write_store(made: Evidence, folder: Path) -> Store:
    """What the stages of a pipeline leave behind, of hand-made evidence."""
    store = Store(str(folder))
    tasks = [
        Task(
            TaskSpec(
                task_id=str(row.task_id), source=str(row.source), domain="d", kind="binary", label=str(row.label),
                classes=("yes", "no"), values=(("yes",), ()), class_lineage=places, max_per_class=9, max_ratio=3.0, seed=0,
            ),
            (int(row.n_train) - 4, 4),
            (3, 3),
            f"f{i}",
        )
        for i, (row, places) in enumerate(zip(made.tasks.itertuples(), made.class_lineages, strict=True))
    ]  # fmt: skip
    store.put_table("libraries/m.parquet", TaskLibrary(tuple(tasks), ()).to_table())
    rows = [
        {
            "task_id": t, "fingerprint": f"e{i}", "probe": "p0:abc", "vector": made.embeddings.vectors[i],
            "domain_embedding": made.embeddings.domains[i],
            "layers": [{"name": "all", "start": 0, "stop": 256, "prior": 1e-6}],
            "complexity": made.tasks["complexity"][i], "head_error": made.tasks["head_error"][i],
        }
        for i, t in enumerate(made.task_ids)
    ]  # fmt: skip
    store.put_table(EMBEDDINGS, pa.Table.from_pylist(rows, schema=COLUMNS))
    cells = [
        {"expert": e, "task_id": t, "balanced_error": made.errors[i, j], "unit": "b"}
        for i, t in enumerate(made.task_ids)
        for j, e in enumerate(made.experts)
    ]
    store.put_table(ERROR_MATRIX, pa.Table.from_pylist(cells))
    pointers = {
        "library": {"manifest": "libraries/m.parquet"},
        "embeddings": {"embeddings": {t: f"e{i}" for i, t in enumerate(made.task_ids)}},
        "experts": {"experts": [{"name": e, "tasks": list(on)} for e, on in made.trained_on.items()]},
        "error_matrix": {"blocks": ["b"]},
    }
    for stage, value in pointers.items():
        write_pointer(store, PROFILE.name, stage, value)
    return store


def add_transfer(store: Store) -> pd.DataFrame:
    """Fine-tuning runs of this config and of another one, and what MODEL2VEC chose."""
    made = runs(*CURVE).drop(columns=["selected", "own"])
    mine = made.assign(unit="u1").replace({"expert": {"picked": "e5", "own": "e0", "best": "e10"}})
    store.put_table(TRANSFER, pa.Table.from_pandas(pd.concat([mine, made.assign(unit="u2")]), preserve_index=False))
    ids = mine["task_id"].unique()
    choices = [
        {"meta_task": meta, "reading": reading, "method": method, "task_id": t, "expert": expert}
        for t in ids
        for meta, reading, method, expert in (
            ("all", LEFT_OUT, "MODEL2VEC", "e5"),
            ("all", LEFT_OUT, "TASK2VEC", "e10"),
            ("all", "all candidates", "MODEL2VEC", "e0"),
            ("a part", LEFT_OUT, "MODEL2VEC", "e10"),
        )
    ]
    store.put_table("selections/s/choices.parquet", pa.Table.from_pylist(choices))
    write_pointer(store, PROFILE.name, "selection", {"prefix": "selections/s"})
    write_pointer(store, PROFILE.name, "transfer", {"units": ["u1"]})
    return mine


def test_a_store_gives_the_evidence_of_its_run(tmp_path: Path) -> None:
    made = evidence()
    store = write_store(made, tmp_path / "store")
    read, probe = read_evidence(store, PROFILE.name, PROFILE)
    assert probe == "p0"
    assert sorted(read.task_ids) == sorted(made.task_ids)  # a pointer's keys are sorted
    rows = np.array([made.task_ids.index(t) for t in read.task_ids])
    assert read.errors == pytest.approx(made.errors[rows])
    assert read.symmetric == pytest.approx(made.symmetric[np.ix_(rows, rows)], rel=1e-5)
    assert (read.own == made.own[rows]).all()
    assert np.nansum(read.taxonomy_distances) == np.nansum(made.taxonomy_distances)
    assert read.tasks["n_train"].tolist() == made.tasks["n_train"].to_numpy()[rows].tolist()
    assert read.transfer is None


def test_fine_tuning_runs_know_their_selected_and_their_own_start(tmp_path: Path) -> None:
    store = write_store(evidence(), tmp_path / "store")
    assert transfer_runs(store, PROFILE.name) is None
    mine = add_transfer(store)
    found = transfer_runs(store, PROFILE.name)
    assert found is not None
    assert len(found) == len(mine)  # not the runs of another config
    assert set(found.loc[found["selected"], "expert"]) == {"e5"}
    own = found[found["own"]]
    assert set(zip(own["expert"], own["task_id"], strict=True)) == {
        ("e0", "a/top=t0/species=s00")
    }  # e0 was trained on the first task only


def test_reproduce_writes_pages_tables_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_compact(evidence(), tmp_path / "results")
    code, said, _ = run(
        "--library", profile_file(tmp_path), "--results", "results", "--to", "out", "--bootstrap", "100"
    )
    assert code == 0, said
    assert "not there Figure 4" in " ".join(said.split())
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"index.html", "README.md", "claims.parquet", "table-1.parquet", "figure-1.png", "figure-3.png"} <= files
    claims = pd.read_parquet(tmp_path / "out" / "claims.parquet").set_index("claim")
    assert claims.loc["The same task in two domains is near.", "verdict"] == "shown"
    assert np.isfinite(claims.loc["The same task in two domains is near.", "value"])
    assert claims.loc["Most of the gain is kept with few samples.", "verdict"] == "no data"
    assert "--results results" in (tmp_path / "out" / "README.md").read_text()


def test_reproduce_from_a_store_has_figure_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("T2V_STORE", raising=False)
    add_transfer(write_store(evidence(), tmp_path / "store"))
    code, said, _ = run("--library", profile_file(tmp_path), "--store", "store", "--bootstrap", "100")
    assert code == 0, said
    out = tmp_path / "runs" / "reproduce" / PROFILE.name
    assert (out / "figure-4.png").is_file()
    claims = pd.read_parquet(out / "claims.parquet").set_index("claim")
    assert claims.loc["Most of the gain is kept with few samples.", "value"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--library", "rehersal"), "did you mean 'rehearsal'"),
        (("--library", "paper"), "t2v reproduce --library paper --store URL"),
        (("--library", "paper", "--store", "empty"), "has not run in"),
    ],
)
def test_errors_say_what_to_do(
    args: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*args)
    assert code != 0
    assert said in str(error)
