"""Fig. 4: error relative to the oracle against the size of the training set."""

from __future__ import annotations

import numpy as np
import pandas as pd

from t2v_core.config import SelectionSpec
from t2v_core.reproduce.few_samples import CURVES, relative_curves, starts_of
from t2v_core.reproduce.figures.canvas import BLUE, INK, RED, Drawn, canvas, tidy

__all__ = ["draw_sizes"]

_STYLES = {
    CURVES[0]: (RED, "-", "o"),
    CURVES[1]: (RED, "--", "^"),
    CURVES[2]: (BLUE, "-", "o"),
    CURVES[3]: (BLUE, "--", "^"),
}
"""The paper's: red frozen, blue fine-tuned; solid selected, dashed generic."""


def draw_sizes(runs: pd.DataFrame | None, spec: SelectionSpec) -> Drawn | None:
    """The figure; None where there are no fine-tuning runs of the selected and the generic start."""
    if runs is None:
        return None
    starts = starts_of(runs)
    curves = relative_curves(starts, spec)
    if curves.empty:
        return None
    figure = canvas(6.4, 4.4)
    axes = tidy(figure.subplots(), "error above the best frozen expert's", "train images", "% above the oracle")
    for curve, (colour, line, mark) in _STYLES.items():
        own = curves[curves["curve"] == curve]
        x, y = own["n_train"].to_numpy(), 100 * own["value"].to_numpy()
        axes.plot(x, y, color=colour, linestyle=line, marker=mark, label=curve)
        axes.fill_between(x, 100 * own["low"].to_numpy(), 100 * own["high"].to_numpy(), color=colour, alpha=0.08)
    axes.axhline(0, color=INK, linestyle=":", linewidth=1, label="oracle (best frozen expert)")
    axes.set_xscale("log")
    sizes = np.unique(curves["n_train"])
    axes.set_xticks(sizes, labels=[f"{s:.0f}" for s in sizes])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)
    first, last = curves["size"].iloc[0], curves["size"].iloc[-1]

    def at(curve: str, size: int) -> str:
        row = curves[(curves["curve"] == curve) & (curves["size"] == size)].iloc[0]
        return f"{100 * row['value']:+.0f}% [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"

    words = "; ".join(f"{c} {at(c, first)} with {first} images, {at(c, last)} with {last or 'all'}" for c in CURVES)
    n_tasks, candidates = int(curves["n_tasks"].iloc[0]), int(starts["candidates"].min())
    return Drawn(
        "figure-4",
        "Figure 4: selection at different sizes of the training set",
        figure,
        "4 tasks: at every size the selected expert is better than the generic one, frozen and fine-tuned; with few "
        "images the frozen selected expert beats the fine-tuned generic one.",
        f"{n_tasks} tasks, {candidates} candidates or more, own experts left out. Error over the best frozen "
        f"candidate's at the same size: {words}. MODEL2VEC chose with all of a task's images, not with the few.",
        "Four curves over the number of train images: selected and generic, frozen and fine-tuned; zero is the oracle.",
    )
