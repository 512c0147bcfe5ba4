"""The report page: the numbers in it are the inputs', strings in it are inert, and it loads nothing."""

from __future__ import annotations

import base64
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects
import pytest
from plotly.offline import get_plotlyjs

from t2v_core.arrange import PALETTE, arrange, cluster, cosine_distances, dendrogram_path, groupings, map_tasks
from t2v_core.errors import DataError
from t2v_core.figures import oracle_cells, page_figures, rank_correlation, spread_figure
from t2v_core.figures_static import static_figures
from t2v_core.report import headline, render_report
from t2v_core.report_data import ReportData, StageLine

EVIL = "</script><img src=x onerror=alert(1)>\u2028'\"&amp;{{7*7}}$x^$<a href='https://evil.example'>"
OUT, ALL = "own expert left out", "all candidates"
GROUPS = (
    ("birds", "birds-200", "nature", "multiclass", ["Animalia", "Aves"]),
    ("plants", "species-8k", "nature", "multiclass", ["Plantae", "Rosales"]),
    ("insects", "species-8k", "nature", "multiclass", ["Animalia", "Insecta"]),
    ("clothes", "fashion-228", "clothing", "binary", ["attribute", "colour"]),
    ("shapes", "fashion-228", "clothing", "binary", ["attribute", "shape"]),
)


def make(n_tasks: int, n_experts: int = 12, seed: int = 0, evil: bool = False) -> ReportData:
    """Tasks in groups; an expert of a task's own group is better than the generic one, others are worse."""
    rng = np.random.default_rng(seed)
    group = np.arange(n_tasks) % len(GROUPS)
    centres = rng.gamma(0.5, 1.0, (len(GROUPS), 64))
    complexity = rng.uniform(0.4, 2.5, n_tasks)
    embeddings = (centres[group] + rng.gamma(0.4, 0.3, (n_tasks, 64))) * complexity[:, None]
    domains = np.array([0, 1, 1, 2, 2])[group]
    domain_embeddings = rng.normal(size=(3, 32))[domains] + 0.15 * rng.normal(size=(n_tasks, 32))
    distances = cosine_distances(embeddings)
    experts = ("generic", *(f"{GROUPS[k % len(GROUPS)][0]}/expert-{k:03d}" for k in range(n_experts - 1)))
    base = 0.08 + 0.14 * complexity
    errors = base[:, None] * rng.normal(1.18, 0.06, (n_tasks, n_experts))
    errors[:, 0] = base
    own = np.zeros((n_tasks, n_experts), dtype=bool)
    for e in range(1, n_experts):
        near = group == (e - 1) % len(GROUPS)
        errors[near, e] = base[near] * rng.uniform(0.55, 1.0, int(near.sum()))
        own[(e - 1) % n_tasks, e] = True
    errors[own] *= 0.8
    errors = np.clip(errors, 0.0, 1.0)
    candidates = np.where(own, np.inf, errors)
    oracle = candidates.min(axis=1)
    noisy = (candidates + rng.normal(0, 0.012, errors.shape)).argmin(axis=1)
    selected = errors[np.arange(n_tasks), noisy]
    tasks = pd.DataFrame(
        {
            "task_id": [f"{GROUPS[k][1]}/{GROUPS[k][0]}={i:03d}" for i, k in enumerate(group)],
            "source": [GROUPS[k][1] for k in group],
            "domain": [GROUPS[k][2] for k in group],
            "kind": [GROUPS[k][3] for k in group],
            "lineage": [GROUPS[k][4] for k in group],
            "n_classes": rng.integers(2, 40, n_tasks),
            "n_train": rng.integers(100, 5000, n_tasks),
            "n_test": rng.integers(50, 900, n_tasks),
            "complexity": np.abs(embeddings).sum(axis=1),
            "head_error": np.clip(base * rng.normal(1.0, 0.08, n_tasks), 0, 1),
            "oracle_error": oracle,
            "generic_error": errors[:, 0],
            "selected_expert": [experts[k] for k in noisy],
            "selected_error": selected,
        }
    )
    relative = float(np.mean(selected / oracle - 1))
    generic = float(np.mean(errors[:, 0] / oracle - 1))
    rows = []
    for reading, factor in ((OUT, 1.0), (ALL, 1.25)):
        for method, value, note in (
            ("oracle", 0.0, ""),
            ("MODEL2VEC", relative * 0.8, "fitted on the other tasks"),
            ("asymmetric TASK2VEC", relative, ""),
            ("symmetric TASK2VEC", relative * 1.9 + 0.05, "ignores complexity"),
            ("domain embedding", relative * 2.4 + 0.12, ""),
            ("static", generic * 0.9, "best on the other tasks"),
            ("generic", generic, "never fine-tuned"),
            ("chance", generic * 1.7, ""),
        ):
            value *= factor
            width = 0.0 if method == "oracle" else 0.035 + 0.1 * value
            rows.append(
                (
                    reading,
                    method,
                    value,
                    value - width,
                    value + width,
                    value * 0.7,
                    value * 0.2,
                    (value - width) * 0.2,
                    (value + width) * 0.2,
                    float(np.exp(-6 * value)),
                    n_tasks,
                    note,
                )
            )
    columns = (
        "reading",
        "method",
        "relative_increase",
        "relative_low",
        "relative_high",
        "median_increase",
        "absolute_difference",
        "absolute_low",
        "absolute_high",
        "top1",
        "n_tasks",
        "note",
    )
    data = ReportData(
        title="Which expert for which task?",
        subtitle="Synthetic tasks on the small probe, 24 November 2026",
        run={
            "probe": "resnet34, ImageNet",
            "estimator": "variational",
            "store": "file://store",
            "seed": "0",
            "versions": "torch 2.14.1, t2v 1.0.0",
            "started": "2026-11-24 02:00 UTC",
            "seconds": "5,412",
        },
        stages=(
            StageLine("ingest", 3, 0, 0, 310.2),
            StageLine("embed tasks", max(n_tasks - 4, 0), 3, 1, 2650.0),
            StageLine("train experts", n_experts - 1, 0, 0, 1730.5),
            StageLine("evaluate experts", 36, 4, 0, 700.1),
            StageLine("select", 1, 0, 0, 4.2),
        ),
        tasks=tasks,
        embeddings=embeddings,
        domain_embeddings=domain_embeddings,
        distances=distances,
        experts=experts,
        errors=errors,
        own=own,
        selection=pd.DataFrame(rows, columns=list(columns)),
        floor=0.005,
        oracle_error=float(oracle.mean()),
        conclusions=(
            "MODEL2VEC’s error is below the generic expert’s by more than the interval of their difference.",
            "MODEL2VEC and asymmetric TASK2VEC do not differ by more than their interval.",
        ),
        failures=(("embed tasks", "birds-200/birds=017", "ComputeError: loss is not finite; lower the learning rate"),),
        rejected_images=tuple(
            (GROUPS[k % 5][1], f"img_{k:05d}.jpg", ("truncated file", "not an image")[k % 2]) for k in range(37)
        ),
        skipped_tasks=(("species-8k/order=Solo", "one class only; wanted two or more"),),
        commands=(
            ("Run the whole pipeline again", "t2v run configs/demo.yaml --store ./store"),
            ("Pick an expert for your own folder", "t2v select ./my-photos --store ./store"),
        ),
    )
    return inject(data) if evil else data


