"""What a pipeline would do before it does anything: units, cells, images, bytes, hours, and what is there already."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flows._data import Extractor, load_extractor
from flows._features import blocks
from flows._keys import (
    block_key,
    embedding_fingerprint,
    embedding_key,
    expert_key,
    features_key,
    score_key,
    source_prefix,
)
from flows._pack_units import source_key
from flows._pointers import find_pointer
from flows._score_units import heads_key
from flows._store import Store
from t2v_core.config import PipelineConfig
from t2v_core.errors import ConfigError
from t2v_core.experts import GENERIC, ExpertSpec, expert_rules, expert_specs
from t2v_core.features import extract_features
from t2v_core.library import Task, TaskLibrary
from t2v_core.many_heads import HeadTask, fit_heads
from t2v_core.matrix import wanted_cells
from t2v_core.preview import preview_library
from t2v_core.probes import Probe

__all__ = ["Line", "Plan", "Speed", "make_plan", "measure_speed", "probe_of"]

BACKWARD = 2.0
"""Cost of a backward pass in forward passes."""


@dataclass(frozen=True)
class Speed:
    """What one worker does in a second."""

    images: float
    """Forward passes of the probe's architecture."""
    binary_heads: float
    """Binary heads on a thousand images, with the choice of L2."""

    def faster(self, factor: float) -> Speed:
        """The same on a worker that is so many times faster in forward passes; heads stay where they are."""
        return Speed(self.images * factor, self.binary_heads)


@dataclass(frozen=True)
class Line:
    """One stage."""

    stage: str
    units: int
    there: int
    """Units whose results are in the store."""
    passes: float
    """Forward passes still to do, a backward pass counted as `BACKWARD` of them."""
    seconds: float
    """Of one worker, for what is still to do."""
    read: int
    """Bytes still to read from the store, or for ingest from the sources; roughly."""
    written: int
    """Bytes still to write."""


@dataclass(frozen=True)
class Plan:
    """The whole job."""

    lines: tuple[Line, ...]
    tasks: int
    experts: int
    cells: int
    images: dict[str, int]
    absent: tuple[tuple[str, str], ...]
    exact: bool
    """Whether the library was read from the store: only then can be told which units are there."""

    @property
    def seconds(self) -> float:
        """Of one worker, for all that is still to do."""
        return sum(line.seconds for line in self.lines)


def measure_speed(probe: Probe) -> Speed:
    """Two short measurements on this machine, a few seconds in all."""
    size = probe.transform.size
    images = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), dtype=np.uint8)
    extract_features(probe, images)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < 2:
        extract_features(probe, images)
        done += len(images)
    forward = done / (time.perf_counter() - began)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, probe.n_features)).astype(np.float32)
    tasks = [HeadTask(np.arange(1000), (x[:, i] + rng.standard_normal(1000) > 0).astype(np.int64)) for i in range(16)]
    fit_heads(x, tasks[:2])
    began = time.perf_counter()
    fit_heads(x, tasks)
    return Speed(forward, len(tasks) / (time.perf_counter() - began))


def _library(config: PipelineConfig, store: Store) -> tuple[TaskLibrary, dict[str, int], list[tuple[str, str]], bool]:
    """Tasks and images of the last ingest, or those that the annotation files promise."""
    pointer, sources = find_pointer(store, config.name, "library"), find_pointer(store, config.name, "sources")
    if pointer is None or sources is None:
        preview = preview_library(config.sources, config.library)
        return preview.library, preview.images, list(preview.absent), False
    records = {n: store.read_json(source_key(prefix)) for n, prefix in sources["sources"].items()}
    images = {name: int(record["n_images"]) for name, record in records.items()}
    absent = [(name, reason) for name, reason in sources["absent"]]
    return TaskLibrary.from_table(store.read_table(pointer["manifest"])), images, absent, True


