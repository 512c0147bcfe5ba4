"""The paper's claims, each with an effect, its interval and a verdict.

An effect is measured so that embeddings without any structure give its value at *no effect*: distances between random
vectors agree with no taxonomy and find no twin. Intervals resample groups of tasks (see `bootstrap`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from t2v_core.config import SelectionSpec
from t2v_core.reproduce.bootstrap import mean_interval, pair_correlation, rank_correlation
from t2v_core.reproduce.evidence import Evidence
from t2v_core.reproduce.few_samples import gain_kept

__all__ = [
    "Claim",
    "Verdict",
    "all_claims",
    "attributes_do_not_collapse",
    "few_samples_keep_the_gain",
    "norm_follows_difficulty",
    "selection_beats_generic",
    "taxonomy_agrees",
    "twins_are_near",
]


FEWEST = 5
"""Tasks below which an interval by resampling says nothing."""


class Verdict(StrEnum):
    """What the interval says."""

    SHOWN = "shown"
    """It lies on the claim's side of no effect."""
    NOT_SHOWN = "not shown"
    """No effect is inside it."""
    AGAINST = "shown against"
    """It lies on the other side."""
    NO_DATA = "no data"
    """Nothing to measure it on."""


@dataclass(frozen=True)
class Claim:
    """One claim, measured."""

    claim: str
    """What the paper says."""
    where: str
    """Its place there."""
    effect: str
    """What the number is."""
    value: float
    low: float
    high: float
    null: float
    """The number at no effect."""
    verdict: Verdict
    n: int
    """Tasks that it was measured on."""
    detail: str = ""
    """More numbers, in words."""

    def words(self) -> str:
        """The effect with its number and interval, and the detail."""
        tail = f" ({self.detail})" if self.detail else ""
        return f"{self.effect}: {self.value:.2f} [{self.low:.2f}, {self.high:.2f}]{tail}"


def judge(value: float, low: float, high: float, null: float = 0.0) -> Verdict:
    """The verdict on an effect that the claim says is above ``null``."""
    if not np.isfinite([value, low, high]).all():
        return Verdict.NO_DATA
    return Verdict.SHOWN if low > null else Verdict.AGAINST if high < null else Verdict.NOT_SHOWN


def _claim(
    texts: tuple[str, str, str], measured: tuple[float, float, float], n: int, detail: str = "", null: float = 0.0
) -> Claim:
    verdict = judge(*measured, null)
    if n < FEWEST and verdict is not Verdict.NO_DATA:
        verdict, detail = Verdict.NOT_SHOWN, "; ".join(filter(None, [detail, f"{n} tasks are too few for a verdict"]))
    return Claim(*texts, *measured, null, verdict, n, detail)


def _nothing(texts: tuple[str, str, str], why: str) -> Claim:
    nan = float("nan")
    return Claim(*texts, nan, nan, nan, 0.0, Verdict.NO_DATA, 0, why)


def nearer(distances: np.ndarray, relatives: np.ndarray, others: np.ndarray) -> float:
    """Share of (relative, other) pairs in which the relative is nearer; ties count half. 0.5 by chance."""
    near, far = distances[relatives], distances[others]
    ranks = rankdata(np.concatenate([near, far]))[: len(near)]
    wins = len(near) * len(far) - (ranks.sum() - len(near) * (len(near) + 1) / 2)
    return float(wins / (len(near) * len(far)))


def taxonomy_agrees(evidence: Evidence, spec: SelectionSpec) -> Claim:
    """d_sym grows with D_tax (Fig. 2)."""
    texts = (
        "Distances between tasks agree with the taxonomy.",
        "Sect. 4.1, Fig. 2",
        "rank correlation of d_sym and taxonomic distance over pairs of tasks",
    )
    kept = evidence.taxonomic
    if kept.sum() < 4:
        return _nothing(texts, "no taxonomy in this library")
    d_tax, groups = evidence.taxonomy_distances, evidence.groups[kept]
    ours = pair_correlation(evidence.symmetric[np.ix_(kept, kept)], d_tax, groups, spec)
    base = pair_correlation(evidence.domain[np.ix_(kept, kept)], d_tax, groups, spec)
    detail = f"of the domain distance: {base[0]:.2f} [{base[1]:.2f}, {base[2]:.2f}]"
    return _claim(texts, ours, int(kept.sum()), detail)


