"""One page of results: a single HTML file that needs no network.

What comes from outside (names of tasks, reasons, paths) is escaped by Jinja in the page and by `script_json` inside the
data blocks; the page's script writes it as text, never as markup. A content security policy names that script by its
digest and allows no address to be fetched, so markup that got through would still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from t2v_core import report_words as words
from t2v_core.arrange import Arrangement, arrange
from t2v_core.figures import oracle_cells, rank_correlation
from t2v_core.page_document import page_blocks
from t2v_core.report_data import Failure, ReportData
from t2v_core.selection_view import headline, selection_blocks

__all__ = ["headline", "page_script", "render_report"]

_SCRIPTS = ("base", "state", "plot", "matrix", "matrices", "figures", "explore", "task", "start")
"""Parts of the page's script, ``templates/NAME.js``, in the order in which they are joined into one."""


# Circle, diamond, triangle, square: groups take turns, so colour never tells a group alone. As in templates/state.js.
_DOTS = ("M6 1a5 5 0 1 0 0 10a5 5 0 1 0 0-10z", "M6 .5 11.5 6 6 11.5 .5 6z", "M6 1 11.4 10.6H.6z", "M1.5 1.5h9v9h-9z")


def render_report(data: ReportData, arrangement: Arrangement | None = None) -> str:
    """Render the page.

    Args:
        data: what to show.
        arrangement: of `arrange`, where it is known already: maps and clusters are the slow part.

    Returns:
        The whole HTML document. The same data give the same bytes.
    """
    placed = arrangement or (arrange(data) if len(data.tasks) else None)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "signed": words.signed,
        "seconds": words.seconds,
        "points": words.points,
        "number": words.plain_number,
        "safe_link": words.safe_link,
    }
    script = page_script()
    return environment.get_template("report.html").render(
        data=data,
        style=Markup(_asset("report.css")),
        script=Markup(script),
        policy=_policy(script),
        blocks={name: Markup(text) for name, text in page_blocks(data, placed).items()},
        groups=placed.groups if placed else (),
        dots=_DOTS,
        sources=_counted(data.tasks["source"]),
        headline=headline(data.selection, len(data.tasks)),
        tiles=_tiles(data),
        metas=selection_blocks(data.selection, data.pairs),
        tasks=[row._asdict() for row in data.tasks.itertuples(index=False)],
        correlations=_correlations(data),
        unevaluated=int(np.isnan(data.errors).sum()),
        scored=int((oracle_cells(data) >= 0).sum()) if len(data.experts) else 0,
        slowest=max((stage.seconds for stage in data.stages), default=0.0) or 1.0,
        failures=_by_cause(data.failures),
        rejected=_by_reason(data.rejected_images),
    )


def page_script() -> str:
    """The page's script: its parts joined, in a scope of their own."""
    return "(() => {\n" + "\n".join(_asset(f"{name}.js") for name in _SCRIPTS) + "\n})();"


@cache
def _asset(name: str) -> str:
    """A file of ``t2v_core/templates``."""
    return (files("t2v_core") / "templates" / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """A content security policy that runs this script and nothing else, and loads nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _counted(column: pd.Series) -> list[tuple[str, int]]:
    """Distinct values and how often each comes, the most frequent first."""
    counts = column.astype(str).value_counts()
    return sorted(((str(name), int(count)) for name, count in counts.items()), key=lambda item: (-item[1], item[0]))


def _tiles(data: ReportData) -> list[tuple[str, str]]:
    """The four numbers under the headline."""
    n_tasks, n_experts, sources = len(data.tasks), len(data.experts), data.tasks["source"].nunique()
    return [
        (f"{n_tasks:,}", f"{words.plural('task', n_tasks)} from {sources} {words.plural('source', sources)}"),
        (f"{n_experts:,}", f"{words.plural('expert', n_experts)} to choose from"),
        (f"{data.embeddings.shape[1]:,}", "numbers in an embedding"),
        (words.percent(data.oracle_error), "mean error of the best expert"),
    ]


def _correlations(data: ReportData) -> list[tuple[str, float, int]]:
    """Rank correlation of norm and error: ``(whose error, rho, n)``."""
    norm = pd.to_numeric(data.tasks["complexity"]).to_numpy(dtype=np.float64)
    return [
        (label, *rank_correlation(norm, pd.to_numeric(data.tasks[column]).to_numpy(dtype=np.float64)))
        for column, label in (("head_error", "the head on the probe"), ("oracle_error", "the best expert"))
    ]


def _by_cause(failures: tuple[Failure | tuple[str, str, str], ...]) -> list[dict[str, Any]]:
    """Failures of one stage and reason together, the most frequent first: a thousand cells may share one reason."""
    found: dict[tuple[str, str], list[Failure]] = defaultdict(list)
    for item in failures:
        failure = Failure(*item)
        found[failure.stage, failure.reason].append(failure)
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    out = []
    for (stage, reason), items in ranked:
        spent = [item.seconds for item in items if np.isfinite(item.seconds)]
        out.append(
            {
                "stage": stage,
                "reason": reason,
                "count": len(items),
                "seconds": float(sum(spent)) if spent else float("nan"),
                "units": [item.unit for item in items],
            }
        )
    return out


def _by_reason(rejected: tuple[tuple[str, str, str], ...]) -> list[tuple[str, str, int, list[str]]]:
    """Rejected images as ``(source, reason, count, first ids)``, the most frequent first."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for source, image_id, reason in rejected:
        found[source, reason].append(image_id)
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(source, reason, len(ids), ids[:4]) for (source, reason), ids in ranked]
