"""Report data to test with: tasks in groups, experts that are good for their own group, hostile names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from PIL import Image

from t2v_core.arrange import cosine_distances
from t2v_core.report_data import SELECTION_COLUMNS, CostLine, Failure, Link, ReportData, StageLine
from t2v_core.thumbnails import Thumbnail, make_thumbnail

EVIL = "</script><img src=x onerror=alert(1)>\u2028'\"&amp;{{7*7}}$x^$<a href='https://evil.example'>"
OUT, ALL = "own expert left out", "all candidates"
GROUPS = (
    ("birds", "birds-200", "nature", "multiclass", ["Animalia", "Aves"]),
    ("plants", "species-8k", "nature", "multiclass", ["Plantae", "Rosales"]),
    ("insects", "species-8k", "nature", "multiclass", ["Animalia", "Insecta"]),
    ("clothes", "fashion-228", "clothing", "binary", ["attribute", "colour"]),
    ("shapes", "fashion-228", "clothing", "binary", ["attribute", "shape"]),
)


def thumbnail(seed: int) -> Thumbnail:
    """Two plain squares of a colour of the task's own."""
    colors = [((37 * seed) % 256, 90, 200), ((53 * seed) % 256, 160, 40)]
    return make_thumbnail([Image.new("RGB", (20, 30), color) for color in colors], ["cat", "dog"], 32)


def make(n_tasks: int, n_experts: int = 12, seed: int = 0, evil: bool = False) -> ReportData:
    """Tasks in groups; an expert of a task's own group is better than the generic one, others are worse."""
    rng = np.random.default_rng(seed)
    group = np.arange(n_tasks) % len(GROUPS)
    centres = rng.gamma(0.5, 1.0, (len(GROUPS), 64))
    complexity = rng.uniform(0.4, 2.5, n_tasks)
    embeddings = (centres[group] + rng.gamma(0.4, 0.3, (n_tasks, 64))) * complexity[:, None]
    domains = np.array([0, 1, 1, 2, 2])[group]
    domain_embeddings = rng.normal(size=(3, 32))[domains] + 0.15 * rng.normal(size=(n_tasks, 32))
    distances = cosine_distances(embeddings)
    experts = ("generic", *(f"{GROUPS[k % len(GROUPS)][0]}/expert-{k:03d}" for k in range(n_experts - 1)))
    base = 0.08 + 0.14 * complexity
    errors = base[:, None] * rng.normal(1.18, 0.06, (n_tasks, n_experts))
    errors[:, 0] = base
    own = np.zeros((n_tasks, n_experts), dtype=bool)
    for e in range(1, n_experts):
        near = group == (e - 1) % len(GROUPS)
        errors[near, e] = base[near] * rng.uniform(0.55, 1.0, int(near.sum()))
        own[(e - 1) % n_tasks, e] = True
    errors[own] *= 0.8
    errors = np.clip(errors, 0.0, 1.0)
    candidates = np.where(own, np.inf, errors)
    oracle = candidates.min(axis=1)
    noisy = (candidates + rng.normal(0, 0.012, errors.shape)).argmin(axis=1)
    selected = errors[np.arange(n_tasks), noisy]
    tasks = pd.DataFrame(
        {
            "task_id": [f"{GROUPS[k][1]}/{GROUPS[k][0]}={i:03d}" for i, k in enumerate(group)],
            "source": [GROUPS[k][1] for k in group],
            "domain": [GROUPS[k][2] for k in group],
            "kind": [GROUPS[k][3] for k in group],
            "lineage": [GROUPS[k][4] for k in group],
            "n_classes": rng.integers(2, 40, n_tasks),
            "n_train": rng.integers(100, 5000, n_tasks),
            "n_test": rng.integers(50, 900, n_tasks),
            "complexity": np.abs(embeddings).sum(axis=1),
            "head_error": np.clip(base * rng.normal(1.0, 0.08, n_tasks), 0, 1),
            "oracle_error": oracle,
            "generic_error": errors[:, 0],
            "selected_expert": [experts[k] for k in noisy],
            "selected_error": selected,
        }
    )
    relative = float(np.mean(selected / oracle - 1))
    generic = float(np.mean(errors[:, 0] / oracle - 1))
    rows = []
    for reading, factor in ((OUT, 1.0), (ALL, 1.25)):
        for method, value, note in (
            ("oracle", 0.0, ""),
            ("MODEL2VEC", relative * 0.8, "fitted on the other tasks"),
            ("asymmetric TASK2VEC", relative, ""),
            ("symmetric TASK2VEC", relative * 1.9 + 0.05, "ignores complexity"),
            ("domain embedding", relative * 2.4 + 0.12, ""),
            ("static", generic * 0.9, "best on the other tasks"),
            ("generic", generic, "never fine-tuned"),
            ("chance", generic * 1.7, ""),
        ):
            value *= factor
            width = 0.0 if method == "oracle" else 0.035 + 0.1 * value
            rows.append(
                (
                    reading,
                    method,
                    value,
                    value - width,
                    value + width,
                    value * 0.7,
                    value * 0.2,
                    (value - width) * 0.2,
                    (value + width) * 0.2,
                    float(np.exp(-6 * value)),
                    n_tasks,
                    note,
                )
            )
    data = ReportData(
        title="Which expert for which task?",
        subtitle="Synthetic tasks on the small probe, 24 November 2026",
        run={
            "probe": "resnet34, ImageNet",
            "estimator": "variational",
            "store": "file://store",
            "seed": "0",
            "versions": "torch 2.14.1, t2v 1.0.0",
            "started": "2026-11-24 02:00 UTC",
            "seconds": "5,412",
        },
        stages=(
            StageLine("ingest", 3, 0, 0, 310.2),
            StageLine("embed tasks", max(n_tasks - 4, 0), 3, 1, 2650.0, 5180.0),
            StageLine("train experts", n_experts - 1, 0, 0, 1730.5),
            StageLine("evaluate experts", 36, 4, 0, 700.1),
            StageLine("select", 1, 0, 0, 4.2),
        ),
        tasks=tasks,
        embeddings=embeddings,
        domain_embeddings=domain_embeddings,
        distances=distances,
        experts=experts,
        errors=errors,
        own=own,
        selection=pd.DataFrame(rows, columns=list(SELECTION_COLUMNS)),
        floor=0.005,
        oracle_error=float(oracle.mean()),
        conclusions=(
            "MODEL2VEC’s error is below the generic expert’s by more than the interval of their difference.",
            "MODEL2VEC and asymmetric TASK2VEC do not differ by more than their interval.",
        ),
        failures=(
            ("embed tasks", "birds-200/birds=017", "ComputeError: loss is not finite; lower the learning rate"),
            *(Failure("evaluate experts", f"generic on {k}", "the test split is empty", 0.5) for k in range(5)),
        ),
        rejected_images=tuple(
            (GROUPS[k % 5][1], f"img_{k:05d}.jpg", ("truncated file", "not an image")[k % 2]) for k in range(37)
        ),
        skipped_tasks=(("species-8k/order=Solo", "one class only; wanted two or more"),),
        thumbnails={task: thumbnail(k) for k, task in enumerate(tasks["task_id"])},
        links=(
            Link("MLflow run", "abc123", "https://mlflow.example/#/runs/abc123"),
            Link("Embeddings", "embeddings/part-0.parquet", "../embeddings/part-0.parquet"),
            Link("Store", "file://store"),
        ),
        costs=(CostLine("embed a task", n_tasks, 12.5, 12.5 * n_tasks),),
        commands=(
            ("Run the whole pipeline again", "t2v run configs/demo.yaml --store ./store"),
            ("Pick an expert for your own folder", "t2v select ./my-photos --store ./store"),
        ),
    )
    return inject(data) if evil else data


