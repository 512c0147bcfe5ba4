"""The units of work: pure functions of a store and a small payload, run on Dask workers.

Workers need neither Prefect nor its API. A unit reads what keys point to, calls the core, writes one object
create-only, and returns the key with its log records. A unit whose key is there already does nothing.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load as load_torch
from safetensors.torch import save as save_torch

from flows._data import Extractor, annotations, load_extractor, load_images, read_cells, source_record
from flows._features import make_features, read_features
from flows._keys import EMBEDDINGS, GATHERED
from flows._store import Store
from t2v_core.config import EmbeddingSpec, EvaluationSpec, HeadSpec, MetaTaskRule, Model2VecSpec, TrainingSpec
from t2v_core.embedding import embed_features
from t2v_core.errors import WeightsError
from t2v_core.evaluation import judged_rows
from t2v_core.experts import ExpertSpec
from t2v_core.finetune import State, TrainedExpert, TrainingData, even_sample, train_expert, transfer_run
from t2v_core.library import TaskSpec, resolve_task
from t2v_core.matrix import ErrorMatrix, expert_vectors
from t2v_core.metatasks import candidates_of, concept_groups, make_meta_tasks, own_domain
from t2v_core.model2vec import fit_model2vec, leave_one_task_out
from t2v_core.probes import Probe, load_probe
from t2v_core.records import EmbeddingTable, embedding_row
from t2v_core.transfer import cells_table, evaluate_block

__all__ = ["compact_unit", "embed_unit", "evaluate_unit", "features_unit", "fit_unit", "train_unit"]


def _answer(key: str, wrote: bool, *messages: str) -> dict[str, Any]:
    return {"key": key, "wrote": wrote, "records": [(logging.INFO, m) for m in messages]}


def features_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Features of one extractor on one chunk of a source."""
    extractor = Extractor.model_validate(payload["extractor"])
    of = (payload["digest"], payload["prefix"], payload["chunk"], payload["batch_size"], payload["precision"])
    seconds = make_features(store_url, extractor, *of)
    return {**_answer(payload["key"], seconds > 0, f"features in {seconds:.1f} s"), "seconds": seconds}


def embed_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Embed one task from the training split."""
    store, key = Store(store_url), payload["key"]
    if store.exists(key):
        return _answer(key, False)
    task, spec = TaskSpec.model_validate(payload["task"]), EmbeddingSpec.model_validate(payload["embedding"])
    extractor, prefix = Extractor.model_validate(payload["extractor"]), payload["prefix"]
    rows, labels, groups = resolve_task(task, annotations(store_url, prefix)).part(test=False)
    values, _ = read_features(store_url, extractor, payload["digest"], prefix, rows, spec.batch_size)
    probe = load_extractor(store_url, extractor)
    embedding = embed_features(
        probe,
        values,
        labels,
        lambda picked: load_images(store_url, prefix, probe.transform, rows[picked]),
        spec,
        groups=groups,
    )
    table = embedding_row(task.task_id, payload["task_fingerprint"], payload["fingerprint"], embedding)
    wrote = store.put_table(key, table)
    return _answer(
        key,
        wrote,
        f"{task.task_id}: {embedding.n_images} images, {embedding.n_passes} passes, complexity "
        f"{embedding.complexity:.3g}, {embedding.seconds:.1f} s",
    )


def _checkpoint(folder: str) -> str:
    return f"{folder}/checkpoint.safetensors"


def _trained(
    store: Store, folder: str, probe: Probe, data: list[TrainingData], spec: ExpertSpec, head: HeadSpec
) -> tuple[TrainedExpert, list[str]]:
    """Train from the last checkpoint where there is one; a damaged one is said, deleted, and training starts over."""
    key, training, said = _checkpoint(folder), spec.training, []
    assert training is not None

    def keep(state: State) -> None:
        store.replace(key, save_torch(dict(state)))

    if store.exists(key):
        try:
            state = load_torch(store.read(key))
            trained = train_expert(probe, data, training, head=head, resume=state, save=keep)
            return trained, [f"{spec.name}: went on from step {len(state['losses'])}"]
        except (WeightsError, SafetensorError) as error:
            store.delete(key)
            said.append(f"{spec.name}: its checkpoint {key} was damaged and is deleted, training starts over ({error})")
    return train_expert(probe, data, training, head=head, save=keep), said


def train_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune one expert; weights and heads as safetensors, its record last."""
    store, folder = Store(store_url), payload["key"]
    done = f"{folder}/expert.json"
    if store.exists(done):
        return _answer(done, False)
    spec, head = ExpertSpec.model_validate(payload["expert"]), HeadSpec.model_validate(payload["head"])
    extractor = Extractor.model_validate(payload["extractor"])
    probe = load_extractor(store_url, extractor)
    data = []
    for task_payload, prefix in payload["tasks"]:
        task = TaskSpec.model_validate(task_payload)
        rows, labels, groups = resolve_task(task, annotations(store_url, prefix)).part(test=False)
        values, _ = read_features(store_url, extractor, probe.digest, prefix, rows)
        images = load_images(store_url, prefix, probe.transform, rows)
        data.append(TrainingData(task.task_id, images, labels, values, groups))
    trained, said = _trained(store, folder, probe, data, spec, head)
    digest = load_probe(spec.architecture, trained.state, image_size=spec.image_size).digest
    store.replace(f"{folder}/weights.safetensors", save_torch(dict(trained.state)))
    store.replace(f"{folder}/heads.safetensors", save_torch(dict(trained.heads)))
    record = {
        "name": spec.name,
        "spec": spec.model_dump(mode="json"),
        "digest": digest,
        "first_loss": trained.first_loss,
        "last_loss": trained.last_loss,
        "steps": trained.steps,
        "best_step": trained.best_step,
        "held_out_loss": None if math.isnan(trained.held_out_loss) else trained.held_out_loss,
        "seconds": trained.seconds,
        "device": str(probe.device),
    }
    wrote = store.put_json(done, record)
    store.delete(_checkpoint(folder))
    said.append(
        f"{spec.name}: loss {trained.first_loss:.3f} to {trained.last_loss:.3f} in {trained.steps} steps, "
        f"{trained.seconds:.1f} s"
    )
    return _answer(done, wrote, *said)


