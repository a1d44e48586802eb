"""Metrics, the closing table, and what the report reads and writes."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr3.errors import UserError
from medr3.observe.config import TrackingConfig
from medr3.observe.curves import DRAWN
from medr3.observe.metrics_file import MetricsFile, read_metrics
from medr3.observe.record import load_record, wilson
from medr3.observe.registry import UnknownMetric, lookup
from medr3.observe.report import write_report
from medr3.observe.summary import closing_table
from medr3.observe.tracker import PROGRESS_PARTS, Tracker
from tests.synthetic_run import summary
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


def test_every_metric_that_is_shown_is_registered() -> None:
    shown = {name for name, _ in PROGRESS_PARTS} | {name for drawn in DRAWN for name in drawn.metrics.values()}
    for name in shown:
        lookup(name)


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
