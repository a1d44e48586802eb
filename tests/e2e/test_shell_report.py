"""The report in a real browser: at a desk, on a phone, in the dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from medr3.observe.report import write_report
from tests.synthetic_run import write_run

pytestmark = pytest.mark.e2e

# Relative luminance contrast of WCAG 2, level AA for text of normal size.
CONTRAST_AA = 4.5
MEASURE_CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } };
  return [...document.querySelectorAll('h1, h2, p, td, th, dt, dd, li, small, .unit, .pill')].filter(node => node.offsetParent)
    .map(node => { const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), node.className + ': ' + node.textContent.slice(0, 40)]; })
    .sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "demo"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "install Chromium, on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        started = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield started
        started.close()


def opened(browser: Browser, report: Path, width: int, scheme: str) -> tuple[Page, list[str]]:
    """The page, and all that it asked for or complained of."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()  # type: ignore[arg-type]
    noticed: list[str] = []
    page.on("request", lambda request: noticed.append(request.url))
    page.on("console", lambda message: noticed.append(message.text))
    page.on("pageerror", lambda error: noticed.append(str(error)))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    return page, noticed


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "shown", "hidden"), [(1100, "wide", "narrow"), (360, "narrow", "wide")])
def test_the_report_fits_and_asks_nobody(
    browser: Browser, report: Path, width: int, scheme: str, shown: str, hidden: str
) -> None:
    page, noticed = opened(browser, report, width, scheme)
    assert noticed == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator(f"main > figure svg.{shown}").first.is_visible()
    assert not page.locator(f"main > figure svg.{hidden}").first.is_visible()
    assert page.locator("svg").count() == page.locator("svg[role=img][aria-label]").count() > 0
    contrast, where = page.evaluate(MEASURE_CONTRAST)
    assert contrast >= CONTRAST_AA, where


def test_labels_of_a_chart_are_as_large_as_they_say(browser: Browser, report: Path) -> None:
    """Charts are drawn per width, so that labels never shrink below what can be read."""
    for width in (1100, 360):
        page, _ = opened(browser, report, width, "light")
        heights = page.evaluate(
            "[...document.querySelectorAll('svg text.tick')].map(one => one.getBoundingClientRect().height).filter(Boolean)"
        )
        assert min(heights) >= 10


def test_episodes_are_read_with_their_documents_and_evidence(browser: Browser, report: Path) -> None:
    page, _ = opened(browser, report, 1100, "light")
    episode = page.locator("details.episode").filter(has_text="joint").first
    assert episode.locator(".block.search").count() == 2
    assert episode.locator(".block.document .pill").all_inner_texts() == ["level I", "level IV", "level II"]
    assert episode.locator(".block.answer").inner_text().endswith("B")
