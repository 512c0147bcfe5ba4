"""The selector as an MLflow model from code: embeddings in, ranked experts out. No pickle."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

from t2v_core.selector import Selector

with warnings.catch_warnings():
    # MLflow asks for type hints when a model's class is made; the signature it is logged with says more.
    warnings.simplefilter("ignore")

    class SelectorModel(PythonModel):  # type: ignore[misc]
        """Ranks experts for task embeddings ``[N, P]`` by the probe that the selector was fitted with."""

        def load_context(self, context: Any) -> None:
            """Read the selector."""
            self.selector = Selector.loads(Path(context.artifacts["selector"]).read_bytes())

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            """Rows (query, rank, expert, distance, probability), ``top_k`` for each embedding."""
            if isinstance(model_input, dict):
                model_input = model_input["vector"]
            top_k = int((params or {}).get("top_k", 5))
            ranked = []
            for query, vector in enumerate(np.atleast_2d(np.asarray(model_input))):
                rows = self.selector.rank(vector).head(top_k)
                rows.insert(0, "query", query)
                ranked.append(rows[["query", "rank", "expert", "distance", "probability"]])
            return pd.concat(ranked, ignore_index=True)


mlflow.models.set_model(SelectorModel())
