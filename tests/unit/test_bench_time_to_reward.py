"""When a run was good enough: from which lines it is read, what counts as reached, and what two runs may be compared in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.time_to_reward import RunRefused, run
from medr3.cli import app

BEGAN, ENTERED = 1_000.0, 1_060.0
STEP_S, TOKENS = 5.0, 1_000  # of every step
PROBE_S = 2.0


def write_run(
    folder: Path, scores: dict[int, float], phases: dict[int, str] | None = None, settings: dict[str, Any] | None = None
) -> Path:
    """A run of one step every seven seconds, probed after each; `phases` says which phase is on from a step on."""
    folder.mkdir(parents=True)
    events: list[dict[str, Any]] = [
        {"kind": "run_started", "time": BEGAN, "run_id": folder.name, "generation": 1, "max_staleness": 0},
        {"kind": "phase_entered", "time": ENTERED, "phase": "joint", "step": 0},
    ]
    phase = "joint"
    for step, score in scores.items():
        phase = (phases or {}).get(step, phase)
        told = {"phase": phase, "step": step, "score": score, "n": 200}
        events.append({"kind": "probe", "time": ENTERED + PROBE_S + step * (STEP_S + PROBE_S), **told})
    write_lines(folder / "events.jsonl", events)
    rows = [
        {"step": step, "phase": "p", "time/step": STEP_S, "run/model_tokens": step * TOKENS} for step in sorted(scores) if step
    ]
    write_lines(folder / "metrics.jsonl", rows)
    (folder / "config.json").write_text(json.dumps(settings or {"run": {"name": folder.name, "seed": 0}, "world": {"seed": 0}}))
    return folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def figures(folders: list[Path], accuracy: float = 0.8, phase: str = "") -> dict[str, float]:
    return {row["name"]: row["value"] for row in run(folders, accuracy, phase)["figures"]}


SLOW = {0: 0.2, 1: 0.4, 2: 0.81, 3: 0.7, 4: 0.82, 5: 0.85, 6: 0.95, 7: 0.96}
FAST = {0: 0.2, 1: 0.5, 2: 0.82, 3: 0.85, 4: 0.95, 5: 0.96}


def test_one_good_probe_is_not_enough_and_every_clock_ends_with_the_probe(tmp_path: Path) -> None:
    found = figures([write_run(tmp_path / "slow", SLOW)])
    assert found["slow: steps"] == 4
    assert found["slow: tokens"] == 4 * TOKENS
    assert found["slow: time in steps"] == 4 * STEP_S
    assert found["slow: time in training"] == 4 * (STEP_S + PROBE_S) + PROBE_S
    assert found["slow: time since its start"] == 4 * (STEP_S + PROBE_S) + PROBE_S + ENTERED - BEGAN


def test_the_spread_is_where_the_ends_of_the_interval_were_reached(tmp_path: Path) -> None:
    """0.8 of 200 answers: from 0.745 to 0.855."""
    (row,) = [each for each in run([write_run(tmp_path / "slow", SLOW)])["figures"] if each["name"] == "slow: steps"]
    assert (row["lowest"], row["highest"]) == (4, 6)


def test_the_first_run_is_compared_with_the_others(tmp_path: Path) -> None:
    fast, slow = write_run(tmp_path / "fast", FAST), write_run(tmp_path / "slow", SLOW)
    by_name = {row["name"]: (row["value"], row["reached"]) for row in run([fast, slow])["ratios"]}
    assert by_name["tokens to 0.8: slow over fast"] == (2.0, True)
    assert by_name["time in steps to 0.8: slow over fast"] == (2.0, True)
    assert by_name["time in training to 0.8: slow over fast"] == (pytest.approx(30 / 16), True)
    assert run([slow, fast])["ratios"][0]["reached"] is False


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({0: 0.2, 1: 0.5, 2: 0.79}, "late: 0.8 was not reached in 2 steps and 2,000 tokens"),
        ({0: 0.2, 1: 0.5, 2: 0.9}, "and 2,000 tokens, the last one, which no other confirms"),
    ],
)
def test_what_was_not_reached_is_told_with_how_high_it_came(tmp_path: Path, scores: dict[int, float], words: str) -> None:
    fast, late = write_run(tmp_path / "fast", FAST), write_run(tmp_path / "late", scores)
    measured = run([fast, late])
    assert not measured["ratios"]
    assert words in "\n".join(measured["notes"])
    assert "late: did not reach 0.8 with 1.00 times the tokens that fast took" in measured["notes"]
    assert {row["name"]: row["value"] for row in measured["figures"]}["late: highest accuracy, at step 2"] == scores[2]


def test_a_phase_that_was_good_when_it_was_first_asked_took_that_much_at_most(tmp_path: Path) -> None:
    """Nobody asked its questions before; which makes every ratio to the other run a bound as well, and of the other way none."""
    other = {"phases": {0: "reasoning", 3: "joint"}}
    late = write_run(tmp_path / "late", {0: 0.5, 1: 0.9, 3: 0.82, 4: 0.9, 5: 0.9}, **other)
    plain = write_run(tmp_path / "plain", SLOW)
    measured = run([late, plain])
    assert (
        "late: the first probe of these questions, at step 3, was there already: it took that much at most" in measured["notes"]
    )
    assert measured["ratios"][0]["value"] == pytest.approx(4 / 3)
    assert "late took that much at most, so these ratios to plain are at least that" in measured["notes"]
    assert not run([plain, late])["ratios"]
    assert figures([late], phase="reasoning")["late: highest accuracy, at step 1"] == 0.9


def test_the_time_in_which_no_process_ran_is_left_out_and_what_was_taken_back_is_no_probe(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "slow", SLOW)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    place = next(i for i, event in enumerate(events) if event.get("step") == 3 and event["kind"] == "probe")
    lost = [
        {**events[place], "kind": "trained", "group_id": "g", "engine_id": "e", "step": 3, "episodes": 8},
        {**events[place], "step": 3, "score": 0.99},
    ]
    stopped = events[place]["time"]
    resumed = {"kind": "resumed", "time": stopped + 500, "generation": 2, "step": 2, "position": place}
    later = [{**event, "time": event["time"] + 500} for event in events[place:]]
    write_lines(folder / "events.jsonl", [*events[:place], *lost, resumed, *later])
    measured = run([folder])
    found = {row["name"]: row["value"] for row in measured["figures"]}
    assert found["slow: steps"] == 4, "the probe that was taken back would have confirmed step 2"
    assert found["slow: time in training"] == 4 * (STEP_S + PROBE_S) + PROBE_S
    assert "slow: 500 s in which it did not run are left out" in measured["notes"]
    assert "slow: 1 steps were taken back: their time counts, their tokens do not" in measured["notes"]


def test_reports_over_all_kinds_stand_where_their_phase_ended(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "slow", SLOW)
    left = {"kind": "phase_left", "time": ENTERED + 60, "phase": "joint", "step": 7, "left_by": "plateau", "reason": "flat"}
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(left) + "\n")
    reports = [
        {"stage": "cold_start", "phase": "joint", "correct": {"a": False, "b": False}},
        {"stage": "joint", "phase": "reasoning", "correct": {"a": True}},
        {"stage": "joint", "phase": "joint", "correct": {"b": False}},
        {"stage": "joint", "phase": "joint", "correct": {"b": True, "c": True, "d": False}},  # again, after a resume
    ]
    write_lines(folder / "heldout.jsonl", reports)
    found = figures([folder], 0.75)
    assert found["slow: all kinds, after cold_start, step 0"] == 0
    assert found["slow: all kinds, after joint, step 7"] == 0.75
    assert found["slow: tokens to 0.75 over all kinds, at most"] == 7 * TOKENS


def test_runs_that_were_asked_other_questions_are_not_compared_and_other_settings_are_named(tmp_path: Path) -> None:
    settings = {"run": {"name": "a", "seed": 0}, "world": {"seed": 0}, "rollout": {"max_staleness": 0}}
    one = write_run(tmp_path / "one", FAST, settings=settings)
    two = write_run(tmp_path / "two", FAST, settings={**settings, "rollout": {"max_staleness": 2}})
    three = write_run(tmp_path / "three", FAST, settings={**settings, "world": {"seed": 1}})
    assert "two differs from one in: rollout.max_staleness 2" in run([one, two])["notes"]
    with pytest.raises(RunRefused, match=r"three: was asked other questions than one: world\.seed is 1, not 0"):
        run([one, three])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "metrics.jsonl").write_text("[]\n"), "metrics.jsonl:1: is no JSON object: the file is damaged"),
        (lambda folder: (folder / "metrics.jsonl").write_text('{"step": 1}\n'), "step 1 does not tell its time/step and run/model_tokens"),
        (lambda folder: (folder / "events.jsonl").unlink(), "name a run folder, such as runs/demo"),
        (lambda folder: (folder / "events.jsonl").write_text(""), "events.jsonl: is empty: name a run that was started"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_answer_is_refused_in_one_line(tmp_path: Path, damage: Any, words: str) -> None:
    folder = write_run(tmp_path / "run", FAST)
    damage(folder)
    done = CliRunner().invoke(app, ["bench", "time-to-reward", str(folder)])
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)


def test_the_command_prints_what_compare_reads(tmp_path: Path) -> None:
    fast, slow = write_run(tmp_path / "fast", FAST), write_run(tmp_path / "slow", SLOW)
    done = CliRunner().invoke(app, ["bench", "time-to-reward", str(fast), str(slow), "--accuracy", "0.9", "--json"])
    told = json.loads(done.stdout)
    assert (told["benchmark"], told["ratios"][0]["value"]) == ("time-to-reward", pytest.approx(6 / 4))
    assert "named twice" in str(CliRunner().invoke(app, ["bench", "time-to-reward", str(fast), str(fast)]).exception)
