"""Answering a query: a folder in, ranked experts out, with reasons. Knows nothing of Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field

from flows._data import Extractor, load_extractor, load_network, load_outside, read_cells
from flows._format import check_format
from flows._keys import EMBEDDINGS
from flows._pointers import read_pointer
from flows._settings import store_url
from flows._store import Store
from t2v_core.config import EmbeddingSpec, EvaluationSpec
from t2v_core.distances import symmetric_matrix
from t2v_core.errors import ConfigError, T2VError
from t2v_core.features import GivesFeatures
from t2v_core.memory import keep_freed_memory
from t2v_core.query import EmbeddedFolder, FolderImages, embed_images, read_folder
from t2v_core.selector import Selector
from t2v_core.verify import Verified, split_of, verify_expert

__all__ = ["Answer", "Near", "SelectExpertParams", "answer_query", "newest_selector", "select_experts"]

Told = Callable[[str, int, int], None]
"""Called with (what, done, in all)."""
_NEAR = 3
"""Nearest tasks that are shown."""


def newest_selector(store: Store, name: str = "") -> tuple[Selector, dict[str, Any]]:
    """The newest selector in a store, with the record of its selection.

    Args:
        store: where a pipeline has run.
        name: of the config; may be empty where the store holds one.

    Raises:
        ConfigError: no pipeline has run there, or several and no name was given.
    """
    check_format(store)
    names = sorted({key.split("/")[1] for key in store.list("latest") if key.endswith("/selection.json")})
    if not names:
        raise ConfigError(f"no selector in {store.url}; run a pipeline first, e.g. `t2v run examples/demo.yaml`")
    if name and name not in names:
        raise ConfigError(f"no selector {name!r} in {store.url}; there are: {', '.join(names)}")
    if not name and len(names) > 1:
        raise ConfigError(f"{store.url} holds selectors {', '.join(names)}; say which with --name")
    record = read_pointer(store, name or names[0], "selection")
    return Selector.loads(store.read(f"{record['prefix']}/selector.safetensors")), record


class SelectExpertParams(BaseModel):
    """What to rank the experts for."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="Folder with a subfolder of images for each class.")
    store: str = Field("", description="Store of a pipeline that has run. Empty: T2V_STORE, else runs/NAME/store.")
    name: str = Field("", description="Name of the pipeline's config, where the store holds several.")
    top_k: int = Field(10, ge=1, description="How many experts to show.")
    verify: int = Field(
        0, ge=0, description="Try this many of the first experts: a head on their features, errors on held-out images."
    )


@dataclass(frozen=True)
class Near:
    """A task of the library that is near the query."""

    task_id: str
    distance: float
    """d_sym."""
    best: str
    """Expert with the lowest error on it, of those that were not trained on it; empty where none was tried."""
    best_error: float
    first_error: float
    """Of the expert that is ranked first for the query; NaN where it was not tried."""


def _names(names: list[str], most: int = 5) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


@dataclass(frozen=True, eq=False)
class Answer:
    """A ranking, its reasons, and what it cost."""

    ranking: pd.DataFrame
    """See `Selector.rank`; and nearest (of the expert's own tasks), nearest_distance."""
    folder: EmbeddedFolder
    selector: Selector
    seconds: float
    near: tuple[Near, ...] = ()
    """The nearest tasks of the library."""
    verified: tuple[Verified, ...] = ()
    """Experts that were tried, in the order of the ranking."""
    refused: tuple[tuple[str, str], ...] = ()
    """(expert, reason) of those that could not be tried."""
    parts: dict[str, float] = field(default_factory=dict)
    """Where the time went: what, to seconds."""

    @property
    def cost_of_all(self) -> float:
        """Seconds that a head on every expert would take on the store's device, by what the pipeline measured."""
        return float(self.ranking["seconds"].sum())

    def verdict(self) -> str:
        """One sentence or two: the choice, or which ones cannot be told apart."""
        tied = self.ranking.loc[self.ranking["tied"], "expert"].tolist()
        first = self.ranking["expert"].iloc[0]
        if self.verified:
            return self._tried()
        if len(tied) > 1:
            return (
                f"No clear choice: {_names(tied)} cannot be told apart. {first} is nearest, but by less than resampled "
                f"images or past predictions have been off by. Try them: --verify {min(len(tied), 5)}."
            )
        return (
            f"{first} is nearest, stays so when the images are resampled, and of every other one is expected to have "
            "the lower error, with odds of 3 to 1 or more."
        )

    def calibration(self) -> str:
        """How errors were predicted, in words; empty where they could not be."""
        model = self.selector.error_model(self.folder.embedding.head_error)
        return model.sentence() if model else ""

    def reasons(self) -> list[str]:
        """Why this order: the nearest tasks, in words."""
        first = self.ranking["expert"].iloc[0]
        said = []
        for n in self.near:
            text = f"{n.task_id} is {n.distance:.3f} away"
            if n.best:
                text += f"; best there: {n.best}, {n.best_error:.1%}"
                if n.best != first and n.first_error == n.first_error:
                    text += f" ({first}: {n.first_error:.1%})"
            said.append(text)
        return said

    def _tried(self) -> str:
        ordered = sorted(self.verified, key=lambda v: v.error)
        best = ordered[0]
        said = f"Tried on {best.n_test} held-out images: {best.expert} has the lowest error, {best.error:.1%}"
        close = [v.expert for v in ordered[1:] if v.low <= best.error]
        if close:
            return f"{said}, and cannot be told apart from {_names(close)} on so few."
        return f"{said}{', and the others are worse by more than chance' if len(ordered) > 1 else ''}."


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - began


