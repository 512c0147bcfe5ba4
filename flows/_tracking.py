"""MLflow: one run per pipeline result, and the selector as a registered model. The only importer of mlflow, with the
model's own file, `_selector_model.py`."""

from __future__ import annotations

import importlib.metadata
import logging
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import t2v_core
from flows._settings import mlflow_uri
from t2v_core.served import COLUMNS

__all__ = ["find_run", "log_run", "registered_name"]

TAG = "t2v.fingerprint"


def registered_name(name: str) -> str:
    """Name of a config's selector in the model registry."""
    return f"t2v-selector-{name}"


def _client(name: str) -> Any:
    import mlflow

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(mlflow_uri(name))
    mlflow.set_registry_uri(mlflow_uri(name))
    return mlflow


def _requirements() -> list[str]:
    """What the selector's code imports, at the versions of this process."""
    names = ("mlflow", "numpy", "pandas", "scipy", "pydantic", "safetensors", "torch")
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]


def _experiment(mlflow: Any, name: str) -> str:
    found = mlflow.get_experiment_by_name(f"t2v {name}")
    if found is not None:
        return str(found.experiment_id)
    uri = mlflow_uri(name)
    # A sqlite file beside the run keeps its artifacts there too; a server knows its own place.
    where = Path(uri.removeprefix("sqlite:///")).with_name("mlartifacts").as_uri() if uri.startswith("sqlite") else None
    return str(mlflow.create_experiment(f"t2v {name}", artifact_location=where))


def find_run(name: str, fingerprint: str) -> str:
    """Id of the finished run of this result; empty where there is none."""
    mlflow = _client(name)
    found = mlflow.MlflowClient().search_runs(
        [_experiment(mlflow, name)], f"tags.`{TAG}` = '{fingerprint}' and attributes.status = 'FINISHED'", max_results=1
    )
    return str(found[0].info.run_id) if found else ""


def log_run(
    name: str,
    fingerprint: str,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Any],
    inputs: Mapping[str, tuple[pd.DataFrame, str]],
    texts: Mapping[str, str],
    selector: bytes,
    n_filters: int,
    tags: Mapping[str, str],
) -> str:
    """Log one pipeline result, register its selector, and point the alias ``champion`` at it.

    Args:
        name: of the config; names the experiment and the registered model.
        fingerprint: of the result; a result is logged once.
        params: flat, settings that matter.
        metrics: flat.
        tables: artifact file to table.
        figures: artifact file to matplotlib figure.
        inputs: name to (table, URL it was read from).
        texts: artifact file to content.
        selector: `Selector.dumps`'s bytes.
        n_filters: P, for the model's signature.
        tags: of the run.

    Returns:
        The run's id.
    """
    mlflow = _client(name)
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, n_filters), "vector")]),
        outputs=Schema([ColSpec(kind, name) for name, kind in COLUMNS.items()]),
        params=ParamSchema([ParamSpec("top_k", "long", 5), ParamSpec("head_error", "double", -1.0)]),
    )
    run_name = f"{name} {fingerprint.rsplit('-', 1)[-1][:6]}"
    with (
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(experiment_id=_experiment(mlflow, name), run_name=run_name) as run,
    ):
        warnings.simplefilter("ignore")  # MLflow's own, of type hints and of pickled models that this is not
        mlflow.set_tags(dict(tags))
        mlflow.log_params(dict(params))
        mlflow.log_metrics(dict(metrics))
        for file, table in tables.items():
            mlflow.log_table(table, file)
        for file, figure in figures.items():
            mlflow.log_figure(figure, file)
        for what, (table, source) in inputs.items():
            mlflow.log_input(mlflow.data.from_pandas(table, source=source, name=what), context=what)
        for file, text in texts.items():
            mlflow.log_text(text, file)
        path = Path(folder) / "selector.safetensors"
        path.write_bytes(selector)
        model = mlflow.pyfunc.log_model(
            name="selector",
            python_model=str(Path(__file__).with_name("_selector_model.py")),
            artifacts={"selector": str(path)},
            signature=signature,
            code_paths=[str(Path(t2v_core.__file__).parent)],  # the model needs no t2v where it is served
            pip_requirements=_requirements(),
            registered_model_name=registered_name(name),
        )
        mlflow.MlflowClient().set_registered_model_alias(
            registered_name(name), "champion", model.registered_model_version
        )
        mlflow.set_tag(TAG, fingerprint)
        return str(run.info.run_id)
