"""What a run starts from: the newest whole state, the one that was named, nothing; and that all of it is in the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from curriculum.controller import Controller
from learner.checkpoint_folder import STATE, CheckpointRefused, check_whole, rank_files
from medr3.errors import UserError
from medr3.evaluation.heldout_file import append_heldout
from medr3.observe.config import TrackingConfig
from medr3.observe.tracker import Tracker
from medr3.run.control import Control, PoolSize, read_control, read_pool_size, write_control, write_pool_size
from medr3.run.course import _refuse_another_index
from medr3.run.manifest import MANIFEST, open_manifest
from medr3.run.progress import Progress
from medr3.run.resuming import begin_anew, next_generation, place, refuse_another_s_folder, resume
from medr3.run.sampler import QuestionSampler
from medr3.run.train import _choose_folder, _open_folder, train
from tasks.config import DatasetConfig
from tests.resumable import configuration, plain, trained_for, universe, write_checkpoint
from trajectories.events import Event, EventKind, EventLog, read_events
from trajectories.ledger import Ledger
from trajectories.store import TrajectoryStore


def test_everything_that_the_driver_knows_is_in_the_manifest_and_comes_back(tmp_path: Path) -> None:
    config, manifest = trained_for(tmp_path, 3, left_open=2)
    read = manifest  # from the file
    ledger, sampler, controller = Ledger(config.ledger_rules()), QuestionSampler(universe(), 0), Controller(config.curriculum)
    ledger.restore(read.ledger)
    sampler.restore(read.sampler)
    controller.restore(read.controller)
    progress = Progress.restored(read.progress)
    assert (progress.step, progress.groups, progress.new_group_id()) == (3, 8, "g0000009")
    assert plain(controller.snapshot()) == manifest.controller and controller.steps_in_phase == 3
    assert ledger.open_ids() == ["g0000007", "g0000008"] and ledger.counts().trained == 6
    asked_before = [event["question_id"] for event in _events(tmp_path, EventKind.ADMITTED)]
    straight = QuestionSampler(universe(), 0)
    expected = [straight.next(config.curriculum.phases, 0, 0).id for _ in range(12)]
    goes_on = [sampler.next(config.curriculum.phases, 0, 0).id for _ in range(4)]
    assert [*asked_before, *goes_on] == expected, "the data cursor goes on where it stood"
    tracker = Tracker(
        tmp_path, TrackingConfig(wandb="disabled", progress=False), tracker_id=read.tracker_id, resume_step=read.step
    )
    assert tracker.id == "tracker"
    tracker.close()


def _events(folder: Path, kind: EventKind) -> list[Event]:
    return [event for event in read_events(folder / "events.jsonl").events if event.kind is kind]


def test_another_index_is_refused_by_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, manifest = trained_for(tmp_path, 1)
    monkeypatch.setattr("medr3.run.course.index_hash", lambda folder: "other")
    with pytest.raises(UserError, match="is index other, and the run was trained with index"):
        _refuse_another_index(tmp_path, manifest)
    _refuse_another_index(tmp_path, None)
    monkeypatch.setattr("medr3.run.course.index_hash", lambda folder: manifest.index_hash)
    _refuse_another_index(tmp_path, manifest)


def test_auto_goes_on_from_the_newest(tmp_path: Path) -> None:
    config, manifest = trained_for(tmp_path, 3)
    assert resume(config) == manifest


def test_an_empty_folder_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert resume(configuration(tmp_path)) is None


@pytest.mark.parametrize(
    "damage", ["rank cut off", "a bit flipped", "rank gone", "state cut off", "folder gone", "another file in its place"]
)
def test_a_damaged_checkpoint_is_passed_over_by_name(tmp_path: Path, damage: str) -> None:
    config, manifest = trained_for(tmp_path, 3)
    newest = tmp_path / manifest.checkpoint
    rank = rank_files(newest, 1)[0]
    if damage == "rank cut off":
        rank.write_bytes(rank.read_bytes()[:-1])
    elif damage == "a bit flipped":
        written = rank.read_bytes()
        rank.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    elif damage == "rank gone":
        rank.unlink()
    elif damage == "state cut off":
        (newest / STATE).write_text('{"ran')
    elif damage == "another file in its place":
        rank.write_bytes(b"PK\x03\x04 no tensors here")
    else:
        newest.rename(tmp_path / "elsewhere")
    said: list[str] = []
    state = resume(config, say=said.append)
    assert state is not None and state.step == 2 and state.checkpoint.endswith("step-000002-generation-1")
    assert [record.step for record in state.checkpoints] == [1, 2]
    assert newest.name in said[0] and said[1] == "going on from step 2"
    assert open_manifest(tmp_path) == state, "or a resume that is killed now would try the damaged one again"


def test_when_no_checkpoint_is_whole_one_line_says_so(tmp_path: Path) -> None:
    config, manifest = trained_for(tmp_path, 2)
    for record in manifest.checkpoints:
        (tmp_path / record.folder / STATE).unlink()
    with pytest.raises(UserError, match="no checkpoint that it names is whole") as error:
        resume(config, say=lambda line: None)
    assert "\n" not in str(error.value)


def test_a_run_that_was_killed_before_its_manifest_was_there_goes_on_from_a_sealed_checkpoint(tmp_path: Path) -> None:
    config, manifest = trained_for(tmp_path, 2)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "checkpoints" / "step-000003-generation-1.unfinished").mkdir()
    state = resume(config)
    assert state is not None and state == manifest == open_manifest(tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*.unfinished")), "its room is needed"


def test_a_checkpoint_that_is_named_is_gone_back_to(tmp_path: Path) -> None:
    config, manifest = trained_for(tmp_path, 4)
    folder, checkpoint = place(tmp_path / manifest.checkpoints[1].folder)
    assert folder == tmp_path.resolve()
    state = resume(config, checkpoint)
    assert state is not None and (state.step, [record.step for record in state.checkpoints]) == (2, [1, 2])
    assert open_manifest(tmp_path) == state
    assert resume(config) == state, "the same without its name"


@pytest.mark.parametrize("named", ["nothing", "checkpoints/step-000009-generation-1"])
def test_a_path_that_names_nothing_is_one_line(tmp_path: Path, named: str) -> None:
    trained_for(tmp_path, 1)
    with pytest.raises(
        UserError, match=r"--resume .*: (has no manifest|there is no such checkpoint; there are step-000001)"
    ) as error:
        place(tmp_path / named)
    assert "\n" not in str(error.value)


def test_a_path_decides_which_folder_is_run_in(tmp_path: Path) -> None:
    config, manifest = trained_for(tmp_path / "run", 2)
    config.run.folder = tmp_path / "from the configuration"
    path = str(tmp_path / "run")
    assert _open_folder(config, path, _choose_folder(config, path), None) == manifest
    assert config.run.folder == (tmp_path / "run").resolve()


def test_never_leaves_nothing_of_the_course_and_what_it_did_not_make(tmp_path: Path) -> None:
    config, _ = trained_for(tmp_path, 2)
    append_heldout(tmp_path, "cold_start", "joint", {"q": True})
    for name in ("index", "cold_start"):
        (tmp_path / name).mkdir()
    assert _open_folder(config, "never", "", None) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cold_start", "config.json", "index"]


def test_another_data_set_is_read_anew(tmp_path: Path) -> None:
    config, _ = trained_for(tmp_path, 1)
    (tmp_path / "questions").mkdir()
    begin_anew(config)
    assert (tmp_path / "questions").is_dir()
    begin_anew(config.model_copy(update={"datasets": {"own": DatasetConfig(train="a.jsonl", held_out="b.jsonl")}}))
    assert not (tmp_path / "questions").exists()


def test_another_configuration_is_refused_by_the_name_of_the_setting(tmp_path: Path) -> None:
    trained_for(tmp_path, 1)
    with pytest.raises(UserError, match=r"another configuration: rollout.max_attempts is 9, and was 3, and 1 more: .*--fork"):
        resume(configuration(tmp_path, "learner.clip_high=0.9", "rollout.max_attempts=9"))
    elsewhere = configuration(
        tmp_path, "run.keep_checkpoints=7", "run.keep_every=5", "learner.workers=4", "run.mirror=file:///x"
    )
    assert resume(elsewhere) is not None, "where it runs, and how much it keeps, may change"


def test_a_hash_of_an_earlier_program_is_told_from_another_configuration(tmp_path: Path) -> None:
    config, manifest = trained_for(tmp_path, 1)
    stored = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(stored | {"config_hash": "counted otherwise", "checksum": ""}))
    assert resume(config) is not None
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="another configuration"):
        resume(config)
    assert manifest.config_hash == config.hash()


def test_a_generation_is_never_begun_twice_however_early_its_process_dies(tmp_path: Path) -> None:
    config, manifest = trained_for(tmp_path, 2)
    assert (next_generation(tmp_path, None), next_generation(tmp_path, manifest)) == (1, 2)
    with EventLog(tmp_path / "events.jsonl") as log:  # a process that was killed before its first checkpoint
        log.append(EventKind.RESUMED, generation=2, step=2, position=manifest.events)
    assert next_generation(tmp_path, resume(config)) == 3
    TrajectoryStore(tmp_path / "trajectories").write(3, 5, [])
    assert next_generation(tmp_path, resume(config)) == 6, "also where the machine lost the last events"


def test_check_whole_accepts_what_the_ranks_wrote_and_nothing_shorter(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", ranks=2)
    check_whole(folder)
    (folder / STATE).write_text('{"ranks": 3}')
    with pytest.raises(CheckpointRefused, match="rank-00000-of-00003"):
        check_whole(folder)
    (folder / STATE).write_text('{"ranks": "2"}')
    with pytest.raises(CheckpointRefused, match="cut off or changed"):
        check_whole(folder)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("deed", range(8))
def test_a_wipe_that_is_killed_leaves_no_state_without_its_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: int
) -> None:
    config, _ = trained_for(tmp_path, 2)
    left = [deed]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def remove(*args: Any, **how: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return real(*args, **how)

        return remove

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        with suppress(Killed):
            begin_anew(config)
    if (tmp_path / MANIFEST).exists() and not list((tmp_path / "checkpoints").glob("*")):
        with pytest.raises(UserError, match="start anew with --resume never"):
            resume(config, say=lambda line: None)
        return
    state = resume(config, say=lambda line: None)
    assert state is None or len(read_events(tmp_path / "events.jsonl").events) >= state.events


def test_a_command_to_the_course_before_is_not_obeyed_by_the_next(tmp_path: Path) -> None:
    config, _ = trained_for(tmp_path, 1)
    write_control(tmp_path, Control("advance", 1.0))
    write_pool_size(tmp_path, PoolSize(7, 1.0))
    begin_anew(config)
    assert read_control(tmp_path) is None and read_pool_size(tmp_path) is None


@pytest.mark.parametrize("name", ["questions", "checkpoints", "wandb"])
def test_what_somebody_else_put_into_the_folder_is_not_removed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mine"
    (folder / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"holds {name} and no run"):
        train(configuration(folder), "auto")
    assert (folder / name).is_dir()
    trained_for(tmp_path / "run", 1)
    for left_alone in (tmp_path / "run", tmp_path / "nowhere"):
        refuse_another_s_folder(left_alone)
    (tmp_path / "run" / "driver.lock").touch()  # of a run that was killed before anything else was there
    for sign in ("manifest.json", "events.jsonl", "config.json"):
        (tmp_path / "run" / sign).unlink()
    refuse_another_s_folder(tmp_path / "run")
