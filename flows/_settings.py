"""The environment, read here and nowhere else.

| variable | meaning |
|---|---|
| T2V_STORE | store URL where none is given |
| T2V_DASK | address of a Dask scheduler where none is given |
| T2V_UNIT_DEADLINE | seconds after which one unit is given up (default 3600) |
| T2V_UNITS_IN_FLIGHT | units at the cluster at once, at most (default 512); never more than two a worker thread |
| T2V_GPUS | GPUs that a local cluster uses; default: all that PyTorch sees, 0: none |
| T2V_MLFLOW_URL | MLflow's address as a browser sees it, for links; default: MLFLOW_TRACKING_URI where that is http |
| T2V_STORE_TIMEOUT | seconds without a byte after which a request to an object store is made anew (default 30) |
| T2V_ALERT_URL | webhook that `t2v alerts` has the Prefect server send messages to; a secret |
| T2V_STORE_CONSOLE | page of the object store's console that a bucket and key can be put behind, for links |
| MLFLOW_TRACKING_URI | MLflow server; default: sqlite beside the run |
| PREFECT_API_URL | Prefect server; default: a temporary one on sqlite beside the run |
"""

from __future__ import annotations

import os
from pathlib import Path

from t2v_core.errors import ConfigError

__all__ = [
    "alert_url",
    "dask_address",
    "embedded_services",
    "expanded",
    "gpu_ids",
    "max_in_flight",
    "mlflow_page",
    "mlflow_uri",
    "prefect_home",
    "run_folder",
    "store_console",
    "store_timeout",
    "store_url",
    "unit_deadline",
]


def run_folder(name: str) -> Path:
    """Where a run keeps its local files: store, MLflow's and Prefect's databases."""
    return Path("runs") / name


def store_url(given: str, name: str) -> str:
    """The store: what was given, else T2V_STORE, else a folder beside the run."""
    return given or os.environ.get("T2V_STORE", "") or str(run_folder(name) / "store")


def dask_address(given: str) -> str:
    """A scheduler's address; empty for a local cluster."""
    return given or os.environ.get("T2V_DASK", "")


def unit_deadline() -> float:
    """Seconds after which a unit is given up."""
    return float(os.environ.get("T2V_UNIT_DEADLINE", "3600"))


def store_timeout() -> float:
    """Seconds that an object store may say nothing before it is asked again."""
    return float(os.environ.get("T2V_STORE_TIMEOUT", "30"))


def alert_url() -> str:
    """The webhook that alerts go to; empty where none is set."""
    return os.environ.get("T2V_ALERT_URL", "")


def max_in_flight() -> int:
    """Units that may be at the cluster at once, whatever its size: a thread of the flow's process waits for each."""
    return max(1, int(os.environ.get("T2V_UNITS_IN_FLIGHT", "512")))


def gpu_ids(found: int) -> list[str]:
    """Ids of the GPUs that a local cluster uses, of so many that are there, as CUDA_VISIBLE_DEVICES names them."""
    wanted = int(os.environ.get("T2V_GPUS", "") or found)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (visible or [str(i) for i in range(wanted)])[:wanted]


def mlflow_page() -> str:
    """MLflow's address as a browser sees it; empty where that is not known."""
    return os.environ.get("T2V_MLFLOW_URL", "") or os.environ.get("MLFLOW_TRACKING_URI", "")


def store_console() -> str:
    """The object store's console; empty where none was named. AWS has one of its own, unless an endpoint is set."""
    given = os.environ.get("T2V_STORE_CONSOLE", "")
    elsewhere = any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))
    return given or ("" if elsewhere else "https://s3.console.aws.amazon.com/s3/object")


def expanded(value: str) -> str:
    """``$NAME`` in a value, replaced by the environment's: a database URL with a password is in no list of processes.

    Raises:
        ConfigError: the environment has no such variable.
    """
    out = os.path.expandvars(value)
    if out == value and value.startswith("$"):
        raise ConfigError(f"the environment has no variable {value}; set it, or give the value itself")
    return out


def mlflow_uri(name: str) -> str:
    """Where runs are tracked: MLFLOW_TRACKING_URI, else a sqlite file beside the run."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if given:
        return given
    folder = run_folder(name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def prefect_home(name: str) -> Path:
    """Where the temporary Prefect server keeps its database."""
    return run_folder(name).resolve() / "prefect"


def embedded_services(name: str) -> None:
    """Set up this process for a run without any server: call before Prefect or MLflow is imported.

    What the user has set stays as it is.
    """
    home = prefect_home(name)
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # Quiet on the terminal; the pages get what flows and units say.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    if "PREFECT_API_URL" not in os.environ and "PREFECT_PROFILE" not in os.environ:
        home.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PREFECT_HOME", str(home))
        os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
        # One write per batch of task runs; the default records about 20 runs a second.
        os.environ.setdefault("PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE", "100")
        os.environ.setdefault("PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL", "1")