def inject(data: ReportData) -> ReportData:
    """Put a hostile string wherever a user's string can be."""
    tasks = data.tasks.copy()
    for column in ("task_id", "source", "domain", "kind", "selected_expert"):
        tasks[column] = [EVIL + str(value) for value in tasks[column]]
    tasks["lineage"] = [[EVIL] for _ in range(len(tasks))]
    selection = data.selection.copy()
    for column in ("reading", "method", "note"):
        selection[column] = [EVIL + value for value in selection[column]]
    return replace(
        data,
        title=EVIL,
        subtitle=EVIL,
        run={EVIL: EVIL},
        stages=(StageLine(EVIL, 1, 1, 1, 1.0),),
        tasks=tasks,
        experts=tuple(EVIL + name for name in data.experts),
        selection=selection,
        conclusions=(EVIL,),
        failures=((EVIL, EVIL, EVIL),),
        rejected_images=((EVIL, EVIL, EVIL),),
        skipped_tasks=((EVIL, EVIL),),
        commands=((EVIL, EVIL),),
    )


class Page(HTMLParser):
    """Elements, attributes and text of a page, scripts apart, as a browser splits them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags and self.cdata_elem in self.raw:
            self.raw[str(self.cdata_elem)].append(data)
        else:
            self.text += data

    def document(self) -> dict[str, Any]:
        """The block of data."""
        return json.loads(next(text for text in self.raw["script"] if text.startswith('{"figures"')))


def expand(value: Any, shared: list[list[str]]) -> Any:
    """What the page's script does to the block of data."""
    if isinstance(value, list):
        return [expand(item, shared) for item in value]
    if not isinstance(value, dict):
        return value
    if "$shared" in value:
        return shared[value["$shared"]]
    if "$packed" in value:
        steps = np.frombuffer(base64.b64decode(value["$packed"]), dtype="<u2").astype(float)
        rows, columns = value["shape"]
        if value["triangle"]:
            full = np.zeros((rows, columns))
            full[np.triu_indices(rows)] = steps
            steps = np.where(np.tri(rows, k=-1, dtype=bool), full.T, full)
        steps = steps.reshape(rows, columns)
        return np.where(steps == 65535, np.nan, value["low"] + steps * value["step"])
    return {key: expand(item, shared) for key, item in value.items()}


