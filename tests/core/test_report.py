"""The report page: the numbers in it are the inputs', strings in it are inert, and it loads nothing."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_samples import EVIL, GROUPS, OUT, first_tasks, make

from t2v_core.arrange import PALETTE, arrange, cluster, dendrogram_path, groupings, map_tasks
from t2v_core.errors import DataError
from t2v_core.figures import oracle_cells, rank_correlation
from t2v_core.figures_static import static_figures
from t2v_core.report import headline, page_script, render_report
from t2v_core.report_data import ReportData
from t2v_core.report_words import plain_number, safe_link, seconds
from t2v_core.selection_view import selection_blocks


class Page(HTMLParser):
    """Elements, attributes and text of a page, scripts apart, as a browser splits them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.blocks: dict[str, str] = {}
        self.script = ""
        self.style = ""
        self.text = ""
        self._id = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._id = dict(attrs).get("id") or ""
        self.text += " " if tag in {"td", "th", "li", "p"} else ""

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script" and self._id:
            self.blocks[self._id] = self.blocks.get(self._id, "") + data
        elif self.cdata_elem == "script":
            self.script += data
        elif self.cdata_elem == "style":
            self.style += data
        else:
            self.text += data

    def block(self, name: str) -> Any:
        """A block of data."""
        return json.loads(self.blocks[f"t2v-{name}"])


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """What ``templates/base.js`` does to an array."""
    steps = np.frombuffer(base64.b64decode(packed["data"]), dtype=f"<u{packed['bits'] // 8}").astype(float)
    return np.where(steps == 2 ** packed["bits"] - 1, np.nan, packed["low"] + steps * packed["step"])


@pytest.fixture(scope="module")
def data() -> ReportData:
    return make(60)


@pytest.fixture(scope="module")
def text(data: ReportData) -> str:
    return render_report(data)


def words(page: Page) -> str:
    return re.sub(r"\s+", " ", page.text)


def test_sections_stand_in_order_and_carry_the_numbers(data: ReportData, text: str) -> None:
    page = Page(text)
    sections = [value for tag, name, value in page.attributes if tag == "section" and name == "id"]
    assert sections == [
        "selection", "explore", "errors", "distances", "spread", "norm", "run", "left-out", "commands"
    ]  # fmt: skip
    first = data.selection[data.selection["method"] == "MODEL2VEC"].iloc[0]
    shown = f"{100 * first.relative_increase:+.1f}% [{100 * first.relative_low:.1f}, {100 * first.relative_high:.1f}]"
    assert shown.replace("-", "−") in words(page)
    assert text.count('<tr class="best">') == 2
    assert "truncated file" in page.text
    assert "44 min 10 s" in page.text
    assert "12.5 s" in page.text


def test_failures_of_one_reason_stand_together_with_what_they_cost(text: str) -> None:
    found = re.search(r"evaluate experts the test split is empty 5 2\.5 s generic on 0 and 4 more", words(Page(text)))
    assert found
    assert "embed tasks ComputeError: loss is not finite; lower the learning rate 1 – birds-200/birds=017" in words(
        Page(text)
    )


def test_rendering_twice_gives_the_same_bytes(data: ReportData, text: str) -> None:
    assert render_report(make(60)) == text


def test_no_address_is_loaded(text: str) -> None:
    page = Page(text)
    links = []
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in {"src", "href", "action", "data", "poster", "srcset", "xlink:href"}:
            assert tag == "a" or value == "data:,", (tag, name, value)
            links += [value] if tag == "a" and not value.startswith("#") else []
    assert links == ["https://mlflow.example/#/runs/abc123", "../embeddings/part-0.parquet"]
    assert not {"img", "iframe", "object", "embed", "base", "form", "video"} & set(page.tags)
    styles = page.style + "".join(value for _, name, value in page.attributes if name == "style")
    assert "url(" not in styles
    assert "@import" not in styles
    assert not re.search(
        r"https?:(?!//www.w3.org/2000/svg)|fetch\(|XMLHttpRequest|WebSocket|importScripts|innerHTML|insertAdjacentHTML|eval\(|document\.write",
        page_script(),
    )
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "script-src 'unsafe" not in policy


def test_hostile_strings_are_inert() -> None:
    clean, hostile = Page(render_report(make(12))), Page(render_report(make(12, evil=True)))
    assert set(hostile.tags) <= set(clean.tags)
    assert len(hostile.blocks) == len(clean.blocks) == 3
    assert hostile.script == clean.script == page_script()
    assert "alert(1)" in hostile.text
    assert "{{7*7}}" in hostile.text
    for text in hostile.blocks.values():
        assert not set(text) & {"<", ">", "&", "\u2028"}
    assert hostile.block("page")["ids"][0].startswith(EVIL)
    assert not any(value.startswith("javascript:") for _, _, value in hostile.attributes)


