"""evaluate-experts: the model x task error matrix, one block (expert, source) at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from prefect import flow

from flows._blocks import block_payload, wanted_blocks
from flows._data import Extractor, read_cells, source_record
from flows._features import blocks
from flows._keys import BLOCK_UNITS, block_key
from flows._outcome import StageFailed, failed_in_words, too_many_failed
from flows._pages import show_failures, show_stage
from flows._stage import Run, StageParams, StageResult, Unit, features_units, open_run, run_units, threads
from flows._units import compact_unit, evaluate_unit, features_unit
from t2v_core.library import Task

__all__ = ["evaluate_experts"]


@dataclass(frozen=True)
class _Pair:
    """An expert and a source with the blocks to make of them."""

    expert: dict[str, Any]
    source: str
    prefix: str
    blocks: tuple[Unit, ...]

    def features(self, run: Run) -> list[Unit]:
        """Units of the expert's features on the source."""
        spec, extractor = run.config.evaluation, Extractor.model_validate(self.expert["extractor"])
        label, of = f"features of {self.expert['name']} on {self.source}", (self.expert["digest"], self.prefix)
        return features_units(run, label, extractor, *of, spec.batch_size, spec.precision)


def _unit(run: Run, expert: dict[str, Any], source: str, prefix: str, tasks: list[Task], part: str) -> Unit:
    extractor = Extractor.model_validate(expert["extractor"])
    key = block_key(expert["name"], expert["digest"], extractor.image_size, prefix, tasks, run.config.evaluation)
    return Unit(f"{expert['name']} on {source}{part}", key, block_payload(run, key, expert, prefix, tasks))


def _pairs(run: Run) -> list[_Pair]:
    pairs = []
    for expert, source, prefix, tasks in wanted_blocks(run):
        parts = blocks(tasks, source_record(run.store.url, prefix)["n_images"])
        said = [f", part {i + 1} of {len(parts)}" if len(parts) > 1 else "" for i in range(len(parts))]
        made = [_unit(run, expert, source, prefix, p, s) for p, s in zip(parts, said, strict=True)]
        pairs.append(_Pair(expert, source, prefix, tuple(made)))
    return pairs


def _prepare(run: Run, pairs: list[_Pair], units: list[Unit], apart: bool) -> tuple[list[Unit], list[StageResult]]:
    """Features of blocks that are not there, in units of their own: where a source has several chunks, or all of them.

    Elsewhere a block makes its features as it goes.

    Returns:
        The blocks, told what their features took; how the units of features went.
    """
    there = set(run.store.list(BLOCK_UNITS))
    todo = [p for p in pairs if any(b.key not in there for b in p.blocks)]
    of = [(p.blocks, features) for p in todo if len(features := p.features(run)) > 1 or apart]
    if not of:
        return units, []
    answers: dict[str, dict[str, Any]] = {}
    prepared = list({f.key: f for _, features in of for f in features}.values())
    options: dict[str, Any] = {"folder": "features", "gpu": True, "preparing": True, "answers": answers}
    result = run_units(run, "expert features", features_unit, prepared, **options)
    seconds = {
        block.key: sum(answers.get(f.key, {}).get("seconds", 0.0) for f in features)
        for parts, features in of
        for block in parts
    }
    told = [replace(u, payload={**u.payload, "features_seconds": seconds.get(u.key, 0.0)}) for u in units]
    return told, [result]


def _check_cells(run: Run, result: StageResult, keys: list[str]) -> None:
    """Count the cells that failed: a stage that lost too many of them, in blocks that all ended well, is not green.

    Raises:
        StageFailed: more than `max_failed_share` of the cells failed, or all.
    """
    cells = read_cells(run.store, keys).select(["expert", "task_id", "reason", "unit"]).to_pylist()
    lost = [(f"{c['expert']} on {c['task_id']}", c["reason"]) for c in cells if c["reason"]]
    if not lost:
        return
    result.notes.append(f"{len(lost)} of {len(cells)} cells of the error matrix failed")
    show_failures("error matrix", lost, "Cells")
    share = run.config.max_failed_share
    if too_many_failed(len(lost), len(cells), share):
        said = failed_in_words(f"{len(lost)} of {len(cells)} cells", lost, len(cells), share)
        block = next(c["unit"] for c in cells if c["reason"])
        said += f". A block keeps its failed cells; to have them made again, delete it: {block}"
        show_stage(run.store, result, "error_matrix", said)
        raise StageFailed(f"{result.stage}: {said}")


@flow(
    name="evaluate-experts",
    flow_run_name="evaluate-experts[{params.config}]",
    task_runner=threads(),
    persist_result=False,
)
def evaluate_experts(params: StageParams) -> StageResult:
    """Features of each expert on each source, once; then a head and a test error for every task of the source.

    Where the cluster has workers both with and without a GPU, features are units of their own on the first, and heads
    are fitted on the others.
    """
    with open_run(params) as run:
        pairs = _pairs(run)
        units = [block for pair in pairs for block in pair.blocks]
        missing = {u.key for u in units} - set(run.store.list(BLOCK_UNITS))
        apart = bool(missing) and run.cluster.census().mixed
        units, before = _prepare(run, pairs, units, apart)
        result = run_units(run, "evaluate experts", evaluate_unit, units, folder=BLOCK_UNITS, gpu=not apart)
        result.before = before
        compact_unit(run.store.url, {"dataset": "error_matrix"})
        failed = {unit for unit, _ in result.failures}
        kept = sorted(u.key for u in units if u.label not in failed)
        _check_cells(run, result, kept)
        run.point("error_matrix", {"blocks": kept})
        return result
