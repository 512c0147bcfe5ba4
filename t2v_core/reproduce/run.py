"""All tables, figures and claims of a library, from one record of evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from t2v_core.config import Model2VecSpec, SelectionSpec
from t2v_core.evaluation import LEFT_OUT
from t2v_core.reproduce.claims import (
    Claim,
    attributes_do_not_collapse,
    few_samples_keep_the_gain,
    norm_follows_difficulty,
    selection_beats_generic,
    taxonomy_agrees,
    twins_are_near,
)
from t2v_core.reproduce.evidence import Evidence
from t2v_core.reproduce.figures.canvas import Drawn
from t2v_core.reproduce.figures.distances import draw_distances
from t2v_core.reproduce.figures.maps import draw_maps
from t2v_core.reproduce.figures.sizes import draw_sizes
from t2v_core.reproduce.figures.violins import draw_violins
from t2v_core.reproduce.judging import Judged, judge_meta_tasks, judge_probes
from t2v_core.reproduce.scores import expert_scores
from t2v_core.reproduce.tables import with_paper

__all__ = ["Reproduction", "reproduce"]

CLAIMED = ("TASK2VEC", "asymmetric TASK2VEC", "MODEL2VEC")
"""Selectors that the paper claims to beat the generic expert."""
SHOWN = "asymmetric TASK2VEC"
"""The selector that Fig. 3 marks: it needs no errors."""


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What a library gives."""

    evidence: Evidence
    table_1: pd.DataFrame
    """With the paper's figure in ``paper``."""
    table_2: pd.DataFrame
    choices: pd.DataFrame
    conclusions: tuple[str, ...]
    claims: tuple[Claim, ...]
    figures: tuple[Drawn, ...]
    missing: tuple[tuple[str, str], ...]
    """(table or figure, why it is not there)"""


def reproduce(
    evidence: Evidence,
    selection: SelectionSpec,
    model2vec: Model2VecSpec,
    *,
    probe: str,
    told: Callable[[str], None] = lambda _: None,
) -> Reproduction:
    """Make everything.

    Args:
        evidence: of a run.
        selection: floor and bootstrap.
        model2vec: settings; alpha is that of the asymmetric distance too.
        probe: name of the probe that embedded the tasks.
        told: called with what is being made.
    """
    judged: Judged = judge_meta_tasks(evidence, selection, model2vec, told=lambda name: told(f"Table 1, {name}"))
    told("Table 2")
    table_2 = judge_probes(evidence, probe, selection, model2vec, choices=judged.choices)
    told("claims")
    agreement = taxonomy_agrees(evidence, selection)
    collapse = attributes_do_not_collapse(evidence, selection)
    norms = norm_follows_difficulty(evidence, selection)
    left_out = judged.choices[judged.choices["reading"] == LEFT_OUT]
    claims = (
        agreement,
        twins_are_near(evidence, selection),
        *collapse,
        *norms,
        *selection_beats_generic(evidence, left_out, selection, CLAIMED),
        few_samples_keep_the_gain(evidence, selection),
    )
    figures, missing = [], []
    draw: tuple[tuple[str, Callable[[], Drawn | None], str], ...] = (
        ("Figure 1", lambda: draw_maps(evidence, norms[0], collapse), ""),
        ("Figure 2", lambda: draw_distances(evidence, agreement, norms[1]), "the library has no taxonomy"),
        (
            "Figure 3",
            lambda: draw_violins(
                evidence, expert_scores(evidence.embeddings, evidence.trained_on, model2vec.alpha)[1], SHOWN
            ),
            "no task has three experts that were tried on it",
        ),
        (
            "Figure 4",
            lambda: draw_sizes(evidence.transfer, selection),
            "no fine-tuning runs at several sizes; `t2v transfer CONFIG` makes them",
        ),
    )
    for name, make, why in draw:
        told(name)
        drawn = make()
        if drawn is None:
            missing.append((name, why))
        else:
            figures.append(drawn)
    if not evidence.probes:
        missing.append(("Table 2", "only one probe embedded the tasks; benchmarks/probes.py embeds them by others"))
    return Reproduction(
        evidence=evidence,
        table_1=with_paper(judged.table, [rule.name for rule in evidence.profile.meta_tasks]),
        table_2=table_2,
        choices=judged.choices,
        conclusions=judged.conclusions,
        claims=claims,
        figures=tuple(figures),
        missing=tuple(missing),
    )
