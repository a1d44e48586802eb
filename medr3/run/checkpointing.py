"""Checkpoints: ordered between two steps, written while the next ones train, and named by the manifest when they are complete.

::

    main ── order ─▶ room? ─▶ learner copies its tensors ─▶ snapshots are taken ─▶ main goes on
                                                                │
    seal ◀── every rank has written, the folder has its name ◀──┘ ─▶ rows and events on the disk ─▶ manifest
                                                        what it no longer names is removed ◀──┤
                                                                           mirror, if any  ◀──┘

`order` waits for the `seal` before it, so at most one checkpoint is on its way. Whatever happens in between, the manifest
names a complete one; a seal that fails ends the run with its reason. A step that fails ends the run as well, but not the seal that is
under way: it is waited for, because the state that it holds is whole.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from curriculum.config import PhaseConfig
from medr3.run.manifest import CHECKPOINTS, CheckpointRecord, Manifest, prune_checkpoints, worth_keeping, write_manifest
from medr3.run.mirroring import Mirroring
from medr3.run.state import RunState
from trajectories.events import EventKind

GIB = 2**30
RESCUE_S = 60.0  # a checkpoint that takes longer to write than this is not worth the wait of everybody who wants to start again
# A checkpoint holds weights and both moments in 32 bits: so many times the bytes of the weights that are published, before one is there.
OF_PUBLISHED = {"float32": 3, "bfloat16": 6}
SPARE = 64 * 2**20  # bytes beside the tensors: rows and events go on being written


class NoRoom(Exception):
    """A checkpoint has no room, and the run is told to end for it, or ends here anyway; the text says how much is missing where."""


class Checkpointing:
    """Belongs to the main task; each seal is a task of its own, whose failure ends the group's."""

    def __init__(self, state: RunState, tasks: asyncio.TaskGroup) -> None:
        self._state, self._tasks = state, tasks
        self._seal: asyncio.Task[None] | None = None
        self._mirroring = Mirroring(state.config, state.journal.say)
        self.last_step = state.checkpoints[-1].step if state.checkpoints else -1  # the last that the manifest names

    async def order(self, phase: PhaseConfig, *, ends: bool = False) -> None:
        """The state as it is now, `phase` being the one that was trained; `ends` where the run does, and must not lose it."""
        await self.finish()
        state, step = self._state, self._state.progress.step
        if problem := lacks_room(state.config.run.folder, self._needed()):
            if ends or state.config.run.on_full_disk == "end":
                raise NoRoom(f"no checkpoint of step {step}: {problem}")
            state.journal.say(f"warning: no checkpoint of step {step}, the last is of step {self.last_step}: {problem}")
            return
        name = f"{CHECKPOINTS}/step-{step:06d}-generation-{state.version.generation}"
        written = await state.learner.checkpoint(state.config.run.folder / name)
        state.journal.events.append(EventKind.CHECKPOINT, step=step, folder=name)
        superseded = state.journal.ordered(step)
        self._seal = asyncio.create_task(self._sealed(written, self._manifest(self._record(name, phase)), superseded))
        self._tasks.create_task(_shielded(self._seal))

    async def finish(self) -> None:
        """Until the checkpoint that is on its way, if any, is named by the manifest."""
        if self._seal is not None:
            await asyncio.shield(self._seal)

    async def close(self) -> None:
        """At the end of a run: until its last checkpoint is named by the manifest, and is in the second place too."""
        await self.finish()
        await self._mirroring.finish()

    async def rescue(self) -> None:
        """After a failure elsewhere: the checkpoint that is on its way is waited for, as long as its writers live."""
        if self._seal is not None and not self._seal.done():
            with suppress(Exception):
                await asyncio.wait_for(self._seal, RESCUE_S)
        await self._mirroring.stop(RESCUE_S)

    async def _sealed(self, written: Coroutine[Any, Any, None], manifest: Manifest, superseded: list[str]) -> None:
        state, folder = self._state, self._state.config.run.folder
        await written
        await asyncio.to_thread(state.journal.sync)
        write_manifest(folder / manifest.checkpoint, manifest)  # a rollback goes on from this state
        write_manifest(folder, manifest)
        state.checkpoints = manifest.checkpoints
        self.last_step = manifest.step
        state.journal.store.ended(superseded)
        state.journal.store.forget_older()
        state.recovery.give_up()
        state.journal.discarded(state.recovery)
        prune_checkpoints(folder, manifest, self._mirroring.reads)
        self._mirroring.send(manifest)

    def _needed(self) -> int:
        """Bytes of the next checkpoint: as many as the last one has."""
        state = self._state
        if state.checkpoints:
            last = state.config.run.folder / state.checkpoints[-1].folder
            return SPARE + sum(path.stat().st_size for path in last.glob("*"))
        if state.config.learner.lora is not None:
            return SPARE
        return SPARE + OF_PUBLISHED[state.config.learner.dtype] * state.publication.nbytes

    def _record(self, name: str, phase: PhaseConfig) -> CheckpointRecord:
        probe = self._state.progress.last_probe.get(phase.name)
        return CheckpointRecord(
            folder=name, step=self._state.progress.step, phase=phase.name,
            phase_index=self._state.config.curriculum.phases.index(phase),
            score=probe["score"] if probe else None, probed_at=probe["step"] if probe else None,
        )  # fmt: skip

    def _manifest(self, record: CheckpointRecord) -> Manifest:
        state, run = self._state, self._state.config.run
        return Manifest(
            run_id=run.name, step=record.step, generation=state.version.generation,
            checkpoints=worth_keeping([*state.checkpoints, record], run.keep_checkpoints, run.keep_best, run.keep_every),
            config_hash=state.config.hash(), index_hash=state.index_hash, tracker_id=state.journal.tracker.id,
            events=state.journal.events.position, ledger=state.ledger.snapshot(), sampler=state.sampler.snapshot(),
            controller=state.controller.snapshot(), progress=state.progress.snapshot(state.watchdog.seconds),
            forked_from=state.forked_from,
        )  # fmt: skip


def lacks_room(folder: Path, needed: int) -> str:
    """What is missing for so many bytes, in words; empty where they fit."""
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return ""
    return (
        f"{needed / GIB:.2f} GiB are needed and {free / GIB:.2f} GiB are free in {folder}: make room there, or keep fewer with"
        " run.keep_checkpoints"
    )


async def _shielded(seal: asyncio.Task[None]) -> None:
    """Raises what the seal raises, and leaves it alone when it is cancelled itself."""
    await asyncio.shield(seal)
