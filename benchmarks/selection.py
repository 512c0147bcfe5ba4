"""All selectors on the rehearsal's meta-tasks, from its compact results.

    python benchmarks/selection.py                 score, judge, and write benchmarks/results/selection/
    python benchmarks/selection.py score "MODEL2VEC|static" "all|mixed"      only some scores, to share the work
    python benchmarks/selection.py made            judge only what was scored
    python benchmarks/selection.py show            print the tables from there
    python benchmarks/selection.py show rehearsal  print those of the rehearsal's own run, by all filters
    python benchmarks/selection.py draws 0 9       few tasks: MODEL2VEC on ten draws of each small meta-task
    python benchmarks/selection.py scale [STORE]   time MODEL2VEC at 1,460 tasks x 157 experts x 21,008 filters

Scores are kept in runs/selection, so that the same command goes on where it was stopped. Embeddings are 1,024 of 21,008
filters and d_sym is between these, but d_sym between tasks and all domain distances are of whole vectors.
"""

from __future__ import annotations

import datetime
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from t2v_core.ceiling import split_half, twin_scores
from t2v_core.config import MetaTaskRule, Model2VecSpec, SelectionSpec
from t2v_core.embedding import Layer
from t2v_core.evaluation import evaluate_problem
from t2v_core.many_tasks import fit_folds
from t2v_core.metatasks import READINGS, candidates_of, concept_groups, make_meta_tasks, own_domain
from t2v_core.probes import load_probe
from t2v_core.selection import choose
from t2v_core.selectors import SELECTORS, Problem
from t2v_core.selectors.neighbours import choose_setting, neighbour_errors, task_distance

HERE = Path(__file__).parent / "results"
OUT, KEPT = HERE / "selection", Path("runs/selection")
RULES = [
    # As iNat + CUB: one taxonomy in two domains, and the experts of both.
    MetaTaskRule(
        name="two sets",
        tasks=["openmoji/*", "noto/*"],
        experts=["openmoji__*", "noto__*"],
        n_tasks=50,
        n_experts=50,
    ),
    MetaTaskRule(name="mixed", tasks=["*"], experts=["*"], n_tasks=50, n_experts=26),
]
SLOW = [name for name in SELECTORS if SELECTORS[name].slow]
"""Variants of MODEL2VEC; on all tasks each takes as long as MODEL2VEC itself."""
WIDE = ["MODEL2VEC, expert prior"]
"""Those that are judged on all tasks too."""


