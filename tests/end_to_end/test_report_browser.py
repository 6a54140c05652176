"""The report as a person meets it: in a browser, by mouse, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import NASTY, write_run

from rlhf_ppo.report.page import write_comparison, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium here; on Debian: apt-get install chromium"
)
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
# WCAG 2.2: the ratio of the relative luminances of each visible text and what is behind it.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const inert = element.closest("script, style, noscript, option, title, desc, .skip, :disabled");
    if (!walker.currentNode.data.trim() || inert || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const front = parse(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
    const [one, other] = [light(front), light(behind(element))].sort((a, b) => b - a);
    found.push([(one + 0.05) / (other + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}"""


class Watched:
    """A page that remembers what it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, **settings: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_page(reduced_motion="reduce", **settings)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())

    def column(self, label: str) -> list[float | None]:
        """The numbers of a column of the samples, as shown."""
        cells = self.page.locator(f'#rows td[data-label="{label}"]').all_inner_texts()
        plain = [cell.replace("\u2212", "-").replace("+", "") for cell in cells]
        return [None if cell == "\u2013" else float(cell) for cell in plain]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    return write_report(write_run(folder / "run", prompts=50, texts=NASTY))


@pytest.fixture(scope="module")
def comparison(folder: Path) -> Path:
    runs = [
        write_run(folder / name, steps=60, prompts=25, gold=name != "b", seed=seed, texts=NASTY)
        for seed, name in enumerate(("a", "b", "c"))
    ]
    return write_comparison(runs, folder / "compare.html")


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_the_page_is_quiet_asks_for_nothing_and_runs_nothing_of_the_run(
    browser: Any, request: pytest.FixtureRequest, which: str
) -> None:
    file = request.getfixturevalue(which)
    watched = Watched(browser, file)
    watched.page.locator("#next").click()
    assert watched.page.locator("#rows tr").count() > 0
    assert watched.requests == [file.as_uri()]
    assert watched.complaints == []
    assert watched.page.evaluate("window.pwned") is None
    assert watched.page.locator("#rows img, #rows script, #rows b b").count() == 0


def test_every_text_is_shown_as_it_was_written(browser: Any, report: Path) -> None:
    watched = Watched(browser, report)
    page = watched.page
    shown = page.locator("#rows .bubble.right").all_inner_texts()
    for place, text in enumerate(NASTY):
        if len(text) < 1000:  # paragraphs: a browser may break a line at U+2028
            assert text.split("\u2028")[0] in shown[place], text
    row = page.locator("#rows tr").nth(NASTY.index("w" * 3000))
    assert len(row.locator(".bubble.right").inner_text()) < 1000
    row.locator(".bubble.right .more").click()
    assert "w" * 3000 in row.locator(".bubble.right").inner_text()
    arabic = page.locator("#rows .bubble.right").nth(4)
    assert arabic.get_attribute("dir") == "auto"
    roles = page.locator("#rows tr").nth(1).locator("td").first.locator(".who").all_inner_texts()
    assert roles == ["system", "user"]


def test_sorting_by_mouse_goes_down_up_and_back(browser: Any, report: Path) -> None:
    watched = Watched(browser, report)
    heads = watched.page.locator("#heads")
    at_first = watched.column("\u0394 score")
    assert None in at_first  # the sample without a score

    def click() -> str:
        heads.get_by_role("button", name="\u0394 score").click()
        head = heads.locator("th", has=watched.page.locator("[data-key=score]"))
        return str(head.get_attribute("aria-sort"))

    assert click() == "descending"
    down = watched.column("\u0394 score")
    assert None not in down and down == sorted(down, reverse=True)  # type: ignore[type-var]
    assert click() == "ascending"
    up = watched.column("\u0394 score")
    assert None not in up and up == sorted(up) and up[0] < 0 < down[0]  # type: ignore
    assert click() == "none"
    assert watched.column("\u0394 score") == at_first
    for _ in range(4):
        watched.page.locator("#next").click()
    heads.get_by_role("button", name="\u0394 score").click()
    assert watched.page.locator("#page").inner_text().startswith("1\u2013")
    for _ in range(4):
        watched.page.locator("#next").click()
    assert watched.column("\u0394 score")[-1] is None  # what has no number comes last


def test_the_table_is_usable_by_keyboard_alone(browser: Any, report: Path) -> None:
    watched = Watched(browser, report)
    page = watched.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    order = []
    for _ in range(60):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate("document.activeElement.id || document.activeElement.dataset.key")
        )
        if order[-1] == "search":
            width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
            assert width == "3px"
            page.keyboard.type("question 3")
        if order[-1] == "gold":
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.dataset.key") == "gold"
            break
    wanted = ["search", "filter", "left", "right", "score", "gold"]
    assert [name for name in order if name in wanted] == wanted
    assert page.locator("#status").inner_text() == "11 prompts"  # 3, and 30 to 39
    gold = watched.column("\u0394 gold")
    assert gold == sorted(gold, reverse=True)  # type: ignore[type-var]


def test_search_and_filter_leave_what_they_say(browser: Any, report: Path) -> None:
    watched = Watched(browser, report)
    page = watched.page
    page.locator("#search").fill("ANSWER 17:")
    assert page.locator("#status").inner_text() == "1 prompt"
    page.locator("#search").fill("nowhere to be found")
    assert page.locator("#page").inner_text() == "none"
    page.locator("#search").fill("")
    page.locator("#filter").select_option("cheated")
    score, gold = watched.column("\u0394 score"), watched.column("\u0394 gold")
    assert score and all(value is not None and value > 0 for value in score)
    assert all(value is not None and value < 0 for value in gold)
    page.locator("#filter").select_option("cut")
    assert page.locator("#status").inner_text() == "8 prompts"  # every seventh of 50
    page.locator("#filter").select_option("all")
    ahead = watched.column("\u0394 length")
    page.locator("#left").select_option(label="after")
    page.locator("#right").select_option(label="before")
    assert watched.column("\u0394 length") == [-value for value in ahead if value is not None]


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(
    browser: Any, request: pytest.FixtureRequest, which: str
) -> None:
    phone = {"width": 360, "height": 740}
    watched = Watched(browser, request.getfixturevalue(which), viewport=phone)
    page = watched.page
    page.evaluate("document.querySelectorAll('details').forEach((item) => (item.open = true))")
    page.evaluate("document.querySelectorAll('#rows .more').forEach((item) => item.click())")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#rows td.n").first.is_visible()
    page.locator("#heads [data-key=score]").click()
    down = [value for value in watched.column("\u0394 score") if value is not None]
    assert down == sorted(down, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["report", "comparison"])
def test_every_text_stands_out_from_its_background(
    browser: Any, request: pytest.FixtureRequest, which: str, scheme: str
) -> None:
    watched = Watched(browser, request.getfixturevalue(which), color_scheme=scheme)
    page = watched.page
    page.evaluate("document.querySelectorAll('details').forEach((item) => (item.open = true))")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 23, 26)"
    assert dark == (scheme == "dark")
    found = page.evaluate(CONTRAST)
    assert len(found) > 300
    assert [item for item in found if item[0] < 4.5] == []


def test_a_run_has_one_colour_in_headline_charts_and_samples(
    browser: Any, comparison: Path
) -> None:
    """A run was blue in the headline, and its answers had the other run's orange border."""
    page = Watched(browser, comparison).page
    page.locator("#left").select_option(label="b")
    page.locator("#right").select_option(label="a")

    def colour(selector: str, what: str) -> str:
        script = f"e => getComputedStyle(e).{what}"
        return str(page.locator(selector).first.evaluate(script))

    for side, style in (("left", "run-1"), ("right", "run-0")):
        border = colour(f"#rows .bubble.{side}", "borderTopColor")
        assert border == colour(f".runs .swatch.{style}", "borderTopColor")
        assert border == colour(f"svg .dot.{style}", "fill")


