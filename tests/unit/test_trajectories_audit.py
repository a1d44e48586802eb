"""A run that keeps its promises passes the audit; break one promise, and the audit names it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.run_folder import EPISODES, RunFolder, episode
from trajectories.audit import EVENTS_FILE, TRAJECTORIES_FOLDER, audit
from trajectories.events import EventKind
from trajectories.schema import VersionSpan, to_table
from trajectories.store import with_ending


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_run_that_keeps_its_promises(run: RunFolder) -> None:
    run.train()
    run.train(age=1)
    run.end(EventKind.DROPPED, run.admit())
    run.end(EventKind.VOIDED, run.admit(), "retrieval timed out")
    report = audit(run.stop())
    assert report.violations == []
    assert (report.admitted, report.trained, report.dropped, report.voided, report.open) == (6, 4, 1, 1, [])
    assert (report.rows, report.trained_tokens, report.max_age, report.published) == (4 * EPISODES, 4 * EPISODES * 4, 1, 3)
    assert report.finished
    assert not report.truncated


def test_an_unfinished_run_may_have_open_groups(run: RunFolder) -> None:
    run.train()
    group_id = run.admit()
    run.log.close()
    report = audit(run.path)
    assert (report.ok, report.open, report.finished) == (True, [group_id], False)


def test_a_truncated_last_line_is_reported_and_tolerated(run: RunFolder) -> None:
    run.train()
    run.log.close()
    with (run.path / EVENTS_FILE).open("a") as file:
        file.write('{"kind": "admitted", "group_')
    report = audit(run.path)
    assert (report.ok, report.truncated, report.trained) == (True, True, 2)


def test_a_dropped_group_may_be_stored_as_well(run: RunFolder) -> None:
    run.train()
    group_id = run.admit()
    run.end(EventKind.DROPPED, group_id)
    run.store.write(2, 1, [with_ending(to_table([episode(group_id, 0, run.version)]), "dropped", "stale", -1, run.version)])
    assert audit(run.stop()).violations == []


def no_outcome(run: RunFolder) -> None:
    run.admit()


def two_outcomes(run: RunFolder) -> None:
    group_ids = run.train()
    run.end(EventKind.DROPPED, group_ids[0])


def never_admitted(run: RunFolder) -> None:
    run.end(EventKind.VOIDED, "ghost")


def admitted_twice(run: RunFolder) -> None:
    group_id = run.admit()
    run.made -= 1
    run.admit()
    run.end(EventKind.DROPPED, group_id)


def loss_on_a_document(run: RunFolder) -> None:
    run.train(row={"loss_mask": [False, False, True, True, True, False, True, True]})


def too_old(run: RunFolder) -> None:
    run.train()
    run.train()
    run.train(age=2)


def newer_than_the_learner(run: RunFolder) -> None:
    run.train(row={"versions": [VersionSpan(1, 1, 2, 4), VersionSpan(1, 0, 6, 8)]})


def of_another_generation(run: RunFolder) -> None:
    run.train(row={"versions": [VersionSpan(0, 0, 2, 4), VersionSpan(1, 0, 6, 8)]})


def version_reused(run: RunFolder) -> None:
    run.publish()


def version_goes_back(run: RunFolder) -> None:
    run.train()
    run.train()
    run.version = run.version._replace(number=1)
    run.publish()


def never_acknowledged(run: RunFolder) -> None:
    run.train(publish=False)
    run.log.append(EventKind.PUBLISHED, version=str(run.version), step=run.step)
    run.train()


def refused_by_the_engine(run: RunFolder) -> None:
    run.train(publish=False)
    run.publish(ok=False)
    run.train()


def acknowledged_by_another_engine(run: RunFolder) -> None:
    run.train(publish=False)
    run.publish(engine_id="e1")
    run.train()


def acknowledged_unpublished(run: RunFolder) -> None:
    run.log.append(EventKind.ACK, engine_id="e0", version="1.9", ok=True)


def rows_missing(run: RunFolder) -> None:
    run.train(episodes=EPISODES + 1)


def file_missing(run: RunFolder) -> None:
    run.train()
    next((run.path / TRAJECTORIES_FOLDER).iterdir()).unlink()


def row_stored_twice(run: RunFolder) -> None:
    run.train(groups=1, episodes=2 * EPISODES)
    path = next((run.path / TRAJECTORIES_FOLDER).iterdir())
    table = pq.read_table(path)
    pq.write_table(table.take([0, 0, 1, 1]), path)


def row_of_a_stranger(run: RunFolder) -> None:
    run.train(row={"group_id": "stranger"}, episodes=0)


def row_of_another_phase(run: RunFolder) -> None:
    run.train(row={"phase": "reasoning"})


def stored_as_dropped(run: RunFolder) -> None:
    run.train()
    path = next((run.path / TRAJECTORIES_FOLDER).iterdir())
    table = pq.read_table(path)
    values = table["outcome"].to_pylist()
    pq.write_table(table.set_column(table.schema.get_field_index("outcome"), "outcome", [["dropped"] * len(values)]), path)


def events_of_another_step(run: RunFolder) -> None:
    run.train(step=7)


def damaged_in_the_middle(run: RunFolder) -> None:
    run.train()
    run.log.close()
    lines = (run.path / EVENTS_FILE).read_text().splitlines()
    lines[2] = lines[2][:10]
    (run.path / EVENTS_FILE).write_text("\n".join(lines) + "\n")
    run.log = type(run.log)(run.path / "elsewhere.jsonl")


def no_versions(run: RunFolder) -> None:
    run.train(row={"versions": []})


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (no_outcome, "1 groups have no outcome although the run has stopped, g0 first"),
        (two_outcomes, "group g0: ended twice, trained and dropped"),
        (never_admitted, "group ghost: voided without having been admitted"),
        (admitted_twice, "group g0: admitted twice"),
        (loss_on_a_document, "step-000001-generation-1.parquet, row 0: token 4 carries loss but did not come from the model"),
        (too_old, "group g4 has a trained token older than the 1 versions allowed"),
        (newer_than_the_learner, "group g0 has a trained token newer than the learner"),
        (of_another_generation, "group g0 has a trained token of another generation"),
        (version_reused, "version 1.0: published twice"),
        (version_goes_back, "version 1.1: published twice"),
        (never_acknowledged, "engine e0 served version 1.1 to group g2 without an ack"),
        (refused_by_the_engine, "engine e0 served version 1.1 to group g2 without an ack"),
        (acknowledged_by_another_engine, "engine e0 served version 1.1 to group g2 without an ack"),
        (acknowledged_unpublished, "version 1.9: engine e0 answered before it was published"),
        (rows_missing, "group g0: trained on 3 episodes, but 2 rows are stored"),
        (file_missing, "group g0: trained on 2 episodes, but 0 rows are stored"),
        (row_stored_twice, "episode g0-0: stored 2 times"),
        (row_of_a_stranger, "rows of group stranger, which was never admitted"),
        (row_of_another_phase, "group g0 has phase 'reasoning', the events say 'joint'"),
        (stored_as_dropped, "group g0 has outcome 'dropped', the events say 'trained'"),
        (events_of_another_step, "group g0 has trained_step 1, the events say 7"),
        (damaged_in_the_middle, "events.jsonl:3: not an event"),
        (no_versions, "weight versions do not cover exactly the model's tokens"),
    ],
)
def test_a_broken_promise_is_named(run: RunFolder, break_it: Callable[[RunFolder], None], words: str) -> None:
    break_it(run)
    report = audit(run.stop())
    assert any(words in violation for violation in report.violations), report.violations
    assert not any("\n" in violation for violation in report.violations)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    assert "cannot be read" in audit(tmp_path).violations[0]
    (tmp_path / EVENTS_FILE).write_text("")
    assert "no run_started" in audit(tmp_path).violations[0]


def test_a_resume_takes_back_what_its_manifest_did_not_contain(run: RunFolder) -> None:
    run.train()
    in_flight = run.admit()
    run.checkpoint()
    run.train()  # step 2 of generation 1: trained, then lost in a crash
    lost = run.admit()
    run.end(EventKind.DROPPED, in_flight)
    run.resume(step=1)
    run.train()  # step 2 again, in generation 2
    run.end(EventKind.VOIDED, in_flight, "failed again")  # it was open in the manifest, so it may end again
    report = audit(run.stop())
    assert report.violations == []
    assert (report.admitted, report.trained, report.voided, report.rolled_back) == (5, 4, 1, 3)
    assert (report.rows, report.rolled_back_rows) == (4 * EPISODES, 2 * EPISODES)
    assert lost not in report.open


def test_without_a_resume_the_same_step_twice_is_a_violation(run: RunFolder) -> None:
    group_ids = run.train()
    run.log.append(EventKind.TRAINED, group_id=group_ids[0], engine_id="e0", step=1, episodes=EPISODES)
    assert any("ended twice" in violation for violation in audit(run.stop()).violations)


def test_the_manifests_position_beats_the_checkpoint_event(run: RunFolder) -> None:
    run.train()
    position = run.log.position
    late = run.admit()  # after the snapshot, before the event that tells of it
    run.checkpoint()
    run.resume(step=1, position=position)
    report = audit(run.stop())
    assert (report.violations, report.admitted) == ([], 2)
    assert late not in report.open


def test_a_group_of_the_process_before_is_trained_where_its_weights_survived(run: RunFolder) -> None:
    run.train()
    run.checkpoint()
    run.resume(step=1)
    run.train(row={"versions": [VersionSpan(1, 0, 2, 4), VersionSpan(1, 1, 6, 8)]})  # 1.1 is what 2.1 was loaded from
    assert audit(run.stop()).violations == []


def test_a_group_of_weights_that_a_resume_took_back_is_not(run: RunFolder) -> None:
    run.train()
    run.checkpoint()
    run.train()
    run.resume(step=1)
    run.train()
    run.train(row={"versions": [VersionSpan(1, 2, 2, 4), VersionSpan(2, 2, 6, 8)]})
    words = "has a trained token of another generation, whose weights no resume kept"
    assert any(words in violation for violation in audit(run.stop()).violations)


def test_a_resume_that_contradicts_its_manifest(run: RunFolder) -> None:
    run.train()
    run.train()
    run.resume(step=1, position=run.log.position)
    assert any("keeps 2 groups trained later" in violation for violation in audit(run.stop()).violations)


def test_a_group_that_a_resume_left_without_an_end(run: RunFolder) -> None:
    group_id = run.admit()
    run.checkpoint()
    run.end(EventKind.DROPPED, group_id)
    run.resume(step=0)
    assert any(f"{group_id} first" in violation for violation in audit(run.stop()).violations)


def test_generations_only_grow(run: RunFolder) -> None:
    run.checkpoint()
    run.resume(step=0)
    run.log.append(EventKind.RESUMED, generation=2, step=0)
    assert any("resumes have generations [2, 2]" in violation for violation in audit(run.stop()).violations)


def test_a_step_of_ordinary_size_takes_well_under_a_second(run: RunFolder) -> None:
    run.train(groups=256)
    folder = run.stop()
    began = time.monotonic()
    assert audit(folder).violations == []
    assert time.monotonic() - began < 5  # 0.1 s on an idle machine; row by row in Python it was the audit's whole cost


def test_the_report_is_plain_data(run: RunFolder) -> None:
    run.train()
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(audit(run.stop()))))["trained"] == 2
