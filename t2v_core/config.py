"""The configuration of a pipeline: frozen, validated; the fields' docs become the form in the Prefect UI."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from t2v_core.errors import ConfigError, UnknownNameError

__all__ = [
    "EmbeddingSpec",
    "EvaluationSpec",
    "ExpertCollectionRule",
    "ExpertRule",
    "ExpertsSpec",
    "ExternalExpert",
    "FrozenModel",
    "HeadSpec",
    "LibraryFile",
    "LibrarySpec",
    "MetaTaskRule",
    "Model2VecSpec",
    "PipelineConfig",
    "ProbeSpec",
    "ReferenceSpec",
    "ScoringSpec",
    "SelectionSpec",
    "SourceSpec",
    "TaskRule",
    "TrainingSpec",
    "TransferSpec",
    "VariationalSpec",
    "explain_validation_error",
    "load_config",
    "load_library",
]


class FrozenModel(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSpec(FrozenModel):
    """One dataset that tasks are cut from."""

    name: str = Field(
        description="Name of the source; task ids begin with it.", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )
    kind: str = Field("", description="Loader, see docs/data.md; empty: the name.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the loader, e.g. `path` of a folder.")
    image_size: int | None = Field(
        64,
        ge=8,
        le=2048,
        description="Larger images are stored with their shorter side at this size; empty: as they are.",
    )
    limit: int | None = Field(None, ge=1, description="Take about this many images, a fair sample in whole groups.")
    test_share: float = Field(0.4, gt=0, lt=1, description="Share of the groups that go to the test split.")
    optional: bool = Field(
        False, description="Leave the source out, with a word in the report, where its data are not found."
    )
    shard_rows: int = Field(
        2048, ge=1, le=65_536, description="Images in one Parquet shard, which one worker packs; row groups hold 256."
    )
    max_pixels: int = Field(50_000_000, ge=1, description="Larger images are rejected before they are decoded.")
    seed: int = Field(0, description="Seed of the split and of the sample.")

    @property
    def loader(self) -> str:
        """The loader's name."""
        return self.kind or self.name


class TaskRule(FrozenModel):
    """A rule that cuts one or many tasks from a source's annotation table."""

    source: str = Field(description="Source that the tasks are cut from.")
    label: str = Field(description="Annotation column that holds the classes.")
    kind: Literal["multiclass", "one_vs_rest", "pairs", "grouped"] = Field(
        "multiclass",
        description="multiclass: one task over the column's values; one_vs_rest: one binary task per value; "
        "pairs: one binary task per pair of values; grouped: one task over named groups of values.",
    )
    name: str = Field("", description="Name of a grouped task.")
    within: str = Field("", description="Annotation column: one task (or set of tasks) inside each of its values.")
    where: dict[str, list[str]] = Field(
        default_factory=dict, description="Keep rows whose column has one of these values."
    )
    values: list[str] = Field(default_factory=list, description="Values of the label to use; empty: all.")
    groups: dict[str, list[str]] = Field(default_factory=dict, description="grouped: class name to the values in it.")
    lineage: list[str] = Field(default_factory=list, description="Columns that give a task's place in the taxonomy.")
    largest: int | None = Field(None, ge=1, description="Keep the N tasks with the most images; empty: all.")
    max_images: int | None = Field(None, ge=4, description="Most images of a split; overrides the library's.")
    min_train: int | None = Field(None, ge=1, description="Fewest train images of a class; overrides the library's.")
    min_test: int | None = Field(None, ge=1, description="Fewest test images of a class; overrides the library's.")

    @model_validator(mode="after")
    def _groups_need_names(self) -> TaskRule:
        if self.kind == "grouped" and (len(self.groups) < 2 or not self.name):
            raise ValueError("a grouped rule wants `name` and at least two `groups`")
        if self.kind != "grouped" and self.groups:
            raise ValueError(f"`groups` belong to kind grouped, got kind {self.kind}")
        return self


class LibrarySpec(FrozenModel):
    """The task library: rules over sources."""

    rules: list[TaskRule] = Field(description="Rules that cut the tasks.", min_length=1)
    min_train: int = Field(8, ge=2, description="A class with fewer train images is left out of its task.")
    min_test: int = Field(4, ge=1, description="A class with fewer test images is left out of its task.")
    max_per_class: int = Field(400, ge=2, description="At most this many images of a class and split.")
    max_images: int | None = Field(
        None, ge=4, description="At most this many images of a split, the largest classes cut down first; empty: all."
    )
    max_ratio: float = Field(3.0, ge=1, description="A class has at most this many times the images of the smallest.")
    max_classes: int = Field(50, ge=2, description="The largest classes up to this number are kept.")
    seed: int = Field(0, description="Seed of the sample of images.")


