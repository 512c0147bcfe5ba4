"""The t2v command: help that teaches, errors in one line, verbs that need no store."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import replicas

COMMANDS = [
    "run",
    "select",
    "embed",
    "tasks",
    "fetch",
    "plan",
    "transfer",
    "experts",
    "report",
    "probes",
    "ui",
    "reproduce",
]


def t2v(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, check=False)


def test_help_names_every_command() -> None:
    said = t2v("--help")
    assert said.returncode == 0
    assert all(name in said.stdout for name in COMMANDS)
    for name in COMMANDS:
        one = t2v(name, "--help")
        assert one.returncode == 0
        assert len(one.stdout.splitlines()) > 5


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("run", "nowhere.yaml"), "no configuration at 'nowhere.yaml'"),
        (("select", "somewhere", "--store", "empty"), "run a pipeline first"),
        (("embed", "nowhere"), "nowhere"),
        (("embed", ".", "--estimator", "exakt"), "did you mean 'exact'"),
        (("embed", ".", "--probe", "resnet43"), "did you mean 'resnet34'"),
        (("ui", "grafana"), "wanted mlflow or prefect"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    answer = t2v(*args, cwd=tmp_path)
    assert answer.returncode == 2
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_a_misspelt_key_is_said_with_the_right_one(config: Callable[..., str]) -> None:
    answer = t2v("run", config(experts__training__step=3))
    assert answer.returncode == 2
    assert "did you mean 'steps'?" in answer.stderr


def test_embed_a_folder(shapes_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "shapes.parquet"
    answer = t2v("embed", str(shapes_folder), "--image-size", "32", "--out", str(out))
    assert answer.returncode == 0, answer.stderr
    assert "3 classes, 78 images, 21008 filters" in answer.stdout
    assert "5 images left out" in answer.stderr
    row = pq.read_table(out).to_pylist()[0]
    assert len(row["vector"]) == 21008
    assert row["n_classes"] == 3


def test_one_class_is_no_task(shapes_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "disc").symlink_to(shapes_folder / "disc")
    answer = t2v("embed", str(tmp_path / "only"))
    assert answer.returncode == 2
    assert "two or more classes" in answer.stderr or "class" in answer.stderr


@pytest.mark.timeout(600)
def test_an_interrupted_run_ends_soon_and_goes_on(config: Callable[..., str], tmp_path: Path) -> None:
    """Ctrl-C in mid-run: the process and all it started end, nothing half is left, and the same command finishes."""
    path = config(embedding__draws=20000, embedding__max_images=40, embedding__estimator="montecarlo_plain")
    # A shell's background job ignores SIGINT and hands that down; a person's terminal does not.
    script = """
import signal
from flows.cli import main
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
"""
    command = [sys.executable, "-c", script, "run", path, "--store", str(tmp_path / "store")]
    log = tmp_path / "log"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path) as run:
        deadline = time.monotonic() + 120
        while "embed tasks: 0 of 6" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130, log.read_text()[-2000:]
        assert time.monotonic() - began < 45
    assert "the same command goes on where it was" in log.read_text()
    config()  # with the usual draws, so that the rest is quick
    again = t2v("run", path, "--store", str(tmp_path / "store"), cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "MODEL2VEC" in again.stdout


def test_the_papers_library_says_what_is_missing(tmp_path: Path) -> None:
    replicas.small_cub(tmp_path / "CUB_200_2011", classes=200, per_class=6)
    told = t2v("tasks", "--library", "paper", "--data", str(tmp_path), "--summary")
    assert told.returncode == 0, told.stderr
    assert "cub: 25 tasks on 1200 images" in told.stdout
    assert "deepfashion: 0 tasks (the complete data give 1000)" in told.stdout
    assert "25 tasks in all" in told.stdout
    for name in ("inat2018", "imaterialist", "deepfashion"):
        assert f"missing {name}: " in told.stdout
    assert "missing cub" not in told.stdout
    assert "1460 tasks when all data are there" in told.stdout


def test_a_plan_before_anything_ran(config: Callable[..., str], tmp_path: Path) -> None:
    told = t2v("plan", config(), "--store", str(tmp_path / "store"), "--images-per-second", "1000", "--workers", "4")
    assert told.returncode == 0, told.stderr
    assert "6 tasks x 3 experts = 18 cells" in told.stdout
    assert "at 1,000 images" in told.stdout
    assert "Nothing was ingested yet" in told.stdout
    assert "missing gone: " in told.stdout
