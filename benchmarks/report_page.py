"""The report page at full size: seconds to render, MB, seconds to open in Chromium.

    python benchmarks/report_page.py --images [--out page.html] [--screenshots FOLDER]

The data are the rehearsal's (`benchmarks/results/rehearsal`): every task that all experts were tried on. With
``--images`` each task also gets its thumbnails, read from the sources of `examples/rehearsal.yaml` (`t2v fetch` brings
them). Without Chromium or playwright, the last two lines are left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from t2v_core.annotations import Annotations
from t2v_core.arrange import arrange
from t2v_core.config import load_config
from t2v_core.evaluation import ALL, DOMAIN_LEFT_OUT, LEFT_OUT
from t2v_core.images import decode_image
from t2v_core.leave_out import other_groups_mean
from t2v_core.library import resolve_task
from t2v_core.packing import plan_source
from t2v_core.preview import preview_library
from t2v_core.report import render_report
from t2v_core.report_data import ReportData, StageLine
from t2v_core.selection import choose, compare_selectors, conclusions
from t2v_core.selectors.generic import generic_scores
from t2v_core.sources import open_source
from t2v_core.thumbnails import Thumbnail, make_thumbnail, pick_images, thumbnail_size

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "rehearsal"
sys.path.append(str(ROOT / "tests"))
from chromium import chromium, missing  # noqa: E402


def _square(upper: np.ndarray, n: int) -> np.ndarray:
    full = np.zeros((n, n))
    full[np.triu_indices(n, 1)] = upper
    return full + full.T


def _to_experts(distances: np.ndarray, place: dict[str, int], experts: pd.DataFrame) -> np.ndarray:
    """Mean distance from each task to the tasks that an expert was trained on, ``[T, E]``; NaN for the generic one."""
    out = np.full((len(distances), len(experts)), np.nan)
    for e, tasks in enumerate(experts["tasks"]):
        if len(tasks):
            out[:, e] = distances[:, [place[t] for t in tasks]].mean(1)
    return out


def rehearsal_page_data(limit: int | None = None) -> ReportData:
    """The rehearsal's compact results as the report wants them.

    Args:
        limit: keep that many tasks only, evenly spaced.
    """
    tasks = pd.read_parquet(RESULTS / "tasks.parquet")
    experts = pd.read_parquet(RESULTS / "experts.parquet")
    wide = pd.read_parquet(RESULTS / "balanced_error.parquet").set_index("task_id").loc[tasks["task_id"]]
    filters = np.stack(pd.read_parquet(RESULTS / "filters.parquet").set_index("task_id")["log10"].loc[tasks["task_id"]])
    upper = pd.read_parquet(RESULTS / "distances.parquet")
    symmetric, domain = (_square(upper[c].to_numpy(np.float64), len(tasks)) for c in ("symmetric", "domain"))
    place = {t: i for i, t in enumerate(tasks["task_id"])}
    to_expert, to_expert_domain = (_to_experts(d, place, experts) for d in (symmetric, domain))
    keep = np.flatnonzero(wide.notna().all(axis=1).to_numpy())
    if limit is not None:
        keep = keep[np.linspace(0, len(keep) - 1, limit).round().astype(int)]
    tasks, errors = tasks.iloc[keep].reset_index(drop=True), wide.to_numpy(np.float64)[keep]
    to_expert, to_expert_domain = to_expert[keep], to_expert_domain[keep]
    trained = [set(on) for on in experts["tasks"]]
    own = np.array([[t in on for on in trained] for t in tasks["task_id"]])
    source_of = np.array([next(iter(on)).split("/")[0] if on else "" for on in trained])
    near = source_of[None, :] == tasks["source"].to_numpy()[:, None]
    tables, details, chosen = [], {}, np.zeros(0)
    rows, others = np.arange(len(tasks)), np.where(own, np.nan, errors)
    for reading, hidden in ((LEFT_OUT, own), (ALL, np.zeros_like(own)), (DOMAIN_LEFT_OUT, near)):
        scores = {
            "oracle": errors,
            "generic": generic_scores(errors),
            "static": other_groups_mean(others - np.nanmean(others, 1, keepdims=True), rows),
            "domain distance": to_expert_domain,
            "TASK2VEC": to_expert,
        }
        table, details[reading] = compare_selectors(errors, hidden, scores, leave_own_out=True)
        tables.append(table.assign(reading=reading, note=""))
        if reading == LEFT_OUT:
            chosen = choose(to_expert, ~hidden)
    oracle = np.where(own, np.inf, errors).min(1)
    page_tasks = pd.DataFrame(
        {
            "task_id": tasks["task_id"],
            "source": tasks["source"],
            "domain": tasks["source"].map(lambda s: "emoji" if s in ("openmoji", "noto", "twemoji") else s),
            "kind": tasks["kind"],
            "lineage": [text.split("/") if text else [] for text in tasks["lineage"]],
            "n_classes": tasks["classes"],
            "n_train": tasks["n_train"],
            "n_test": tasks["n_test"],
            "complexity": tasks["complexity"],
            "head_error": tasks["head_error"],
            "oracle_error": oracle,
            "generic_error": errors[:, 0],
            "selected_expert": experts["expert"].to_numpy()[chosen],
            "selected_error": errors[rows, chosen],
        }
    )
    words = [
        f"{reading.capitalize()}: {sentence}"
        for reading, detail in details.items()
        for sentence in conclusions(detail, ["TASK2VEC", "domain distance"], ["generic", "static"])
    ]
    return ReportData(
        title="t2v: rehearsal",
        subtitle=f"{len(tasks):,} tasks, {len(experts)} experts, from benchmarks/results/rehearsal",
        run={"data": "benchmarks/results/rehearsal", "embedding": f"{filters.shape[1]:,} of the filters"},
        stages=(StageLine("train experts", len(experts) - 1, 0, 0, float(experts["seconds"].sum())),),
        tasks=page_tasks,
        embeddings=10.0 ** filters[keep].astype(np.float64),
        domain_embeddings=np.zeros((len(tasks), 0)),
        distances=symmetric[np.ix_(keep, keep)],
        experts=tuple(experts["expert"]),
        errors=errors,
        own=own,
        selection=pd.concat(tables, ignore_index=True),
        floor=0.01,
        oracle_error=float(oracle.mean()),
        conclusions=tuple(words),
        domain_distances=domain[np.ix_(keep, keep)],
    )


def rehearsal_images(task_ids: list[str]) -> dict[str, Thumbnail]:
    """Thumbnails of the tasks, read from the rehearsal's sources as they lie on this machine."""
    config = load_config(str(ROOT / "examples" / "rehearsal.yaml"))
    specs = {spec.name: spec for spec in config.sources}
    tasks = preview_library(config.sources, config.library).library.by_source()
    size, wanted = thumbnail_size(len(task_ids)), set(task_ids)
    out = {}
    for name, of_source in tasks.items():
        spec, shown = specs[name], [t for t in of_source if t.task_id in wanted]
        source = open_source(spec.loader, **spec.options)
        plan = plan_source(source, limit=spec.limit, test_share=spec.test_share, seed=spec.seed).table
        locators = plan["locator"].to_pylist()
        table = Annotations(name, source.info.domain, plan.drop_columns(["locator"]), source.info.taxonomy)
        read = cache(lambda row, s=source, at=locators: decode_image(s.read(at[row]), max_pixels=10**8))
        for task in shown:
            picked = pick_images(resolve_task(task.spec, table), size.images)
            names = [task.spec.classes[c] for _, c in picked]
            out[task.task_id] = make_thumbnail([read(row) for row, _ in picked], names, size.pixels)
    return out