class LibraryFile(FrozenModel):
    """A task library by itself: sources and rules, for several pipelines to use. `paper` and `rehearsal` come along."""

    name: str = Field(description="Name of the library.")
    description: str = Field("", description="What it is, for people.")
    sources: list[SourceSpec] = Field(min_length=1, description="Datasets that tasks are cut from.")
    library: LibrarySpec = Field(description="Rules that cut the tasks.")
    expected: dict[str, int] = Field(
        default_factory=dict, description="Tasks that each source gives when its data are complete."
    )


class ProbeSpec(FrozenModel):
    """The fixed network that embeds tasks, and that experts are fine-tuned from."""

    name: str = Field("efficientnet_lite0", description="Architecture; `t2v probes` lists them; or timm/NAME.")
    weights: str = Field("imagenet", description="imagenet, random, or a .safetensors / .pt file.")
    image_size: int = Field(64, ge=16, le=1024, description="Side of the square that images are brought to, in pixels.")
    seed: int = Field(0, description="Seed of random weights.")


class HeadSpec(FrozenModel):
    """How a head is trained on fixed features: L2-regularised logistic regression, to a stated tolerance."""

    l2: tuple[float, ...] = Field(
        (1e-4, 1e-3, 1e-2, 1e-1), min_length=1, description="L2 strengths to choose from on a grouped inner validation."
    )
    tolerance: float = Field(
        1e-4, gt=0, description="Largest gradient entry, in conditioned coordinates, at which the solver stops."
    )
    max_iterations: int = Field(300, ge=1, description="Most L-BFGS iterations of one fit.")
    validation_share: float = Field(0.3, gt=0, lt=1, description="Share of the groups held out to choose L2.")
    balance: bool = Field(True, description="Weigh the classes equally.")
    seed: int = Field(0, description="Seed of the inner split.")


class VariationalSpec(FrozenModel):
    """The variational estimator: a fixed point of a few passes over a sample of the images."""

    diagonal: Literal["positions", "weights"] = Field(
        "positions",
        description="positions: local reparametrisation, noise drawn anew at each output position; weights: noise on "
        "the weights, one draw a batch, which tends to the exact Fisher as beta falls.",
    )
    images: int = Field(256, ge=8, description="Images in one pass, a sample by importance where there are more.")
    batch_size: int = Field(
        16, ge=1, description="Images in one forward pass, which with `weights` share one draw of the noise."
    )
    max_passes: int = Field(12, ge=2, description="Most passes; a run that needs more says that it did not converge.")
    tolerance: float = Field(
        0.01, gt=0, description="Relative change of the objective below which the passes end, beside its own noise."
    )
    start: float = Field(
        0.05, gt=0, description="Variance of the noise at the start, as a share of the variance of a filter's weights."
    )


class ReferenceSpec(FrozenModel):
    """The reference implementation's Monte Carlo recipe, for comparison with old results."""

    epoch_size: int = Field(10_000, ge=1, description="Images drawn, classes equally likely, with replacement.")
    batch_size: int = Field(64, ge=1, description="Images in one step, whose mean gradient is squared.")
    batchnorm: Literal["eval", "train"] = Field(
        "eval", description="train: BatchNorm by each batch's statistics, as the reference implementation leaves it."
    )


