"""The run's page in a real browser: at a desk, on a phone, in the dark; as a file, and served while the run grows."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from medr3.observe.report import write_report
from medr3.observe.serving import Dashboard
from tests.synthetic_run import PHASES, write_run
from trajectories.events import EventKind, EventLog

pytestmark = pytest.mark.e2e

DESK, PHONE = 1200, 390
STEPS = sum(steps for _, steps, *_ in PHASES)
# Relative luminance contrast of WCAG 2, level AA for text of normal size.
CONTRAST_AA = 4.5
MEASURE_CONTRAST = """() => {
  const shown = 'h1, h2, h3, h4, p, td, th, dt, dd, li, small, a, b, label, summary, .unit, .pill, .block, .gist, .asked';
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => linear(r) * .2126 + linear(g) * .7152 + linear(b) * .0722;
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((v, i) => v * a + below[i] * (1 - a));
  const behind = node => {
    const layers = [];
    for (let opaque = false; node && !opaque; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      opaque = colour.length === 3 || colour[3] === 1;
      layers.unshift(colour);
    }
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  return [...document.querySelectorAll(shown)]
    .filter(node => node.offsetParent && node.textContent.trim() && !node.matches('.skip, .unseen'))
    .map(node => {
      const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), `${node.tagName} ${node.className}: ${node.textContent.slice(0, 40)}`];
    }).sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "install Chromium, on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        started = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def report(run: Path) -> Path:
    return write_report(run)


class Opened:
    """The page, and all that it asked for or complained of."""

    def __init__(self, browser: Browser, url: str, width: int = DESK, scheme: str = "light") -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        context.set_default_timeout(15_000)
        self.page: Page = context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def open_episode(self, text: str) -> None:
        self.page.locator("details.episode").filter(has_text=text).first.locator("summary").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_the_page_fits_asks_nobody_and_can_be_read(browser: Browser, report: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, report.as_uri(), width, scheme)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.locator(".paid").first.wait_for()
    assert opened.asked == [report.as_uri()]
    assert opened.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    plots, wide = page.locator(".plot"), page.evaluate("[...document.querySelectorAll('.plot')].map(one => one.clientWidth)")
    assert plots.count() == page.locator(".plot[role=img][aria-label][tabindex='0'] canvas").count() > 12
    drawn = page.evaluate("[...document.querySelectorAll('.plot .uplot')].map(one => one.clientWidth)")
    assert drawn == wide, "every chart fills its place and no more"
    contrast, where = page.evaluate(MEASURE_CONTRAST)
    assert contrast >= CONTRAST_AA, where


def test_what_a_model_wrote_is_shown_as_text(browser: Browser, report: Path) -> None:
    opened = Opened(browser, report.as_uri())
    opened.open_episode("wrong")
    expect(opened.page.locator("details.episode[open] .block").first).to_contain_text(
        "</script><script>document.title = 'broken'"
    )
    assert opened.page.title() == "demo · ended · medr3"
    assert opened.page.locator("details.episode img").count() == 0


def test_a_chart_is_read_with_the_keyboard_and_zoomed_with_a_pointer(browser: Browser, report: Path) -> None:
    page = Opened(browser, report.as_uri()).page
    page.locator("[aria-label^='Training reward']").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#spoken")).to_contain_text("step 2, each step")
    expect(page.locator("figure").nth(2).locator(".legend")).to_contain_text("step 2")
    box = page.locator(".plot .u-over").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=4)
    page.mouse.up()
    limits = page.evaluate("[...charts.values()].map(one => [one.drawn.scales.x.min, one.drawn.scales.x.max])")
    assert {tuple(each) for each in limits} == {(23, 47)}, "all charts show the same steps"
    page.get_by_role("button", name="Whole run").click()
    assert page.evaluate("charts.get('reward').drawn.scales.x.max") == STEPS


def test_episodes_are_found_and_read_with_their_documents_and_evidence(browser: Browser, report: Path) -> None:
    page = Opened(browser, report.as_uri()).page
    page.locator("[name=phase]").select_option("joint")
    page.locator("[name=verdict]").select_option("right")
    episode = page.locator("details.episode")
    expect(episode).to_have_count(1)
    episode.locator("summary").click()
    expect(episode.locator(".block.search")).to_have_count(2)
    assert episode.locator(".block.document .pill").all_inner_texts() == ["level I", "level IV", "level II"]
    expect(episode.locator(".turn").first).to_contain_text("gain +0.25")
    expect(episode.locator(".block.answer")).to_contain_text("B")
    expect(episode.locator(".paid")).to_contain_text("1.350")
    page.locator("[name=words]").fill("nowhere")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No episode is like that.")).to_be_visible()


