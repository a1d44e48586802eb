"""Groups that a killed process had rolled out: each is used once, or discarded by name; none is asked of an engine again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.messages import DroppedSample, GroupRequest, GroupSummary
from medr3.observe.config import TrackingConfig
from medr3.observe.tracker import Tracker
from medr3.run import feed as feeding
from medr3.run.course import Course
from medr3.run.feed import Feed
from medr3.run.journal import FinishedGroup, Journal
from medr3.run.recovery import Recovery, _read_summary, note_of, recover
from medr3.run.state import RunState
from tests.resumable import Life, configuration, universe
from tests.run_folder import episode
from trajectories.events import EventKind, EventLog, read_events
from trajectories.lineage import Lineage, Resume
from trajectories.recorder import Recorder
from trajectories.schema import WeightVersion, to_table
from trajectories.spool import Spool, SpooledGroup, read_whole_spool
from trajectories.store import stored_steps

NO_LEDGER: dict[str, Any] = {"open": []}


def summary(group_id: str, oldest: WeightVersion, newest: WeightVersion | None = None) -> GroupSummary:
    return GroupSummary(group_id, 0, "engine-0.0", oldest, newest or oldest, [1.0, 0.0], [True, False])


def spooled(group_id: str, generation: int, oldest: WeightVersion, newest: WeightVersion | None = None) -> SpooledGroup:
    rows = to_table([episode(group_id, index, oldest) for index in range(2)])
    return SpooledGroup(generation, group_id, rows, note_of(summary(group_id, oldest, newest)))


def resumed(*resumes: Resume) -> Lineage:
    return Lineage([], [], list(resumes), [])


def test_a_note_is_read_back_whole() -> None:
    told = replace(
        summary("g1", WeightVersion(1, 2), WeightVersion(1, 3)),
        components={"answer": 0.5}, dropped_samples=[DroppedSample("g1-0", "judge", "no answer")], search_ms=[1.5],
    )  # fmt: skip
    assert _read_summary(note_of(told)) == told
    for broken in (b"", b"[]", b"{}", b'{"oldest": [1], "newest": [1, 2], "dropped_samples": []}', b"\xff", b"12"):
        assert _read_summary(broken) is None


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (spooled("g1", 1, WeightVersion(1, 5)), ""),
        (spooled("g1", 1, WeightVersion(1, 3), WeightVersion(1, 5)), ""),
        (spooled("g1", 1, WeightVersion(1, 2)), "3 versions old, and 2 are allowed"),
        (spooled("g1", 1, WeightVersion(1, 5), WeightVersion(1, 6)), "sampled under version 1.6, which the resume took back"),
        (spooled("g1", 1, WeightVersion(1, 6)), "sampled under version 1.6, which the resume took back"),
        (spooled("g1", 1, WeightVersion(1, 5))._replace(note=b"{}"), "its note cannot be read"),
    ],
)  # fmt: skip
def test_what_may_be_trained_is_taken_and_what_may_not_is_named(group: SpooledGroup, reason: str) -> None:
    recovery = recover([group], resumed(Resume(2, 5)), NO_LEDGER, step=5, generation=2, max_staleness=2)
    assert dict(recovery.drain_discarded()) == ({"g1": reason} if reason else {})
    assert list(recovery.groups) == ([] if reason else ["g1"])
    assert list(recovery.drain_discarded()) == [], "each is told once"


def test_a_group_that_survived_one_resume_may_be_taken_back_by_the_next() -> None:
    twice = resumed(Resume(2, 5), Resume(3, 6))
    groups = [
        spooled("g1", 1, WeightVersion(1, 5)),
        spooled("g2", 2, WeightVersion(2, 6)),
        spooled("g3", 1, WeightVersion(1, 6)),
    ]
    recovery = recover(groups, twice, NO_LEDGER, step=6, generation=3, max_staleness=2)
    assert sorted(recovery.groups) == ["g1", "g2"]
    assert recovery.groups["g1"].summary.oldest == WeightVersion(3, 5), "its age goes on"


def test_of_two_generations_attempts_the_later_that_can_be_used_counts() -> None:
    good, bad = spooled("g1", 1, WeightVersion(1, 5)), spooled("g1", 2, WeightVersion(2, 7))
    recovery = recover([good, bad], resumed(Resume(2, 5), Resume(3, 5)), NO_LEDGER, step=5, generation=3, max_staleness=2)
    assert recovery.groups["g1"].table.equals(good.rows) and not recovery.discarded
    later = spooled("g1", 2, WeightVersion(2, 5))
    recovery = recover([good, later], resumed(Resume(2, 5), Resume(3, 5)), NO_LEDGER, step=5, generation=3, max_staleness=2)
    assert recovery.groups["g1"].table.equals(later.rows)


def test_rows_that_answer_another_question_are_not_used() -> None:
    recovery = recover([spooled("g1", 1, WeightVersion(1, 5))], resumed(Resume(2, 5)), NO_LEDGER, 5, 2, 2)
    assert recovery.take("g1", "q-other", "joint") is None
    assert list(recovery.drain_discarded()) == [("g1", "answers q-g1 in phase joint, and q-other is asked now")]
    assert recovery.take("g1", "q-g1", "joint") is None, "once asked for, they are gone"


class NoEngines:
    """A pool whose engines never answer: whatever finishes was finished before."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def run_group(self, request: GroupRequest, on_start: Any) -> Any:
        self.asked.append(request.group_id)
        await asyncio.sleep(3600)


