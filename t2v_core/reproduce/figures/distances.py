"""Fig. 2: distances between tasks of the taxonomy, clustered; neighbourhoods; norm against error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb

from t2v_core.arrange import OTHERS, PALETTE, cluster, dendrogram_path
from t2v_core.matrix import ClassLineages
from t2v_core.reproduce.claims import Claim
from t2v_core.reproduce.evidence import Evidence
from t2v_core.reproduce.figures.canvas import BLUE, CLOSENESS, INK, ORANGE, Drawn, canvas, printable, tidy
from t2v_core.reproduce.figures.maps import scatter_norm
from t2v_core.reproduce.neighbourhood import neighbourhoods

__all__ = ["draw_distances", "top_of"]

_SOURCES = ("#1b1f27", "#c2c7ce", "#7a3b69", "#6b8f71", "#b08900", "#3d5a80")
"""Not the colours of the lineages, which stand beside them."""


def top_of(lineages: ClassLineages) -> str:
    """The top of the taxonomy that all classes of a task share; empty where they are of several."""
    tops = {lineage[0] for lineage in lineages if len(lineage)}
    return tops.pop() if len(tops) == 1 else ""


def _colours(names: list[str], palette: Sequence[str]) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Index of each name into a palette, and (name, colour) of the palette; the last is for all others."""
    ranked = [name for name, _ in Counter(n for n in names if n).most_common(len(palette))]
    place = {name: k for k, name in enumerate(ranked)}
    index = np.array([place.get(name, len(ranked)) for name in names])
    return index, [*zip(ranked, palette, strict=False), ("several", OTHERS)]


def _bar(axes: Axes, names: list[str], label: str, palette: Sequence[str]) -> list[tuple[str, str]]:
    index, legend = _colours(names, palette)
    colours = ListedColormap([to_rgb(c) for _, c in legend])
    axes.imshow(index[None], cmap=colours, vmin=-0.5, vmax=len(legend) - 0.5, aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([0], labels=[label], fontsize=7)
    axes.spines[:].set_visible(False)
    return [entry for k, entry in enumerate(legend) if (index == k).any()]


def draw_distances(evidence: Evidence, agreement: Claim, norm_claim: Claim) -> Drawn | None:
    """The three panels; None where the library has no taxonomy.

    Args:
        evidence: of the library.
        agreement: of d_sym and the taxonomy.
        norm_claim: norm against the probe's own error.
    """
    kept = np.flatnonzero(evidence.taxonomic)
    if len(kept) < 4:
        return None
    distances = evidence.symmetric[np.ix_(kept, kept)]
    clustering = cluster(distances)
    order = clustering.order
    figure = canvas(14.0, 6.2)
    grid = figure.add_gridspec(5, 3, height_ratios=[1.1, 0.16, 0.16, 5, 0.9], width_ratios=[1.25, 1, 1])
    tree = figure.add_subplot(grid[0, 0])
    xs, ys = dendrogram_path(clustering)
    tree.plot(
        np.array([np.nan if x is None else x for x in xs]),
        np.array([np.nan if y is None else y for y in ys]),
        color=INK,
        linewidth=0.4,
    )
    tree.set_xlim(-0.5, len(kept) - 0.5)
    tree.set_axis_off()
    tree.set_title(f"{len(kept)} tasks of the taxonomy, clustered by $d_{{sym}}$", fontsize=10, loc="left")
    tops = [top_of(evidence.class_lineages[kept[i]]) for i in order]
    legend = _bar(figure.add_subplot(grid[1, 0]), tops, "lineage", PALETTE)
    sources = [str(evidence.tasks["source"].iloc[kept[i]]) for i in order]
    legend_sources = _bar(figure.add_subplot(grid[2, 0]), sources, "source", _SOURCES)
    matrix = figure.add_subplot(grid[3, 0])
    image = matrix.imshow(distances[np.ix_(order, order)], cmap=CLOSENESS, interpolation="nearest", aspect="auto")
    matrix.set_xticks([])
    matrix.set_yticks([])
    figure.colorbar(image, ax=matrix, shrink=0.6, location="left").ax.tick_params(labelsize=7)
    words = figure.add_subplot(grid[4, 0])
    words.set_axis_off()
    for column, (entries, title) in enumerate(((legend, "lineage"), (legend_sources, "source"))):
        handles = [matrix.scatter([], [], marker="s", color=colour, label=printable(n, 18)) for n, colour in entries]
        words.add_artist(
            words.legend(
                handles=handles, fontsize=6.5, frameon=False, ncols=4 if column == 0 else 1, title=title,
                title_fontsize=7, loc="upper left" if column == 0 else "upper right", borderaxespad=0.0,
                handletextpad=0.2, columnspacing=0.5,
            )
        )  # fmt: skip
    curves = neighbourhoods(distances, evidence.taxonomy_distances)
    middle = figure.add_subplot(grid[:, 1])
    tidy(middle, "taxonomic distance of the neighbours", "size of the neighbourhood", "mean taxonomic distance")
    middle.plot(curves.sizes, curves.ours, color=BLUE, label="by TASK2VEC")
    middle.plot(curves.sizes, curves.ideal, color=ORANGE, linestyle="--", label="by the taxonomy (ideal)")
    middle.axhline(curves.chance, color=INK, linewidth=0.8, linestyle=":", label="by chance")
    middle.legend(frameon=False, fontsize=8)
    right = figure.add_subplot(grid[:, 2])
    norm = evidence.tasks["complexity"].to_numpy(np.float64)
    error = evidence.tasks["head_error"].to_numpy(np.float64)
    scatter_norm(right, norm, error, norm_claim, "norm and the probe's test error", "error of the probe's own head")
    return Drawn(
        "figure-2",
        "Figure 2: distance between tasks, and the taxonomy",
        figure,
        "the dendrogram of iNaturalist's tasks matches the taxonomic clusters; mean taxonomic distance grows with the "
        "neighbourhood along a curve near the ideal one; the norm correlates with the test error.",
        f"{len(kept)} tasks of {', '.join(dict.fromkeys(sources))}; {agreement.words()}. Between chance (0) and the "
        f"ideal curve (1) TASK2VEC's is at {curves.captured:.2f}. All tasks, {norm_claim.words()}.",
        "A clustered distance matrix with its dendrogram and bars of lineage and source; a curve of mean taxonomic "
        "distance between the ideal one and chance; a scatter of norm against error.",
    )
