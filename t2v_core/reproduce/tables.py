"""Tables 1 and 2 and the claims as they are shown: ours beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from t2v_core.reproduce.claims import Claim, Verdict
from t2v_core.reproduce.paper import META_TASKS, TABLE_1, TABLE_2

__all__ = ["Shown", "claims_table", "show_claims", "show_table_1", "show_table_2", "with_paper"]

LEFT_OUT = "own expert left out"
"""The reading that the paper's figures are of."""


class Shown:
    """A table in words: header and rows of text, the first columns to the left, numbers to the right."""

    def __init__(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> None:
        self.title, self.header, self.rows = title, tuple(header), tuple(tuple(row) for row in rows)
        self.words = words
        """So many columns hold words."""

    def markdown(self) -> str:
        """A Markdown table; ``|`` inside a cell would end it."""
        rule = ["---"] * self.words + ["---:"] * (len(self.header) - self.words)
        lines = [self.header, rule, *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _percent(value: float) -> str:
    return "" if not np.isfinite(value) else f"{100 * value:+.1f}%"


def _interval(low: float, high: float, scale: float = 100, digits: int = 1) -> str:
    return f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]" if np.isfinite([low, high]).all() else ""


def with_paper(table: pd.DataFrame, meta_tasks: Sequence[str]) -> pd.DataFrame:
    """Table 1 with the paper's figure in ``paper``, NaN where it has none.

    Args:
        table: columns meta_task, reading, method, relative_increase and more.
        meta_tasks: ours, in the order of the paper's two.
    """
    stands_for = dict(zip(meta_tasks, META_TASKS, strict=False))

    def of(row: pd.Series) -> float:
        theirs = TABLE_1.get(stands_for.get(row["meta_task"], ""), {})
        return theirs.get(row["method"], float("nan")) if row["reading"] == LEFT_OUT else float("nan")

    return table.assign(paper=[of(row) for _, row in table.iterrows()])


def show_table_1(table: pd.DataFrame) -> list[Shown]:
    """One table a meta-task and reading."""
    out = []
    for (meta, reading), part in table.groupby(["meta_task", "reading"], sort=False):
        rows = [
            (
                row.method,
                _percent(row.relative_increase) + _interval(row.relative_low, row.relative_high),
                _percent(row.paper),
                _percent(row.median_increase),
                f"{100 * row.absolute_difference:+.2f}" + _interval(row.absolute_low, row.absolute_high, digits=2),
                f"{row.error:.3f}",
                f"{row.top1:.0%}",
                str(row.note),
            )
            for row in part.itertuples()
        ]
        header = ("selector", "error increase [95%]", "paper", "median", "points [95%]", "error", "best picked", "note")
        title = f"{meta}, {reading} ({int(part['n_tasks'].iloc[0])} tasks)"
        out.append(Shown(title, header, rows))
    return out


def show_table_2(table: pd.DataFrame) -> list[Shown]:
    """One table for all tasks, one for the largest; then the paper's."""
    out = []
    for tasks, part in table.groupby("tasks", sort=False):
        wide = part.pivot(index="probe", columns="method", values=["relative_increase", "low", "high"])
        probes, methods = list(dict.fromkeys(part["probe"])), list(dict.fromkeys(part["method"]))
        rows = [
            (
                probe,
                *(
                    _percent(wide.loc[probe, ("relative_increase", m)])
                    + _interval(wide.loc[probe, ("low", m)], wide.loc[probe, ("high", m)])
                    for m in methods
                ),
            )
            for probe in probes
        ]
        out.append(Shown(f"{tasks} ({int(part['n_tasks'].iloc[0])})", ("probe", *methods), rows))
    theirs = [(tasks, *(_percent(v) for v in row.values())) for tasks, row in TABLE_2.items()]
    out.append(Shown("the paper's, iNat + CUB, asymmetric TASK2VEC", ("tasks", *TABLE_2["all tasks"]), theirs))
    return out


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim."""
    return pd.DataFrame([{**asdict(claim), "verdict": str(claim.verdict)} for claim in claims])


def show_claims(claims: Sequence[Claim]) -> Shown:
    """Claim, place, verdict, and the effect with its interval."""
    rows = [
        (
            claim.claim,
            claim.where,
            f"**{claim.verdict}**",
            claim.effect + (f". {claim.detail}" if claim.detail else ""),
            "" if claim.verdict is Verdict.NO_DATA else f"{claim.value:.2f}",
            "" if claim.verdict is Verdict.NO_DATA else f"[{claim.low:.2f}, {claim.high:.2f}]",
            "" if claim.verdict is Verdict.NO_DATA else f"{claim.null:g}",
            str(claim.n) if claim.n else "",
        )
        for claim in claims
    ]
    header = ("claim", "in the paper", "verdict", "measured as", "effect", "95%", "no effect", "tasks")
    return Shown("The paper's claims", header, rows, words=4)