class EmbeddingSpec(FrozenModel):
    """How a task is embedded."""

    estimator: str = Field(
        "variational",
        description="Fisher estimator: variational, montecarlo, exact, montecarlo_plain, reference.",
    )
    draws: int = Field(1024, ge=1, description="montecarlo: budget of (image, class) draws, one backward pass each.")
    early_share: float = Field(
        0.5, gt=0, le=1, description="montecarlo: share of the draws that go on to the early layers."
    )
    max_images: int = Field(512, ge=2, description="At most this many images enter the Fisher, a seeded sample.")
    beta: float = Field(
        1e-9, ge=0, description="Weight of the prior; the trivial embedding is 2 beta / mean squared weight."
    )
    beta_scale: Literal["sample", "dataset"] = Field(
        "sample",
        description="sample: beta is for one image, the prior is the same for every task (the reference "
        "implementation's form); dataset: beta is for the whole dataset, and the prior falls as beta / (2 N) "
        "(Sect. 3.1's form).",
    )
    batch_size: int = Field(64, ge=1, description="Images in one forward pass; does not change the result.")
    seed: int = Field(0, description="Seed of the draws.")
    head: HeadSpec = Field(
        HeadSpec(l2=(1e-2,)),
        description="Training of the head on the probe's features. Where `head` is not given its l2 is [0.01]: chosen "
        "task by task, L2 sets the scale of the Fisher information by chance.",
    )
    variational: VariationalSpec = Field(VariationalSpec(), description="The variational estimator's settings.")
    reference: ReferenceSpec = Field(ReferenceSpec(), description="The reference recipe's settings.")


class TrainingSpec(FrozenModel):
    """Fine-tuning of an expert: heads first, to convergence on the start's features; then all layers, BatchNorm frozen.

    The defaults are the reference recipe's values, whose heads take ten epochs of Adam instead.
    """

    epochs: float = Field(60, gt=0, description="Passes over the train images of all of the expert's tasks.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps; empty: as many as the epochs take.")
    batch_size: int = Field(64, ge=2, description="Images in one step.")
    optimiser: Literal["sgd", "adamw"] = Field("sgd", description="sgd: with momentum; adamw.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay; adamw's is decoupled.")
    schedule: Literal["step", "cosine"] = Field(
        "step",
        description="step: a tenth of the rate after two thirds of the steps; cosine: warm-up over the first tenth, "
        "then cosine decay.",
    )
    shift: int = Field(4, ge=0, description="Random translation in pixels, as augmentation.")
    validation_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the groups held out of training: the weights that are best on them are kept, and "
        "training ends early where they get no better. 0: all images train and all steps are taken.",
    )
    look_every: int = Field(50, ge=1, description="Steps between two looks at the held-out images.")
    patience: int = Field(5, ge=1, description="Looks without a lower held-out loss after which training ends.")
    mixed_precision: bool = Field(True, description="On a GPU: forward passes in bfloat16, weights in float32.")
    checkpoint_every: int = Field(
        200, ge=1, description="Steps between two checkpoints in the store; does not change the result."
    )
    seed: int = Field(0, description="Seed of batches and augmentation.")


class ExpertRule(FrozenModel):
    """One expert: the task, or the collection of related tasks, that it is fine-tuned on."""

    name: str = Field(description="Name of the expert.", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=-]*$")
    tasks: list[str] = Field(
        min_length=1, description="Task ids or glob patterns; together they are trained with joint heads."
    )


class ExpertCollectionRule(FrozenModel):
    """Many experts by one rule: the largest tasks that match a pattern, or collections of tasks related by lineage."""

    tasks: str = Field(description="Glob pattern of task ids.")
    by: Literal["task", "lineage"] = Field(
        "task", description="task: an expert a task; lineage: one for the tasks of a source that share their lineage."
    )
    depth: int = Field(1, ge=1, description="lineage: levels from the root down that the tasks share.")
    largest: int = Field(ge=1, description="So many experts, those with the most train images.")
    max_tasks: int = Field(
        8, ge=1, description="lineage: an expert is trained on at most this many tasks, the largest ones."
    )


class ExternalExpert(FrozenModel):
    """A feature extractor from outside: a network by name with its weights, or an exported program."""

    name: str = Field(description="Name of the expert.", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=-]*$")
    architecture: str = Field(
        "", description="One of `t2v probes`, timm/NAME (its tag pins the weights) or torchvision/NAME."
    )
    weights: str = Field(
        "imagenet",
        description="imagenet, random, a .safetensors file, or a .pt file that holds tensors only; or store:KEY.",
    )
    program: str = Field(
        "", description="Instead of an architecture: a .pt2 file of torch.export, images to features; or store:KEY."
    )
    image_size: int | None = Field(
        None, ge=8, le=1024, description="Side of its input in pixels; empty: as the probe's."
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="Subtracted from each channel, on a scale of 0 to 1; empty: the architecture's."
    )
    std: tuple[float, float, float] | None = Field(None, description="Divided by; empty: the architecture's.")
    trained_on: list[str] = Field(
        default_factory=list,
        description="Task ids of the library, or glob patterns, that it was trained on; none where that is not known.",
    )
    licence: str = Field("", description="Licence of its weights, for the record.")
    digest: str = Field(
        "",
        pattern=r"^([0-9a-f]{16})?$",
        description="Digest of its weights as `t2v experts` prints it; others are refused. A program needs one.",
    )
    seed: int = Field(0, description="Seed of random weights.")

    @model_validator(mode="after")
    def _one_kind(self) -> ExternalExpert:
        if bool(self.architecture) == bool(self.program):
            raise ValueError("an expert from outside wants either `architecture` or `program`")
        if self.name == "generic":
            raise ValueError("the name 'generic' is kept for the probe's own weights")
        if self.program and not self.digest:
            raise ValueError("a program is code: pin it with `digest`; `t2v experts add` does it for you")
        return self


