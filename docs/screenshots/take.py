"""Takes the pictures of docs/dashboard.md from a run: `make screenshots RUN=runs/demo`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from medr3.observe.serving import Dashboard

HERE = Path(__file__).parent
DESK, PHONE = (1200, 1000), (390, 844)


def top(page: Page) -> None:
    page.evaluate("window.scrollTo(0, 0)")


def rewards(page: Page) -> None:
    page.evaluate("document.getElementById('rewards').scrollIntoView()")


def speed(page: Page) -> None:
    page.evaluate("document.getElementById('speed').scrollIntoView()")


def episode(page: Page) -> None:
    """The newest right one of the last phase, with several searches where there is one."""
    page.locator("[name=phase]").select_option(index=page.locator("[name=phase] option").count() - 1)
    with page.expect_response("**/episodes?*verdict=right*") as answer:
        page.locator("[name=verdict]").select_option("right")
    answer.value.finished()
    cards = page.locator("details.episode")
    cards.first.wait_for()
    several = cards.filter(has_text="2 searches")
    card = several.first if several.count() else cards.first
    card.locator("summary").click()
    card.locator(".paid").wait_for()
    card.evaluate("card => card.scrollIntoView()")


SHOTS = (
    ("desk", DESK, "light", top),
    ("desk-dark", DESK, "dark", speed),
    ("episode", DESK, "light", episode),
    ("phone", PHONE, "light", top),
    ("phone-dark", PHONE, "dark", rewards),
    ("phone-episode", PHONE, "dark", episode),
)


def main(run: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("install Chromium, on Debian: apt-get install chromium")
    dashboard = Dashboard(run, 0)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments, downloads_path=profile)
        for name, (width, height), scheme, show in SHOTS:
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(dashboard.url)
            page.locator("details.episode").first.wait_for()
            show(page)
            page.wait_for_timeout(300)  # a frame in which the canvases are painted
            page.screenshot(path=HERE / f"{name}.png")
            print(HERE / f"{name}.png")
        browser.close()
    dashboard.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
