"""The run's own pure parts: configuration, sampler, manifest, watchdog, progress."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from curriculum.controller import Decision, DecisionKind
from medr3.config import RunConfig, load
from medr3.errors import UserError
from medr3.evaluation.disputes import Rested
from medr3.evaluation.heldout import Score
from medr3.evaluation.heldout_file import HeldOut
from medr3.observe.config import TrackingConfig
from medr3.observe.tracker import Tracker
from medr3.run.diagnosis import where_groups_stand
from medr3.run.journal import Journal
from medr3.run.manifest import (
    CheckpointRecord,
    Manifest,
    best_first,
    manifest_bytes,
    open_manifest,
    prune_checkpoints,
    worth_keeping,
    write_manifest,
)
from medr3.run.progress import Progress
from medr3.run.train import _reason, _record_end
from medr3.run.watchdog import RunStalled, Watchdog
from trajectories.events import EventLog, read_events
from trajectories.publication import WeightAck
from trajectories.recorder import Recorder
from trajectories.schema import WeightVersion

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def test_overrides_reach_lists_and_new_sections() -> None:
    config = load(DEMO, ["curriculum.phases.1.max_steps=7", "learner.workers=2", "run.seed=3"])
    assert (config.curriculum.phases[1].max_steps, config.learner.workers, config.run.seed) == (7, 2, 3)
    assert load(DEMO, ["curriculum.phases.joint.max_steps=7"]).curriculum.phases[2].max_steps == 7, "by name"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.max_staleness=-1", "greater than or equal to 0"),
        ("rollout.group_size=1", "compares the episodes of one question"),
        ("curriculum.phases.0.mixture={}", "must name at least one task source"),
        ("curriculum.phases.0.mixture={world/reasonin: 1}", "did you mean world/reasoning"),
        ("curriculum.phases.2.reward=nothing", "wants reward recipe 'nothing'"),
        ("learner.dtype=bfloat16", "must compute alike"),
        ("budget.max_response_tokens=600", "no room for a prompt"),
        ("curriculum.phases.0.min_steps=181", "above max_steps"),
        ("rollout.num_engine=2", "Extra inputs"),
    ],
)
def test_impossible_combinations_are_refused(override: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        load(DEMO, [override])


@pytest.mark.parametrize("override", ["nonsense", "curriculum.phases.9.max_steps=1", "run.seed.x=1", "curriculum.phases.x=1"])
def test_broken_overrides_are_one_line(override: str) -> None:
    with pytest.raises(UserError) as error:
        load(DEMO, [override])
    assert "\n" not in str(error.value)


def test_every_plateau_has_room_before_max_steps() -> None:
    slowest_measured = 57  # steps, docs/demo.md
    assert all(phase.max_steps >= 3 * slowest_measured for phase in load(DEMO, []).curriculum.phases)


def test_the_hash_ignores_the_place_and_nothing_else() -> None:
    base = load(DEMO, [])
    assert load(DEMO, ["run.folder=/elsewhere"]).hash() == base.hash()
    more = [
        "learner.workers=4",
        "rollout.num_engines=8",
        "learner.microbatch_tokens=4096",
        "learner.activation_checkpointing=true",
    ]
    assert load(DEMO, more).hash() == base.hash(), "a run may go on with more or fewer workers"
    assert load(DEMO, ["run.seed=1"]).hash() != base.hash()
    assert load(DEMO, ["learner.clip_high=0.3"]).hash() != base.hash()


def test_a_replayed_question_keeps_the_rules_of_its_phase() -> None:
    config = load(DEMO, [])
    assert not config.rules("joint", "world/reasoning").retrieval
    assert config.rules("joint", "world/joint").name == "joint"


def _record(step: int, phase_index: int = 0, score: float | None = None) -> CheckpointRecord:
    folder = f"checkpoints/step-{step:06d}"
    return CheckpointRecord(folder=folder, step=step, phase="p", phase_index=phase_index, score=score, probed_at=None)


def _manifest(config: RunConfig, *steps: int) -> Manifest:
    return Manifest(
        run_id="r", step=steps[-1], generation=1, checkpoints=[_record(step) for step in steps], config_hash=config.hash(), index_hash="i",
        tracker_id="t", events=10, ledger={}, sampler={}, controller={}, progress={},
    )  # fmt: skip


def test_a_manifest_is_read_back_and_one_of_another_schema_refused(tmp_path: Path) -> None:
    assert open_manifest(tmp_path) is None
    manifest = _manifest(load(DEMO, []), 3)
    write_manifest(tmp_path, manifest)
    assert open_manifest(tmp_path) == manifest
    assert (tmp_path / "manifest.json").read_bytes() == manifest_bytes(manifest)
    (tmp_path / "manifest.json").write_text('{"schema_version": 9}')
    with pytest.raises(UserError, match="not a manifest"):
        open_manifest(tmp_path)


def test_pruning_removes_what_the_manifest_does_not_name_and_what_was_left_unfinished(tmp_path: Path) -> None:
    for step in range(5):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000005.unfinished").mkdir()
    prune_checkpoints(tmp_path, _manifest(load(DEMO, []), 1, 4))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000001", "step-000004"]


def test_the_newest_and_the_best_of_the_latest_phase_are_kept() -> None:
    easy = [_record(1, 0, 0.9), _record(2, 0, 0.99)]
    hard = [_record(3, 1, 0.3), _record(4, 1, 0.7), _record(5, 1, 0.6), _record(6, 1, None)]
    assert [record.step for record in worth_keeping(easy, 1, 1)] == [2]
    assert [record.step for record in worth_keeping([*easy, *hard], 2, 1)] == [4, 5, 6]
    assert [record.step for record in worth_keeping([*easy, *hard], 1, 0)] == [6]
    assert [record.step for record in worth_keeping([*easy, *hard], 1, 4)] == [2, 3, 4, 5, 6]
    probed = _record(7, 2, 0.5).model_copy(update={"probed_at": 7})
    later = _record(8, 2, 0.5).model_copy(update={"probed_at": 7})
    assert best_first([probed, later])[0] is probed


async def _what_it_waits_for(stage: str) -> str:
    return f"{stage}: retrieval"


def test_the_watchdog_names_the_stage_and_the_last_good_thing() -> None:
    now = [0.0]
    watchdog = Watchdog(10, clock=lambda: now[0])
    with watchdog.stage("rollout"):
        now[0] = 9.0
        watchdog.progress("group g1 finished")
        now[0] = 18.0
        assert not watchdog.overdue()
        now[0] = 19.5
        with pytest.raises(RunStalled, match="for 10 s in stage rollout: retrieval; the last good thing: group g1 finished"):
            asyncio.run(watchdog.watch(_what_it_waits_for))
    assert watchdog.seconds == {"rollout": 19.5}


def test_a_watchdog_ends_a_run_although_nobody_can_say_what_it_waits_for() -> None:
    now = [0.0]
    watchdog = Watchdog(0.1, clock=lambda: now[0])
    now[0] = 1.0

    async def broken(stage: str) -> str:
        raise OSError(stage)

    with pytest.raises(RunStalled, match=r"start \(why, nobody could tell: OSError\)"):
        asyncio.run(watchdog.watch(broken))


def test_a_run_that_moves_on_while_the_watchdog_asks_is_not_ended() -> None:
    now, asked = [0.0], []
    watchdog = Watchdog(0.1, clock=lambda: now[0])
    now[0] = 1.0

    async def it_moves(stage: str) -> str:
        watchdog.progress("a group finished")
        asked.append(stage)
        return stage

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(watchdog.watch(it_moves), 0.2))
    assert asked == ["start"]


@pytest.mark.parametrize(
    ("groups", "activity", "slow", "stage"),
    [
        ({}, {}, [], "feeding"),
        ({"waiting": 3}, {}, [], "engines"),
        ({"waiting": 3, "inflight": 1}, {"generating": 8, "searching": 2}, [], "generation"),
        ({"inflight": 1}, {"generating": 1, "searching": 9}, ["g1"], "retrieval, and the learner waits for 1 slow groups"),
        ({"inflight": 1}, {"scoring": 1}, [], "reward"),
        ({"inflight": 1}, {"silent": 1}, [], "engines"),
        ({"finished": 7}, {}, [], "buffer"),
    ],
)
def test_where_groups_stand_still_is_named(
    groups: dict[str, int], activity: dict[str, int], slow: list[str], stage: str
) -> None:
    told = where_groups_stand(groups, activity, {"engine-0.0": "healthy"}, slow)
    assert told.partition(" (")[0] == stage
    assert told.endswith("engines: 1 healthy)")


def test_progress_survives_the_manifest() -> None:
    progress = Progress()
    progress.new_group_id()
    progress.step = 4
    restored = Progress.restored(json.loads(json.dumps(progress.snapshot({"learn": 2.0}))))
    assert (restored.step, restored.new_group_id()) == (4, "g0000002")
    assert restored.stage_seconds({"learn": 1.0, "sync": 1.0}) == {"learn": 3.0, "sync": 1.0}


def test_a_phase_without_its_report_is_known_by_name() -> None:
    progress, score = Progress(), Score(0.5, 2, {}, 0.0, 1.0, {}, Rested(2, 2, 1))
    for phase in ("reasoning", "joint"):
        progress.phase_left(Decision(DecisionKind.ADVANCE, phase, "flat", "plateau"))
    progress.reported("joint", "joint", score, None)
    assert progress.unreported() == ["reasoning"]
    assert progress.heldout_by_phase["joint"]["joint"]["disputes"] == {"met": 2, "decided": 2, "on_better": 1}


def test_a_report_that_came_after_the_manifest_is_taken_over_and_one_of_a_phase_that_was_taken_back_is_not() -> None:
    progress = Progress()
    progress.phase_left(Decision(DecisionKind.ADVANCE, "reasoning", "flat", "plateau"))
    told = {"accuracy": 0.5, "n": 2}
    progress.recover([HeldOut(stage, "joint", {"q": True}, told) for stage in ("reasoning", "retrieval")])
    assert progress.heldout_by_phase == {"reasoning": {"joint": told}} and progress.unreported() == []


def test_a_failed_run_says_so_in_its_status_and_its_events(tmp_path: Path) -> None:
    EventLog(tmp_path / "events.jsonl").close()
    (tmp_path / "status.json").write_text('{"step": 4, "state": "training"}')
    _record_end(tmp_path, "failed", "the engine is gone")
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["step"], status["state"], status["reason"]) == (4, "failed", "the engine is gone")
    assert read_events(tmp_path / "events.jsonl").events[-1]["reason"] == "the engine is gone"


def test_the_first_real_cause_is_told_in_one_line() -> None:
    inner = ExceptionGroup("tasks", [ExceptionGroup("groups", [ValueError("the\nindex is gone")]), KeyError("x")])
    assert _reason(inner) == "ValueError: the index is gone"


@pytest.mark.parametrize("difference", [float("nan"), float("inf")])
def test_a_refused_ack_without_a_canary_is_written_down(tmp_path: Path, difference: float) -> None:
    with EventLog(tmp_path / "events.jsonl") as events:
        journal = Journal(
            tmp_path, events, Tracker(tmp_path, TrackingConfig(wandb="disabled")), Recorder(tmp_path / "t", generation=1)
        )
        journal.ack(WeightAck("engine-0.0", WeightVersion(1, 2), False, "", difference, "the file is corrupt"))
    event = read_events(tmp_path / "events.jsonl").events[-1]
    assert (event["ok"], event["reason"], event["canary_difference"]) == (False, "the file is corrupt", None)


def test_a_run_that_failed_for_damaged_events_says_so_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("nonsense\n")
    _record_end(tmp_path, "failed", "because")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