def grow(source: Path, target: Path, name: str, lines: int) -> None:
    """Appends what the source's file has beyond the target's, as the run's own writer would."""
    have = (target / name).read_text().count("\n") if (target / name).exists() else 0
    with (target / name).open("a") as file:
        file.writelines((source / name).read_text().splitlines(keepends=True)[have:lines])


def test_a_served_page_follows_its_run_and_says_when_nobody_answers(browser: Browser, run: Path, tmp_path: Path) -> None:
    """From before the first step, over steps, a stop and a change of phase, to the end; and behind it, without a reload."""
    live = tmp_path / "live"
    live.mkdir()
    (live / "status.json").write_text(json.dumps({"state": "preparing", "host": "elsewhere", "pid": 1}))
    dashboard = Dashboard(live, 0)
    try:
        opened = Opened(browser, dashboard.url)
        page = opened.page
        expect(page.get_by_text("No step has been made yet")).to_be_visible()
        expect(page.get_by_text("No episode has been stored yet")).to_be_visible()
        grow(run, live, "events.jsonl", 3)
        dashboard.follower.look()
        expect(page.locator("figure h3")).to_have_text(["Held-out accuracy"])
        grow(run, live, "metrics.jsonl", 3)
        grow(run, live, "events.jsonl", 10)
        dashboard.follower.look()
        expect(page.locator("#state")).to_contain_text("going on at step 3")
        expect(page.get_by_text("No step has been made yet")).to_be_hidden()
        shutil.copytree(run / "trajectories", live / "trajectories")
        grow(run, live, "metrics.jsonl", 10_000)
        grow(run, live, "events.jsonl", 100_000)
        dashboard.follower.look()
        expect(page.locator("#state")).to_contain_text(f"ended after {STEPS} steps")
        expect(page.locator(".reasons li")).to_have_count(3)
        titles = page.locator("figure h3").all_inner_texts()
        assert titles[:3] == ["Training reward", "Held-out accuracy", "Reward components"], "in order, though probes came first"
        assert titles[-1] == "Engines over time"
        assert page.evaluate("charts.get('reward').drawn.data[0].length") == STEPS
        expect(page.locator("details.episode")).to_have_count(6)
        fresh = Opened(browser, dashboard.url).page
        for chart in ("heldout", "lanes"):
            painted = f"charts.get('{chart}').drawn.ctx.canvas.toDataURL()"
            assert page.evaluate(painted) == fresh.evaluate(painted), f"{chart}: intervals and lanes grow with the run"
        page.locator("[aria-label^='Throughput']").focus()
        page.keyboard.press("Home")
        for _ in range(29):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Episodes of step 30").click()
        expect(page.locator("details.episode")).to_have_count(2)
        opened.open_episode("right")
        expect(page.locator("details.episode[open] .block.search")).to_have_count(2)
        assert {url.split("?")[0] for url in opened.asked} <= {
            f"{dashboard.url}{name}" for name in ("", "live", "episodes", "episode")
        }
        assert opened.complaints == []
    finally:
        dashboard.close()
    expect(page.locator("#link")).to_contain_text("does not answer", timeout=30_000)


def test_a_run_that_failed_after_one_step_can_be_read(browser: Browser, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "failed"
    folder.mkdir()
    grow(run, folder, "metrics.jsonl", 1)
    grow(run, folder, "events.jsonl", 5)
    with EventLog(folder / "events.jsonl") as events:
        events.append(EventKind.FAILED, reason="PoolDied: engine 0 refused 0.1: <checksum>")
    opened = Opened(browser, write_report(folder).as_uri(), PHONE)
    expect(opened.page.locator("#state")).to_have_text("failed at step 1: PoolDied: engine 0 refused 0.1: <checksum>")
    assert opened.page.locator(".plot canvas").count() > 8
    assert opened.page.evaluate("document.documentElement.scrollWidth") == PHONE
    assert opened.complaints == []


def test_the_command_serves_until_it_is_interrupted(run: Path) -> None:
    command = [sys.executable, "-m", "medr3.cli", "dashboard", "--port", "0", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
        assert found, said
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        connection.request("GET", "/")
        assert b"<title>demo" in connection.getresponse().read()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