def evaluate_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """One block of the error matrix: the heads of all the source's tasks, on features that are made where they are not.

    `features_seconds` of the payload is what units of features took before.
    """
    store, key = Store(store_url), payload["key"]
    if store.exists(key):
        return _answer(key, False)
    spec, prefix = EvaluationSpec.model_validate(payload["evaluation"]), payload["prefix"]
    extractor = Extractor.model_validate(payload["extractor"])
    table = annotations(store_url, prefix)
    tasks = [(str(t["task_id"]), resolve_task(TaskSpec.model_validate(t), table)) for t in payload["tasks"]]
    used = np.unique(np.concatenate([rows.rows for _, rows in tasks]))
    of = (payload["digest"], prefix, used, spec.batch_size, spec.precision)
    values, seconds = read_features(store_url, extractor, *of)
    began = time.perf_counter()
    placed = [(i, replace(rows, rows=np.searchsorted(used, rows.rows))) for i, rows in tasks]
    cells = evaluate_block(payload["expert"], values, placed, spec.head)
    heads = time.perf_counter() - began
    block = cells_table(cells)
    n = len(block)
    extra = {
        "source": pa.array([table.source] * n),
        "expert_digest": pa.array([payload["digest"]] * n),
        "task_fingerprint": pa.array(payload["task_fingerprints"]),
        "features_seconds": pa.array([seconds + payload.get("features_seconds", 0.0)] * n),
        "n_images": pa.array([source_record(store_url, prefix)["n_images"]] * n),
    }
    for name, column in extra.items():
        block = block.append_column(name, column)
    wrote = store.put_table(key, block)
    failed = sum(bool(c.reason) for c in cells)
    return _answer(
        key,
        wrote,
        f"{payload['expert']} on {table.source}: {n - failed} of {n} cells, "
        f"features {seconds:.1f} s, heads {heads:.1f} s",
    )


