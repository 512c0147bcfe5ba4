"""Reading a config's newest results back from the store, for fitting, for the report and for queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import load

from flows._data import read_cells, read_scores
from flows._keys import EMBEDDINGS, ERROR_MATRIX, selection_prefix
from flows._stage import Run
from flows.ingest import library_of
from t2v_core.distances import symmetric_matrix
from t2v_core.fingerprints import fingerprint
from t2v_core.library import Task
from t2v_core.matrix import ClassLineages, ErrorMatrix
from t2v_core.model2vec import Model2Vec
from t2v_core.prediction import ErrorModel, fit_error_model
from t2v_core.records import EmbeddingTable
from t2v_core.selector import Selector
from t2v_core.selectors.rates import QueryRates

__all__ = ["Results", "build_selector"]


@dataclass(frozen=True)
class Results:
    """Embeddings, experts and error matrix of one config."""

    run: Run

    @cached_property
    def embeddings(self) -> dict[str, str]:
        """Task id to the fingerprint of its embedding."""
        value: dict[str, str] = self.run.pointed("embeddings")["embeddings"]
        return value

    @cached_property
    def experts(self) -> list[dict[str, Any]]:
        """Name, digest, weights, tasks, seconds of each expert; generic first."""
        value: list[dict[str, Any]] = self.run.pointed("experts")["experts"]
        return value

    @cached_property
    def trained_on(self) -> dict[str, list[str]]:
        """Expert to its tasks."""
        return {e["name"]: e["tasks"] for e in self.experts}

    @cached_property
    def blocks(self) -> list[str]:
        """Keys of the blocks of the error matrix."""
        value: list[str] = self.run.pointed("error_matrix")["blocks"]
        return value

    @cached_property
    def score_blocks(self) -> list[str]:
        """Keys of the scores by features; none where the config names no methods."""
        value: list[str] = self.run.pointed("scores")["blocks"] if self.run.config.scoring.methods else []
        return value

    @cached_property
    def scores(self) -> Mapping[str, np.ndarray]:
        """Method to its scores ``[T, E]``, lower is better; rows and columns are the error matrix's."""
        return read_scores(self.run.store, self.score_blocks, self.table.task_ids, tuple(self.trained_on))

    def for_queries(self) -> dict[str, Any]:
        """What `t2v select` needs beside the selector: where its experts, its tasks and their errors are."""
        config = self.run.config
        return {
            "experts": [{k: e[k] for k in ("name", "digest", "extractor")} for e in self.experts],
            "embeddings": self.embeddings,
            "blocks": self.blocks,
            "evaluation": config.evaluation.model_dump(mode="json"),
            "metric": config.selection.metric,
        }

    @cached_property
    def prefix(self) -> str:
        """Folder of the selection that these results make."""
        c = self.run.config
        experts = [f"{e['name']}:{e['digest']}:{','.join(e['tasks'])}" for e in self.experts]
        more = [*self.score_blocks, *self.moments, fingerprint(self.lineages)]
        made_of = (sorted(self.embeddings.values()), self.blocks, experts, c.model2vec, c.selection, more)
        return selection_prefix(c.name, *made_of)

    @cached_property
    def table(self) -> EmbeddingTable:
        """All embeddings."""
        return EmbeddingTable.of(self.run.store.read_table(EMBEDDINGS), self.embeddings)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The library's tasks by name; one that was embedded may be gone from it."""
        return {t.task_id: t for t in library_of(self.run).tasks}

    @cached_property
    def moments(self) -> list[str]:
        """Keys of the second moments."""
        value: list[str] = self.run.last("moments").get("units", [])
        return value

    @cached_property
    def lineages(self) -> dict[str, ClassLineages]:
        """Embedded task to its classes' places in the taxonomy; empty where there are none."""
        return {t: self.tasks[t].spec.class_lineage if t in self.tasks else () for t in self.embeddings}

    @cached_property
    def image_seconds(self) -> pd.Series:
        """Of each expert that was timed: seconds for the features of one image, whichever run made them."""
        cells = self.run.store.read_table(ERROR_MATRIX, ["expert", "expert_digest", "features_seconds", "n_images"])
        digests = pa.array([e["digest"] for e in self.experts])
        made = cells.filter(pc.is_in(cells["expert_digest"], digests)).to_pandas()
        made = made[made["features_seconds"] > 0]
        return (made["features_seconds"] / made["n_images"]).groupby(made["expert"]).median()

    @cached_property
    def rates(self) -> QueryRates:
        """What a new task would cost, by these results' own records."""
        frame, cells = self.table.frame, self.cells.to_pandas()
        image = float(self.image_seconds.median())
        return QueryRates(
            n_images=float(np.median([sum(t.train_counts) for t in self.tasks.values()])),
            probe_image=image,
            embedding=float(frame["seconds"].median()),
            embedding_passes=float(frame["n_passes"].median()),
            expert_image=image,
            head=float(cells["seconds"].median()),
        )

    @cached_property
    def cells(self) -> pa.Table:
        """All cells of the error matrix, failed ones too."""
        return read_cells(self.run.store, self.blocks)

    @cached_property
    def matrix(self) -> ErrorMatrix:
        """The error matrix in the config's metric; rows are the embeddings' tasks."""
        return ErrorMatrix.of(self.cells, self.table.task_ids, self.trained_on, self.run.config.selection.metric)


def _predictions(results: Results, base: np.ndarray) -> dict[str, ErrorModel]:
    """What predicts the experts' errors on a new task: with the error of the probe's head, and without."""
    matrix, frame, known = results.matrix, results.table.frame, (base > 0).any(1)
    distances = np.full(matrix.errors.shape, np.nan)
    distances[:, known] = symmetric_matrix(results.table.vectors.astype(np.float64), base[known])
    of = (matrix.errors, matrix.own, distances)
    found = {
        "head": fit_error_model(*of, frame["head_error"].to_numpy(np.float64), uses_head=True),
        "embedding": fit_error_model(*of, frame["complexity"].to_numpy(np.float64), uses_head=False),
    }
    return {what: model for what, model in found.items() if model is not None}


def build_selector(results: Results, fitted: bytes) -> Selector:
    """The selector of a fitted MODEL2VEC, with the costs that this run measured."""
    tensors = load(fitted)
    gamma, alpha, l2 = (float(v) for v in tensors["scalars"])
    trivial, more = results.table.trivial.astype(np.float64), (tensors.get("offsets"), tensors.get("first_order_base"))
    probe, cells = results.run.probe, results.cells.to_pandas()
    names, frame, per_image = list(results.trained_on), results.table.frame, results.image_seconds
    per_head = cells.groupby("expert")["seconds"].median()
    return Selector(
        model=Model2Vec(tensors["vectors"], gamma, alpha, trivial, l2, *more),
        experts=tuple(names),
        tasks=tuple(tuple(tasks) for tasks in results.trained_on.values()),
        base=tensors["base"],
        probe=f"{probe.name}:{probe.digest}",
        probe_name=probe.name,
        image_size=results.run.config.probe.image_size,
        mean_error=np.nanmean(results.matrix.errors, axis=0),
        # The generic expert's features were made before, and are timed nowhere: it is taken to be like the others.
        image_seconds=per_image.reindex(names).fillna(per_image.median()).to_numpy(np.float64),
        head_seconds=per_head.reindex(names).fillna(per_head.median()).to_numpy(np.float64),
        device=str(frame["device"].iloc[0]),
        predictions=_predictions(results, tensors["base"]),
        n_tasks=len(results.table.task_ids),
        fingerprint=results.prefix.rsplit("-", 1)[-1],
    )
