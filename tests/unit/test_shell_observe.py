"""Metrics, the closing table, and what the report reads and writes."""

from __future__ import annotations

import json
import math
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr3.errors import UserError
from medr3.observe.charts import Chart, Series, figure, ticks
from medr3.observe.config import TrackingConfig
from medr3.observe.metrics_file import MetricsFile, read_metrics
from medr3.observe.record import load_record, wilson
from medr3.observe.registry import METRICS, UnknownMetric, lookup
from medr3.observe.report import DETAIL_CHARTS, write_report
from medr3.observe.summary import closing_table
from medr3.observe.tracker import PROGRESS_PARTS, Tracker
from tests.synthetic_run import PHASES, summary, write_run
from trajectories.events import EventKind, EventLog

QUIET = TrackingConfig(wandb="disabled", progress=False)


def test_an_unregistered_metric_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, QUIET)
    with pytest.raises(UnknownMetric, match="did you mean rollout/tokens_per_s"):
        tracker.log(1, "joint", {"reward/mean": 1.0, "rolout/tokens_per_s": 2.0})
    tracker.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("name", ["reward", "reward/", "reward/*", "nonsense/x", ""])
def test_names_without_meaning_are_unknown(name: str) -> None:
    with pytest.raises(UnknownMetric):
        lookup(name)


def test_every_metric_that_is_shown_is_registered_by_its_own_name() -> None:
    shown = {name for name, _ in PROGRESS_PARTS} | {name for *_, curves in DETAIL_CHARTS for name in curves.values()}
    assert shown <= METRICS.keys()


def test_steps_are_logged_once_and_in_order(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, QUIET)
    tracker.log(1, "joint", {"reward/mean": 1.0})
    with pytest.raises(ValueError, match="step 1 after step 1"):
        tracker.log(1, "joint", {"reward/mean": 1.0})
    tracker.close()


def test_a_resume_takes_back_the_steps_after_the_manifest(tmp_path: Path) -> None:
    first = Tracker(tmp_path, QUIET)
    for step in (1, 2, 3):
        first.log(step, "joint", {"reward/mean": 0.0})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ph')  # the writer was killed within a line
    second = Tracker(tmp_path, QUIET, tracker_id=first.id, resume_step=2)
    second.log(3, "joint", {"reward/mean": 1.0})
    second.close()
    assert second.id == first.id
    assert [(row["step"], row["reward/mean"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 0.0),
        (2, 0.0),
        (3, 1.0),
    ]


def test_a_figure_that_is_no_number_is_null_and_not_invalid_json(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, "joint", {"learner/grad_norm": math.nan})
    file.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["learner/grad_norm"] is None


def test_damage_within_the_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not JSON"):
        load_record(tmp_path)


def test_wandb_offline_keeps_its_files_in_the_run_folder_and_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = Tracker(tmp_path, TrackingConfig(), name="demo", settings={"seed": 0})
    tracker.log(1, "joint", {"reward/mean": 0.5, "learner/mismatch_mean": 2e-5})
    tracker.close()
    tracker.close()
    written = capfd.readouterr()
    assert written.out == "step 1  joint       reward 0.500  mismatch 2.0e-05\n"
    assert written.err == ""
    (record,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 20  # its own process writes the file, up to a tenth of a second after the end on idle cores
    while b"reward/mean" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"reward/mean" in record.read_bytes()


def test_wandb_online_without_a_key_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="WANDB_API_KEY is not set"):
        Tracker(tmp_path, TrackingConfig(wandb="online"))


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_holds_the_share_and_stays_within_bounds(right: int, n: int) -> None:
    share = min(right, n) / n
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    assert high - low < wilson(share, max(1, n // 2))[1] - wilson(share, max(1, n // 2))[0] or n == 1


@given(st.floats(0, 1e9), st.floats(-1e9, 0), st.integers(2, 10))
def test_ticks_cover_the_axis_with_few_round_numbers(top: float, bottom: float, wanted: int) -> None:
    found = ticks(top, bottom, wanted)
    slack = (top - bottom) * 1e-6 + 1e-12
    assert found[0] <= bottom + slack
    assert found[-1] >= top - slack
    assert 0.0 in found
    assert 2 <= len(found) <= wanted + 2
    assert found == sorted(set(found))


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.floats(-10, 1e7)), min_size=1, max_size=30, unique_by=lambda point: point[0])
)
def test_a_chart_draws_any_points_inside_its_frame(points: list[tuple[float, float]]) -> None:
    drawn = figure(Chart("a < b", "unit", [Series('"x"', sorted(points))]))
    assert "nan" not in drawn
    assert "a < b" not in drawn
    Balanced().feed(drawn)


def test_nothing_to_draw_is_nothing() -> None:
    assert figure(Chart("t", "u", [Series("x", [])])) == ""


class Balanced(HTMLParser):
    """Fails on a tag that is closed by another, and keeps every reference to something outside the page."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_holds_all_of_it_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    page = Balanced()
    page.feed(write_report(write_run(tmp_path / "run")).read_text(encoding="utf-8"))
    assert page.open == []
    assert page.references == ["data:,"]
    for phase, *_ in PHASES:
        assert f"{phase} left at step" in page.text
    for words in (
        "0.240",
        "without retrieval",
        "all rewards equal",
        "level IV",
        "2,976 trained",
        'no idea <b>"quoted" & raw</b>',
    ):
        assert words in page.text


def test_a_run_that_goes_on_has_a_report_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ended=False)
    assert "going on" in write_report(run).read_text(encoding="utf-8")


def test_a_run_that_died_at_once_has_a_report_too(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as events:
        events.append(EventKind.FAILED, reason="engine 0 <did> not start")
    assert "engine 0 &lt;did&gt; not start" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        write_report(tmp_path)


def test_what_a_resume_takes_back_is_not_reported(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as events:
        events.append(EventKind.PHASE_ENTERED, phase="reasoning", step=0)
        events.append(EventKind.CHECKPOINT, step=5)
        events.append(EventKind.PROBE, phase="reasoning", step=6, score=0.1, n=10)
        events.append(EventKind.PHASE_LEFT, phase="reasoning", step=6, left_by="plateau", reason="flat")
        events.append(EventKind.PHASE_ENTERED, phase="joint", step=6)
        events.append(EventKind.RESUMED, generation=1, step=5)
        events.append(EventKind.PROBE, phase="reasoning", step=6, score=0.9, n=10)
    record = load_record(tmp_path)
    assert [(phase.name, phase.left_by) for phase in record.phases] == [("reasoning", "")]
    assert [probe.score for probe in record.probes] == [0.9]


def test_the_closing_table_is_plain_outside_a_terminal() -> None:
    table = closing_table(summary(93), plain=True)
    assert table.isascii()
    assert "0.240 (0.20-0.28)" in table
    assert "groups 3198 admitted, 2976 trained, 221 dropped, 1 voided" in table
    assert "\x1b[" in closing_table(json.loads(json.dumps(summary(93))), plain=False)
