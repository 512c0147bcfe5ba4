"""A reproduction as files: Parquet tables, figures, one Markdown page and one HTML page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd

from t2v_core.reproduce.figures.canvas import png
from t2v_core.reproduce.run import Reproduction
from t2v_core.reproduce.tables import Shown, claims_table, show_claims, show_table_1, show_table_2

__all__ = ["pages", "parquet_tables"]

VERDICTS = (
    "Shown: the whole bootstrap interval is on the claim's side of no effect. Shown against: on the other side. Not "
    "shown: no effect is inside it. Groups of tasks are resampled: the same task in several domains is one observation."
)
NOTES = {
    "table_1": (
        "Error increase: mean over tasks of (selected error / best candidate's error - 1), errors below the floor "
        "count as it. Points: plain difference in percentage points. The paper's figures are for own experts left out."
    ),
    "table_2": (
        "Relative error increase on the first meta-task, own experts left out. The probe only chooses; the experts and "
        "their errors are the same in all rows."
    ),
}


def _parts(found: Reproduction, made: Mapping[str, str]) -> dict[str, Any]:
    profile, evidence = found.evidence.profile, found.evidence
    return {
        "title": f"The paper's tables and figures on {profile.title}",
        "subtitle": f"{len(evidence.tasks):,} tasks, {len(evidence.experts)} experts. Ours beside the figures of "
        f"Task2Vec (ICCV 2019). {' '.join(evidence.notes)}",
        "differs": profile.differs.strip() or "nothing is said in the profile",
        "claims": show_claims(found.claims),
        "verdicts": VERDICTS,
        "table_1": show_table_1(found.table_1),
        "table_2": show_table_2(found.table_2) if len(found.table_2) else [],
        "conclusions": found.conclusions,
        "figures": found.figures,
        "missing": found.missing,
        "made": dict(made),
        "notes": NOTES,
    }


def _html(parts: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = files("t2v_core").joinpath("templates", "reproduce.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(**parts)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: names may hold what Markdown or HTML would read as marks."""
    for mark in ("&", "<", ">"):
        text = text.replace(mark, {"&": "&amp;", "<": "&lt;", ">": "&gt;"}[mark])
    return text


def _markdown(parts: Mapping[str, Any]) -> str:
    def grid(shown: Shown) -> str:
        return f"{_plain(shown.title)}\n\n{_plain(shown.markdown())}\n"

    out = [f"# {_plain(parts['title'])}\n", _plain(parts["subtitle"]) + "\n"]
    out.append(f"What differs from the paper: {_plain(parts['differs'])}.\n")
    out += ["## Claims\n", grid(parts["claims"]), parts["verdicts"] + "\n"]
    out += ["## Table 1: selectors\n", parts["notes"]["table_1"] + "\n", *(grid(t) for t in parts["table_1"])]
    out += ["".join(f"- {_plain(sentence)}\n" for sentence in parts["conclusions"])]
    out += ["## Table 2: probes\n", parts["notes"]["table_2"] + "\n", *(grid(t) for t in parts["table_2"])]
    for f in parts["figures"]:
        out += [f"## {f.title}\n", f"![{f.alt}]({f.name}.png)\n"]
        out += [f"Ours: {_plain(f.ours)}\n", f"The paper's: {_plain(f.paper)}\n"]
    if parts["missing"]:
        out += ["## Not there\n", "".join(f"- {what}: {why}\n" for what, why in parts["missing"])]
    out += ["## How it was made\n", "".join(f"- {key}: {_plain(str(value))}\n" for key, value in parts["made"].items())]
    return "\n".join(out)


def parquet_tables(found: Reproduction) -> dict[str, pd.DataFrame]:
    """The tables as data."""
    return {
        "table-1": found.table_1,
        "table-2": found.table_2,
        "choices": found.choices,
        "claims": claims_table(found.claims),
    }


def pages(found: Reproduction, made: Mapping[str, str]) -> dict[str, bytes]:
    """Every file by name.

    Args:
        found: what was made.
        made: command, versions, date and the like, for the page's end.
    """
    parts = _parts(found, made)
    out = {"index.html": _html(parts).encode(), "README.md": _markdown(parts).encode()}
    for name, frame in parquet_tables(found).items():
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False, compression="zstd")
        out[f"{name}.parquet"] = buffer.getvalue()
    for drawn in found.figures:
        out[f"{drawn.name}.png"] = png(drawn.figure)
    return out
