"""A run that is killed and loses its disk goes on from its second place; a fork goes on from one of its steps under other settings."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from medr3.run.manifest import open_manifest
from medr3.storage import Mirror
from tests.e2e import small_run
from trajectories.audit import audit
from trajectories.events import Event, EventKind, read_events

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# Checkpoints are rarer than steps, so that a kill leaves groups that were finished, and some that were trained, behind the manifest.
RUN = (
    "rollout.max_staleness=1", "run.checkpoint_every=2", "run.keep_checkpoints=9", "curriculum.phases.reasoning.min_steps=40",
    "curriculum.phases.reasoning.max_steps=40", "curriculum.phases.reasoning.plateau.probe_every=20",
)  # fmt: skip


def events(folder: Path, *kinds: EventKind) -> list[Event]:
    return [event for event in read_events(folder / "events.jsonl").events if event.kind in kinds]


def steps_since_the_start(folder: Path) -> int:
    """Learner steps of the process that runs now."""
    seen = read_events(folder / "events.jsonl").events if (folder / "events.jsonl").exists() else []
    begins = [i for i, event in enumerate(seen) if event.kind in (EventKind.RUN_STARTED, EventKind.RESUMED)]
    return len({event["step"] for event in seen[begins[-1] :] if event.kind is EventKind.TRAINED}) if begins else 0


def stopped(folder: Path, overrides: tuple[str, ...], steps: int) -> None:
    """Makes so many steps, then ends on request."""
    process = small_run.start(folder, *overrides)
    try:
        small_run.wait_until(lambda: steps_since_the_start(folder) >= steps, process, folder, 240)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(120) == 0, small_run.output(folder)[-3000:]
    finally:
        small_run.end(process)


@pytest.fixture(scope="module")
def lost(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed behind a checkpoint that its mirror has, its folder removed, brought back from the mirror, stopped after three steps."""
    folder = small_run.begin_from(finished, tmp_path_factory.mktemp("runs") / "lost")
    place = folder.with_name("mirror").as_uri()
    overrides = (*RUN, f"run.mirror={place}")
    process = small_run.start(folder, *overrides)
    try:
        small_run.wait_until(
            lambda: steps_since_the_start(folder) >= 3 and Mirror(place).newest() is not None, process, folder, 240
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        small_run.end(process)
    shutil.rmtree(folder)
    stopped(folder, overrides, steps=3)
    return folder


def test_a_lost_disk_costs_what_came_after_the_last_checkpoint_and_nothing_else(lost: Path) -> None:
    found = audit(lost)
    assert found.violations == []
    resumed = events(lost, EventKind.RESUMED)
    assert [event["generation"] for event in resumed] == [2]
    assert all(event["reason"] for event in events(lost, EventKind.DISCARDED))
    published = {event["version"]: event["checksum"] for event in events(lost, EventKind.PUBLISHED)}
    assert published[f"1.{resumed[0]['step']}"] == published[f"2.{resumed[0]['step']}"], (
        "the weights of the checkpoint, bit for bit"
    )
    manifest, mirrored = open_manifest(lost), Mirror((lost.with_name("mirror")).as_uri()).newest()
    assert manifest is not None and mirrored is not None
    assert (manifest.step, manifest.generation) == (mirrored.step, mirrored.generation), "a stop leaves no mirror behind"


def test_a_fork_goes_on_from_a_step_under_other_settings(lost: Path, tmp_path: Path) -> None:
    folder = tmp_path / "forked"
    changed = ("curriculum.phases.reasoning.learning_rate=1e-6", "rollout.max_staleness=0")
    stopped(folder, (*RUN, *changed, "--fork", f"{lost}@2"), steps=2)
    assert audit(folder).violations == []
    assert "forked from lost at step 2 in phase reasoning" in small_run.output(folder)
    manifest = open_manifest(folder)
    assert manifest is not None and manifest.forked_from is not None
    assert manifest.forked_from.step == 2 and "rollout.max_staleness" in manifest.forked_from.changed
    ours = {event["version"]: event["checksum"] for event in events(folder, EventKind.PUBLISHED)}
    theirs = {event["version"]: event["checksum"] for event in events(lost, EventKind.PUBLISHED)}
    assert ours["1.2"] == theirs["1.2"], "it begins with the parent's weights"
    rates = [json.loads(line)["learner/learning_rate"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rates) >= 2 and max(rates) <= 1e-6
