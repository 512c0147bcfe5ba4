"""The selector as an MLflow model from code: embeddings in, ranked experts out. No pickle."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

from t2v_core.selector import Selector
from t2v_core.served import served_answer

with warnings.catch_warnings():
    # MLflow asks for type hints when a model's class is made; the signature it is logged with says more.
    warnings.simplefilter("ignore")

    class SelectorModel(PythonModel):  # type: ignore[misc]
        """Ranks experts for task embeddings ``[N, P]`` by the probe that the selector was fitted with."""

        def load_context(self, context: Any) -> None:
            """Read the selector."""
            self.selector = Selector.loads(Path(context.artifacts["selector"]).read_bytes())

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            """Rows of `t2v_core.served.COLUMNS`, ``top_k`` for each embedding."""
            if isinstance(model_input, dict):
                model_input = model_input["vector"]
            given = {"top_k": 5, "head_error": -1.0, **(params or {})}
            return served_answer(self.selector, model_input, int(given["top_k"]), float(given["head_error"]))


mlflow.models.set_model(SelectorModel())
