"""`t2v reproduce`: the paper's tables, figures and claims from what a run left behind."""

from __future__ import annotations

import importlib.metadata
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows._settings import store_url

__all__ = ["reproduce_command"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
"""Compact results that come with the repository."""


def _evidence(library: str, store: str, name: str, results: str) -> tuple[Any, str, str]:
    """Evidence, the probe's name, and in words where it is from."""
    from t2v_core.errors import ConfigError
    from t2v_core.reproduce.compact import read_compact
    from t2v_core.reproduce.profile import load_profile

    profile = load_profile(library)
    if store:
        from flows._reproduction import read_evidence
        from flows._store import Store

        place = Store(store_url(store, name or profile.name))
        evidence, probe = read_evidence(place, name or profile.name, profile)
        return evidence, probe, f"store {store}"
    folder = Path(results) if results else RESULTS / profile.name
    if not folder.is_dir():
        raise ConfigError(
            f"no compact results of library {profile.name!r} come with t2v ({folder.name} is not in "
            "benchmarks/results); run its pipeline and name the store: t2v reproduce --library "
            f"{library} --store URL. docs/datasets/ says what the paper's data are"
        )
    beside = folder.parent
    evidence = read_compact(folder, profile, probes=beside / "probes", transfer=beside / "transfer" / "runs.parquet")
    return evidence, profile.probe, f"compact results in benchmarks/results/{folder.name}"


def _made(began: float, source: str, options: dict[str, str]) -> dict[str, str]:
    packages = ("t2v", "numpy", "scipy", "scikit-learn", "matplotlib", "torch")
    return {
        "command": " ".join(
            ["t2v reproduce", *(f"--{k} {shlex.quote(v)}".removesuffix(" yes") for k, v in options.items() if v)]
        ),
        "from": source,
        "versions": ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": f"{time.perf_counter() - began:.0f}",
    }


def reproduce_command(
    library: Annotated[
        str, typer.Option("--library", help="rehearsal, paper, or a YAML profile that says how a library is read.")
    ] = "rehearsal",
    store: Annotated[
        str, typer.Option("--store", metavar="URL", help="Store of a run; default: compact results that come along.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Name of the run's config; default: the library's.")] = "",
    results: Annotated[str, typer.Option("--results", metavar="FOLDER", help="Compact results elsewhere.")] = "",
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="Default: runs/reproduce/LIBRARY.")] = "",
    bootstrap: Annotated[int, typer.Option(min=100, help="Resamples of each interval.")] = 2000,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="MODEL2VEC by its form for many tasks: they are left out in folds, not singly."),
    ] = False,
) -> None:
    """Make the paper's Tables 1 and 2, Figures 1 to 4 and its claims, ours beside the paper's.

    Without a store it uses the compact results that come with the repository: no data, no GPU, minutes.
    """
    from t2v_core.config import Model2VecSpec, SelectionSpec
    from t2v_core.reproduce.page import pages
    from t2v_core.reproduce.run import reproduce

    began = time.perf_counter()
    evidence, probe, source = _evidence(library, store, name, results)
    with err.status("reading ...") as status:
        found = reproduce(
            evidence,
            SelectionSpec(n_bootstrap=bootstrap),
            Model2VecSpec(exact_tasks=0) if fast else Model2VecSpec(),
            probe=probe,
            told=lambda what: status.update(f"{what} ..."),
        )
        asked = {"library": library, "store": store, "name": name, "results": results, "bootstrap": str(bootstrap)}
        asked |= {"fast": "yes"} if fast else {}
        written = pages(found, _made(began, source, asked))
    folder = Path(to) if to else Path("runs") / "reproduce" / evidence.profile.name
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in written.items():
        (folder / file).write_bytes(data)
    table = Table(title=f"the paper's claims on {evidence.profile.title}", title_justify="left")
    for column in ("claim", "verdict", "effect [95%]", "no effect"):
        table.add_column(column, justify="left" if column in ("claim", "verdict") else "right")
    for claim in found.claims:
        number = f"{claim.value:.2f} [{claim.low:.2f}, {claim.high:.2f}]" if claim.n else ""
        table.add_row(escape(claim.claim), str(claim.verdict), escape(number), f"{claim.null:g}" if claim.n else "")
    out.print(table)
    for what, why in found.missing:
        out.print(f"[yellow]not there[/yellow] {escape(what)}: {escape(why)}", soft_wrap=True)
    out.print(
        f"{len(written)} files in {escape(str(folder))} ({time.perf_counter() - began:.0f} s); open index.html",
        soft_wrap=True,
    )