def _line(
    stage: str, keys: list[str], there: set[str], costs: list[tuple[float, float, int, int]], speed: Speed
) -> Line:
    """Costs: (forward passes, other seconds, bytes read, bytes written) of each unit."""
    todo = [cost for key, cost in zip(keys, costs, strict=True) if key not in there]
    passes = sum(cost[0] for cost in todo)
    return Line(
        stage,
        len(keys),
        len(keys) - len(todo),
        passes,
        passes / speed.images + sum(cost[1] for cost in todo),
        sum(cost[2] for cost in todo),
        sum(cost[3] for cost in todo),
    )


def _embedding_passes(config: PipelineConfig, task: Task) -> float:
    """Forward passes that a task's Fisher costs, beside its features."""
    spec, n, c = config.embedding, sum(task.train_counts), len(task.spec.classes)
    images = min(n, spec.max_images)
    each = {
        "exact": images * (1 + BACKWARD * (1 if c == 2 else c)),
        "variational": min(images, spec.variational.images) * (1 + BACKWARD) * spec.variational.max_passes * 0.5,
        "reference": spec.reference.epoch_size * (1 + BACKWARD),
    }
    return each.get(spec.estimator, spec.draws * (1 + BACKWARD))


def _train_images(spec: ExpertSpec, library: TaskLibrary) -> int:
    tasks = set(spec.tasks)
    return sum(sum(t.train_counts) for t in library.tasks if t.task_id in tasks)


def _training_passes(config: PipelineConfig, spec: ExpertSpec, library: TaskLibrary) -> float:
    """Forward passes of a fine-tuning."""
    training, images = config.experts.training, _train_images(spec, library)
    seen = training.steps * training.batch_size if training.steps else training.epochs * images
    return seen * (1 + BACKWARD)


def _head_seconds(tasks: list[Task], speed: Speed) -> float:
    """Heads of tasks, by images and classes against a binary one of a thousand images."""
    return sum(sum(t.train_counts) / 1000 * max(1, len(t.spec.classes) / 2) for t in tasks) / speed.binary_heads


