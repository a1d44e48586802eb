"""What is kept, and that nothing that goes wrong takes the last good checkpoint with it: random lives of a run, the real parts of it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from learner.checkpoint_folder import STATE, check_whole, rank_files, unfinished
from medr3.observe.config import TrackingConfig
from medr3.observe.tracker import Tracker
from medr3.run import checkpointing
from medr3.run.checkpointing import Checkpointing, NoRoom, lacks_room
from medr3.run.journal import Journal
from medr3.run.manifest import CheckpointRecord, best_first, open_manifest, worth_keeping
from medr3.run.recovery import Recovery
from medr3.run.resuming import resume
from tests.resumable import Life, configuration, write_checkpoint
from trajectories.recorder import Recorder

COMPLETE, WRITE_FAILS, KILLED_WRITING, KILLED_BEFORE_MANIFEST = (
    "complete",
    "write fails",
    "killed writing",
    "killed before manifest",
)
ENDINGS = (COMPLETE, COMPLETE, COMPLETE, WRITE_FAILS, KILLED_WRITING, KILLED_BEFORE_MANIFEST)


class Killed(BaseException):
    """The process ends here: nothing behind this line happens."""


class DiskLearner:
    """Writes checkpoints as the learner's ranks do, and ends as it is told."""

    def __init__(self) -> None:
        self.ending = COMPLETE
        self.wait: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def checkpoint(self, folder: Path) -> Coroutine[Any, Any, None]:
        return self._write(folder, self.ending)

    async def _write(self, folder: Path, ending: str) -> None:
        if self.wait is not None:
            await self.wait()
        write_checkpoint(unfinished(folder))
        if ending == WRITE_FAILS:
            raise OSError(28, "No space left on device")
        if ending == KILLED_WRITING:
            rank_files(unfinished(folder), 1)[0].write_bytes(b"\0")
            raise Killed
        unfinished(folder).rename(folder)
        if ending == KILLED_BEFORE_MANIFEST:
            raise Killed


def driver(life: Life, learner: DiskLearner) -> Any:
    """The part of a run's state that checkpoints are made of."""
    config, folder = life.config, life.config.run.folder
    tracker = Tracker(folder, TrackingConfig(wandb="disabled", progress=False))
    journal = Journal(folder, life.log, tracker, Recorder(folder / "trajectories", life.generation))
    said: list[str] = []
    journal.say = said.append  # type: ignore[method-assign]
    return SimpleNamespace(
        config=config, learner=learner, journal=journal, ledger=life.ledger, sampler=life.sampler, controller=life.controller,
        progress=life.progress, watchdog=SimpleNamespace(seconds={}), index_hash="index", checkpoints=life.records,
        version=SimpleNamespace(generation=life.generation), publication=SimpleNamespace(nbytes=1000), recovery=Recovery(),
        forked_from=None, said=said,
    )  # fmt: skip


def close(state: Any) -> None:
    state.journal.store.close()
    state.journal.tracker.close()


async def order_one(state: Any, *, ends: bool = False) -> Checkpointing:
    async with asyncio.TaskGroup() as tasks:
        checkpoints = Checkpointing(state, tasks)
        await checkpoints.order(state.controller.phase, ends=ends)
    await checkpoints.close()
    return checkpoints


class Lives(RuleBasedStateMachine):
    """A run that trains, checkpoints, fails, is killed, loses files and is resumed, in any order."""

    @initialize(last=st.integers(1, 3), best=st.integers(0, 2), every=st.sampled_from([None, 2, 3]))
    def begin(self, last: int, best: int, every: int | None) -> None:
        self.folder = Path(tempfile.mkdtemp())
        keep = (f"run.keep_checkpoints={last}", f"run.keep_best={best}", f"run.keep_every={every or 'null'}")
        self.config = configuration(self.folder, *keep)
        self.life, self.learner = Life(self.config), DiskLearner()
        self.good: list[str] = []  # folders that were whole when a manifest named them, and were not damaged since
        self.state = driver(self.life, self.learner)

    @rule(score=st.floats(0, 1), ending=st.sampled_from(ENDINGS))
    def train_and_checkpoint(self, score: float, ending: str) -> None:
        self.life.step()
        self.life.progress.probed(self.state.controller.phase.name, score)
        self.learner.ending = ending
        try:
            asyncio.run(order_one(self.state))
        except* (OSError, Killed):
            self.begin_again()
        else:
            self.good = [record.folder for record in self.state.checkpoints if record.folder in self.good] + [
                self.state.checkpoints[-1].folder
            ]

    @rule()
    def killed_between_two_checkpoints(self) -> None:
        self.life.step()
        self.begin_again()

    @precondition(lambda self: len(self.good) > 1)  # of a single one nothing would be left to go on from
    @rule(what=st.sampled_from(["cut off", "gone"]))
    def the_newest_is_damaged(self, what: str) -> None:
        newest = self.folder / self.good.pop()
        if what == "gone":
            shutil.rmtree(newest)
        else:
            (newest / STATE).write_text("{")
        self.begin_again()

    def begin_again(self) -> None:
        """What the next process finds, and goes on from."""
        close(self.state)
        self.life.log.close()
        (self.folder / "config.json").write_text(self.config.model_dump_json())
        manifest = resume(self.config, say=lambda line: None)
        if self.good:
            assert manifest is not None, "a whole checkpoint was there, and nothing was found to go on from"
            check_whole(self.folder / manifest.checkpoint)
            # Or a later one, which was sealed although its process was killed before the run's manifest named it.
            assert manifest.checkpoint == self.good[-1] or manifest.checkpoint not in self.good
        self.life = Life(self.config, generation=(manifest.generation if manifest else 0) + 1)
        if manifest is not None:
            self.life.ledger.restore(manifest.ledger)
            self.life.sampler.restore(manifest.sampler)
            self.life.controller.restore(manifest.controller)
            self.life.progress = type(self.life.progress).restored(manifest.progress)
            self.life.records = list(manifest.checkpoints)
            for group_id in self.life.ledger.waiting():
                self.life.roll_out(group_id)
            self.good = [record.folder for record in manifest.checkpoints]
        self.state = driver(self.life, self.learner)

    @invariant()
    def the_last_good_one_is_there(self) -> None:
        for name in self.good:
            check_whole(self.folder / name)
        if self.good:
            manifest = open_manifest(self.folder)
            assert manifest is not None
            assert {record.folder for record in manifest.checkpoints} >= {self.good[-1]}

    def teardown(self) -> None:
        if hasattr(self, "state"):
            close(self.state)
            self.life.log.close()
            shutil.rmtree(self.folder)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=12, stateful_step_count=16, deadline=None)


