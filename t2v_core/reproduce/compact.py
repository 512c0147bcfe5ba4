"""Evidence from a folder of compact results: Parquet files of a few MB that are kept with the code.

`benchmarks/rehearsal.py keep` writes one. The embeddings in it are a sample of the filters; the distances between tasks
were computed from all of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy.linalg import eigh

from t2v_core.embedding import Layer
from t2v_core.errors import DataError
from t2v_core.matrix import ClassLineages
from t2v_core.records import EmbeddingTable
from t2v_core.reproduce.evidence import Evidence
from t2v_core.reproduce.profile import Profile
from t2v_core.transferability.block import scores_matrix

__all__ = ["from_triangle", "read_compact", "unit_vectors"]

_FILES = ("tasks", "experts", "balanced_error", "distances", "filters", "layout", "taxonomy")
_DOMAIN_SIZE = 256
"""Dimensions in which domain embeddings are rebuilt from their distances."""


def from_triangle(upper: np.ndarray, n: int) -> np.ndarray:
    """A symmetric ``[n, n]`` matrix with a zero diagonal from its upper triangle, row by row.

    Raises:
        DataError: another number of values.
    """
    if len(upper) != n * (n - 1) // 2:
        raise DataError(f"got {len(upper)} distances for {n} tasks, wanted {n * (n - 1) // 2}; write them anew")
    out = np.zeros((n, n))
    out[np.triu_indices(n, 1)] = upper
    return np.asarray(out + out.T)


def unit_vectors(distances: np.ndarray, size: int = _DOMAIN_SIZE) -> np.ndarray:
    """Vectors ``[T, size]`` of length one whose cosine distances are these.

    ``1 - D`` is the Gram matrix of the normalised vectors, so its eigenvectors give them back up to a rotation.
    """
    n = len(distances)
    first = max(0, n - size)
    values, vectors = eigh(1.0 - distances, subset_by_index=[first, n - 1])
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))).astype(np.float32))


def _table(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise DataError(
            f"no {name}.parquet in {str(folder)!r}; wanted compact results of a run ({', '.join(_FILES)}), as "
            "benchmarks/rehearsal.py keep writes them; or name a run's store with --store"
        )
    return pq.read_table(path).to_pandas()


def _rows(frame: pd.DataFrame, ids: list[str], what: str) -> pd.DataFrame:
    """The rows of these tasks, in their order."""
    if set(frame["task_id"]) != set(ids) or len(frame) != len(ids):
        raise DataError(f"the tasks of {what} are not those of filters.parquet; write them all anew")
    return frame.set_index("task_id").loc[ids].reset_index()


def _layers(names: list[str]) -> tuple[Layer, ...]:
    """Slices of equal names that follow each other."""
    starts = [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    return tuple(Layer(names[a], a, b) for a, b in zip(starts, [*starts[1:], len(names)], strict=True))


def _embeddings(
    task_ids: list[str],
    vectors: np.ndarray,
    trivial: np.ndarray,
    names: list[str],
    frame: pd.DataFrame,
    domains: np.ndarray,
) -> EmbeddingTable:
    layers = _layers(names)
    return EmbeddingTable(tuple(task_ids), vectors.astype(np.float32), domains, trivial, layers, frame)


def _powers(column: pd.Series) -> np.ndarray:
    """Filters, which are kept as logarithms."""
    return np.asarray(10.0 ** np.stack(column.to_list()).astype(np.float64))


def read_probes(folder: Path, domains: dict[str, np.ndarray]) -> dict[str, EmbeddingTable]:
    """Embeddings of some tasks by other probes, as `benchmarks/probes.py keep` writes them; empty where there are none.

    Args:
        folder: the files.
        domains: domain embedding of each task, which selectors compare with; it is the first probe's.
    """
    if not (folder / "trivial.parquet").is_file():
        return {}
    trivial = _table(folder, "trivial").set_index("probe")["log10"]
    out = {}
    for probe, logs in trivial.items():
        frame = _table(folder, str(probe))
        vectors = _powers(frame.pop("log10"))
        ids = frame["task_id"].tolist()
        t0 = (10.0 ** np.asarray(logs, np.float64)).astype(np.float32)
        own = np.stack([domains[t] for t in ids])
        out[str(probe)] = _embeddings(ids, vectors, t0, ["filters"] * len(t0), frame, own)
    return out


def read_compact(
    folder: Path, profile: Profile, *, probes: Path | None = None, transfer: Path | None = None
) -> Evidence:
    """Evidence from compact results.

    Args:
        folder: `_FILES` as Parquet; ``scores.parquet`` too, where methods by features were run.
        profile: how the library is read.
        probes: folder with embeddings by other probes.
        transfer: Parquet file of fine-tuning runs, with the columns ``selected`` and ``own``.

    Raises:
        DataError: a file is missing, or does not fit the others.
    """
    experts, layout = _table(folder, "experts"), _table(folder, "layout")
    filters = _table(folder, "filters")
    ids = filters["task_id"].tolist()  # distances have this order
    tasks, taxonomy, errors = (
        _rows(_table(folder, name), ids, f"{name}.parquet in {str(folder)!r}")
        for name in ("tasks", "taxonomy", "balanced_error")
    )
    errors = errors.set_index("task_id")
    if list(errors.columns) != experts["expert"].tolist():
        raise DataError(f"the experts of balanced_error.parquet in {str(folder)!r} are not those of experts.parquet")
    triangle = _table(folder, "distances")
    symmetric, domain = (from_triangle(triangle[c].to_numpy(np.float64), len(ids)) for c in ("symmetric", "domain"))
    domains = unit_vectors(domain)
    second = triangle.get("second_moments")
    moments = None if second is None else unit_vectors(from_triangle(second.to_numpy(np.float64), len(ids)))
    lineages: tuple[ClassLineages, ...] = tuple(
        tuple(tuple(str(x) for x in place) for place in classes) for classes in taxonomy["class_lineage"]
    )
    vectors = _powers(filters["log10"])
    t0 = (10.0 ** layout["trivial_log10"].to_numpy(np.float64)).astype(np.float32)
    notes = [
        f"Embeddings are a sample of {vectors.shape[1]:,} filters; distances between tasks were made of all of them.",
        "Domain embeddings and second moments are rebuilt from their cosine distances, at length one.",
    ]
    runs = pq.read_table(transfer).to_pandas() if transfer and transfer.is_file() else None
    if runs is not None and not set(runs["expert"]) <= set(experts["expert"]):
        notes.append("Figure 4's runs are of another library: its experts are not among these.")
    scored = folder / "scores.parquet"
    scores = scores_matrix(pq.read_table(scored), ids, experts["expert"].tolist()) if scored.is_file() else {}
    return Evidence(
        profile=profile,
        tasks=tasks,
        class_lineages=lineages,
        symmetric=symmetric,
        domain=domain,
        embeddings=_embeddings(ids, vectors, t0, layout["layer"].tolist(), tasks, domains),
        trained_on={e: tuple(on) for e, on in zip(experts["expert"], experts["tasks"], strict=True)},
        errors=errors.to_numpy(np.float64),
        transfer=runs,
        moments=moments,
        scores=scores,
        probes=read_probes(probes, dict(zip(ids, domains, strict=True))) if probes else {},
        notes=tuple(notes),
    )
