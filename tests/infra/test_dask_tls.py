"""TLS for Dask with a certificate of one's own, by distributed's variables alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import BIN, environment, free_port, running, wait_for
from stacks import compose_stack

UNIT = """
import sys, warnings
warnings.simplefilter("ignore")
from flows._cluster import Cluster
from t2v_core.errors import ConfigError

if __name__ == "__main__":
    cluster = Cluster(sys.argv[1])
    try:
        print("a worker said", cluster.run(dict, label="unit"))
    except ConfigError as error:
        print("ConfigError:", error)
    finally:
        cluster.close()
"""


def _certificate(folder: Path) -> Path:
    """What docs/cluster.md says to type."""
    folder.mkdir()
    command = [sys.executable, "-m", "trustme", "--quiet", "--dir", str(folder), "--identities", "dask-scheduler"]
    subprocess.run(command, check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["client.pem", "server.key", "server.pem"]
    return folder


def _variables(tls: Path) -> dict[str, str]:
    """Those of compose.tls.yaml, with the folder in place of its mount."""
    env = compose_stack("compose.yaml", "compose.tls.yaml")["dask-worker"].env
    return {k: v.replace("/tls/", f"{tls}/") for k, v in env.items() if k.startswith("DASK_")}


@pytest.mark.server
@pytest.mark.timeout(300)
def test_flows_join_a_cluster_by_tls_and_nobody_else_does(tmp_path: Path) -> None:
    ours, theirs = _variables(_certificate(tmp_path / "tls")), _variables(_certificate(tmp_path / "other"))
    port, dashboard = free_port(), free_port()
    script = tmp_path / "unit.py"
    script.write_text(UNIT)
    scheduler = ["scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", str(port)]
    scheduler += ["--dashboard-address", f"127.0.0.1:{dashboard}"]
    address = f"127.0.0.1:{port}"
    worker = ["worker", f"tls://{address}", "--nthreads=1", "--nworkers=1", "--memory-limit=0", "--no-dashboard"]
    worker += ["--preload-nanny=flows._cluster", f"--local-directory={tmp_path}", "--host", "127.0.0.1"]
    root = str(Path(__file__).parents[2])

    def join(url: str, variables: dict[str, str]) -> str:
        command = [str(BIN / "python"), str(script), url]
        env = environment(**variables, PYTHONPATH=root)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
        return done.stdout + done.stderr

    served = environment(**ours, PYTHONPATH=root)
    with running(tmp_path / "scheduler.log", served, "dask", *scheduler):
        wait_for(f"http://127.0.0.1:{dashboard}/health", 90)
        with running(tmp_path / "worker.log", served, "dask", *worker):
            assert "a worker said {}" in join(f"tls://{address}", ours)
            # Another authority's certificate, none at all, and no TLS: not let in, and told so.
            for url, variables in ((f"tls://{address}", theirs), (f"tls://{address}", {}), (f"tcp://{address}", {})):
                said = join(url, variables)
                assert "no Dask scheduler answers" in said or "TLS" in said, said
                assert "a worker said" not in said
    assert "tls://" in (tmp_path / "scheduler.log").read_text()
