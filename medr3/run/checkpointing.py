"""Checkpoints: ordered between two steps, written while the next ones train, and named by the manifest when they are complete.

::

    main ── order ─▶ learner copies its tensors ─▶ snapshots are taken ─▶ main goes on
                                                        │
    seal ◀── every rank has written, the folder has its name ◀──┘ ─▶ manifest ─▶ what it no longer names is removed

`order` waits for the `seal` before it, so at most one checkpoint is on its way. Whatever happens in between, the manifest
names a complete one; a seal that fails ends the run with its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from curriculum.config import PhaseConfig
from medr3.run.manifest import CHECKPOINTS, CheckpointRecord, Manifest, prune_checkpoints, worth_keeping, write_manifest
from medr3.run.state import RunState
from trajectories.events import EventKind


class Checkpointing:
    """Belongs to the main task; each seal is a task of the same group."""

    def __init__(self, state: RunState, tasks: asyncio.TaskGroup) -> None:
        self._state, self._tasks = state, tasks
        self._seal: asyncio.Task[None] | None = None
        self.last_step = state.checkpoints[-1].step if state.checkpoints else -1  # the last that the manifest names

    async def order(self, phase: PhaseConfig) -> None:
        """The state as it is now, `phase` being the one that was trained."""
        await self.finish()
        state, step = self._state, self._state.progress.step
        name = f"{CHECKPOINTS}/step-{step:06d}-generation-{state.version.generation}"
        written = await state.learner.checkpoint(state.config.run.folder / name)
        state.journal.events.append(EventKind.CHECKPOINT, step=step, folder=name)
        self._seal = self._tasks.create_task(self._sealed(written, self._manifest(self._record(name, phase))))

    async def finish(self) -> None:
        """Until the checkpoint that is on its way, if any, is named by the manifest."""
        if self._seal is not None:
            await self._seal

    async def _sealed(self, written: Coroutine[Any, Any, None], manifest: Manifest) -> None:
        state = self._state
        await written
        state.journal.sync()
        write_manifest(state.config.run.folder / manifest.checkpoint, manifest)  # a rollback goes on from this state
        write_manifest(state.config.run.folder, manifest)
        state.checkpoints = manifest.checkpoints
        self.last_step = manifest.step
        prune_checkpoints(state.config.run.folder, manifest)

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
            checkpoints=worth_keeping([*state.checkpoints, record], run.keep_checkpoints, run.keep_best),
            config_hash=state.config.hash(), index_hash=state.index_hash, tracker_id=state.journal.tracker.id,
            events=state.journal.events.position, ledger=state.ledger.snapshot(), sampler=state.sampler.snapshot(),
            controller=state.controller.snapshot(), progress=state.progress.snapshot(state.watchdog.seconds),
        )  # fmt: skip