def load() -> tuple[Problem, np.ndarray, np.ndarray, list[str], list[str]]:
    """The problem, own-domain mask, test images, names of experts and of tasks."""
    folder = HERE / "rehearsal"
    filters = pd.read_parquet(folder / "filters.parquet")
    names = filters["task_id"].tolist()  # distances are in this order, tasks.parquet is in another
    tasks = pd.read_parquet(folder / "tasks.parquet").set_index("task_id").loc[names]
    errors = pd.read_parquet(folder / "balanced_error.parquet").set_index("task_id").loc[names].to_numpy(np.float64)
    shelf = pd.read_parquet(folder / "experts.parquet")
    vectors = 10.0 ** np.stack(filters["log10"].to_numpy()).astype(np.float32)
    upper, n = pd.read_parquet(folder / "distances.parquet"), len(names)
    between = {}
    for column in upper:
        square = np.zeros((n, n))
        square[np.triu_indices(n, 1)] = upper[column].to_numpy(np.float64)
        between[column] = square + square.T
    place = {t: i for i, t in enumerate(names)}
    on = [[place[t] for t in row if t in place] for row in shelf["tasks"]]
    images = tasks["n_train"].to_numpy(np.float64)
    tried = np.isfinite(errors).all(1)
    kept = [t for t, k in zip(names, tried, strict=True) if k]
    # Filters were kept evenly spaced; the probe's layers say which layer each is of.
    layers = load_probe("efficientnet_lite0", "random", image_size=48).units
    picked = np.linspace(0, layers[-1].stop - 1, vectors.shape[1]).round().astype(int)
    ends = [int(np.searchsorted(picked, layer.stop)) for layer in layers]
    layers = tuple(Layer(x.name, a, b) for x, a, b in zip(layers, [0, *ends], ends, strict=False))
    own = np.array([[place[t] in set(rows) for rows in on] for t in kept])
    experts = np.stack(
        [vectors[rows].astype(np.float64).mean(0) if rows else np.zeros(vectors.shape[1]) for rows in on]
    )
    # Mean over an expert's tasks of the distance to each: what is kept of domains is distances.
    by_images = {
        "domain": between["domain"],
        **({"moments": between["second_moments"]} if "second_moments" in between else {}),
    }
    by_images = {
        name: np.stack([d[:, rows].mean(1) if rows else np.full(n, np.nan) for rows in on], 1)[tried]
        for name, d in by_images.items()
    }
    problem = Problem(
        errors=errors[tried],
        candidates=np.ones((tried.sum(), len(on)), bool),
        own=own,
        tasks=vectors[tried],
        experts=experts,
        trivial=np.full(vectors.shape[1], vectors.min(), np.float32),
        groups=concept_groups(kept),
        layers=layers,
        sizes=np.array([images[rows].sum() if rows else np.nan for rows in on]),
        given={
            **by_images,
            "tasks": between["symmetric"][np.ix_(tried, tried)],
            "task_domains": between["domain"][np.ix_(tried, tried)],
        },
    )
    trained_on = {e: list(t) for e, t in zip(shelf["expert"], shelf["tasks"], strict=True)}
    return problem, own_domain(kept, trained_on), tasks["n_test"].to_numpy()[tried], list(trained_on), kept


