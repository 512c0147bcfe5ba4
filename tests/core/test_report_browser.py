"""The report page in a real browser: what people press does what it says, and hostile names stay text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import first_tasks, make

from t2v_core.arrange import Arrangement, arrange, cosine_distances
from t2v_core.report import render_report

sys.path.append(str(Path(__file__).parent.parent))
from chromium import chromium, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "a browser is there")

DATA = make(60)
PLACED: Arrangement = arrange(DATA)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


class Opened:
    """A page with all that it asked for and complained of."""

    def __init__(self, browser: Any, folder: Path, html: str, address: str = "", **options: Any) -> None:
        file = folder / "report.html"
        file.write_text(html, encoding="utf-8")
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.tab = browser.new_page(
            **{"viewport": {"width": 1366, "height": 768}, "reduced_motion": "reduce"} | options
        )
        self.tab.on("console", lambda m: self.complaints.append(m.text))
        self.tab.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.tab.on("dialog", lambda d: (self.complaints.append(f"dialog {d.message}"), d.dismiss()))
        self.tab.on("request", lambda r: self.asked.append(r.url))
        self.tab.goto(file.as_uri() + address)

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.tab.locator(selector).all_text_contents()]

    def settle(self) -> None:
        self.tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def see_all(self) -> None:
        """Scroll through the page, so that every figure is drawn."""
        for name in ("explore", "errors", "distances", "spread", "norm", "commands"):
            self.tab.evaluate(f"document.getElementById('{name}').scrollIntoView({{behavior: 'instant'}})")
            self.settle()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(browser, tmp_path, render_report(DATA, PLACED))
    yield opened
    assert opened.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in opened.asked)
    opened.tab.close()


def test_search_and_source_filter_every_list(page: Opened) -> None:
    assert page.tab.evaluate("document.documentElement.dataset.ready") == "yes"
    page.tab.keyboard.press("/")
    page.tab.keyboard.type("BIRDS anim")
    page.settle()
    birds = [t for t in DATA.tasks["task_id"] if "birds=" in t]
    assert page.texts("#found .name") == birds
    assert page.texts("#count") == [f"{len(birds)} of 60 tasks"]
    assert page.tab.locator("[data-filter]").is_visible()
    page.tab.keyboard.press("Enter")
    page.settle()
    assert page.texts("#task h3") == birds[:1]
    assert page.tab.url.endswith("#task=birds-200%2Fbirds%3D000")
    page.tab.keyboard.press("ArrowDown")
    page.tab.keyboard.press("ArrowDown")
    page.tab.keyboard.press("Enter")
    page.settle()
    assert page.texts("#task h3") == birds[1:2]
    page.tab.locator("[data-clear]").click()
    page.tab.locator("#source").select_option("species-8k")
    page.settle()
    assert page.texts("#found .name") == list(DATA.tasks["task_id"][DATA.tasks["source"] == "species-8k"])


def test_a_task_shows_its_images_experts_and_neighbours_by_both_embeddings(page: Opened) -> None:
    page.tab.locator("#found button").nth(7).click()
    page.settle()
    ids = list(DATA.tasks["task_id"])
    assert page.texts("#task h3") == [ids[7]]
    assert page.texts("#task .pictures figcaption") == ["cat", "dog"]
    decoded = page.tab.evaluate(
        """async () => {
            const image = new Image();
            image.src = getComputedStyle(document.querySelector("#task .piece")).backgroundImage.slice(5, -2);
            await image.decode();
            return [image.naturalWidth, image.naturalHeight];
        }"""
    )
    assert decoded == [64, 32]
    order = np.argsort(DATA.errors[7], kind="stable")
    page.tab.get_by_role("button", name="All 12 experts").click()
    names = page.texts("#task .experts tbody th")
    assert [name.split("/")[0][:6] for name in names] == [DATA.experts[e].split("/")[0][:6] for e in order]
    assert page.texts("#task .experts tbody td:nth-child(3)") == [f"{100 * DATA.errors[7, e]:.1f}%" for e in order]
    for kind, distances in (("task", DATA.distances), ("domain", cosine_distances(DATA.domain_embeddings))):
        page.tab.locator(f"#explore button[data-kind={kind}]").click()
        page.settle()
        nearest = [j for j in np.argsort(distances[7], kind="stable") if j != 7][:6]
        assert page.texts("#task .near .name") == [ids[j] for j in nearest]
        assert page.tab.get_by_role("heading", name=f"Nearest tasks by {kind} embedding").is_visible()
    page.tab.locator("#task .near button").first.click()
    page.settle()
    assert page.texts("#task h3") != [ids[7]]


def test_the_error_matrix_answers_pointer_and_keys(page: Opened) -> None:
    page.tab.locator("#errors canvas").scroll_into_view_if_needed()
    page.settle()
    box = page.tab.locator("#errors canvas").bounding_box()
    page.tab.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"])
    page.settle()
    note = page.texts("#tip > *")
    task, expert = list(DATA.tasks["task_id"]).index(note[0]), DATA.experts.index(note[1].removeprefix("expert "))
    assert note[2].startswith(f"error {100 * DATA.errors[task, expert]:.1f}%")
    page.tab.locator("#row-order").select_option("norm")
    page.tab.locator("#errors canvas").focus()
    for _ in range(65):
        page.tab.keyboard.press("ArrowDown")
    page.tab.keyboard.press("ArrowRight")
    page.tab.keyboard.press("ArrowRight")
    last = int(np.argmax(DATA.tasks["complexity"]))
    cell = page.texts("#errors-cell")[0].split(" · ")
    assert cell[0] == DATA.tasks["task_id"][last]
    assert f"error {100 * DATA.errors[last, DATA.experts.index(cell[1].removeprefix('expert '))]:.1f}%" in cell[2]
    page.tab.keyboard.press("Enter")
    page.settle()
    assert page.texts("#task h3") == [DATA.tasks["task_id"][last]]


def test_every_figure_is_drawn(page: Opened) -> None:
    page.see_all()
    colors = page.tab.evaluate(
        """() => [...document.querySelectorAll("canvas")].map((canvas) => {
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(pixels.buffer)).size;
        })"""
    )
    assert len(colors) == 5
    assert min(colors) > 20
    for switch in ("[data-show=error]", "#errors [data-size=large]", "#distances [data-size=large]"):
        page.tab.locator(switch).click()
    page.tab.locator("#column-order").select_option("mean")
    page.settle()
    assert page.texts("#errors [data-unit]") == ["error (dark: low)"]


@pytest.mark.parametrize(("width", "scheme"), [(1920, "light"), (1366, "dark"), (390, "light")])
def test_no_width_needs_sideways_scrolling(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    opened = Opened(
        browser, tmp_path, render_report(DATA, PLACED), viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    opened.see_all()
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.complaints == []
    opened.tab.close()


def test_hostile_names_stay_text(browser: Any, tmp_path: Path) -> None:
    evil = make(12, evil=True)
    opened = Opened(browser, tmp_path, render_report(evil))
    opened.see_all()
    opened.tab.locator("#search").fill("<img src=x")
    opened.settle()
    assert opened.texts("#found .name") == [name.strip() for name in evil.tasks["task_id"]]
    opened.tab.locator("#found button").first.click()
    opened.settle()
    assert opened.texts("#task h3") == [evil.tasks["task_id"][0].strip()]
    assert "</script><img src=x onerror=alert(1)>" in opened.texts("#task h3")[0]
    canvas = opened.tab.locator("#errors canvas")
    canvas.scroll_into_view_if_needed()
    canvas.hover()
    opened.settle()
    assert opened.texts("#tip strong")[0] in [name.strip() for name in evil.tasks["task_id"]]
    assert opened.tab.locator("img").count() == 0
    assert opened.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in opened.asked)
    opened.tab.close()


def test_an_address_leads_to_a_task(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, render_report(DATA, PLACED), "#task=fashion-228%2Fshapes%3D009")
    assert opened.texts("#task h3") == ["fashion-228/shapes=009"]
    opened.tab.close()


def test_without_scripts_the_tables_are_there(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, render_report(DATA, PLACED), java_script_enabled=False)
    assert opened.tab.locator("#selection table").first.is_visible()
    assert not opened.tab.locator(".explorer").is_visible()
    assert "need JavaScript" in opened.texts("noscript")[0]
    opened.tab.close()


@pytest.mark.parametrize("n_tasks", [0, 1, 2])
def test_few_tasks_open(browser: Any, tmp_path: Path, n_tasks: int) -> None:
    few = first_tasks(make(5, n_experts=3), n_tasks)
    opened = Opened(browser, tmp_path, render_report(few))
    if n_tasks:
        opened.see_all()
    assert opened.tab.evaluate("document.documentElement.dataset.ready") == "yes"
    assert opened.complaints == []
    opened.tab.close()
