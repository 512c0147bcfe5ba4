"""Fig. 1: maps of tasks by their embeddings and by their domains, and norm against the best expert's error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from t2v_core.arrange import OTHERS, PALETTE, map_tasks
from t2v_core.reproduce.claims import Claim
from t2v_core.reproduce.evidence import Evidence
from t2v_core.reproduce.figures.canvas import BLUE, Drawn, canvas, printable, tidy

__all__ = ["draw_maps", "scatter_norm"]

_GROUPS = 8


def _labels(evidence: Evidence) -> list[tuple[str, np.ndarray, str]]:
    """(name, which tasks, colour): by annotation column, which is what a task asks; the rarest share one grey."""
    labels = evidence.tasks["label"].astype(str)
    order = labels.value_counts(sort=True).index.tolist()
    shown = order if len(order) <= _GROUPS else order[: _GROUPS - 1]
    groups = [(name, (labels == name).to_numpy(), PALETTE[k]) for k, name in enumerate(shown)]
    rest = ~labels.isin(shown).to_numpy()
    return [*groups, (f"{len(order) - len(shown)} others", rest, OTHERS)] if rest.any() else groups


def _map(axes: Axes, places: np.ndarray, groups: list[tuple[str, np.ndarray, str]], title: str) -> None:
    tidy(axes, title)
    marks = "osD^vPX*"
    for k, (name, rows, colour) in enumerate(groups):
        axes.scatter(
            places[rows, 0],
            places[rows, 1],
            s=9 if len(places) > 300 else 26,
            color=colour,
            marker=marks[k % len(marks)],
            linewidths=0,
            alpha=0.85,
            label=printable(name),
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def scatter_norm(axes: Axes, norm: np.ndarray, error: np.ndarray, claim: Claim, title: str, y: str) -> None:
    """Norm (logarithmic) against an error, with the rank correlation of a claim."""
    kept = np.isfinite(norm) & np.isfinite(error) & (norm > 0)
    tidy(axes, title, "L1 norm of the embedding", y)
    axes.set_xscale("log")
    axes.scatter(norm[kept], error[kept], s=6, color=BLUE, alpha=0.4, linewidths=0)
    words = f"rank correlation {claim.value:.2f} [{claim.low:.2f}, {claim.high:.2f}]"
    axes.text(0.02, 0.98, words, transform=axes.transAxes, va="top", fontsize=8)


def draw_maps(evidence: Evidence, norm_claim: Claim, collapse: Sequence[Claim], seed: int = 0) -> Drawn:
    """The three panels.

    Args:
        evidence: of the library.
        norm_claim: norm against the best expert's error.
        collapse: claims on attribute tasks.
        seed: of t-SNE.
    """
    figure = canvas(13.0, 4.6)
    left, middle, right = figure.subplots(1, 3)
    groups = _labels(evidence)
    _map(left, map_tasks(evidence.symmetric, seed), groups, "t-SNE of task embeddings")
    _map(middle, map_tasks(evidence.domain, seed), groups, "t-SNE of domain embeddings")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower left", ncols=8, markerscale=1.6)
    norm = evidence.tasks["complexity"].to_numpy(np.float64)
    scatter_norm(
        right, norm, evidence.best_error, norm_claim, "norm and the best expert's error", "best expert's error"
    )
    return Drawn(
        "figure-1",
        "Figure 1: task embeddings across a library of tasks",
        figure,
        "t-SNE of tasks of iNaturalist, CUB-200 and iMaterialist: taxonomic groups stand together, birds of CUB beside "
        "birds of iNaturalist; by the domain embedding the attribute tasks fall into one cluster. The norm grows with "
        "the best expert's error.",
        f"{len(evidence.tasks):,} tasks of {evidence.profile.title}, coloured by the annotation column that they ask "
        f"for; {'; '.join(c.words() for c in [*collapse, norm_claim])}.",
        "Two maps of points coloured by annotation column, and a scatter of norm against error.",
    )