def twins_are_near(evidence: Evidence, spec: SelectionSpec) -> Claim:
    """The same task in another domain is nearer than that domain's other tasks (Fig. 1)."""
    texts = (
        "The same task in two domains is near.",
        "Sect. 4.1, Fig. 1",
        "share of the other domain's tasks that are farther than the twin",
    )
    source, short = evidence.tasks["source"].to_numpy(), evidence.short_names
    there = [s for s in evidence.profile.twins if (source == s).any()]
    rows, ours, base, first = [], [], [], []
    for other in there:
        pool = np.flatnonzero(source == other)
        place = {short[i]: i for i in pool}
        for i in np.flatnonzero(np.isin(source, there) & (source != other)):
            twin = place.get(short[i])
            if twin is None or len(pool) < 2:
                continue
            relatives, rest = np.array([twin]), pool[pool != twin]
            rows.append(i)
            ours.append(nearer(evidence.symmetric[i], relatives, rest))
            base.append(nearer(evidence.domain[i], relatives, rest))
            first.append(evidence.symmetric[i, twin] <= evidence.symmetric[i, rest].min())
    if not rows:
        return _nothing(texts, "no task is in two domains of this library")
    groups = evidence.groups[np.array(rows)]
    by_domain = mean_interval(np.array(base), groups, spec)
    detail = (
        f"the twin is the very nearest for {np.mean(first):.0%}; by the domain distance: {by_domain[0]:.2f} "
        f"[{by_domain[1]:.2f}, {by_domain[2]:.2f}]"
    )
    return _claim(texts, mean_interval(np.array(ours), groups, spec), len(set(rows)), detail, null=0.5)


def _matched(evidence: Evidence) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(task, tasks that ask the same, tasks that ask other things): both of one set of images, not the task's own.

    What stands before the question in a task's name is its set of images. Where a source has one set only, as
    iMaterialist, both are of that.
    """
    source, asks = evidence.tasks["source"].to_numpy(), evidence.questions
    images = np.array([t.rpartition("/")[0] for t in evidence.task_ids], object)
    found = []
    for name in dict.fromkeys(source):
        mine = np.flatnonzero((source == name) & (asks != ""))
        sets = list(dict.fromkeys(images[mine]))
        of = {key: mine[images[mine] == key] for key in sets}
        for i in mine:
            for key in sets:
                if key == images[i] and len(sets) > 1:
                    continue
                there = of[key][of[key] != i]
                same = asks[there] == asks[i]
                if same.any() and not same.all():
                    found.append((int(i), there[same], there[~same]))
    return found


def attributes_do_not_collapse(evidence: Evidence, spec: SelectionSpec) -> list[Claim]:
    """Attribute tasks that share their images are told apart by what they ask, not so by the domain embedding (Fig. 1).

    Two claims: the embedding tells them apart, and it does so better than the domain embedding.
    """
    texts = (
        "Attribute tasks on one domain do not collapse.",
        "Sect. 4.1, Fig. 1",
        "share of pairs of tasks on one other set of images of which d_sym puts that with the same question nearer",
    )
    against = (
        "The domain embedding collapses them.",
        "Sect. 4.1, Fig. 1",
        "that share, less the same share by the domain distance",
    )
    anchors = _matched(evidence)
    if not anchors:
        why = "no attribute tasks that share images in this library"
        return [_nothing(texts, why), _nothing(against, why)]
    rows = np.array([i for i, _, _ in anchors])
    ours = np.array([nearer(evidence.symmetric[i], a, b) for i, a, b in anchors])
    base = np.array([nearer(evidence.domain[i], a, b) for i, a, b in anchors])
    groups, n = evidence.groups[rows], len(set(rows))
    base_share = mean_interval(base, groups, spec)
    spread = [_crowding(evidence, m) for m in (evidence.symmetric, evidence.domain)]
    return [
        _claim(texts, mean_interval(ours, groups, spec), n, null=0.5),
        _claim(
            against,
            mean_interval(ours - base, groups, spec),
            n,
            f"by the domain distance {base_share[0]:.2f} [{base_share[1]:.2f}, {base_share[2]:.2f}]; mean distance "
            f"between tasks on the same images, over that between all tasks: {spread[0]:.2f} by d_sym, "
            f"{spread[1]:.2f} by the domain",
        ),
    ]


def _crowding(evidence: Evidence, distances: np.ndarray) -> float:
    """Mean distance between attribute tasks on one set of images, over the mean between all tasks."""
    images = np.array([t.rpartition("/")[0] for t in evidence.task_ids], object)
    asked = evidence.questions != ""
    same = (images[:, None] == images[None]) & asked[:, None] & asked[None]
    upper = np.triu(np.ones(distances.shape, bool), 1)
    return float(distances[same & upper].mean() / distances[upper].mean())


def norm_follows_difficulty(evidence: Evidence, spec: SelectionSpec) -> list[Claim]:
    """The L1 norm of an embedding grows with the task's error (Fig. 1, Fig. 2)."""
    norm = evidence.tasks["complexity"].to_numpy(np.float64)
    out = []
    for name, error, where in (
        ("the best expert's error", evidence.best_error, "Sect. 4.1, Fig. 1"),
        ("the probe's own error", evidence.tasks["head_error"].to_numpy(np.float64), "Sect. 3.2, Fig. 2"),
    ):
        texts = ("The norm follows difficulty.", where, f"rank correlation of norm and {name}")
        kept = np.isfinite(error) & np.isfinite(norm)
        if kept.sum() < 4:
            out.append(_nothing(texts, "too few tasks with a known error"))
            continue
        measured = rank_correlation(norm[kept], error[kept], evidence.groups[kept], spec)
        out.append(_claim(texts, measured, int(kept.sum())))
    return out