def test_charts_are_told_to_those_who_do_not_see_them(browser: Any, report: Path) -> None:
    page = Watched(browser, report).page
    charts = page.locator("svg.chart")
    assert charts.count() > 20
    for label in charts.evaluate_all("all => all.map((chart) => chart.getAttribute('aria-label'))"):
        assert len(label) > 20, label
    assert page.locator("svg.chart:not([role=img])").count() == 0


def test_printing_unfolds_everything_and_folds_it_again(browser: Any, report: Path) -> None:
    page = Watched(browser, report).page
    folded = page.locator("details:not([open])").count()
    assert folded > 3
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folded


def test_a_page_of_thousands_of_samples_answers_at_once(browser: Any, folder: Path) -> None:
    file = write_report(write_run(folder / "many", steps=5, prompts=3000))
    page = Watched(browser, file).page
    took = page.evaluate("""() => {
      const start = performance.now();
      const search = document.getElementById("search");
      search.value = "answer 29";
      search.dispatchEvent(new Event("input"));
      document.querySelector("[data-key=score]").click();
      return performance.now() - start;
    }""")
    assert page.locator("#status").inner_text() == "111 prompts"  # 29, 290 to 299, 2900 to 2999
    assert page.locator("#rows tr").count() == 10
    assert took < 1000
