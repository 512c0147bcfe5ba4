"""What a flow run shows on Prefect's page: progress, failed units with reasons, a summary with links, Dask's page."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from prefect import artifacts, get_run_logger

from flows._cluster import Cluster
from flows._links import linked, store_link, without_secret
from flows._outcome import StageResult, slug
from flows._store import Store

__all__ = [
    "StageProgress",
    "in_table",
    "markdown_stages",
    "show_cluster",
    "show_failures",
    "show_markdown",
    "show_pipeline",
    "show_stage",
    "show_table",
]

SHOWN = 20
"""Failures that a summary lists; the table has all."""


def _show(how: Callable[..., Any], *what: Any, **more: Any) -> Any:
    """Put something on the page. Where Prefect's server is away, a page stays as it was, and the work goes on."""
    try:
        return how(*what, **more)
    except httpx.HTTPError as error:
        get_run_logger().warning("not shown on the page (%s: %s)", type(error).__name__, error)
        return None


def show_markdown(lines: Sequence[str], key: str, description: str) -> None:
    """Lines of Markdown, by the key under which Prefect keeps their versions."""
    _show(artifacts.create_markdown_artifact, "\n".join(lines), key=key, description=description)


def show_table(rows: Sequence[dict[str, Any]], key: str, description: str) -> None:
    """Rows of one table; values as JSON has them."""
    _show(artifacts.create_table_artifact, list(rows), key=key, description=description)


class StageProgress:
    """A stage's bar, brought up to date every two seconds at most."""

    def __init__(self, stage: str, missing: int, reused: int) -> None:
        said = f"{stage}: {missing} units, {reused} there already" if missing else f"{stage}: nothing to do"
        self._total, self._told = missing, time.perf_counter()
        start = 0.0 if missing else 100.0
        self._artifact = _show(artifacts.create_progress_artifact, start, key=slug(stage), description=said)

    def tell(self, done: int) -> None:
        """So many units have ended, well or not."""
        if time.perf_counter() - self._told > 2 or done == self._total:
            self._told = time.perf_counter()
            if self._artifact is not None:
                _show(artifacts.update_progress_artifact, self._artifact, 100.0 * done / self._total)


def show_cluster(cluster: Cluster) -> None:
    """Where this run computes, and Dask's page, in the log and as a link; once for each cluster."""
    if not cluster.first_shown():
        return
    census, page = cluster.census(), without_secret(cluster.dashboard)
    what = f"{census.gpus} GPUs and {census.plain} threads without" if census.gpus else f"{census.plain} threads"
    get_run_logger().info("Dask at %s: %s; dashboard %s", cluster.where, what, page or "none")
    if page:
        said = f"Dask dashboard ({what})"
        _show(artifacts.create_link_artifact, page, said, key="dask-dashboard", description="Workers and units")


def in_table(text: str) -> str:
    """One line that ends no cell of a Markdown table, and is no HTML."""
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(sign, instead)
    return text


def show_failures(stage: str, failures: Sequence[tuple[str, str]], what: str = "Units") -> None:
    """The failed units, or cells, with their reasons: in the log and as a table."""
    for unit, reason in failures[:SHOWN]:
        get_run_logger().warning("%s: %s failed: %s", stage, unit, reason)
    if len(failures) > SHOWN:
        get_run_logger().warning("%s: and %d more; the table artifact has all", stage, len(failures) - SHOWN)
    rows = [{"stage": stage, "unit": in_table(unit), "reason": in_table(reason)} for unit, reason in failures]
    said = f"{what} of {stage} that failed: {len(rows)}"
    show_table(rows, f"{slug(stage)}-failures", said)


def markdown_stages(stages: Sequence[StageResult]) -> list[str]:
    """Lines of a table of stages, and of what failed in them."""
    lines = [
        "| stage | done | there already | failed | seconds | busy CPU s | busy GPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    parts = [part for stage in stages for part in stage.parts]
    lines += [
        f"| {in_table(s.stage)} | {s.done} | {s.reused} | {s.failed} | {s.seconds:.0f} "
        f"| {s.devices.get('cpu', 0):.0f} | {s.devices.get('gpu', 0):.0f} |"
        for s in parts
    ]
    failures = [(s.stage, unit, reason) for s in parts for unit, reason in s.failures]
    if failures:
        lines += ["", "| stage | failed | reason |", "|---|---|---|"]
        lines += [f"| {in_table(s)} | {in_table(u)} | {in_table(r)} |" for s, u, r in failures[:SHOWN]]
        lines += ["", f"and {len(failures) - SHOWN} more, in the tables of their stages"] * (len(failures) > SHOWN)
    notes = [note for s in parts for note in s.notes]
    return lines + ([""] + [f"- {in_table(note)}" for note in notes[:SHOWN]] if notes else [])


def show_stage(store: Store, result: StageResult, folder: str, failed: str = "") -> None:
    """A stage's summary: how it went, what failed, and where its results are.

    Args:
        store: of the run.
        result: how it went.
        folder: of the results.
        failed: why the stage ends Failed; empty where it does not.
    """
    lines = [f"# {result.stage}", ""]
    lines += [f"**Failed.** {in_table(failed)}", ""] if failed else []
    lines += markdown_stages([result])
    lines += ["", f"Results: {linked('in the store', store_link(store.path(folder)))}"]
    lines += ["", "What to do about failures: docs/runbook.md"] if failed or result.failures else []
    show_markdown(lines, f"{slug(result.stage)}-summary", f"How {result.stage} went")


def show_pipeline(lines: Sequence[str]) -> None:
    """The summary of the main job."""
    show_markdown(lines, "pipeline-summary", "What the pipeline found")