def scores(
    problem: Problem, same: np.ndarray, meta: str, names: list[str], *, made_only: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """Reading to scores by name, kept on disk."""
    out: dict[str, dict[str, np.ndarray]] = {}
    known = np.isfinite(problem.errors)
    for reading in READINGS:
        part = problem.reading(candidates_of(reading, known, problem.own, same))
        for name in names:
            file = KEPT / f"{meta}-{reading}-{name}.npy".replace(" ", "-").replace(",", "")
            if not file.exists():
                if made_only:
                    continue
                began = time.perf_counter()
                value = SELECTORS[name].score(part)
                if value is None:
                    continue
                np.save(file, value)
                print(f"{meta}, {reading}, {name}: {time.perf_counter() - began:.1f} s", flush=True)
            out.setdefault(reading, {})[name] = np.load(file)
    return out


def score(names: list[str], meta_tasks: list[str]) -> None:
    """Only make some scores, of some meta-tasks, for `judge` to find."""
    KEPT.mkdir(parents=True, exist_ok=True)
    whole, same, _, experts, tasks = load()
    for meta in make_meta_tasks(RULES, experts, tasks):
        if meta.name in meta_tasks:
            problem = whole.part(meta.rows, meta.columns)
            scores(problem, same[np.ix_(meta.rows, meta.columns)], meta.name, names)


FEW = ["static", "asymmetric TASK2VEC", "MODEL2VEC", "MODEL2VEC, expert prior"]


def draws(first: int, last: int) -> None:
    """Mean errors on draws of the small meta-tasks; paired differences to d_asym in points, +- 1.96 errors."""
    KEPT.mkdir(parents=True, exist_ok=True)
    whole, same, _, experts, tasks = load()
    rows = []
    for seed in range(first, last + 1):
        rules = [rule.model_copy(update={"seed": seed}) for rule in RULES]
        for meta in make_meta_tasks(rules, experts, tasks)[1:]:
            problem, own = whole.part(meta.rows, meta.columns), same[np.ix_(meta.rows, meta.columns)]
            made, known = scores(problem, own, f"{meta.name} {seed}", FEW), np.isfinite(problem.errors)
            for reading in READINGS:
                candidates = candidates_of(reading, known, problem.own, own)
                judged = candidates.sum(1) >= 2
                for name in FEW:
                    picked = choose(made[reading][name], candidates)[judged]
                    error = problem.errors[judged, picked].mean()
                    rows.append({"meta": meta.name, "reading": reading, "seed": seed, "name": name, "error": error})
    table = pd.DataFrame(rows).pivot(index=["meta", "reading", "seed"], columns="name", values="error")
    for (meta, reading), part in table.groupby(level=["meta", "reading"], sort=False):
        cells = []
        for name in FEW:
            off = 100 * (part[name] - part["asymmetric TASK2VEC"])
            cells.append(f"{part[name].mean():.4f} ({off.mean():+.1f} +- {1.96 * off.std() / np.sqrt(len(off)):.1f})")
        print(f"| {meta}, {reading} | " + " | ".join(cells) + " |")


def far_neighbours(problem: Problem, sources: np.ndarray) -> np.ndarray:
    """Task neighbours that read no task of the same source: none that shares its images."""
    out = np.full(problem.errors.shape, np.nan)
    distance = task_distance(problem, domains=False)
    for source in np.unique(sources):
        train, wanted = np.flatnonzero(sources != source), np.flatnonzero(sources == source)
        setting = choose_setting(problem, distance, train)
        out[wanted] = neighbour_errors(problem, distance, setting, train, wanted)
    return out


def judge(*, made_only: bool = False) -> None:
    """Score, judge, write; ``made_only``: only selectors whose scores are there in all readings."""
    KEPT.mkdir(parents=True, exist_ok=True)
    OUT.mkdir(parents=True, exist_ok=True)
    whole, same, n_test, experts, tasks = load()
    spec, frames, ceilings = SelectionSpec(n_bootstrap=2000), [], []
    for meta in make_meta_tasks(RULES, experts, tasks)[::-1]:
        cells = np.ix_(meta.rows, meta.columns)
        problem = whole.part(meta.rows, meta.columns)
        names = [n for n in SELECTORS if n not in SLOW or n in WIDE or len(meta.rows) < 100]
        made = scores(problem, same[cells], meta.name, names, made_only=made_only)
        names = [n for n in names if all(n in made.get(r, {}) for r in READINGS)]
        table, _, pairs = evaluate_problem(problem, same[cells], spec, made=made, names=names)
        for frame, kind in ((table, "table"), (pairs, "pairs")):
            frame.insert(0, "meta_task", meta.name)
            frames.append((kind, frame))
        known = np.isfinite(problem.errors)
        for reading in READINGS:
            candidates = candidates_of(reading, known, problem.own, same[cells])
            half = split_half(problem.errors, n_test[meta.rows], candidates)
            twins = twin_scores(problem.errors, problem.groups)
            has = np.isfinite(twins).any(1)
            picked = choose(twins, candidates & ~np.isnan(twins))
            row = {
                "meta_task": meta.name, "reading": reading, "split_half": half.picked, "half_oracle": half.oracle,
                "twin": problem.errors[has, picked[has]].mean() if has.any() else np.nan, "with_twin": int(has.sum()),
            }  # fmt: skip
            if len(meta.rows) > 1000:
                file = KEPT / f"far-{reading}.npy".replace(" ", "-")
                if not file.exists() and not made_only:
                    sources = np.array([t.split("/")[0] for t in tasks])
                    np.save(file, far_neighbours(problem.reading(candidates), sources))
                if file.exists():
                    chosen = choose(np.load(file), candidates)
                    row["far_neighbours"] = problem.errors[np.arange(len(chosen)), chosen].mean()
            ceilings.append(row)
    for kind in ("table", "pairs"):
        joined = pd.concat([f for k, f in frames if k == kind], ignore_index=True)
        joined.to_parquet(OUT / f"{kind}.parquet", index=False)
    pd.DataFrame(ceilings).to_parquet(OUT / "ceilings.parquet", index=False)
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, pandas {pd.__version__}"
    (OUT / "README.md").write_text(
        "# Selectors on the rehearsal's meta-tasks\n\n`python benchmarks/selection.py`, from `benchmarks/results/"
        f"rehearsal/`, {datetime.date.today().isoformat()}, {versions}. `table.parquet`: selectors by meta-task and "
        "reading; `pairs.parquet`: paired differences; `ceilings.parquet`: what noise allows. "
        "`python benchmarks/selection.py show` prints them; docs/selection.md says what they mean.\n"
    )


def show(whole: bool = False) -> None:
    """Print the tables; ``whole``: those that `benchmarks/rehearsal.py keep` took from the pipeline."""
    files = [HERE / "rehearsal" / f"{n}.parquet" for n in ("selection", "selection_pairs")]
    table, pairs = (pd.read_parquet(f) for f in (files if whole else [OUT / "table.parquet", OUT / "pairs.parquet"]))
    static = pairs[pairs["against"] == "static"].set_index(["meta_task", "reading", "method"])
    for (meta, reading), part in table.groupby(["meta_task", "reading"], sort=False):
        print(f"\n### {meta}, {reading} ({part['n_tasks'].iloc[0]} tasks)\n")
        print("| selector | error | less static, points | ratio to oracle | median | best of 5 | tau |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for r in part.itertuples():
            key, words = (meta, reading, r.method), ""
            if key in static.index:
                d = static.loc[key]
                words = f"{100 * d['difference']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"
            print(
                f"| {r.method} | {r.error:.4f} | {words} | +{100 * r.relative_increase:.0f}% "
                f"[{100 * r.relative_low:.0f}, {100 * r.relative_high:.0f}] | +{100 * r.median_increase:.0f}% | "
                f"{100 * r.regret5:.1f} | {r.tau:.2f} |"
            )
    if not whole:
        print("\n" + pd.read_parquet(OUT / "ceilings.parquet").to_string(index=False))


def scale(store: str | None) -> None:
    """Time MODEL2VEC leaving tasks out, and its approximations, at full width.

    Embeddings of a store where one is given, else log-normal ones.
    """
    n_tasks, n_experts, n_filters = 1460, 157, 21008
    rng = np.random.default_rng(0)
    if store:
        import pyarrow.parquet as pq

        from t2v_core.records import EmbeddingTable, pa  # type: ignore[attr-defined]

        table: pa.Table = pq.read_table(Path(store) / "embeddings/part-0.parquet")
        prints = dict(zip(table["task_id"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))
        embeddings = EmbeddingTable.of(table, prints)
        del table
        x, trivial = embeddings.vectors[:n_tasks], embeddings.trivial
    else:
        x = np.exp(rng.normal(0, 2, n_filters)[None] + rng.normal(size=(n_tasks, n_filters))).astype(np.float32)
        trivial = np.full(n_filters, 1e-3, np.float32)
    base = x[rng.permutation(len(x))[:n_experts]]
    target = rng.dirichlet(np.full(n_experts, 0.1), len(x))
    began, spec = time.perf_counter(), Model2VecSpec()
    folds = rng.permutation(len(x)) % spec.left_out_folds
    everything, free = np.ones(target.shape, bool), np.zeros(n_experts, bool)
    fit_folds(x, base, trivial, target, everything, free, folds, spec)
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(x):,} tasks x {n_experts} experts x {x.shape[1]:,} filters, rank {spec.rank}: {seconds:.0f} s, ", end=""
    )
    print(f"{memory:.1f} GiB at most, the embeddings among them")


if __name__ == "__main__":
    command, rest = (sys.argv[1:2] or ["judge"])[0], sys.argv[2:]
    if command == "score":
        score(rest[0].split("|"), rest[1].split("|"))
    elif command == "draws":
        draws(*map(int, rest))
    elif command == "scale":
        scale(rest[0] if rest else None)
    elif command == "show":
        show(whole=rest == ["rehearsal"])
    else:
        judge(made_only=command == "made")