def transfer_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """One fine-tuning run of an expert on a task, all layers, and its test errors."""
    store, key = Store(store_url), payload["key"]
    if store.exists(key):
        return _answer(key, False)
    task, prefix = TaskSpec.model_validate(payload["task"]), payload["prefix"]
    training, head = TrainingSpec.model_validate(payload["training"]), HeadSpec.model_validate(payload["head"])
    extractor = Extractor.model_validate(payload["extractor"])
    start, resolved = load_extractor(store_url, extractor), resolve_task(task, annotations(store_url, prefix))
    rows, labels, groups = resolved.part(test=False)
    if payload["size"]:
        picked = even_sample(labels, payload["size"], payload["seed"])
        rows, labels, groups = rows[picked], labels[picked], groups[picked]
    test_rows, test_labels, _ = resolved.part(test=True)
    values, _ = read_features(store_url, extractor, payload["digest"], prefix, rows)
    images = load_images(store_url, prefix, start.transform, rows)
    result = transfer_run(
        start,
        TrainingData(task.task_id, images, labels, values, groups),
        load_images(store_url, prefix, start.transform, test_rows),
        test_labels,
        training.model_copy(update={"seed": payload["seed"]}),
        head=head,
    )
    row = {
        "expert": payload["expert"],
        "expert_digest": payload["digest"],
        "task_id": task.task_id,
        "task_fingerprint": payload["task_fingerprint"],
        "size": payload["size"],
        "seed": payload["seed"],
        **vars(result),
    }
    wrote = store.put_table(key, pa.Table.from_pylist([row]))
    said = f"{payload['expert']} on {task.task_id}, {result.n_train} images: {result.balanced_error:.3f}"
    return _answer(key, wrote, f"{said}, frozen {result.frozen_balanced_error:.3f}, {result.seconds:.1f} s")


def compact_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Gather unit objects into the Parquet datasets that people open."""
    store = Store(store_url)
    dataset = next(key for key in GATHERED if key.startswith(f"{payload['dataset']}/"))
    rows = store.compact(GATHERED[dataset], dataset, lambda data: pa.parquet.read_table(pa.BufferReader(data)))
    return _answer(dataset, True, f"{dataset}: {rows} rows")


def fit_unit(store_url: str, payload: dict[str, Any]) -> dict[str, Any]:
    """MODEL2VEC: fitted on all tasks, or leaving one out in turn; of a meta-task and a reading of it."""
    store, key = Store(store_url), payload["key"]
    if store.exists(key):
        return _answer(key, False)
    began = time.perf_counter()
    spec, trained_on = Model2VecSpec.model_validate(payload["model2vec"]), payload["trained_on"]
    table = EmbeddingTable.of(store.read_table(EMBEDDINGS), payload["embeddings"])
    cells = read_cells(store, payload["blocks"])
    matrix = ErrorMatrix.of(cells, table.task_ids, trained_on, payload["metric"])
    base = expert_vectors(table.vectors, table.task_ids, trained_on)
    if payload["what"] == "distances":
        rules = [MetaTaskRule.model_validate(r) for r in payload["rules"]]
        [meta] = make_meta_tasks(rules, matrix.experts, matrix.task_ids, everything=not rules)
        rows = judged_rows(matrix, meta)
        cells = np.ix_(rows, meta.columns)
        known, same = np.isfinite(matrix.errors[cells]), own_domain(matrix.task_ids, trained_on)[cells]
        distances = leave_one_task_out(
            table.vectors[rows].astype(np.float64),
            matrix.errors[cells],
            base[meta.columns],
            table.trivial.astype(np.float64),
            spec,
            candidates=candidates_of(payload["reading"], known, matrix.own[cells], same),
            groups=concept_groups(matrix.task_ids)[rows],
        )
        out = {"distances": distances}
    else:
        keep = matrix.judged()
        model = fit_model2vec(
            table.vectors[keep].astype(np.float64),
            matrix.errors[keep],
            base,
            table.trivial.astype(np.float64),
            spec,
            candidates=np.isfinite(matrix.errors[keep]),
            groups=concept_groups(matrix.task_ids)[keep],
        )
        out = {"vectors": model.vectors, "base": base, "scalars": np.array([model.gamma, model.alpha, model.l2])}
        if model.offsets is not None:
            out["offsets"] = model.offsets
        if model.base is not None:
            out["first_order_base"] = model.base
    wrote = store.put(key, save({k: np.ascontiguousarray(v) for k, v in out.items()}))
    return _answer(key, wrote, f"MODEL2VEC {payload['what']} in {time.perf_counter() - began:.1f} s")
