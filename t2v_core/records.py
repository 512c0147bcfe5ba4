"""Embeddings as rows of Parquet, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from t2v_core.embedding import Layer, TaskEmbedding
from t2v_core.errors import DataError
from t2v_core.fingerprints import SCHEMA_VERSION

__all__ = ["EMBEDDINGS", "EmbeddingTable", "embedding_row"]

EMBEDDINGS = pa.schema(
    [
        ("task_id", pa.string()),
        ("task_fingerprint", pa.string()),
        ("fingerprint", pa.string()),
        ("probe", pa.string()),
        ("estimator", pa.string()),
        ("vector", pa.list_(pa.float32())),
        ("noise", pa.list_(pa.float32())),
        ("domain_embedding", pa.list_(pa.float32())),
        (
            "layers",
            pa.list_(
                pa.struct([("name", pa.string()), ("start", pa.int32()), ("stop", pa.int32()), ("prior", pa.float32())])
            ),
        ),
        ("complexity", pa.float64()),
        ("noise_distance", pa.float64()),
        ("beta", pa.float64()),
        ("beta_scale", pa.string()),
        ("seed", pa.int64()),
        ("n_classes", pa.int32()),
        ("n_images", pa.int64()),
        ("n_passes", pa.int64()),
        ("exact", pa.bool_()),
        ("objective", pa.list_(pa.float64())),
        ("converged", pa.bool_()),
        ("head_loss", pa.float64()),
        ("head_accuracy", pa.float64()),
        ("head_error", pa.float64()),
        ("head_l2", pa.float64()),
        ("seconds", pa.float64()),
        ("images_per_second", pa.float64()),
        ("device", pa.string()),
        ("schema_version", pa.int32()),
    ]
)
"""One row a task embedding. `vector` is F + t0; t0 is `prior` of each layer, repeated over its filters. Wall time is
in `seconds` and `images_per_second` alone; everything else is a function of the inputs."""


def embedding_row(task_id: str, task_fingerprint: str, fingerprint: str, e: TaskEmbedding) -> pa.Table:
    """One embedding as a table of one row."""
    row = {
        "task_id": task_id,
        "task_fingerprint": task_fingerprint,
        "fingerprint": fingerprint,
        "probe": e.probe,
        "estimator": e.estimator,
        "vector": e.vector,
        "noise": e.noise,
        "domain_embedding": e.domain,
        "layers": [
            {"name": x.name, "start": x.start, "stop": x.stop, "prior": float(e.trivial[x.start])} for x in e.layers
        ],
        "complexity": e.complexity,
        "noise_distance": e.noise_distance,
        "beta": e.beta,
        "beta_scale": e.beta_scale,
        "seed": e.seed,
        "n_classes": e.n_classes,
        "n_images": e.n_images,
        "n_passes": e.n_passes,
        "exact": e.exact,
        "objective": list(e.objective),
        "converged": e.converged,
        "head_loss": e.head_loss,
        "head_accuracy": e.head_accuracy,
        "head_error": e.head_error,
        "head_l2": e.head_l2,
        "seconds": e.seconds,
        "images_per_second": e.images_per_second,
        "device": e.device,
        "schema_version": SCHEMA_VERSION,
    }
    return pa.Table.from_pylist([row], schema=EMBEDDINGS)


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """Embeddings of T tasks by one probe, as arrays."""

    task_ids: tuple[str, ...]
    vectors: np.ndarray
    """``[T, P]`` float32."""
    domains: np.ndarray
    """``[T, D]`` float32."""
    trivial: np.ndarray
    """``[P]`` float32, t0."""
    layers: tuple[Layer, ...]
    frame: pd.DataFrame
    """The scalar columns."""

    @classmethod
    def of(cls, table: pa.Table, fingerprints: Mapping[str, str]) -> EmbeddingTable:
        """Pick the rows of some embeddings, in the order given.

        Args:
            table: rows of `EMBEDDINGS`, possibly more columns.
            fingerprints: task id to the fingerprint of the embedding wanted.

        Raises:
            DataError: an embedding is not there, or they are of different probes.
        """
        position = {f: i for i, f in enumerate(table["fingerprint"].to_pylist())}
        missing = [t for t, f in fingerprints.items() if f not in position]
        if missing or not fingerprints:
            raise DataError(
                f"{len(missing)} of {len(fingerprints)} embeddings are not in the table, e.g. {missing[:1]}"
            )
        picked = table.take([position[f] for f in fingerprints.values()])
        if len(set(picked["probe"].to_pylist())) != 1:
            raise DataError(f"embeddings of several probes do not compare: {sorted(set(picked['probe'].to_pylist()))}")
        layers = picked["layers"][0].as_py()
        trivial = np.concatenate([np.full(x["stop"] - x["start"], x["prior"], np.float32) for x in layers])
        lists = ("vector", "noise", "domain_embedding", "layers", "objective")
        return cls(
            task_ids=tuple(fingerprints),
            vectors=_stack(picked["vector"]),
            domains=_stack(picked["domain_embedding"]),
            trivial=trivial,
            layers=tuple(Layer(x["name"], x["start"], x["stop"]) for x in layers),
            frame=picked.drop_columns([c for c in lists if c in picked.column_names]).to_pandas(),
        )


def _stack(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False)).reshape(len(array), -1)
