"""A run that keeps its promises breaks no invariant; break one promise, and the invariant that is about it says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medr3.chaos.breaking import BREAKAGES
from medr3.chaos.evidence import DriverLife, Evidence, Injected, ordinary_cycle_s, read_run, recovery_s
from medr3.chaos.invariants import INVARIANTS, check
from medr3.chaos.record import Record
from tests.chaos_run import make_run
from trajectories.events import EventKind

AUDIT, STEPS, ENDED, SURVIVED = "groups, ages, versions and rows", "each step once", "ended as told", "every fault was survived"
RESTORED, DECIDED, HELD_OUT, CLEAN = (
    "resumed bit for bit",
    "the twin's decisions",
    "held-out as the twin",
    "nothing is left behind",
)
GROUPS = 2  # of one step, as RunFolder writes them
FAULT = Injected(
    1, "driver_killed", "driver 7", 1.0, "it goes on", True, 120.0, driver_may_end=True, driver_ended=True, recovered_s=9.0
)


def evidence_of(folder: Path, twin: Evidence | None = None) -> Evidence:
    events, audited = read_run(folder)
    lives = [DriverLife(0, 1, 0, killed=False)]
    faults = []
    if twin is not None:
        lives = [
            DriverLife(0, 1, -9, killed=True),
            DriverLife(1, 2, 0, killed=False, resumed_step=1, saved_state="x", loaded_state="x"),
        ]
        faults = [FAULT]
    return Evidence(
        folder.name, folder, events, audited, "step 1\n", lives, faults, len(faults), GROUPS, wants_end=True,
        heldout={"joint": {"joint": (0.5, 100)}}, twin=twin,
    )  # fmt: skip


@pytest.fixture
def whole(tmp_path: Path) -> Evidence:
    return evidence_of(make_run(tmp_path / "killed", killed=True), evidence_of(make_run(tmp_path / "twin", killed=False)))


def violated(evidence: Evidence) -> set[str]:
    return {name for name, lines in check(evidence).items() if lines}


def test_a_run_that_was_killed_and_kept_its_promises(whole: Evidence) -> None:
    assert check(whole) == {name: [] for name in INVARIANTS}
    assert whole.twin is not None
    assert check(whole.twin) == {name: [] for name in INVARIANTS}


@pytest.mark.parametrize(
    ("name", "invariants"),
    [
        ("one-ending-dropped", {AUDIT}),
        ("one-group-twice", {AUDIT}),
        ("one-version-reused", {AUDIT}),
        ("one-engine-stale", {AUDIT}),
        ("one-step-lost", {STEPS}),
        ("wrong-weights-loaded", {RESTORED}),
        ("a-failure-reported-as-success", {ENDED}),
        ("another-decision", {DECIDED}),
        ("another-curve", {HELD_OUT}),
        ("a-fault-not-survived", {SURVIVED}),
        ("a-process-left", {CLEAN}),
    ],
)
def test_what_is_broken_on_purpose_is_named(whole: Evidence, name: str, invariants: set[str]) -> None:
    assert invariants <= violated(BREAKAGES[name](whole))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one-ending-dropped", "1 groups have no outcome although the run has stopped"),
        ("one-group-twice", "ended twice, trained and dropped"),
        ("one-version-reused", "published twice"),
        ("one-engine-stale", "without an ack"),
    ],
)
def test_the_audit_finds_it_for_the_right_reason(whole: Evidence, name: str, words: str) -> None:
    found = check(BREAKAGES[name](whole))[AUDIT]
    assert words in found[0]


def test_every_breakage_is_tested_and_every_invariant_can_be_broken(whole: Evidence) -> None:
    assert set().union(*(violated(breaks(whole)) for breaks in BREAKAGES.values())) == INVARIANTS.keys()


@pytest.mark.parametrize(
    ("change", "invariant", "words"),
    [
        ({"planned": 2}, SURVIVED, "only 1 of 2 faults were done"),
        ({"faults": [replace(FAULT, recovered_s=121.0)]}, SURVIVED, "recovered after 121 s, allowed are 120 s"),
        ({"faults": [replace(FAULT, driver_may_end=False)]}, SURVIVED, "the driver ended, but it goes on"),
        ({"lives": []}, ENDED, "never started"),
        ({"lives": [DriverLife(0, 1, -9, killed=True)]}, ENDED, "the last driver ended with -9"),
        ({"lives": [DriverLife(0, 1, 1, killed=False), DriverLife(1, 2, 0, killed=False)]}, ENDED, "driver 1 ended with 1"),
        ({"lives": [DriverLife(0, 1, 0, killed=True), DriverLife(1, 2, 0, killed=False)]}, ENDED, "driver 1 ended with 0"),
        ({"said": "Traceback (most recent call last):\n"}, ENDED, "a traceback was shown"),
        ({"wants_end": False}, ENDED, "the last event is stopped, not paused"),
        ({"shared_left": ["/dev/shm/medr3-x"]}, CLEAN, "shared memory /dev/shm/medr3-x"),
        ({"files_left": ["checkpoints/step-000003.unfinished"]}, CLEAN, "file checkpoints/step-000003.unfinished"),
        ({"actors_left": ["RolloutActor"]}, CLEAN, "actor RolloutActor"),
        (
            {"descriptors": [(200, 220), (200, 900)]},
            CLEAN,
            "driver 2 had 200 descriptors when it began to train and 900 at its end",
        ),
        ({"groups_per_step": 3}, STEPS, "step 1 was trained on 2 groups, a batch is 3"),
    ],
)
def test_what_else_is_no_success(whole: Evidence, change: dict[str, object], invariant: str, words: str) -> None:
    assert any(words in line for line in check(replace(whole, **change))[invariant])  # type: ignore[arg-type]


def test_noise_of_few_questions_is_no_difference(whole: Evidence) -> None:
    assert check(replace(whole, heldout={"joint": {"joint": (0.6, 100)}}))[HELD_OUT] == []
    assert check(replace(whole, heldout={"joint": {"joint": (0.9, 100)}}))[HELD_OUT] != []


def test_a_killed_driver_may_leave_without_a_word_but_a_failed_one_may_not_claim_success(whole: Evidence) -> None:
    resumable = [DriverLife(0, 1, 3, killed=False), DriverLife(1, 2, 130, killed=False), DriverLife(2, 3, 0, killed=False)]
    assert check(replace(whole, lives=resumable))[ENDED] == []


def test_recovery_counts_from_the_fault_to_a_group_that_came_after_it(whole: Evidence) -> None:
    resumed = next(event for event in whole.events if event.kind is EventKind.RESUMED)
    after = [event for event in whole.events if event.time > resumed.time]
    admitted = next(event["group_id"] for event in after if event.kind is EventKind.ADMITTED)
    trained = next(event for event in after if event.kind is EventKind.TRAINED and event["group_id"] == admitted)
    assert recovery_s(whole.events, resumed.time) == trained.time - resumed.time
    assert recovery_s(whole.events, whole.events[-1].time) is None
    assert len(ordinary_cycle_s(whole.events)) == 5  # the last publication was never trained on


def test_the_record_tells_what_was_violated(whole: Evidence, tmp_path: Path) -> None:
    record = Record(Path("plan.yaml"), 0, tmp_path)
    assert whole.twin is not None
    for evidence in (whole.twin, whole):
        record.add(evidence)
    assert not record.violations
    assert "every invariant held; recovery p50 9.0 s" in record.write()
    record.add(BREAKAGES["one-ending-dropped"](whole))
    assert list(record.violations) == [AUDIT, STEPS]
    assert "violations;" in record.write()
    assert "has no outcome" in (tmp_path / "record.md").read_text()