def opened(path: Path, times: int = 5) -> dict[str, float]:
    """Median seconds from navigation to first paint, to a page that answers, to load; and to draw both matrices."""
    runs = []
    for _ in range(times):
        with chromium() as browser:  # a new one each time: nothing is cached
            page = browser.new_page(viewport={"width": 1366, "height": 768})
            page.goto(path.resolve().as_uri())
            run = page.evaluate(
                """() => ({
                    paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? NaN,
                    ready: performance.getEntriesByName("t2v-ready")[0].startTime,
                    load: performance.getEntriesByType("navigation")[0].loadEventEnd,
                })"""
            )
            run["matrices"] = page.evaluate(
                """() => new Promise((done) => {
                    const cells = ["errors-cell", "distances-cell"].map((id) => document.getElementById(id));
                    const began = performance.now();
                    const drawn = () => {  // a matrix says how to read it once it is drawn
                        if (cells.every((cell) => cell.textContent)) done(performance.now() - began);
                    };
                    cells.forEach((cell) => new MutationObserver(drawn).observe(cell, {childList: true}));
                    document.getElementById("distances").scrollIntoView({behavior: "instant"});
                })"""
            )
            runs.append(run)
    return {name: statistics.median(run[name] for run in runs) / 1000 for name in runs[0]}


def screenshots(path: Path, folder: Path) -> None:
    """Pictures of the page's parts at the two usual sizes."""
    with chromium() as browser:
        for width, height in ((1366, 768), (1920, 1080)):
            page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
            page.goto(path.resolve().as_uri())
            page.screenshot(path=folder / f"top-{width}.png")
            for name in ("explore", "errors", "distances", "spread", "norm", "run"):
                page.evaluate(f"document.getElementById('{name}').scrollIntoView({{behavior: 'instant'}})")
                page.wait_for_timeout(300)
                page.screenshot(path=folder / f"{name}-{width}.png")


def main() -> None:
    """Print the table of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "report-page.html", help="where the page goes")
    parser.add_argument("--tasks", type=int, default=None, help="that many tasks only")
    parser.add_argument("--images", action="store_true", help="with thumbnails, from the rehearsal's sources")
    parser.add_argument("--screenshots", type=Path, default=None, help="a folder for pictures of the page")
    given = parser.parse_args()
    data = rehearsal_page_data(given.tasks)
    if given.images:
        began = time.perf_counter()
        data = replace(data, thumbnails=rehearsal_images(list(data.tasks["task_id"])))
        print(f"thumbnails of {len(data.thumbnails):,} tasks: {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    placed = arrange(data)
    print(f"maps and clusters: {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    page = render_report(data, placed)
    print(f"render: {time.perf_counter() - began:.2f} s")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page, encoding="utf-8")
    strips = sum(len(image.strip) for image in data.thumbnails.values()) * 4 / 3
    print(
        f"{len(data.tasks):,} tasks x {len(data.experts)} experts: {given.out.stat().st_size / 1e6:.1f} MB, "
        f"of which images {strips / 1e6:.1f} MB"
    )
    if missing():
        print(f"not opened: {missing()}")
        return
    told = opened(given.out)
    print(
        f"Chromium, median of 5: first paint {told['paint']:.2f} s, answers {told['ready']:.2f} s, loaded "
        f"{told['load']:.2f} s; both matrices drawn {told['matrices']:.2f} s after they come into view"
    )
    if given.screenshots:
        given.screenshots.mkdir(parents=True, exist_ok=True)
        screenshots(given.out, given.screenshots)


if __name__ == "__main__":
    main()
