"""Fig. 3: how the experts' errors are spread on single tasks, and which expert is picked."""

from __future__ import annotations

import numpy as np

from t2v_core.errors import ConfigError
from t2v_core.fingerprints import matching
from t2v_core.reproduce.evidence import Evidence
from t2v_core.reproduce.figures.canvas import BLUE, GREY, INK, RED, Drawn, canvas, printable, tidy
from t2v_core.selection import choose

__all__ = ["columns_of", "draw_violins"]

_MOST = 24
"""Columns that one figure can hold."""


def columns_of(evidence: Evidence) -> np.ndarray:
    """Tasks of the figure, by rising norm: those that the profile names, else the largest; three known cells or more.

    Raises:
        ConfigError: the profile's patterns match no task.
    """
    judged = (np.isfinite(evidence.errors) & ~evidence.own).sum(1) >= 3
    patterns = evidence.profile.violins
    named = set(matching(evidence.task_ids, patterns))
    if patterns and not named:
        raise ConfigError(f"violins: no task matches {', '.join(patterns)}; see `t2v tasks`")
    rows = np.array([i for i, t in enumerate(evidence.task_ids) if judged[i] and (t in named or not patterns)], int)
    rows = rows[np.argsort(-evidence.tasks["n_train"].to_numpy()[rows], kind="stable")][:_MOST]
    return np.asarray(rows[np.argsort(evidence.tasks["complexity"].to_numpy()[rows], kind="stable")])


def draw_violins(evidence: Evidence, scores: np.ndarray, method: str) -> Drawn | None:
    """The figure; None where no task has three known cells.

    Args:
        evidence: of the library.
        scores: ``[T, E]`` of a selector, lower is better; a task's own experts are no candidates.
        method: the selector's name.
    """
    rows = columns_of(evidence)
    if not len(rows):
        return None
    candidates = np.isfinite(evidence.errors) & ~evidence.own
    picked = choose(scores[rows], candidates[rows])
    figure = canvas(0.48 * len(rows) + 2.5, 5.4)
    axes = tidy(figure.subplots(), f"errors of the experts on {len(rows)} tasks", y="balanced test error")
    regret, lead = [], []
    for x, (i, expert) in enumerate(zip(rows, picked, strict=True)):
        own = evidence.errors[i, candidates[i]]
        if np.ptp(own) > 0:
            body = axes.violinplot([own], positions=[x], widths=0.85, showextrema=False)
            for part in body["bodies"]:  # type: ignore[attr-defined]
                part.set_facecolor("#cfd6de")
                part.set_alpha(0.9)
        spread = np.random.default_rng(x).uniform(-0.12, 0.12, len(own))
        axes.scatter(x + spread, own, s=3, color=GREY, linewidths=0, label="experts" if x == 0 else None)
        axes.scatter(x, evidence.errors[i, 0], s=42, marker="^", color=BLUE, edgecolors="white", linewidths=0.5,
                     label="generic (ImageNet)" if x == 0 else None, zorder=3)  # fmt: skip
        if expert >= 0:
            error = evidence.errors[i, expert]
            axes.scatter(x, error, s=42, marker="x", color=RED, linewidths=1.8, zorder=4,
                         label=f"selected by {method}" if x == 0 else None)  # fmt: skip
            regret.append(error - own.min())
            lead.append(evidence.errors[i, 0] - error)
    axes.set_xticks(
        range(len(rows)), labels=[printable(evidence.task_ids[i], 44) for i in rows], rotation=90, fontsize=7
    )
    axes.set_xlabel("tasks, by rising norm of their embedding", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    lead_points, regret_points = 100 * np.array(lead), 100 * np.array(regret)
    return Drawn(
        "figure-3",
        "Figure 3: the spread of the experts' errors",
        figure,
        "tasks of CUB-200: most experts do about as well as the generic one or worse, a few much better; the selected "
        "one is often the best or near it. Tasks of a lower norm have a lower error and gain less.",
        f"{len(rows)} tasks, own experts left out, ordered by norm. Selected by {method}: on average "
        f"{np.mean(lead_points):+.1f} points below the generic expert and {np.mean(regret_points):.1f} above the best "
        f"one; better than generic on {int((lead_points > 0).sum())} tasks, worse on {int((lead_points < 0).sum())}, "
        f"the same on {int((lead_points == 0).sum())}.",
        "One violin a task: grey points are experts, blue triangles the generic one, red crosses the selected one.",
    )
