"""A fork begins with another run's weights and state; what may differ is one table, and everything else is one line."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from curriculum.controller import Controller
from curriculum.difficulty import QuestionPool
from learner.checkpoint_folder import STATE
from medr3.errors import UserError
from medr3.run import forking
from medr3.run.course import Course
from medr3.run.forking import Fork, find_origin, named_fork
from medr3.run.manifest import open_manifest, write_manifest
from medr3.run.resuming import next_generation, resume
from medr3.run.sampler import QuestionSampler
from medr3.run.settings import FIXED, INDEX, changes, forbidden
from medr3.run.train import _open_folder
from tests.resumable import configuration, trained_for, universe
from trajectories.audit import audit
from trajectories.events import EventKind, EventLog, read_events
from trajectories.ledger import Ledger
from trajectories.schema import WeightVersion


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    folder = tmp_path / "parent"
    trained_for(folder, 3, left_open=2)
    for name in ("index", "cold_start"):
        (folder / name).mkdir()
        (folder / name / "made.txt").write_text(name)
    return folder


def child(parent: Path, *overrides: str) -> Any:
    return configuration(parent.with_name("child"), "run.name=child", *overrides)


MAY_CHANGE = (
    "curriculum.phases.0.learning_rate=0.5", "curriculum.phases.0.temperature=0.7", "curriculum.phases.joint.max_steps=400",
    "curriculum.phases.0.sampling={order: learnability, pool: 8}", "learner.clip_high=0.9", "rollout.group_size=4",
    "rollout.max_staleness=0", "budget.max_searches=2", "evaluation.probe_questions=50", "retrieval.mode=lexical",
    "rollout.engine.max_num_seqs=4",
)  # fmt: skip


def test_a_fork_is_a_run_of_its_own_that_goes_on_from_the_step(parent: Path) -> None:
    config = child(parent, *MAY_CHANGE)
    manifest = _open_folder(config, "auto", "", Fork(parent, 2))
    folder = config.run.folder
    assert manifest is not None and manifest == open_manifest(folder) == resume(config)
    assert (manifest.run_id, manifest.step, manifest.tracker_id, manifest.config_hash) == ("child", 2, "", config.hash())
    origin = manifest.forked_from
    assert origin is not None and (origin.run_id, origin.step) == ("parent", 2)
    before = open_manifest(parent)
    assert before is not None and origin.config_hash == before.config_hash
    assert {"learner.clip_high", "rollout.group_size", "curriculum.phases.reasoning.learning_rate"} <= set(origin.changed)
    assert (folder / manifest.checkpoint / STATE).is_file() and (folder / "cold_start" / "made.txt").read_text() == "cold_start"
    shutil.rmtree(parent)  # it may remove its own at any time
    assert resume(config) == manifest
    assert next_generation(folder, manifest) == 1


def test_its_first_process_says_where_it_comes_from_and_the_next_ones_resume(
    parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = child(parent)
    manifest = _open_folder(config, "auto", "", Fork(parent, 2))
    for words in ("forked from parent at step 2 in phase reasoning", "resumed at step 2 in phase reasoning"):
        course = Course(config, manifest, asyncio.Event(), on_ray_started=lambda: None)
        journal = course._open_journal()
        course._announce(journal, WeightVersion(course._generation, 2))
        for part in (journal.store, journal.events, journal.tracker):
            part.close()
        assert capsys.readouterr().out.splitlines()[-1] == words


def test_without_a_step_it_is_the_newest_and_open_groups_go_along(parent: Path) -> None:
    config = child(parent)
    manifest = _open_folder(config, "auto", "", Fork(parent))
    assert manifest is not None and manifest.step == 3
    ledger, sampler, controller = Ledger(config.ledger_rules()), QuestionSampler(universe(), 0), Controller(config.curriculum)
    ledger.restore(manifest.ledger)
    sampler.restore(manifest.sampler)
    controller.restore(manifest.controller)
    assert ledger.waiting() == ["g0000007", "g0000008"] and ledger.counts().admitted == 2
    assert controller.steps_in_phase == 3
    progress = manifest.progress
    assert (progress["step"], progress["groups"], progress["model_tokens"]) == (3, 8, 0), "names go on, sums begin anew"
    events = read_events(config.run.folder / "events.jsonl").events
    assert manifest.events == len(events)
    assert [event["group_id"] for event in events if event.kind is EventKind.ADMITTED] == ledger.waiting()
    asked = {event["question_id"] for event in read_events(parent / "events.jsonl").events if event.kind is EventKind.ADMITTED}
    assert sampler.next(config.curriculum.phases, 0).id not in asked, "no question is asked twice, and none is passed over"


def test_the_audit_follows_a_fork(parent: Path) -> None:
    config = child(parent)
    manifest = _open_folder(config, "auto", "", Fork(parent, 3))
    assert manifest is not None
    with EventLog(config.run.folder / "events.jsonl") as log:  # as its first process writes on
        log.append(EventKind.RESUMED, generation=1, step=3, position=manifest.events)
        log.append(EventKind.PUBLISHED, version="1.3", step=3)
        for group_id in ("g0000007", "g0000008"):
            log.append(EventKind.DROPPED, group_id=group_id, reason="run ended")
        log.append(EventKind.STOPPED, step=3, reason="the last phase was left")
    found = audit(config.run.folder)
    assert found.violations == []
    assert (found.admitted, found.dropped, found.published, found.rolled_back) == (2, 2, 1, 0)


def test_the_same_command_goes_on_and_another_fork_is_not_taken_for_it(parent: Path) -> None:
    config = child(parent)
    begun = _open_folder(config, "auto", "", Fork(parent, 2))
    shutil.rmtree(parent / "checkpoints")  # the parent has gone on
    assert _open_folder(config, "auto", "", Fork(parent, 2)) == begun
    with pytest.raises(UserError, match=r"has a fork of parent at step 2: name another run.folder"):
        _open_folder(config, "auto", "", Fork(parent, 3))
    trained_for(parent.with_name("other"), 1, "run.name=other")
    other = configuration(parent.with_name("other"), "run.name=other")
    with pytest.raises(UserError, match="has a run that is no fork"):
        _open_folder(other, "auto", "", Fork(parent))


@pytest.mark.parametrize(
    "override",
    [
        "model.path=/models/other", "world.training_worlds=2", "cold_start.demonstrations=300", "run.seed=7",
        "learner.lora={rank: 4, alpha: 8}",
    ],
)  # fmt: skip
def test_what_the_weights_are_made_of_may_not_change(parent: Path, override: str) -> None:
    name = override.partition("=")[0]
    with pytest.raises(UserError) as error:
        find_origin(Fork(parent, 2), child(parent, override))
    lines = str(error.value).splitlines()
    assert any(line.startswith(f"--fork {parent}@2: {name}") for line in lines)
    assert all(line.startswith(f"--fork {parent}@2: ") and ", and was " in line for line in lines)


def test_a_critic_cannot_appear(parent: Path) -> None:
    with pytest.raises(
        UserError, match=r"learner.algorithm is ppo, and was .*: the checkpoint has no critic, and this needs one"
    ):
        find_origin(Fork(parent), child(parent, "learner.algorithm=ppo"))


def test_another_index_has_to_be_meant(parent: Path) -> None:
    config = child(parent, "retrieval.dimensions=256")
    with pytest.raises(UserError, match=r"retrieval.dimensions is 256, and was 512: .* say --new-index"):
        find_origin(Fork(parent), config)
    manifest = _open_folder(config, "auto", "", Fork(parent, None, new_index=True))
    assert manifest is not None and manifest.index_hash == "" and not (config.run.folder / "index").exists()
    with pytest.raises(UserError, match="--new-index: belongs to --fork"):
        named_fork(None, new_index=True)


def test_every_setting_is_in_the_table_by_a_name_that_exists() -> None:
    dumped = configuration(Path("x")).model_dump()
    for name in (*FIXED, *INDEX):
        value: Any = dumped
        for part in name.split("."):
            assert part in value, name
            value = value[part]


def test_a_changed_data_set_needs_another_name(tmp_path: Path) -> None:
    before = configuration(tmp_path, "datasets.mine={train: a.jsonl, held_out: b.jsonl}")
    added = configuration(
        tmp_path, "datasets.mine={train: a.jsonl, held_out: b.jsonl}", "datasets.more={train: c.jsonl, held_out: d.jsonl}"
    )
    assert forbidden(before, added, new_index=False) == []
    changed = configuration(tmp_path, "datasets.mine={train: c.jsonl, held_out: b.jsonl}")
    assert "datasets.mine.train is c.jsonl" in forbidden(before, changed, new_index=False)[0]
    assert [change.name for change in changes(before, changed)] == ["datasets.mine.train"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("parent@x", "is not RUN or RUN@STEP"), ("@3", "is not RUN or RUN@STEP"), ("nowhere@3", "no such run folder")],
)
def test_a_name_that_is_none_is_one_line(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        named_fork(text)
    assert "\n" not in str(error.value)


def test_what_cannot_be_forked_is_one_line(parent: Path) -> None:
    config = child(parent)
    with pytest.raises(UserError, match="kept are the checkpoints of steps 1, 2, 3"):
        find_origin(Fork(parent, 9), config)
    with pytest.raises(UserError, match="needs a folder of its own"):
        find_origin(Fork(parent), configuration(parent))
    with pytest.raises(UserError, match="has no checkpoint yet"):
        find_origin(Fork(parent.parent), config)
    phases = [phase for phase in config.curriculum.phases if phase.name != "reasoning"]
    without = config.model_copy(update={"curriculum": config.curriculum.model_copy(update={"phases": phases})})
    with pytest.raises(UserError, match=r"is in phase 'reasoning', which curriculum.phases does not have"):
        find_origin(Fork(parent, 2), without)
    state = open_manifest(parent)
    assert state is not None
    (parent / state.checkpoint / STATE).unlink()
    with pytest.raises(UserError, match="no checkpoint in"):
        find_origin(Fork(parent), config)


def test_a_pool_obeys_the_fork_s_sampling_and_keeps_what_it_learned(tmp_path: Path) -> None:
    learnability = "curriculum.phases.0.sampling={order: learnability, pool: 8, retire_after: 8}"
    parent = tmp_path / "parent"
    trained_for(parent, 2, learnability)
    config = child(parent, "curriculum.phases.0.sampling={order: learnability, pool: 24, retire_after: 4}")
    manifest = _open_folder(config, "auto", "", Fork(parent))
    assert manifest is not None
    pools = manifest.sampler["pools"]
    assert pools and all(pool["sampling"]["pool"] == 24 and len(pool["active"]) == 8 for pool in pools.values())
    assert QuestionPool.restored(next(iter(pools.values())), "0").bands()["unseen"] == 8


def test_a_run_that_had_ended_goes_on_where_its_phase_may_take_more_steps(parent: Path) -> None:
    path = parent / "checkpoints" / "step-000003-generation-1" / "manifest.json"
    state = open_manifest(path.parent)
    assert state is not None
    write_manifest(path.parent, state.model_copy(update={"controller": state.controller | {"finished": True}}))
    config = child(parent, "curriculum.phases.0.max_steps=400")
    manifest = _open_folder(config, "auto", "", Fork(parent))
    assert manifest is not None
    controller = Controller(config.curriculum)
    controller.restore(manifest.controller)
    assert not controller.finished


class Killed(BaseException):
    pass


@pytest.mark.parametrize("overrides", [(), ("learner.clip_high=0.9",)])
def test_a_fork_that_was_killed_while_it_was_filled_begins_again(
    parent: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    config = child(parent, *overrides)

    def killed(*args: Any) -> int:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(forking, "_begin_events", killed)
        with pytest.raises(Killed):
            _open_folder(config, "auto", "", Fork(parent, 2))
    manifest = _open_folder(config, "auto", "", Fork(parent, 2))
    assert manifest is not None and manifest.forked_from is not None and manifest.step == 2


def test_a_parent_that_removes_what_is_being_copied_is_one_line(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.copytree

    def gone(source: Path, target: Path, **how: Any) -> Any:
        if source.parent.name == "checkpoints":
            shutil.rmtree(source)
        return real(source, target, **how)

    monkeypatch.setattr(shutil, "copytree", gone)
    with pytest.raises(UserError, match="went while it was copied"):
        _open_folder(child(parent), "auto", "", Fork(parent, 2))
