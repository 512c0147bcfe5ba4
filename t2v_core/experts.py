"""Experts: which there are, by rules over a library. `finetune` makes them."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence

from pydantic import Field

from t2v_core.config import ExpertRule, ExpertsSpec, FrozenModel, TrainingSpec
from t2v_core.errors import ConfigError
from t2v_core.fingerprints import matching, readable
from t2v_core.library import Task
from t2v_core.probes import Probe

__all__ = ["GENERIC", "ExpertSpec", "expert_rules", "expert_specs"]

GENERIC = "generic"
"""The expert that was never fine-tuned: the probe's own weights."""


class ExpertSpec(FrozenModel):
    """What an expert is: enough to make it again."""

    name: str = Field(description="Name of the expert.")
    architecture: str = Field(description="Architecture, the probe's.")
    parent: str = Field(description="Digest of the weights that fine-tuning starts from.")
    tasks: tuple[str, ...] = Field((), description="Tasks it is trained on; none for the generic one.")
    task_fingerprints: tuple[str, ...] = Field((), description="Their fingerprints, in the same order.")
    image_size: int = Field(description="Side of its input, in pixels.")
    training: TrainingSpec | None = Field(None, description="Fine-tuning; none for the generic one.")


def expert_rules(spec: ExpertsSpec, library: Sequence[Task]) -> list[ExpertRule]:
    """The experts of a config by name: its rules, then those that its collections make of the library.

    Args:
        spec: the rules.
        library: all tasks.

    Raises:
        ConfigError: two experts of one name.
    """
    rules = list(spec.rules)
    for collection in spec.collections:
        groups: dict[str, list[Task]] = {}
        for task in library:
            if not matching([task.task_id], [collection.tasks]):
                continue
            shared = task.spec.lineage[: collection.depth]
            if collection.by == "task":
                groups[task.task_id] = [task]
            elif len(shared) == collection.depth:
                groups.setdefault("/".join((task.spec.source, *shared)), []).append(task)
        for tasks in groups.values():
            tasks.sort(key=lambda t: (-sum(t.train_counts), t.task_id))
        # The size of a collection is that of the tasks it is trained on.
        ranked = sorted(groups.items(), key=lambda g: (-_images(g[1][: collection.max_tasks]), g[0]))
        rules += [
            ExpertRule(name=readable(name), tasks=[glob.escape(t.task_id) for t in tasks[: collection.max_tasks]])
            for name, tasks in ranked[: collection.largest]
        ]
    names = [rule.name for rule in rules] + [e.name for e in spec.external]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ConfigError(
            f"two experts are called {double[0]!r}; narrow a pattern of experts.collections, or rename one"
        )
    return rules


def _images(tasks: Sequence[Task]) -> int:
    return sum(sum(t.train_counts) for t in tasks)


def expert_specs(
    rules: Sequence[ExpertRule], tasks: Mapping[str, str], probe: Probe, training: TrainingSpec
) -> tuple[list[ExpertSpec], list[tuple[str, str]]]:
    """The experts that the rules name; the generic one comes first.

    Args:
        rules: names and task patterns.
        tasks: task id to fingerprint, the library.
        probe: what training starts from.
        training: settings of fine-tuning.

    Returns:
        Specs, and (name, reason) of rules that match no task of the library.
    """
    common = {"architecture": probe.name, "parent": probe.digest, "image_size": probe.transform.size}
    specs = [ExpertSpec(name=GENERIC, **common)]
    unmatched: list[tuple[str, str]] = []
    for rule in rules:
        matched = matching(tasks, rule.tasks)
        if not matched:
            unmatched.append((rule.name, f"no task of the library matches {', '.join(rule.tasks)}"))
            continue
        specs.append(
            ExpertSpec(
                name=rule.name,
                tasks=tuple(matched),
                task_fingerprints=tuple(tasks[t] for t in matched),
                training=training,
                **common,
            )
        )
    return specs, unmatched
