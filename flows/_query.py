"""Answering a query: a folder in, ranked experts out. Knows nothing of Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from flows._data import Extractor, load_network
from flows._format import check_format
from flows._pointers import read_pointer
from flows._settings import store_url
from flows._store import Store
from t2v_core.config import EmbeddingSpec
from t2v_core.errors import ConfigError
from t2v_core.query import EmbeddedFolder, embed_folder
from t2v_core.selector import Selector

__all__ = ["Answer", "SelectExpertParams", "answer_query", "newest_selector"]


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


@dataclass(frozen=True, eq=False)
class Answer:
    """A ranking, and what it cost."""

    ranking: pd.DataFrame
    folder: EmbeddedFolder
    selector: Selector
    seconds: float
    cost_of_all: float
    """Seconds that a head on every expert would take on the same device, from this store's measurements."""

    def verdict(self) -> str:
        """One sentence: the choice, or which ones cannot be told apart."""
        tied = self.ranking.loc[self.ranking["tied"], "expert"].tolist()
        first = self.ranking["expert"].iloc[0]
        if len(tied) > 1:
            return f"{', '.join(tied)} cannot be told apart on these images; {first} is nearest by a hair."
        return f"{first} is nearest, and stays so when the images are resampled."


def answer_query(params: SelectExpertParams, progress: Callable[[str, int, int], None] | None = None) -> Answer:
    """Embed the folder with the selector's probe and rank the experts. Needs no server.

    Raises:
        T2VError: no selector in the store, or a folder that is no task.
    """
    began = time.perf_counter()
    store = Store(store_url(params.store, params.name or "demo"))
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
    folder = embed_folder(params.path, probe, EmbeddingSpec.model_validate(record["embedding"]), progress=progress)
    ranking = selector.rank(folder.embedding.vector, folder.embedding.groups)
    each = selector.seconds_per_image * folder.n_images + selector.seconds_per_head
    return Answer(ranking, folder, selector, time.perf_counter() - began, each * len(selector.experts))
