"""The shelf: what later stages need to know of each expert, wherever it is from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows._data import Extractor, load_outside
from flows._keys import expert_key, outside_key
from flows._stage import Run
from flows._store import Store
from t2v_core.config import ExternalExpert
from t2v_core.errors import T2VError
from t2v_core.experts import GENERIC, ExpertSpec
from t2v_core.fingerprints import digest_bytes, matching

__all__ = ["from_outside", "generic", "outside_extractor", "trained_here"]


def generic(run: Run) -> dict[str, Any]:
    """The probe's own weights."""
    return {
        "name": GENERIC,
        "digest": run.probe.digest,
        "extractor": run.generic.model_dump(mode="json"),
        "tasks": [],
        "seconds": 0.0,
    }


def trained_here(run: Run, spec: ExpertSpec) -> dict[str, Any]:
    """An expert that was fine-tuned, from its record."""
    folder = expert_key(spec)
    record = run.store.read_json(f"{folder}/expert.json")
    extractor = run.generic.model_copy(update={"weights": f"store:{folder}/weights.safetensors"})
    return {
        "name": spec.name,
        "digest": record["digest"],
        "extractor": extractor.model_dump(mode="json"),
        "tasks": list(spec.tasks),
        "seconds": record["seconds"],
    }


def _kept(store: Store, name: str, value: str) -> str:
    """Where workers find a file of weights or a program: copied to the store. Names and keys stay as they are."""
    if value in ("", "imagenet", "random") or value.startswith("store:"):
        return value
    path = Path(value).expanduser()
    if not path.is_file():
        return value  # who loads it says what is wrong
    data = path.read_bytes()
    key = outside_key(name, digest_bytes(data), path.suffix)
    store.put(key, data)
    return f"store:{key}"


def outside_extractor(store: Store, expert: ExternalExpert, image_size: int) -> Extractor:
    """How workers load an expert from outside; its files are in the store then.

    Args:
        store: of the pipeline.
        expert: from the config, or added.
        image_size: the probe's, where the expert names none.
    """
    return Extractor(
        architecture=expert.architecture,
        weights=_kept(store, expert.name, expert.weights),
        image_size=expert.image_size or image_size,
        seed=expert.seed,
        outside=True,
        program=_kept(store, expert.name, expert.program),
        mean=expert.mean,
        std=expert.std,
        digest=expert.digest,
    )


def from_outside(run: Run, library: Sequence[str]) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The experts from outside, each loaded once and checked.

    Args:
        run: the stage's surroundings.
        library: task ids.

    Returns:
        Those that are well, and (name, reason) of the others.
    """
    shelf, refused = [], []
    for expert in run.config.experts.external:
        try:
            extractor = outside_extractor(run.store, expert, run.config.probe.image_size)
            loaded = load_outside(run.store.url, extractor)
        except T2VError as error:
            refused.append((expert.name, str(error)))
            continue
        shelf.append(
            {
                "name": expert.name,
                "digest": loaded.identity,
                # From here on these weights and no others.
                "extractor": extractor.model_copy(update={"digest": loaded.digest}).model_dump(mode="json"),
                "tasks": matching(library, expert.trained_on),
                "seconds": 0.0,
            }
        )
    return shelf, refused