class ExpertsSpec(FrozenModel):
    """The shelf of experts. The generic one (the probe's own weights) is always the first."""

    rules: list[ExpertRule] = Field(
        default_factory=list, description="Experts to fine-tune from the probe's architecture."
    )
    collections: list[ExpertCollectionRule] = Field(
        default_factory=list, description="Rules that name many experts each, after those above."
    )
    external: list[ExternalExpert] = Field(
        default_factory=list, description="Feature extractors from outside, taken as they are."
    )
    training: TrainingSpec = Field(TrainingSpec(), description="Fine-tuning.")

    @model_validator(mode="after")
    def _names_differ(self) -> ExpertsSpec:
        names = [rule.name for rule in self.rules] + [e.name for e in self.external]
        double = sorted({n for n in names if names.count(n) > 1} | ({"generic"} & set(names)))
        if double:
            raise ValueError(f"expert names must differ from each other and from 'generic'; got {double} twice")
        return self


class TransferSpec(FrozenModel):
    """Fine-tuning runs on tasks from several starts: the transfer distance of Sect. 2, and Fig. 4."""

    starts: list[str] = Field(
        min_length=1,
        description="Experts to start from, by name or pattern; selected: the one that MODEL2VEC picks for the task "
        "with its own experts left out. The generic one always runs too.",
    )
    tasks: list[str] = Field(min_length=1, description="Task ids or glob patterns.")
    sizes: list[int] = Field(
        default_factory=list,
        description="Train images of a run, classes as even as they can be; 0: all. Empty: all only.",
    )
    seeds: int = Field(3, ge=1, description="Runs of each start, task and size; they differ in sample and batches.")
    training: TrainingSpec = Field(TrainingSpec(), description="Fine-tuning of all layers.")


class MetaTaskRule(FrozenModel):
    """A part of the error matrix: some experts on some tasks, as the paper's meta-tasks are."""

    name: str = Field(description="Name of the meta-task.")
    tasks: list[str] = Field(min_length=1, description="Task ids or glob patterns.")
    experts: list[str] = Field(min_length=1, description="Names of experts or glob patterns.")
    n_tasks: int | None = Field(None, ge=1, description="So many of the tasks, a sample by their names; empty: all.")
    n_experts: int | None = Field(None, ge=1, description="So many of the experts, likewise; empty: all.")
    seed: int = Field(0, description="Seed of both samples.")


class EvaluationSpec(FrozenModel):
    """How a cell of the error matrix is made."""

    head: HeadSpec = Field(HeadSpec(), description="Training of the heads on the experts' features.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="In which the experts run. bfloat16 is faster where the processor has it, and moves single cells "
        "by a little noise; benchmarks/precision.py says by how much.",
    )
    meta_tasks: list[MetaTaskRule] = Field(
        default_factory=list,
        description="The cells to make: those of each meta-task, and the generic expert on all of their tasks. Empty: "
        "every expert on every task.",
    )
    batch_size: int = Field(64, ge=1, description="Images in one forward pass; does not change the result.")


class ScoringSpec(FrozenModel):
    """Methods that look at every expert's features, to compare with: one pass of each expert, then a score a task."""

    methods: list[Literal["logme", "hscore", "leep", "nleep", "parc", "knn", "linear_probe"]] = Field(
        default_factory=list,
        description="Which ones, of logme, hscore, leep, nleep, parc, knn, linear_probe; empty: the stage is left out.",
    )
    max_images: int = Field(
        300, ge=8, description="Train images of a task that they look at, a sample with classes as even as can be."
    )
    k: int = Field(5, ge=1, description="knn: neighbours that vote.")
    components: int = Field(5, ge=1, description="nleep: components of the Gaussian mixture for each class.")
    head: HeadSpec = Field(HeadSpec(), description="linear_probe: training of the head.")
    seed: int = Field(0, description="Seed of the sample and of the mixture.")


