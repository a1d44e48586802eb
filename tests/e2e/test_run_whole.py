"""The whole system, end to end: a run that finishes, is killed and resumed, is interrupted. Every part is real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from medr3.chaos.processes import surviving
from medr3.run.services import unique_name
from tests.e2e import small_run
from trajectories.audit import audit
from trajectories.events import EventKind, read_events

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]  # whole runs take minutes on a slow machine


def test_every_promise_is_kept_by_the_files_alone(finished: Path) -> None:
    found = audit(finished)
    assert found.violations == []
    assert found.finished and not found.open
    assert found.admitted == found.trained + found.dropped + found.voided
    assert found.trained >= 8 * 6 and found.trained_tokens > 1000
    assert 1 <= found.max_age <= 2, "the run was asynchronous, and within its bound"


def test_it_went_on_in_the_phase_in_which_it_was_killed(finished: Path) -> None:
    manifest = json.loads((finished / "killed.json").read_text())
    events = read_events(finished / "events.jsonl").events
    resumed = next(i for i, event in enumerate(events) if event.kind is EventKind.RESUMED)
    assert events[resumed]["step"] == manifest["step"]
    assert events[resumed]["generation"] == 2
    first = next(event for event in events[resumed:] if event.kind is EventKind.ADMITTED)
    assert first["phase"] == manifest["controller"]["phase"]
    assert f"resumed at step {manifest['step']} in phase {manifest['controller']['phase']}" in small_run.output(finished)


def test_it_advanced_when_told_to_and_the_next_phase_was_probed_before_its_first_step(finished: Path) -> None:
    events = read_events(finished / "events.jsonl").events
    left = next(i for i, event in enumerate(events) if event.kind is EventKind.PHASE_LEFT and event["left_by"] == "override")
    assert (events[left]["phase"], events[left]["to"]) == ("retrieval", "joint")
    probe = next(event for event in events[left:] if event.kind is EventKind.PROBE)
    assert (probe["phase"], probe["step"]) == ("joint", events[left]["step"])


def test_every_step_was_written_once_and_engine_and_learner_agreed(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    compared = [row for row in rows if row.get("learner/mismatch_tokens")]
    assert compared, "no step had a token of the learner's own version"
    assert max(row["learner/mismatch_mean"] for row in compared) <= 1e-4


def test_the_summary_tells_all(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["heldout"]) == {"cold_start", "reasoning", "retrieval", "joint"}
    assert [phase["name"] for phase in summary["phases"]] == ["reasoning", "retrieval", "joint"]
    assert all(phase["left_by"] in ("plateau", "max_steps", "override") and phase["evidence"] for phase in summary["phases"])
    assert summary["groups"]["admitted"] == sum(summary["groups"][end] for end in ("trained", "dropped", "voided"))
    assert summary["max_age"] <= 2 and summary["tokens_per_s"] > 0 and summary["wall_s"] > 0


def test_the_report_shows_what_the_rows_were_asked(finished: Path) -> None:
    """The question that is made anew is the one that the row's prompt holds, in every phase."""
    page = (finished / "report.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["state"]["word"] == "ended"
    assert {episode["phase"] for episode in data["episodes"]} == {"reasoning", "retrieval", "joint"}
    assert all(episode["whole"]["question"]["gold"] for episode in data["episodes"])


def test_weights_in_shared_memory_are_gone(finished: Path) -> None:
    assert not Path("/dev/shm", f"medr3-{unique_name(finished.name, finished)}").exists()


@pytest.mark.parametrize("during", ["cold start", "training"])
def test_ctrl_c_ends_clean_and_resumable(finished: Path, tmp_path: Path, during: str) -> None:
    folder = tmp_path / "interrupted"
    if during == "training":
        small_run.begin_from(finished, folder)
    process = small_run.start(folder)
    try:
        if during == "cold start":
            small_run.wait_until(lambda: "cold start: drills" in small_run.output(folder), process, folder, 120)
        else:
            small_run.wait_until(lambda: small_run.checkpointed_step(folder) >= 1, process, folder, 300)
        below = small_run.descendants(process.pid)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(90) == (130 if during == "cold start" else 0)
        assert not surviving(below, 20)
    finally:
        small_run.end(process)
    assert "Traceback" not in small_run.output(folder)
    assert "goes on from" in small_run.output(folder)
    if during == "training":
        assert audit(folder).violations == []


# Any change of length is a collapse here: what follows one is the same, and a real one would take many more steps.
SIGNAL = "{metric: rollout/response_tokens, bad: both, min_change: 0.001}"
RULES = "reference_steps: 4, recent_steps: 1, warn_at: 0.001, clear_at: 0.0005, signals_to_collapse: 1, patience: 1, max_rollbacks: 1"
TOUCHY = (
    f"curriculum.collapse={{signals: {{length: {SIGNAL}}}, {RULES}}}",
    "curriculum.phases.reasoning.min_steps=40", "curriculum.phases.reasoning.max_steps=40",
)  # fmt: skip


def test_a_collapse_is_rolled_back_and_a_second_one_ends_the_run(finished: Path, tmp_path: Path) -> None:
    folder = small_run.begin_from(finished, tmp_path / "collapsing")
    process = small_run.start(folder, *TOUCHY)
    try:
        assert process.wait(400) == 3, small_run.output(folder)[-3000:]
    finally:
        small_run.end(process)
    said = small_run.output(folder)
    assert "Traceback" not in said
    assert "TrainingCollapsed: phase 'reasoning': collapsed: length: rollout/response_tokens" in said
    events = read_events(folder / "events.jsonl").events
    back, again = [
        next(i for i, event in enumerate(events) if event.kind is kind) for kind in (EventKind.ROLLED_BACK, EventKind.RESUMED)
    ]
    assert (again, events[again]["generation"]) == (back + 1, 2)
    assert events[again]["step"] == events[back]["to_step"] < events[back]["step"]
    rates = [json.loads(line)["learner/learning_rate"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rates[-1] == pytest.approx(rates[0] / 2), "after a roll-back it learns more slowly"
    assert audit(folder).violations == []


def test_another_configuration_is_not_resumed(finished: Path) -> None:
    other = subprocess.run(
        small_run.command(finished, "run.seed=5"),
        cwd=small_run.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert other.returncode == 2
    assert "belongs to another configuration" in other.stderr and "Traceback" not in other.stderr