def _nearest(
    store: Store, record: dict[str, Any], selector: Selector, ranking: pd.DataFrame, vector: np.ndarray
) -> tuple[pd.DataFrame, tuple[Near, ...]]:
    """The ranking with each expert's nearest own task, and the library's nearest tasks."""
    table = store.read_table(EMBEDDINGS, ["task_id", "fingerprint", "vector"])
    wanted = {f: task for task, f in record["embeddings"].items()}
    place = {f: i for i, f in enumerate(table["fingerprint"].to_pylist()) if f in wanted}
    names = [wanted[f] for f in place]
    column = table["vector"].take(list(place.values())).combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(names), -1)
    distance = symmetric_matrix(vector[None].astype(np.float64), vectors.astype(np.float64))[0]
    by_task = dict(zip(names, distance.tolist(), strict=True))
    tasks_of = dict(zip(selector.experts, selector.tasks, strict=True))
    own = [
        min(((by_task[t], t) for t in tasks_of[e] if t in by_task), default=(float("nan"), ""))
        for e in ranking["expert"]
    ]
    ranking = ranking.assign(nearest=[task for _, task in own], nearest_distance=[d for d, _ in own])
    cells = read_cells(store, record["blocks"]).select(["task_id", "expert", record["metric"]]).to_pandas().dropna()
    first, near = ranking["expert"].iloc[0], []
    for i in np.argsort(distance, kind="stable")[:_NEAR]:
        errors = cells[cells["task_id"] == names[i]].set_index("expert")[record["metric"]]
        first_error = float(errors.get(first, float("nan")))
        errors = errors[[e for e in errors.index if names[i] not in tasks_of.get(e, ())]]
        best, best_error = (str(errors.idxmin()), float(errors.min())) if len(errors) else ("", float("nan"))
        near.append(Near(names[i], float(distance[i]), best, best_error, first_error))
    return ranking, tuple(near)


def _network(store: Store, extractor: Extractor, precision: str) -> GivesFeatures:
    network = (load_outside if extractor.outside else load_extractor)(store.url, extractor)
    return network if precision == "float32" else network.to(torch.bfloat16)


def _verify(
    store: Store, record: dict[str, Any], names: list[str], folder: FolderImages, told: Told | None
) -> tuple[list[Verified], list[tuple[str, str]]]:
    """Try experts on the folder's images; those that cannot be loaded are named with the reason."""
    spec, test = EvaluationSpec.model_validate(record["evaluation"]), split_of(folder)
    shelf = {e["name"]: Extractor.model_validate(e["extractor"]) for e in record["experts"]}
    tried: list[Verified] = []
    refused: list[tuple[str, str]] = []
    read = {folder.transform: folder}
    for done, name in enumerate(names, start=1):
        try:
            network = _network(store, shelf[name], spec.precision)
            transform = network.transform
            if transform.size not in {t.size for t in read}:
                read[transform] = read_folder(folder.path, transform)
            images = next(f for t, f in read.items() if t.size == transform.size)
            tried.append(verify_expert(name, network, images, test, spec.head, record["metric"], spec.batch_size))
        except T2VError as error:
            refused.append((name, str(error)))
        if told:
            told("try experts", done, len(names))
    return tried, refused


def answer_query(params: SelectExpertParams, progress: Told | None = None) -> Answer:
    """Embed the folder with the selector's probe and rank the experts. Needs no server.

    Raises:
        T2VError: no selector in the store, or a folder that is no task.
    """
    began, clock = time.perf_counter(), _Clock()
    keep_freed_memory()
    store = Store(store_url(params.store, params.name or "demo"))
    with clock.part("selector and probe"):
        selector, record = newest_selector(store, params.name)
        settings = record["probe"]
        extractor = Extractor(
            architecture=selector.probe_name,
            weights=settings["weights"],
            image_size=selector.image_size,
            seed=settings["seed"],
        )
        probe = load_network(store.url, extractor)
    if f"{probe.name}:{probe.digest}" != selector.probe:
        raise ConfigError(
            f"the probe's weights are {probe.name}:{probe.digest} here and were {selector.probe} when the selector was "
            "fitted; install the same weights, or run the pipeline again"
        )
    with clock.part("images"):
        images = read_folder(params.path, probe.transform, progress=progress)
    with clock.part("probe features, head and Fisher"):
        folder = embed_images(images, probe, EmbeddingSpec.model_validate(record["embedding"]), progress=progress)
    e = folder.embedding
    with clock.part("ranking and reasons"):
        ranking = selector.rank(e.vector, e.groups, head_error=e.head_error, n_images=folder.n_images)
        ranking, near = _nearest(store, record, selector, ranking, e.vector)
    verified: list[Verified] = []
    refused: list[tuple[str, str]] = []
    if params.verify:
        with clock.part("trying experts"):
            names = ranking["expert"].head(params.verify).tolist()
            verified, refused = _verify(store, record, names, images, progress)
    seconds = time.perf_counter() - began
    return Answer(ranking, folder, selector, seconds, near, tuple(verified), tuple(refused), clock.parts)


def select_experts(path: str, store: str = "", name: str = "", verify: int = 0) -> Answer:
    """Rank the experts of a store for a folder with a subfolder of images per class, from Python.

    Args:
        path: the folder.
        store: folder or ``s3://bucket/prefix`` in which a pipeline has run. Empty: T2V_STORE, else runs/demo/store.
        name: of the pipeline's config, where the store holds several.
        verify: try this many of the first experts.

    Raises:
        T2VError: no selector in the store, or a folder that is no task.
    """
    return answer_query(SelectExpertParams(path=path, store=store, name=name, verify=verify))