class Model2VecSpec(FrozenModel):
    """MODEL2VEC: m_i = F_i + b_i (Sect. 3.4)."""

    alpha: float = Field(0.15, description="Weight of complexity in the asymmetric distance (Sect. 3.3).")
    labels: Literal["hard", "soft"] = Field(
        "soft", description="hard: the best expert (ties share); soft: softmax of -sharpness x standardised error."
    )
    sharpness: float = Field(2.0, gt=0, description="soft labels: weight of the standardised error.")
    known: bool = Field(True, description="Whether the experts' tasks are known; if not, F_i = 0 for all (Sect. 3.4).")
    prior: Literal["unknown", "all"] = Field(
        "unknown",
        description="Which experts' distances have a learned level beside their vector's: those whose task is not "
        "known, or all (an expert prior).",
    )
    l2: tuple[float, ...] = Field(
        (3e-7, 1e-6, 3e-6, 1e-5, 1e-4, 1e-3, 1e-1),
        min_length=1,
        description="Penalties to choose from by cross-validation, on the mean square of gamma x log-bias: on what "
        "the bias does to the logits.",
    )
    rule: Literal["lowest", "one_se"] = Field(
        "lowest",
        description="Which penalty: of the lowest cross entropy, or the strongest one within a standard error of it.",
    )
    folds: int = Field(
        5,
        ge=2,
        description="Folds of the cross-validation over tasks that chooses the penalty; twice as many where few tasks "
        "are left out one by one.",
    )
    exact_tasks: int = Field(
        128,
        ge=0,
        description="Up to so many tasks every fit is exact, and tasks are left out one by one; above, the bias lies "
        "in a basis of `rank` directions, and tasks are left out in folds. See docs/selection.md.",
    )
    rank: int = Field(512, ge=1, description="Directions of the bias where there are more tasks than `exact_tasks`.")
    left_out_folds: int = Field(5, ge=2, description="Folds in which tasks are left out where they are many.")
    seed: int = Field(0, description="Seed of the folds.")