def _record(step: int, score: float | None) -> CheckpointRecord:
    return CheckpointRecord(folder=f"c/{step}", step=step, phase="p", phase_index=0, score=score, probed_at=step)


@given(
    scores=st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=30), last=st.integers(1, 4), best=st.integers(0, 3),
    every=st.none() | st.integers(1, 7),
)  # fmt: skip
def test_what_is_kept_is_the_newest_the_best_and_every_nth(
    scores: list[float | None], last: int, best: int, every: int | None
) -> None:
    kept: list[CheckpointRecord] = []
    records = [_record(step, score) for step, score in enumerate(scores, start=1)]
    for record in records:  # one after the other, as a run keeps them
        kept = worth_keeping([*kept, record], last, best, every)
    assert kept[-last:] == records[-last:] and kept == sorted(kept, key=lambda record: record.step)
    assert {record.step for record in kept} >= {record.step for record in records if every and record.step % every == 0}
    assert {record.folder for record in kept} >= {record.folder for record in best_first(records)[:best]}
    assert len(kept) <= last + best + (len(records) // every if every else 0)


@pytest.mark.parametrize(("rule_", "ends", "raises"), [("go_on", False, False), ("go_on", True, True), ("end", False, True)])
def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule_: str, ends: bool, raises: bool
) -> None:
    life = Life(configuration(tmp_path, f"run.on_full_disk={rule_}", "run.keep_checkpoints=1"))
    state = driver(life, DiskLearner())
    life.step()
    asyncio.run(order_one(state))
    before = open_manifest(tmp_path)
    free = SimpleNamespace(free=checkpointing.SPARE - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    life.step()
    if raises:
        with pytest.raises(ExceptionGroup) as error:
            asyncio.run(order_one(state, ends=ends))
        assert isinstance(error.value.exceptions[0], NoRoom)
        line = str(error.value.exceptions[0])
    else:
        asyncio.run(order_one(state, ends=ends))
        line = state.said[-1]
    assert "no checkpoint of step 2" in line and "GiB are needed" in line and "make room" in line and "\n" not in line
    assert open_manifest(tmp_path) == before is not None
    check_whole(tmp_path / before.checkpoint)
    monkeypatch.undo()
    asyncio.run(order_one(state))
    assert [record.step for record in state.checkpoints] == [2], "once there is room, the next one is written"
    close(state)


def test_as_much_room_is_asked_for_as_the_last_one_took(tmp_path: Path) -> None:
    life = Life(configuration(tmp_path))
    state = driver(life, DiskLearner())

    async def needed() -> int:
        async with asyncio.TaskGroup() as tasks:
            return Checkpointing(state, tasks)._needed() - checkpointing.SPARE

    assert asyncio.run(needed()) == 3 * 1000, "weights and two moments, where nothing is known yet"
    life.step()
    asyncio.run(order_one(state))
    size = sum(path.stat().st_size for path in (tmp_path / state.checkpoints[-1].folder).iterdir())
    assert asyncio.run(needed()) == size
    assert lacks_room(tmp_path, 10**18) and not lacks_room(tmp_path, 0)
    close(state)


def test_a_step_that_fails_does_not_take_the_checkpoint_with_it_that_is_being_written(tmp_path: Path) -> None:
    life, learner = Life(configuration(tmp_path)), DiskLearner()
    state, writing = driver(life, learner), asyncio.Event()

    async def scenario() -> None:
        async def slowly() -> None:
            writing.set()
            await asyncio.sleep(0.05)

        learner.wait = slowly
        try:
            async with asyncio.TaskGroup() as tasks:
                checkpoints = Checkpointing(state, tasks)
                await checkpoints.order(state.controller.phase)
                await writing.wait()
                raise ValueError("the step after it")
        except ExceptionGroup:
            assert open_manifest(tmp_path) is None
            await checkpoints.rescue()

    life.step()
    asyncio.run(scenario())
    manifest = open_manifest(tmp_path)
    assert manifest is not None and manifest.step == 1
    check_whole(tmp_path / manifest.checkpoint)
    close(state)


def test_a_rescue_ends_where_nobody_writes_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life, learner = Life(configuration(tmp_path)), DiskLearner()
    state = driver(life, learner)
    monkeypatch.setattr(checkpointing, "RESCUE_S", 0.05)

    async def scenario() -> None:
        async def never() -> None:
            await asyncio.sleep(3600)

        learner.wait = never
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                checkpoints = Checkpointing(state, tasks)
                await checkpoints.order(state.controller.phase)
                raise ValueError("the step after it")
        await asyncio.wait_for(checkpoints.rescue(), 5)

    life.step()
    asyncio.run(scenario())
    assert open_manifest(tmp_path) is None
    close(state)