def rolled_out(life: Life, group_id: str) -> SpooledGroup:
    """What an engine made of the question that the group has."""
    group, version = life.ledger.group(group_id), WeightVersion(life.generation, life.progress.step)
    rows = [replace(episode(group_id, i, version), question_id=group.question_id, phase=group.phase) for i in range(2)]
    return SpooledGroup(life.generation, group_id, to_table(rows), note_of(summary(group_id, version)))


@asynccontextmanager
async def resumed_run(folder: Path, life: Life, manifest: Any) -> AsyncIterator[tuple[RunState, NoEngines]]:
    """The driver's own parts after a kill, without engines and learner."""
    pool = NoEngines()
    course = Course(life.config, manifest, asyncio.Event(), on_ray_started=lambda: None)
    journal, version = course._open_journal(), WeightVersion(course._generation, manifest.step)
    course._announce(journal, version)
    services: Any = SimpleNamespace(pool=pool, learner=None, publication=None, reports=None)
    state = course._state(services, universe(), "index", journal, version)
    running = asyncio.create_task(Feed(state).run())
    try:
        yield state, pool
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        journal.store.close()
        journal.events.close()
        journal.tracker.close()


def test_a_killed_run_s_groups_are_trained_once_and_rolled_out_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open in the manifest, admitted behind it, trained behind it, and too new: what becomes of each."""
    monkeypatch.setattr(feeding.ray, "put", lambda table: table)
    life = Life(configuration(tmp_path))
    life.step()
    for _ in range(2):
        life.roll_out(life.admit())  # g3 and g4: finished in the manifest
    inflight = life.admit()  # g5: with an engine when the manifest was written
    life.ledger.start(inflight, "engine-0.0", WeightVersion(1, 1))
    spool = Spool(tmp_path / "trajectories", 1)
    for group_id in ("g0000003", "g0000004", inflight):
        spool.append(*rolled_out(life, group_id)[2:])
    manifest = life.checkpoint()
    behind = life.admit()  # g6: admitted after it, under the weights that it names
    spool.append(*rolled_out(life, behind)[2:])
    life.progress.step = 2  # what g7 was sampled under, the resume takes back
    lost = "g0000007"
    spool.append(*spooled(lost, 1, WeightVersion(1, 2))[2:])
    life.log.close()

    async def scenario() -> None:
        async with resumed_run(tmp_path, life, manifest) as (state, pool):
            async with asyncio.timeout(5):
                while len(state.finished) < 4 or len(pool.asked) < 2:  # noqa: ASYNC110 - the feed tells nobody
                    await asyncio.sleep(0)
            assert sorted(state.finished) == ["g0000003", "g0000004", "g0000005", "g0000006"]
            assert pool.asked == [lost, "g0000008"], "what was taken back, or never begun, needs an engine"
            counts = state.ledger.counts()
            assert (counts.admitted, counts.trained, counts.open) == (8, 2, 6)
            assert state.ledger.take(WeightVersion(2, 1)) == ["g0000003", "g0000004"]
            state.ledger.trained(["g0000003", "g0000004"], 2)
            assert dict(state.ledger.ages) == {0: 4}
            state.journal.endings(state.ledger, state.finished, state.version)
            state.journal.store_step(2)

    asyncio.run(scenario())
    events = read_events(tmp_path / "events.jsonl").events
    told = {
        kind: [event["group_id"] for event in events if event.kind is kind]
        for kind in (EventKind.RECOVERED, EventKind.DISCARDED)
    }
    assert told == {
        EventKind.RECOVERED: ["g0000003", "g0000004", "g0000005", "g0000006"],
        EventKind.DISCARDED: [lost],
    }
    stored = stored_steps(tmp_path / "trajectories")
    assert [(each.step, each.generation) for each in stored] == [(2, 2)]
    assert sorted(set(stored[0].read(["group_id"])["group_id"].to_pylist())) == ["g0000003", "g0000004"]
    again = [(group.generation, group.group_id) for group in read_whole_spool(tmp_path / "trajectories")]
    assert (2, "g0000005") in again and (2, "g0000003") in again, "a second kill finds them as well"


def test_what_a_resume_could_use_stays_until_the_next_manifest(tmp_path: Path) -> None:
    """Trained behind the manifest, and rolled out under its weights: a resume trains it again from the same rows."""
    life = Life(configuration(tmp_path))
    life.log.close()
    recorder = Recorder(tmp_path / "trajectories", 1)
    log = EventLog(tmp_path / "events.jsonl")
    tracker = Tracker(tmp_path, TrackingConfig(wandb="disabled", progress=False))
    journal = Journal(tmp_path, log, tracker, recorder)

    def step(number: int, sampled_under: int) -> None:
        version = WeightVersion(1, sampled_under)
        for _ in range(2):
            group_id = life.admit_quietly()
            attempt = life.ledger.start(group_id, "engine-0.0", version)
            life.ledger.finish(group_id, attempt, version, 0.0)
            group = spooled(group_id, 1, version)
            finished[group_id] = FinishedGroup(summary(group_id, version), "s", None, group.rows)  # type: ignore[arg-type]
            recorder.finished(group.rows, group.note).result()
        batch = life.ledger.take(WeightVersion(1, number - 1))
        assert batch is not None
        life.ledger.trained(batch, number)
        journal.endings(life.ledger, finished, WeightVersion(1, number - 1))
        journal.store_step(number)
        recorder._asked[-1][1].result()
        life.ledger.retire(number)

    finished: dict[str, FinishedGroup] = {}
    step(1, 0)
    assert not journal.ordered(1), "before the first checkpoint there is nothing to resume from"
    step(2, 1)
    step(3, 2)
    journal.sync()
    assert _names(tmp_path) == {"g0000003", "g0000004"}, "those of step 2 were sampled under 1.1, which the manifest has"
    superseded = journal.ordered(3)
    assert superseded == ["g0000003", "g0000004"]
    recorder.ended(superseded).result()
    recorder.close()
    assert _names(tmp_path) == set() and not list((tmp_path / "trajectories").glob("spool-*"))
    log.close()
    tracker.close()


def test_a_run_that_ended_leaves_no_spool(tmp_path: Path) -> None:
    life = Life(configuration(tmp_path))
    recorder = Recorder(tmp_path / "trajectories", 1)
    tracker = Tracker(tmp_path, TrackingConfig(wandb="disabled", progress=False))
    journal = Journal(tmp_path, life.log, tracker, recorder, resumes_at=1)
    group_id = life.admit_quietly()
    group = spooled(group_id, 1, WeightVersion(1, 1))
    recorder.finished(group.rows, group.note).result()
    life.ledger.drop([group_id], "run ended")
    finished = {group_id: FinishedGroup(summary(group_id, WeightVersion(1, 1)), "s", None, group.rows)}  # type: ignore[arg-type]
    journal.endings(life.ledger, finished, WeightVersion(1, 1))
    journal.store_rest(1)
    recorder.close()
    assert [path.name for path in (tmp_path / "trajectories").iterdir()] == ["step-000002-generation-1.parquet"]
    life.log.close()
    tracker.close()


def _names(folder: Path) -> set[str]:
    return {group.group_id for group in read_whole_spool(folder / "trajectories")}


def test_what_was_not_asked_for_again_is_named_at_the_next_manifest() -> None:
    recovery = Recovery({"g1": None})  # type: ignore[dict-item]
    recovery.give_up()
    assert dict(recovery.drain_discarded()) == {"g1": "was not admitted again"}
    assert json.dumps(recovery.groups) == "{}"