class SelectionSpec(FrozenModel):
    """How selectors are judged."""

    metric: Literal["error", "balanced_error"] = Field("balanced_error", description="Which error of a cell counts.")
    floor: float = Field(0.01, gt=0, description="Errors below this count as this in ratios to the oracle.")
    meta_tasks: list[MetaTaskRule] = Field(
        default_factory=list, description="Parts of the error matrix that are judged too, beside the whole of it."
    )
    selectors: list[str] = Field(
        default_factory=list,
        description="Selectors to compare, by name; empty: all but the variants of MODEL2VEC, which take long.",
    )
    n_bootstrap: int = Field(
        2000, ge=100, description="Bootstrap resamples, over groups of tasks with one name in several sources."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Mass of the bootstrap intervals.")
    seed: int = Field(0, description="Seed of the bootstrap.")


class PipelineConfig(FrozenModel):
    """The main job, from sources to the report. `examples/demo.yaml` is one."""

    name: str = Field(
        description="Name of the run; the default store is `runs/NAME`.", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )
    use: str = Field(
        "", description="Library to take sources and rules from: paper, rehearsal, or a YAML file with both."
    )
    data: str = Field("~/.cache/t2v", description="Folder that {data} in a used library's options stands for.")
    sources: list[SourceSpec] = Field(min_length=1, description="Datasets that tasks are cut from.")
    library: LibrarySpec = Field(description="Rules that cut the tasks.")
    probe: ProbeSpec = Field(ProbeSpec(), description="The network that embeds.")
    embedding: EmbeddingSpec = Field(EmbeddingSpec(), description="How tasks are embedded.")
    experts: ExpertsSpec = Field(ExpertsSpec(), description="The experts to choose from.")
    evaluation: EvaluationSpec = Field(EvaluationSpec(), description="How experts are judged on tasks.")
    scoring: ScoringSpec = Field(ScoringSpec(), description="Methods that look at every expert's features.")
    model2vec: Model2VecSpec = Field(Model2VecSpec(), description="The joint embedding of experts and tasks.")
    selection: SelectionSpec = Field(SelectionSpec(), description="How selectors are compared.")
    transfer: TransferSpec | None = Field(
        None, description="Fine-tuning runs that `t2v transfer` makes; empty: none. The main job does not."
    )
    max_failed_share: float = Field(
        0.05, ge=0, le=1, description="A stage that loses more than this share of its units ends Failed."
    )

    @model_validator(mode="before")
    @classmethod
    def _used(cls, content: Any) -> Any:
        """Sources and rules of the library in use, before those of the file itself."""
        if not isinstance(content, dict) or not content.get("use"):
            return content
        used = load_library(str(content["use"]), str(content.get("data", "~/.cache/t2v"))).model_dump(mode="json")
        own = content.get("library") or {}
        rules = [*used["library"]["rules"], *own.get("rules", [])]
        merged = {**used["library"], **own, "rules": rules}
        # What was merged is whole: a copy of the model must not merge it again.
        return {**content, "use": "", "sources": [*used["sources"], *content.get("sources", [])], "library": merged}

    @model_validator(mode="after")
    def _names_resolve(self) -> PipelineConfig:
        names = [s.name for s in self.sources]
        double = sorted({n for n in names if names.count(n) > 1})
        if double:
            raise ValueError(f"source names must differ; got {double} twice")
        if self.embedding.beta_scale == "dataset":
            raise ValueError(
                "embedding.beta_scale: dataset gives every task its own prior, and such embeddings do not compare; "
                "a pipeline wants sample"
            )
        for rule in self.library.rules:
            if rule.source not in names:
                raise ValueError(f"a library rule names source {rule.source!r}; the sources are {names}")
        return self


def _field_names(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys allowed at ``location`` of ``model``; empty where that is not a model."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        if not (isinstance(current, type) and issubclass(current, BaseModel)) or part not in current.model_fields:
            return []
        annotation = current.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        current = inner[0] if inner else annotation
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []


def explain_validation_error(error: ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    """One line per problem: where it is, what was got, what was wanted; unknown keys get the nearest known one."""
    lines = []
    for problem in error.errors():
        location = tuple(problem["loc"])
        dotted = ".".join(str(part) for part in location) or "(top level)"
        if problem["type"] == "extra_forbidden":
            known = _field_names(model, location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"unknown key {dotted!r}; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"missing key {dotted!r}")
        else:
            lines.append(f"{dotted}: {problem['msg']} (got {problem.get('input')!r:.80})")
    return ConfigError(f"{where}: " + "; ".join(lines))


def _read_yaml(path: str | Path) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no configuration at {str(path)!r}; wanted a YAML file such as examples/demo.yaml")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, wanted a mapping of keys; see examples/demo.yaml")
    return content


def load_config(path: str | Path) -> PipelineConfig:
    """Read and validate a YAML configuration.

    Raises:
        ConfigError: the file is missing, not YAML, or does not fit; every problem is named.
    """
    content = _read_yaml(path)
    try:
        return PipelineConfig.model_validate(content)
    except ValidationError as error:
        raise explain_validation_error(error, PipelineConfig, str(path)) from error


def _placed(value: Any, data: str) -> Any:
    """Options with the folder of the data filled in."""
    if isinstance(value, str):
        return value.replace("{data}", data)
    if isinstance(value, dict):
        return {k: _placed(v, data) for k, v in value.items()}
    return [_placed(v, data) for v in value] if isinstance(value, list) else value


def load_library(name: str, data: str = "~/.cache/t2v") -> LibraryFile:
    """A task library by name (``paper``, ``rehearsal``) or from a YAML file.

    Args:
        name: of a library that comes along, or a path.
        data: folder that ``{data}`` in the sources' options stands for.

    Raises:
        ConfigError: no such library, not YAML, or it does not fit.
    """
    packaged = Path(__file__).parent / "libraries"
    names = sorted(path.stem for path in packaged.glob("*.yaml"))
    if name not in names and not name.endswith((".yaml", ".yml")):
        raise UnknownNameError("library", name, names)
    path = packaged / f"{name}.yaml" if name in names else Path(name)
    content = _read_yaml(path)
    if isinstance(content.get("sources"), list):
        content["sources"] = _placed(content["sources"], data)
    try:
        return LibraryFile.model_validate(content)
    except ValidationError as error:
        raise explain_validation_error(error, LibraryFile, str(path)) from error
