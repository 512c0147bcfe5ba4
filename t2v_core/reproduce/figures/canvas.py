"""What the figures share: canvas, colours that the colour-blind can tell apart, labels without surprises.

They are drawn on `matplotlib.figure.Figure` directly: no pyplot, no global state.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

__all__ = ["BLUE", "CLOSENESS", "GREY", "INK", "ORANGE", "RED", "Drawn", "canvas", "png", "printable", "tidy"]

# Of Okabe and Ito.
BLUE, ORANGE, RED, INK, GREY = "#0072B2", "#E69F00", "#D55E00", "#1b1f27", "#9aa0a8"
CLOSENESS = LinearSegmentedColormap.from_list("closeness", ["#08306b", "#1c5a9c", "#4f93c9", "#a3cbe6", "#f3f8fc"])


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure with its words."""

    name: str
    """File name without suffix."""
    title: str
    figure: Figure
    paper: str
    """What the paper's figure shows."""
    ours: str
    """What this one shows, with its numbers."""
    alt: str
    """In words, for those who do not see it."""


def canvas(width: float, height: float) -> Figure:
    """A figure on an Agg canvas, sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, title: str, x: str = "", y: str = "") -> Axes:
    """Title and labels; no box."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    return axes


def printable(name: object, length: int = 34) -> str:
    """A name's end, cut to a label's length, without glyphs that the font lacks and without mathtext's trigger."""
    text = "".join(c if c.isprintable() and ord(c) < 0x250 and c != "$" else "?" for c in str(name))
    return text if len(text) <= length else "…" + text[1 - length :]


def png(figure: Figure) -> bytes:
    """The same figure gives the same bytes."""
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