def inject(data: ReportData) -> ReportData:
    """Put a hostile string wherever a user's string can be."""
    tasks = data.tasks.copy()
    for column in ("task_id", "source", "domain", "kind", "selected_expert"):
        tasks[column] = [EVIL + str(value) for value in tasks[column]]
    tasks["lineage"] = [[EVIL] for _ in range(len(tasks))]
    selection = data.selection.copy()
    for column in ("reading", "method", "note"):
        selection[column] = [EVIL + value for value in selection[column]]
    return replace(
        data,
        title=EVIL,
        subtitle=EVIL,
        run={EVIL: EVIL},
        stages=(StageLine(EVIL, 1, 1, 1, 1.0),),
        tasks=tasks,
        experts=tuple(EVIL + name for name in data.experts),
        selection=selection,
        conclusions=(EVIL,),
        failures=((EVIL, EVIL, EVIL),),
        rejected_images=((EVIL, EVIL, EVIL),),
        skipped_tasks=((EVIL, EVIL),),
        commands=((EVIL, EVIL),),
        thumbnails={EVIL + name: replace(strip, names=(EVIL, EVIL)) for name, strip in data.thumbnails.items()},
        links=(Link(EVIL, EVIL, "javascript:alert(1)"), Link(EVIL, EVIL, "https://x.example/" + EVIL)),
        costs=(CostLine(EVIL, 1, 1.0, 1.0),),
    )


def first_tasks(full: ReportData, n_tasks: int) -> ReportData:
    """The same run with its first tasks only."""
    return replace(
        full,
        tasks=full.tasks.iloc[:n_tasks],
        embeddings=full.embeddings[:n_tasks],
        domain_embeddings=full.domain_embeddings[:n_tasks],
        distances=full.distances[:n_tasks, :n_tasks],
        errors=full.errors[:n_tasks],
        own=full.own[:n_tasks],
    )