def test_links_lead_to_the_web_or_beside_the_page() -> None:
    for good in ("https://a.example/x?y#z", "http://localhost:5000/#/runs/1", "../embeddings/part-0.parquet", "a/b:c"):
        assert safe_link(good) == good
    for bad in (
        "javascript:alert(1)",
        "data:text/html,x",
        "//evil.example",
        "file:///etc/passwd",
        "a\\b",
        "JaVaScript:x",
    ):
        assert safe_link(bad) == ""


@pytest.mark.parametrize("n_tasks", [12, 60, 160])
def test_the_page_holds_the_inputs(n_tasks: int, data: ReportData, text: str) -> None:
    if n_tasks != 60:
        data = make(n_tasks, n_experts=90 if n_tasks == 160 else 12)
        text = render_report(data)
    parsed, placed = Page(text), arrange(data)
    page, order = parsed.block("page"), placed.clustering.order
    assert page["ids"] == list(data.tasks["task_id"])
    assert page["order"] == order.tolist()
    assert np.allclose(unpack(page["errors"]).reshape(data.errors.shape), data.errors, atol=1e-4)
    own = np.array(page["own"]).reshape(-1, 2)
    assert np.array_equal(own, np.argwhere(data.own))
    best = np.array(page["best"])
    assert np.allclose(data.errors[np.arange(n_tasks), best], data.tasks["oracle_error"])
    for name in ("head", "oracle", "generic", "selected"):
        assert np.allclose(page["error"][name], data.tasks[f"{name}_error"], rtol=1e-3)
    assert np.allclose(page["norm"], data.tasks["complexity"], rtol=1e-3)
    assert np.allclose(unpack(page["maps"]["task"]).reshape(-1, 2), placed.task_map, atol=0.01)
    for column in ("source", "domain", "kind"):
        coded = page[column]
        assert [coded["names"][k] for k in coded["index"]] == list(data.tasks[column])
    assert [page["selected"]["names"][k] for k in page["selected"]["index"]] == list(data.tasks["selected_expert"])
    assert page["lineage"]["names"][0] == "Animalia › Aves"
    upper = np.triu_indices(n_tasks, 1)
    ordered = data.distances[np.ix_(order, order)][upper]
    shown = unpack(parsed.block("distances")["task"])
    low, high = np.percentile(ordered, [1, 99])
    assert np.allclose(shown, np.clip(ordered, low, high), atol=(high - low) / 500)
    near = page["near"]["task"]
    index = np.array(near["index"]).reshape(n_tasks, near["count"])
    for i in (0, n_tasks // 2):
        others = [j for j in np.argsort(data.distances[i], kind="stable") if j != i][: near["count"]]
        assert np.allclose(data.distances[i, index[i]], data.distances[i, others])
    assert np.allclose(np.array(near["distance"]).reshape(index.shape)[3], data.distances[3, index[3]], rtol=1e-3)
    images = parsed.block("images")
    assert len(images) == n_tasks
    assert base64.b64decode(images["0"]["strip"]) == data.thumbnails[data.tasks["task_id"][0]].strip


@pytest.mark.parametrize("n_tasks", [0, 1, 2, 5])
def test_few_tasks(n_tasks: int) -> None:
    few = replace(
        first_tasks(make(5, n_experts=3), n_tasks),
        failures=(),
        rejected_images=(),
        skipped_tasks=(),
        commands=(),
    )
    page = Page(render_report(few))
    assert "no unit failed" in page.text
    assert page.text.count("No task was embedded in this run.") == (0 if n_tasks else 3)
    assert len(page.block("page")["ids"]) == n_tasks
    assert set(page.block("distances")) == ({"task", "domain"} if n_tasks else set())
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
    page = Page(render_report(holes))
    assert np.array_equal(np.isnan(unpack(page.block("page")["errors"]).reshape(errors.shape)), np.isnan(errors))
    assert not {"nan", "NaN", "None", "inf"} & set(re.findall(r"\w+", page.text))
    assert oracle_cells(holes)[3] == -1
    assert page.block("page")["best"][3] == -1
    assert page.block("page")["near"]["task"]["index"][:3] == [-1, -1, -1]
    assert all(figure is not None for figure in static_figures(holes).values())


def test_a_large_library_stays_small() -> None:
    full = make(200, n_experts=120)
    text = render_report(full)
    page = Page(text)
    # What grows with the square of the tasks: two bytes and a third a pair, both embeddings together; 3 MB at 1,500.
    assert len(page.blocks["t2v-distances"]) < 2.7 * 200 * 199 / 2 + 500
    assert len(page.blocks["t2v-page"]) < 0.35e6
    assert len(text.encode()) < 1.2e6


def test_readings_meta_tasks_and_new_columns_are_shown() -> None:
    full = make(12)
    third = full.selection[full.selection["reading"] == OUT].assign(reading="own domain left out")
    one = pd.concat([full.selection, third]).assign(meta_task="Mixed", tau=0.4321, regret3=0.021, probe_passes=1234)
    both = pd.concat([one, one.assign(meta_task="two <sets>", relative_increase=one["relative_increase"] * 2)])
    metas = selection_blocks(both)
    assert [meta.name for meta in metas] == ["Mixed", "two <sets>"]
    assert [block.reading for block in metas[0].blocks] == [OUT, "all candidates", "own domain left out"]
    assert metas[0].blocks[0].more == ["Weighted τ", "Best of first 3, in points", "probe passes"]
    pairs = pd.DataFrame(
        [
            ("two <sets>", OUT, "MODEL2VEC", "generic", -0.036, -0.043, -0.029, "better"),
            ("two <sets>", OUT, "static", "generic", -0.001, -0.02, 0.018, "not told apart"),
        ],
        columns=["meta_task", "reading", "method", "against", "difference", "low", "high", "verdict"],
    )
    page = Page(render_report(replace(full, selection=both, pairs=pairs)))
    assert "MODEL2VEC better −3.6 [−4.3, −2.9]" in words(page)
    assert "static not told apart −0.1 [−2.0, 1.8]" in words(page)
    assert "Meta-task: two <sets>" in page.text
    assert page.text.count("All readings side by side") == 2
    assert "MODEL2VEC 0.432 +2.1 1,234" in words(page)
    assert page.tags.count("table") > 8


def test_lowest_and_overlapping_methods_are_named() -> None:
    rows = {
        r["method"]: r for r in selection_blocks(selection(oracle=0.0, ours=0.1, close=0.18, far=0.9))[0].blocks[0].rows
    }
    assert [name for name, row in rows.items() if row["best"]] == ["ours"]
    assert [name for name, row in rows.items() if row["overlaps"]] == ["close"]  # [.13, .23] reaches [.05, .15]
    assert rows["oracle"]["range"]["middle"] == 0
    assert 0 < rows["ours"]["range"]["low"] < rows["ours"]["range"]["middle"] < rows["ours"]["range"]["high"] <= 100


def test_numbers_as_words() -> None:
    assert [seconds(v) for v in (0.012, 0.0, 5.25, 95.2, 7265, float("nan"))] == [
        "12 ms", "0.0 s", "5.2 s", "1 min 35 s", "2 h 01 min", "–"
    ]  # fmt: skip
    assert [plain_number(v) for v in (0.12345, -3.0, 12345.6, None, float("nan"), "x")] == [
        "0.123", "−3", "12,346", "–", "–", "x"
    ]  # fmt: skip


def test_text_has_the_contrast_that_wcag_aa_asks_for() -> None:
    style = Page(render_report(make(2))).style
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", style, flags=re.S)
    for theme in (light, dark):
        colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        for ink, ground in (
            ("ink", "surface"), ("ink", "page"), ("ink", "soft"), ("ink", "good-soft"), ("muted", "surface"),
            ("muted", "page"), ("muted", "soft"), ("muted", "good-soft"), ("accent", "surface"), ("accent", "page"),
            ("good", "good-soft"), ("bad", "surface"), ("surface", "ink"),
        ):  # fmt: skip
            assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
        assert contrast(colors["edge"], colors["surface"]) >= 3  # of what can be pressed


def contrast(one: str, other: str) -> float:
    """WCAG 2.1: ratio of the relative luminances."""

    def luminance(color: str) -> float:
        parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_controls_have_names_and_tables_headers(text: str) -> None:
    page = Page(text)
    ids = {value for _, name, value in page.attributes if name == "id"}
    for _, name, value in page.attributes:
        if name in {"for", "aria-labelledby", "aria-describedby"}:
            assert set(value.split()) <= ids, value
    assert page.tags.count("input") == 1
    assert {value for tag, name, value in page.attributes if tag == "label" and name == "for"} >= {
        "search", "source", "row-order", "column-order"
    }  # fmt: skip
    scopes = [value for tag, name, value in page.attributes if tag == "th" and name == "scope"]
    assert len(scopes) == page.tags.count("th")
    assert page.tags.count("caption") == page.tags.count("table")
    roles = [(tag, value) for tag, name, value in page.attributes if name == "role"]
    assert roles.count(("canvas", "img")) == page.tags.count("canvas") == 5


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
    assert "“static” does better, at 10.0% [5.0, 15.0] above it" in loss
    tried = headline(selection(TASK2VEC=0.2, generic=0.4, landmarks_3_tried=0.1), 12)
    assert "“landmarks 3 tried”, which looks at the experts themselves, does better, at 10.0%" in tried
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
    names = ["a&lt;b", "<b>", "<script>alert(1)</script>", "d", "e"]
    page = Page(render_report(replace(full, tasks=full.tasks.assign(task_id=names))))
    assert page.block("page")["ids"] == names
    for name in names:
        assert name in page.text