def figures_of(text: str) -> dict[str, Any]:
    document = Page(text).document()
    return expand(document["figures"], document["shared"])


@pytest.fixture(scope="module")
def data() -> ReportData:
    return make(60)


@pytest.fixture(scope="module")
def text(data: ReportData) -> str:
    return render_report(data)


def test_sections_stand_in_order_and_carry_the_numbers(data: ReportData, text: str) -> None:
    page = Page(text)
    sections = [value for tag, name, value in page.attributes if tag == "section" and name == "id"]
    assert sections == ["selection", "map", "distances", "errors", "spread", "norm", "run", "left-out", "commands"]
    first = data.selection[data.selection["method"] == "MODEL2VEC"].iloc[0]
    shown = f"{100 * first.relative_increase:+.1f}% [{100 * first.relative_low:.1f}, {100 * first.relative_high:.1f}]"
    assert shown.replace("-", "−") in re.sub(r"\s+", " ", page.text)
    assert text.count('<tr class="best">') == 2
    assert "truncated file" in page.text
    assert "19" in page.text
    assert "44 min 10 s" in page.text


def test_rendering_twice_gives_the_same_bytes(data: ReportData, text: str) -> None:
    assert render_report(make(60)) == text


def test_one_plotly_and_no_address_is_loaded(text: str) -> None:
    assert text.count(get_plotlyjs()) == 1
    page = Page(text.replace(get_plotlyjs(), ""))
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in {"src", "href", "action", "data", "poster", "srcset", "xlink:href"}:
            assert value.startswith("#") or value == "data:,", (tag, name, value)
    assert not {"img", "iframe", "object", "embed", "base", "form", "video"} & set(page.tags)
    styles = "".join(page.raw["style"]) + "".join(value for _, name, value in page.attributes if name == "style")
    assert "url(" not in styles
    assert "@import" not in styles
    assert "http" not in "".join(page.raw["script"][1:])
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "script-src 'unsafe" not in policy


def test_hostile_strings_are_inert() -> None:
    clean, hostile = Page(render_report(make(12))), Page(render_report(make(12, evil=True)))
    assert set(hostile.tags) == set(clean.tags)
    assert len(hostile.raw["script"]) == len(clean.raw["script"]) == 3
    assert "alert(1)" in hostile.text
    assert "{{7*7}}" in hostile.text
    document = hostile.document()
    for figure in expand(document["figures"], document["shared"]).values():
        for string in strings(figure):
            assert not set(re.findall(r"<[^>]*>", string)) - {"<b>", "</b>", "<br>", "<extra>", "</extra>"}, string


