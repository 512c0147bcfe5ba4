"""MLflow: one run per pipeline result with a run below it for each stage, and the selector as a registered model.

The only importer of mlflow, with the model's own file, `_selector_model.py`. docs/mlflow.md says what to look at.
"""

from __future__ import annotations

import importlib.metadata
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import t2v_core
from flows._outcome import StageResult, slug
from flows._settings import mlflow_uri
from t2v_core.served import COLUMNS

__all__ = ["experiment_id", "find_run", "log_run", "registered_name"]

TAG = "t2v.fingerprint"
_METRICS, _PARAMS = 500, 100
"""Metrics and parameters of a request, at most; a server takes 1,000 and 100."""


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


def experiment_id(name: str) -> str:
    """Id of a config's experiment, which is made where it is missing."""
    return _experiment(_client(name), name)


def _log(mlflow: Any, metrics: Mapping[str, float], **options: Any) -> None:
    """Metrics in as few requests as a server takes."""
    items = list(metrics.items())
    for start in range(0, len(items), _METRICS):
        mlflow.log_metrics(dict(items[start : start + _METRICS]), **options)


def _log_stages(mlflow: Any, experiment: str, stages: Sequence[StageResult]) -> None:
    """What each stage cost: on the run, and as a run of its own below it."""
    totals = {"cost/seconds": sum(s.seconds for s in stages)}
    for stage in [part for result in stages for part in result.parts]:
        name = slug(stage.stage)
        cost = {"seconds": stage.seconds, **{f"busy_{d}_seconds": s for d, s in stage.devices.items()}}
        units = {"done": stage.done, "reused": stage.reused, "failed": stage.failed, "threads": stage.threads}
        _log(mlflow, {f"cost/{name}/{what}": value for what, value in cost.items()})
        for device, seconds in stage.devices.items():
            totals[f"cost/busy_{device}_seconds"] = totals.get(f"cost/busy_{device}_seconds", 0.0) + seconds
        with mlflow.start_run(experiment_id=experiment, run_name=stage.stage, nested=True):
            mlflow.set_tags({"t2v.stage": stage.stage})
            _log(mlflow, {**cost, **{what: float(value) for what, value in units.items()}})
            if stage.failures:
                failed = pd.DataFrame(stage.failures, columns=["unit", "reason"])
                mlflow.log_table(failed, "failures.json")
    if stages:
        _log(mlflow, totals)


def _describe_version(
    mlflow: Any, name: str, version: Any, tags: Mapping[str, str], metrics: Mapping[str, float], described: str
) -> None:
    """What a version of the selector was fitted on and how it was judged, on its page in the registry."""
    client, model = mlflow.MlflowClient(), registered_name(name)
    client.update_registered_model(model, f"Ranks the experts of t2v's config {name} for a task embedding.")
    client.update_model_version(model, version, described)
    for key, value in tags.items():
        client.set_model_version_tag(model, version, key, value)
    for key, value in metrics.items():
        client.set_model_version_tag(model, version, key, f"{value:.6g}")
    client.set_registered_model_alias(model, "champion", version)


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
    stages: Sequence[StageResult] = (),
    judged: Mapping[str, float] | None = None,
    described: str = "",
) -> str:
    """Log one pipeline result, register its selector, and point the alias ``champion`` at it.

    The run that is logged is complete or it is none: it gets its fingerprint last, by which it is found.

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
        tags: of the run, and of the selector's version.
        stages: of the pipeline run; each becomes a run below this one.
        judged: those of the metrics that judge the selector; they are its version's too.
        described: what the run is, in Markdown.

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
    experiment, judged = _experiment(mlflow, name), dict(judged or {})
    with (
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(experiment_id=experiment, run_name=run_name, description=described) as run,
    ):
        warnings.simplefilter("ignore")  # MLflow's own, of type hints and of pickled models that this is not
        mlflow.set_tags(dict(tags))
        settings = list(params.items())
        for start in range(0, len(settings), _PARAMS):
            mlflow.log_params(dict(settings[start : start + _PARAMS]))
        _log(mlflow, {k: v for k, v in metrics.items() if k not in judged})
        _log_stages(mlflow, experiment, stages)
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
        _log(mlflow, judged, model_id=model.model_id)
        _describe_version(mlflow, name, model.registered_model_version, tags, judged, described)
        mlflow.set_tag(TAG, fingerprint)
        return str(run.info.run_id)