def make_plan(config: PipelineConfig, store: Store, probe: Probe, speed: Speed) -> Plan:
    """What each stage has to do.

    Args:
        config: of the pipeline.
        store: where it would run.
        probe: the config's.
        speed: of one worker.

    Raises:
        ConfigError: the data that are there give no task.
    """
    library, images, absent, exact = _library(config, store)
    if not library.tasks:
        raise ConfigError(f"no task to plan for; missing: {'; '.join(f'{n}: {r}' for n, r in absent) or 'nothing'}")
    pointer = find_pointer(store, config.name, "sources") or {"sources": {}}
    prefixes = {name: pointer["sources"].get(name, source_prefix(s, "?")) for s in config.sources for name in [s.name]}
    there = set(store.list()) if exact else set()
    size = config.probe.image_size
    d, image = probe.n_features, 12 * size * size // 10  # bytes of a stored image, roughly
    by_source = library.by_source()
    specs, _ = expert_specs(
        expert_rules(config.experts, library.tasks),
        {t.task_id: t.fingerprint for t in library.tasks},
        probe,
        config.experts.training,
    )
    digests = {spec.name: _digest(store, spec, there) for spec in specs[1:]} | {GENERIC: probe.digest}
    # Of experts from outside only the size of their images is known before they are loaded: taken to be like the probe.
    known = find_pointer(store, config.name, "experts") or {"experts": []}
    outside = {e["name"]: e["digest"] for e in known["experts"]}
    shelf = [(spec.name, digests[spec.name], size) for spec in specs]
    shelf += [(e.name, outside.get(e.name, "not loaded"), e.image_size or size) for e in config.experts.external]
    wanted = wanted_cells(config.evaluation.meta_tasks, [e for e, _, _ in shelf], [t.task_id for t in library.tasks])

    def of_expert(expert: str) -> list[tuple[str, list[list[Task]]]]:
        own = set(wanted[expert])
        found = [(n, blocks([t for t in tasks if t.task_id in own], images[n])) for n, tasks in by_source.items()]
        return [(name, parts) for name, parts in found if parts]

    weights = 4 * sum(p.numel() for p in probe.network.parameters())
    fingerprints = [embedding_fingerprint(t, config.probe, probe.digest, config.embedding) for t in library.tasks]
    lines = [
        _line(
            "ingest",
            [source_key(prefixes[name]) for name in images],
            there,
            [(0.0, n / 2000, n * image, n * image) for n in images.values()],
            speed,
        ),
        _line(
            "probe features",
            [features_key(probe.digest, size, prefixes[name]) for name in images],
            there,
            [(float(n), 0.0, n * image, 2 * n * d) for n in images.values()],
            speed,
        ),
        _line(
            "embed tasks",
            [embedding_key(t.task_id, config.probe.name, f) for t, f in zip(library.tasks, fingerprints, strict=True)],
            there,
            [
                (
                    _embedding_passes(config, t),
                    _head_seconds([t], speed),
                    sum(t.train_counts) * (image + 2 * d),
                    10 * probe.n_filters,
                )
                for t in library.tasks
            ],
            speed,
        ),
        _line(
            "train experts",
            [f"{expert_key(spec)}/expert.json" for spec in specs[1:]],
            there,
            [
                (_training_passes(config, spec, library), 0.0, _train_images(spec, library) * (image + 2 * d), weights)
                for spec in specs[1:]
            ],
            speed,
        ),
        _line(
            "evaluate experts",
            [
                block_key(expert, digest, pixels, prefixes[name], part, config.evaluation)
                for expert, digest, pixels in shelf
                for name, parts in of_expert(expert)
                for part in parts
            ],
            there,
            [
                (
                    0.0
                    if expert == GENERIC and config.evaluation.precision == "float32"
                    else images[name] * (pixels / size) ** 2 / n,
                    _head_seconds(part, speed),
                    images[name] * image // n + weights,
                    2 * images[name] * d // n,
                )
                for expert, _, pixels in shelf
                for name, parts in of_expert(expert)
                for n in [len(parts)]
                for part in parts
            ],
            speed,
        ),
    ]
    if config.scoring.methods:
        lines.append(_score_line(config, store, shelf, prefixes, of_expert, there, speed))
    return Plan(
        tuple(lines), len(library.tasks), len(shelf), sum(map(len, wanted.values())), images, tuple(absent), exact
    )


def _score_line(
    config: PipelineConfig,
    store: Store,
    shelf: list[tuple[str, str, int]],
    prefixes: dict[str, str],
    of_expert: Callable[[str], list[tuple[str, list[list[Task]]]]],
    there: set[str],
    speed: Speed,
) -> Line:
    """Scores by features; a method takes about as long as a binary head on its images, and the features are there."""
    spec, keys, costs = config.scoring, [], []
    known = (find_pointer(store, config.name, "experts") or {"experts": []})["experts"]
    extractors = {e["name"]: Extractor.model_validate(e["extractor"]) for e in known}
    for expert, digest, pixels in shelf:
        heads = heads_key(store, extractors[expert]) if expert in extractors else ""
        for name, parts in of_expert(expert):
            tasks = [task for part in parts for task in part]
            keys.append(
                score_key(expert, digest, pixels, prefixes[name], tasks, spec, config.evaluation.precision, heads)
            )
            images = sum(min(sum(t.train_counts), spec.max_images) for t in tasks)
            costs.append((0.0, len(spec.methods) * images / 1000 / speed.binary_heads, 0, 200 * len(tasks)))
    return _line("score experts", keys, there, costs, speed)


def _digest(store: Store, spec: ExpertSpec, there: set[str]) -> str:
    """An expert's digest, where it was trained; its blocks are not there otherwise."""
    key = f"{expert_key(spec)}/expert.json"
    return str(store.read_json(key)["digest"]) if key in there else f"not trained: {spec.name}"


def probe_of(config: PipelineConfig, store: Store) -> Probe:
    """The config's probe, on this machine's GPU where it has one."""
    p: Any = config.probe
    return load_extractor(
        store.url, Extractor(architecture=p.name, weights=p.weights, image_size=p.image_size, seed=p.seed)
    )
