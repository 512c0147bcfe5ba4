"""Store keys: a readable prefix and the fingerprint of everything that shaped the object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2v_core.config import (
    EmbeddingSpec,
    EvaluationSpec,
    FrozenModel,
    Model2VecSpec,
    PipelineConfig,
    ProbeSpec,
    ScoringSpec,
    SelectionSpec,
    SourceSpec,
)
from t2v_core.errors import T2VError
from t2v_core.fingerprints import fingerprint, readable
from t2v_core.sources import open_source

if TYPE_CHECKING:
    from t2v_core.experts import ExpertSpec
    from t2v_core.library import Task

__all__ = [
    "block_key",
    "embedding_fingerprint",
    "embedding_key",
    "expert_key",
    "features_key",
    "library_key",
    "moments_key",
    "outside_key",
    "pointer_key",
    "report_key",
    "result_key",
    "score_key",
    "selection_prefix",
    "source_prefix",
    "transfer_key",
]

EMBEDDING_UNITS = "units/embeddings"
BLOCK_UNITS = "units/error_matrix"
EMBEDDINGS = "embeddings/part-0.parquet"
ERROR_MATRIX = "error_matrix/part-0.parquet"
SCORE_UNITS = "units/transferability"
TRANSFERABILITY = "transferability/part-0.parquet"
TRANSFER_UNITS = "units/transfer"
MOMENT_UNITS = "units/moments"
TRANSFER = "transfer/part-0.parquet"
GATHERED = {
    EMBEDDINGS: EMBEDDING_UNITS,
    ERROR_MATRIX: BLOCK_UNITS,
    TRANSFER: TRANSFER_UNITS,
    TRANSFERABILITY: SCORE_UNITS,
}
"""Dataset to the folder of the units that it is compacted from."""


def source_prefix(spec: SourceSpec, revision: str) -> str:
    """Folder of a packed source; `source.json` in it is written last.

    Where the data lie is no part of it: the revision tells the same data in another place.
    """
    shaping = spec.model_dump(mode="json", exclude={"name", "optional"})
    shaping["options"] = {k: v for k, v in shaping["options"].items() if k not in ("root", "path")}
    return f"sources/{readable(spec.name)}-{fingerprint('source', shaping, revision)}"


def library_key(name: str, digest: str) -> str:
    """A task manifest."""
    return f"libraries/{readable(name)}-{digest}.parquet"


def features_key(digest: str, image_size: int, source: str, chunk: int = 0, precision: str = "float32") -> str:
    """Features of an extractor (by the digest of its weights) over a chunk of a packed source."""
    part = f"-{chunk:05d}" if chunk else ""
    made_of = fingerprint("features", digest, image_size, source, *([precision] if precision != "float32" else []))
    return f"features/{digest}/{source.split('/')[-1]}-{made_of}{part}.safetensors"


def embedding_fingerprint(task: Task, probe: ProbeSpec, digest: str, spec: EmbeddingSpec) -> str:
    """What an embedding is a function of. The batch size is not part of it."""
    shaping = spec.model_dump(mode="json", exclude={"batch_size"})
    return fingerprint("embedding 3", task.fingerprint, probe.name, digest, probe.image_size, shaping)


def embedding_key(task_id: str, probe: str, digest: str) -> str:
    """One task embedding."""
    return f"{EMBEDDING_UNITS}/{readable(probe)}/{readable(task_id)}-{digest}.parquet"


def expert_key(spec: ExpertSpec) -> str:
    """Folder of an expert; `expert.json` in it is written last."""
    shaping = spec.model_dump(mode="json", exclude={"name": True, "tasks": True, "training": {"checkpoint_every"}})
    return f"experts/{readable(spec.name)}-{fingerprint('expert', shaping)}"


def outside_key(name: str, digest: str, suffix: str) -> str:
    """A file of an expert from outside: weights or a program."""
    return f"experts/outside/{readable(name)}-{digest}{suffix}"


def block_key(expert: str, digest: str, image_size: int, source: str, tasks: list[Task], spec: EvaluationSpec) -> str:
    """A block of the error matrix: one expert on one source's tasks."""
    shaping = spec.model_dump(mode="json", exclude={"batch_size", "meta_tasks"})
    made_of = fingerprint("block", digest, image_size, source, [t.fingerprint for t in tasks], shaping)
    return f"{BLOCK_UNITS}/{readable(expert)}/{source.split('/')[-1].rsplit('-', 1)[0]}-{made_of}.parquet"


def score_key(
    expert: str,
    digest: str,
    image_size: int,
    source: str,
    tasks: list[Task],
    spec: ScoringSpec,
    precision: str,
    heads: str,
) -> str:
    """Scores of one expert for one source's tasks, by methods that look at its features (and original heads)."""
    made_of = fingerprint("scores", digest, image_size, source, [t.fingerprint for t in tasks], spec, precision, heads)
    return f"{SCORE_UNITS}/{readable(expert)}/{source.split('/')[-1].rsplit('-', 1)[0]}-{made_of}.parquet"


def transfer_key(expert: str, digest: str, source: str, task: Task, size: int, seed: int, *specs: FrozenModel) -> str:
    """One fine-tuning run of an expert on a task."""
    shaping = [s.model_dump(mode="json", exclude={"checkpoint_every"}) for s in specs]
    made_of = fingerprint("transfer", digest, source, task.fingerprint, size, seed, shaping)
    return f"{TRANSFER_UNITS}/{readable(expert)}/{readable(task.task_id)}-{made_of}.parquet"


def moments_key(digest: str, image_size: int, source: str, tasks: list[Task]) -> str:
    """Second moments of the probe's features for the tasks of a source."""
    made_of = fingerprint("moments", digest, image_size, source, [t.fingerprint for t in tasks])
    return f"{MOMENT_UNITS}/{source.split('/')[-1].rsplit('-', 1)[0]}-{made_of}.safetensors"


def selection_prefix(
    name: str,
    embeddings: list[str],
    blocks: list[str],
    experts: list[str],
    m2v: Model2VecSpec,
    spec: SelectionSpec,
    scores: list[str],
) -> str:
    """Folder of a fitted MODEL2VEC with its evaluation; `selection.json` in it is written last."""
    made_of = fingerprint("selection 3", embeddings, blocks, experts, m2v, spec, scores)
    return f"selections/{readable(name)}-{made_of}"


def report_key(name: str, selection: str) -> str:
    """A report page."""
    return f"reports/{readable(name)}-{fingerprint('report', selection)}.html"


def pointer_key(name: str, stage: str) -> str:
    """Where a config's newest result of a stage is written down; replaced, never relied on for resuming."""
    return f"latest/{readable(name)}/{stage}.json"


def result_key(config: PipelineConfig) -> str:
    """Where a finished result is written down: a function of the config and of the data's revisions."""
    revisions = []
    for spec in config.sources:
        try:
            revisions.append(open_source(spec.loader, **spec.options).info.revision)
        except T2VError:  # absent or broken; ingest says so properly
            revisions.append("absent")
    return f"results/{readable(config.name)}-{fingerprint('result', config, revisions)}.json"