def strings(value: Any) -> list[str]:
    """Every string inside a figure."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [string for item in inner for string in strings(item)]


@pytest.mark.parametrize("n_tasks", [12, 60, 300])
def test_figures_hold_the_inputs(n_tasks: int, data: ReportData, text: str) -> None:
    if n_tasks != 60:
        data = make(n_tasks, n_experts=90 if n_tasks == 300 else 12)
        text = render_report(data)
    figures, placed = figures_of(text), arrange(data)
    order = placed.clustering.order
    distances = figures["distances"]["data"][0]
    assert np.allclose(distances["z"], data.distances[np.ix_(order, order)], atol=1e-4)
    assert figures["distances"]["layout"]["xaxis"]["ticktext"] == list(data.tasks["task_id"].iloc[order])
    matrix = figures["error_matrix"]["data"][0]
    assert np.allclose(matrix["customdata"], data.errors[order], atol=1e-4)
    assert np.allclose(matrix["z"], (data.errors - data.errors[:, :1])[order], atol=1e-4)
    own = figures["error_matrix"]["data"][1]
    assert {(int(order[y]), x) for x, y in zip(own["x"], own["y"], strict=True)} == set(
        zip(*(axis.tolist() for axis in np.nonzero(data.own)), strict=True)
    )
    best = figures["error_matrix"]["data"][2]
    assert np.allclose(data.errors[order[best["y"]], best["x"]], data.tasks["oracle_error"].iloc[order])
    assert np.allclose(figures["task_map"]["data"][0]["x"], placed.task_map[:, 0], rtol=1e-3, atol=1e-9)
    assert data.tasks["task_id"][0] in figures["task_map"]["data"][0]["text"][0]
    by_norm = np.argsort(data.tasks["complexity"].to_numpy(), kind="stable")
    for name, column in (("generic", "generic_error"), ("selected", "selected_error")):
        trace = next(trace for trace in figures["spread"]["data"] if trace["name"] == name)
        assert np.allclose(trace["y"], data.tasks[column].to_numpy()[by_norm], rtol=1e-3)
    assert np.allclose(figures["norm"]["data"][0]["x"], data.tasks["complexity"], rtol=1e-3)
    assert np.allclose(figures["norm"]["data"][0]["y"], data.tasks["head_error"], rtol=1e-3)
    rows = data.selection[(data.selection["reading"] == OUT) & (data.selection["method"] != "oracle")]
    dots = figures["selection"]["data"][0]
    assert np.allclose(dots["x"], rows["relative_increase"], rtol=1e-3)
    assert np.allclose(np.add(dots["x"], dots["error_x"]["array"]), rows["relative_high"], rtol=1e-3)


@pytest.mark.parametrize("n_tasks", [0, 1, 2, 5])
def test_few_tasks(n_tasks: int) -> None:
    full = make(5, n_experts=3)
    few = replace(
        full,
        tasks=full.tasks.iloc[:n_tasks],
        embeddings=full.embeddings[:n_tasks],
        domain_embeddings=full.domain_embeddings[:n_tasks],
        distances=full.distances[:n_tasks, :n_tasks],
        errors=full.errors[:n_tasks],
        own=full.own[:n_tasks],
        failures=(),
        rejected_images=(),
        skipped_tasks=(),
        commands=(),
    )
    text = render_report(few)
    assert "no unit failed" in Page(text).text
    assert len(figures_of(text)) == (1 if n_tasks == 0 else 7)
    assert set(static_figures(few)) == (
        {"selection.png"} | ({"task_map.png", "distances.png", "error_matrix.png"} if n_tasks else set())
    )


def test_missing_values_and_zero_embeddings() -> None:
    full = make(30)
    errors, tasks = full.errors.copy(), full.tasks.copy()
    errors[3] = np.nan
    errors[5:9, 2:] = np.nan
    tasks["selected_error"] = [None if k % 3 == 0 else value for k, value in enumerate(tasks["selected_error"])]
    tasks["selected_expert"] = [None if k % 3 == 0 else value for k, value in enumerate(tasks["selected_expert"])]
    tasks["lineage"] = [[] if k % 2 else None for k in range(30)]
    tasks.loc[4, ["complexity", "head_error", "oracle_error"]] = np.nan
    selection = full.selection.assign(relative_low=None, relative_high=np.nan, median_increase=None)
    holes = replace(
        full,
        tasks=tasks,
        errors=errors,
        embeddings=np.zeros((30, 8)),
        domain_embeddings=np.zeros((30, 0)),
        distances=np.where(np.eye(30, dtype=bool), 0.0, np.nan),
        selection=selection,
    )
    text = render_report(holes)
    matrix = figures_of(text)["error_matrix"]["data"][0]["z"]
    assert sum(value is None for row in matrix for value in row) == np.isnan(errors).sum()
    assert "NaN" not in Page(text).text
    assert "nan" not in re.findall(r"\w+", Page(text).text)
    assert oracle_cells(holes)[3] == -1
    assert (spread_figure(replace(holes, errors=np.full_like(errors, np.nan)))["data"][0]["x"]).size == 0
    assert all(figure is not None for figure in static_figures(holes).values())


def test_a_large_library_stays_small() -> None:
    full = make(300, n_experts=120)
    document = Page(render_report(full)).document()
    size = {name: len(json.dumps(figure)) for name, figure in document["figures"].items()}
    assert size["distances"] < 0.2e6  # 3 MB at 1,500 tasks: it grows with the square
    assert size["error_matrix"] < 0.3e6
    assert size["spread"] < 0.1e6


def test_plotly_accepts_every_figure(data: ReportData) -> None:
    for figure in (*page_figures(data).values(), spread_figure(make(130))):
        plotly.graph_objects.Figure(figure)


def test_static_figures_are_drawn_with_hostile_names() -> None:
    figures = static_figures(make(12, evil=True))
    assert set(figures) == {"selection.png", "task_map.png", "distances.png", "error_matrix.png"}
    for figure in figures.values():
        figure.savefig(buffer := BytesIO(), format="png", dpi=50)
        assert buffer.getvalue().startswith(b"\x89PNG")


def selection(**increase: float) -> pd.DataFrame:
    frame = make(12).selection.iloc[: len(increase)].copy()
    frame["method"] = [name.replace("_", " ") for name in increase]
    frame["relative_increase"] = list(increase.values())
    frame["relative_low"] = frame["relative_increase"] - 0.05
    frame["relative_high"] = frame["relative_increase"] + 0.05
    return frame


def test_headline_tells_a_win_a_draw_and_a_loss() -> None:
    win = headline(selection(oracle=0.0, MODEL2VEC=0.1, generic=0.3), 12)
    assert win == (
        "For 12 tasks, MODEL2VEC picks an expert whose error is on average 10.0% [5.0, 15.0] above the best expert’s; "
        "the generic expert’s is 30.0% [25.0, 35.0] above it."
    )
    assert headline(selection(MODEL2VEC=0.1, generic=0.15), 12).endswith("The two intervals overlap.")
    loss = headline(selection(TASK2VEC=0.4, generic=0.2, static=0.1), 12)
    assert "It loses to the generic expert" in loss
    tie = headline(selection(TASK2VEC=0.2, generic=0.2), 12)
    assert tie.endswith("The generic expert does as well, so choosing makes no difference here.")
    assert "baseline “static” does better, at 10.0% [5.0, 15.0] above it" in loss
    assert headline(selection(chance=0.4), 1) == "1 task embedded; no selection of experts was judged."


def test_similar_tasks_are_neighbours_on_the_map(data: ReportData) -> None:
    places = map_tasks(data.distances)
    group = np.arange(60) % len(GROUPS)
    apart = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(60)
    assert (group[apart.argmin(axis=1)] == group).mean() > 0.9
    assert np.array_equal(places, map_tasks(data.distances))


def test_cluster_order_and_tree() -> None:
    line = np.array([0.0, 5.0, 0.1, 5.2])
    clustering = cluster(np.abs(line[:, None] - line))
    assert {frozenset(clustering.order[:2].tolist()), frozenset(clustering.order[2:].tolist())} == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }
    xs, ys = dendrogram_path(clustering)
    assert len(xs) == len(ys) == 15
    assert max(y for y in ys if y is not None) == pytest.approx(np.abs(line[[0, 2]][:, None] - line[[1, 3]]).mean())


def test_groups_past_the_palette_share_one_colour() -> None:
    tasks = make(60).tasks.assign(source=[f"s{k % 20:02d}" for k in range(60)])
    group = groupings(tasks)[0]
    assert len(group.labels) == len(group.colors) == len(group.counts) == len(PALETTE)
    assert group.labels[-1] == "7 smaller groups"
    assert sum(group.counts) == 60


def test_rank_correlation() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    assert rank_correlation(x, np.exp(x)) == (pytest.approx(1.0), 4)
    assert np.isnan(rank_correlation(x, np.ones(5))[0])


def test_tables_that_do_not_fit_are_refused() -> None:
    full = make(5)
    with pytest.raises(DataError, match="tasks lacks the columns kind"):
        replace(full, tasks=full.tasks.drop(columns="kind"))
    with pytest.raises(DataError, match=r"distances has shape \(5, 4\), wanted \(5, 5\)"):
        replace(full, distances=full.distances[:, :4])


def test_names_with_entities_are_shown_as_they_are() -> None:
    full = make(5)
    named = replace(full, tasks=full.tasks.assign(task_id=["a&lt;b", "<b>", "c", "d", "e"]))
    labels = figures_of(render_report(named))["distances"]["layout"]["xaxis"]["ticktext"]
    assert sorted(html.unescape(label) for label in labels) == ["<b>", "a&lt;b", "c", "d", "e"]