def selection_beats_generic(
    evidence: Evidence, choices: pd.DataFrame, spec: SelectionSpec, methods: Sequence[str]
) -> list[Claim]:
    """A selector's error is below the generic expert's (Table 1).

    Args:
        evidence: for the groups of tasks.
        choices: columns meta_task, reading, method, task_id, error; of the reading to judge by.
        spec: bootstrap.
        methods: selectors to judge.
    """
    group_of = dict(zip(evidence.task_ids, evidence.groups, strict=True))
    out = []
    for (meta, reading), part in choices.groupby(["meta_task", "reading"], sort=False):
        wide = part.pivot(index="task_id", columns="method", values="error")
        for method in methods:
            texts = (
                f"Selecting by {method} beats the generic expert.",
                "Sect. 4.2, Table 1",
                f"points of error less than generic; {meta}, {reading}",
            )
            if method not in wide or "generic" not in wide:
                out.append(_nothing(texts, f"{method} was not judged"))
                continue
            gain = 100 * (wide["generic"] - wide[method])
            groups = np.array([group_of[str(t)] for t in wide.index])
            out.append(_claim(texts, mean_interval(gain.to_numpy(), groups, spec), len(gain)))
    return out


def few_samples_keep_the_gain(evidence: Evidence, spec: SelectionSpec) -> Claim:
    """With few images most of what selection gains over the generic expert is still there (Fig. 4)."""
    texts = (
        "Most of the gain is kept with few samples.",
        "Sect. 4.2, Fig. 4",
        "gain over generic at the smallest size, over that at the largest (1: all is kept)",
    )
    if evidence.transfer is None or evidence.transfer["size"].nunique() < 2:
        return _nothing(texts, "no fine-tuning runs at several sizes; t2v transfer makes them")
    kept = gain_kept(evidence.transfer, spec)
    if kept is None:
        return _nothing(texts, "selection gains nothing at the largest size, so there is nothing to keep")
    value, low, high, n, detail = kept
    return _claim(texts, (value, low, high), n, detail, null=0.5)


def all_claims(evidence: Evidence, choices: pd.DataFrame, spec: SelectionSpec, methods: Sequence[str]) -> list[Claim]:
    """All of them, in the paper's order."""
    return [
        taxonomy_agrees(evidence, spec),
        twins_are_near(evidence, spec),
        *attributes_do_not_collapse(evidence, spec),
        *norm_follows_difficulty(evidence, spec),
        *selection_beats_generic(evidence, choices, spec, methods),
        few_samples_keep_the_gain(evidence, spec),
    ]
