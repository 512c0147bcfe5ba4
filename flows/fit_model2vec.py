"""fit-model2vec: embed experts and tasks together, compare all selectors, keep the selector."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from prefect import flow
from safetensors.numpy import load

from flows._keys import MOMENT_UNITS, moments_key
from flows._moments import moments_unit, read_moments
from flows._progress import Progress
from flows._results import Results, build_selector
from flows._stage import Run, StageParams, StageResult, Unit, open_run, run_units, threads
from flows._units import fit_unit
from flows.ingest import library_of
from t2v_core.errors import DataError
from t2v_core.evaluation import evaluate_selectors
from t2v_core.fingerprints import readable
from t2v_core.matrix import expert_taxonomy
from t2v_core.metatasks import EVERYTHING, READINGS

__all__ = ["fit_model2vec"]


def _distances(results: Results) -> dict[str, tuple[str, str]]:
    """Label of a unit to the meta-task and the reading that it makes MODEL2VEC's distances of."""
    names = [EVERYTHING, *(rule.name for rule in results.run.config.selection.meta_tasks)]
    found = {}
    for i, name in enumerate(names):
        for reading in READINGS:
            part = f"-of-{i}-{readable(name)}" if i else ""
            found[f"distances{part}-{reading.replace(' ', '-')}"] = name, reading
    return found


def _units(results: Results) -> list[Unit]:
    config, prefix = results.run.config, results.prefix
    common = {
        "embeddings": results.embeddings,
        "blocks": results.blocks,
        "trained_on": results.trained_on,
        "metric": config.selection.metric,
        "model2vec": config.model2vec.model_dump(mode="json"),
    }
    units = []
    for label, (name, reading) in _distances(results).items():
        key = f"{prefix}/{label}.safetensors"
        rules = [r.model_dump(mode="json") for r in config.selection.meta_tasks if r.name == name]
        part = {"key": key, "what": "distances", "reading": reading, "rules": rules}
        units.append(Unit(label, key, {**common, **part}))
    key = f"{prefix}/model2vec.safetensors"
    return [*units, Unit("model2vec", key, {**common, "key": key, "what": "model"})]


def _moments_units(run: Run) -> list[Unit]:
    """A unit for each source with embedded tasks."""
    embedded, sources = run.pointed("embeddings")["embeddings"], run.pointed("sources")["sources"]
    units = []
    for source, tasks in library_of(run).by_source().items():
        own = [t for t in tasks if t.task_id in embedded]
        if not own:
            continue
        key = moments_key(run.probe.digest, run.generic.image_size, sources[source], own)
        payload = {
            "key": key,
            "extractor": run.generic.model_dump(),
            "digest": run.probe.digest,
            "prefix": sources[source],
            "tasks": [t.spec.model_dump(mode="json") for t in own],
            "task_fingerprints": [t.fingerprint for t in own],
        }
        units.append(Unit(f"second moments of {source}", key, payload))
    return units


def _taxonomy(results: Results, result: StageResult) -> np.ndarray | None:
    """Taxonomic distances; none, with a note, where the places of the classes are no tree."""
    ids = results.table.task_ids
    try:
        return expert_taxonomy(ids, [results.lineages[t] for t in ids], results.trained_on)
    except DataError as error:
        result.notes.append(f"the taxonomic distance left out: {error}")
        return None


def _told() -> Callable[[str, int, int], None]:
    """A bar for each meta-task: with many tasks some selectors take a while."""
    bars: dict[str, Progress] = {}

    def told(meta: str, _: int, total: int) -> None:
        if meta not in bars:
            bars[meta] = Progress("compare selectors" if meta == EVERYTHING else f"compare selectors on {meta}", total)
        bars[meta].advance()

    return told


@flow(name="fit-model2vec", flow_run_name="fit-model2vec[{params.config}]", task_runner=threads(), persist_result=False)
def fit_model2vec(params: StageParams) -> StageResult:
    """Fit MODEL2VEC, judge it leaving one task out, and compare it with every other selector."""
    with open_run(params) as run:
        moments = _moments_units(run)
        before = run_units(run, "second moments", moments_unit, moments, folder=MOMENT_UNITS, preparing=True)
        failed = {unit for unit, _ in before.failures}
        run.point("moments", {"units": [u.key for u in moments if u.label not in failed]})
        results = Results(run)
        units = _units(results)
        result = run_units(run, "fit MODEL2VEC", fit_unit, units, folder=results.prefix)
        result.before = [before]
        done, began = f"{results.prefix}/selection.json", time.perf_counter()
        if result.failed == 0 and not run.store.exists(done):
            read = {u.label: run.store.read(u.key) for u in units}
            compared = evaluate_selectors(
                results.matrix,
                results.table,
                results.trained_on,
                {what: np.asarray(load(read[label])["distances"]) for label, what in _distances(results).items()},
                run.config.selection,
                settings=run.config.model2vec,
                extra=results.scores,
                taxonomy=_taxonomy(results, result),
                rates=results.rates,
                told=_told(),
                moments=read_moments(run.store, results.moments, results.table.frame["task_fingerprint"].to_list()),
            )
            for name, frame in (("table", compared.table), ("choices", compared.choices), ("pairs", compared.pairs)):
                table = pa.Table.from_pandas(frame, preserve_index=False)
                run.store.replace(f"{results.prefix}/{name}.parquet", run.store.table_bytes(table))
            selector = build_selector(results, read["model2vec"])
            run.store.replace(f"{results.prefix}/selector.safetensors", selector.dumps())
            run.store.put_json(
                done,
                {
                    "prefix": results.prefix,
                    "conclusions": list(compared.conclusions),
                    "n_tasks": int(results.matrix.judged().sum()),
                    "n_experts": len(results.trained_on),
                    "gamma": selector.model.gamma,
                    "l2": selector.model.l2,
                    "probe": run.config.probe.model_dump(mode="json"),
                    "embedding": run.config.embedding.model_dump(mode="json"),
                    **results.for_queries(),
                },
            )
            result.seconds += time.perf_counter() - began
        run.point("selection", run.store.read_json(done))
        return result
