"""The feed: keeps the ledger's slots full, and leads every group from WAITING to FINISHED or voided."""

from __future__ import annotations

import asyncio
import time
import zlib

from actors.messages import GroupRequest, GroupVoided
from medr3.run.journal import FinishedGroup
from medr3.run.state import RunState
from trajectories.events import EventKind
from trajectories.groups import Fate


class Feed:
    """One task that admits, and one task per open group. An error in any of them ends the run."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    async def run(self) -> None:
        """Admits for ever; cancelled, it takes its group tasks with it."""
        state = self._state
        async with asyncio.TaskGroup() as groups:
            for group_id in state.ledger.waiting():  # left over by a resume
                groups.create_task(self._roll_out(group_id))
            while True:
                while state.ledger.capacity() > 0:
                    groups.create_task(self._roll_out(self._admit()))
                state.slot_free.clear()
                await state.slot_free.wait()

    def _admit(self) -> str:
        state = self._state
        group_id = state.progress.new_group_id()
        question = state.sampler.next(state.config.curriculum.phases, state.controller.phase_index)
        phase = state.controller.phase.name
        state.ledger.admit(group_id, question.id, phase, time.monotonic())
        state.journal.events.append(EventKind.ADMITTED, group_id=group_id, question_id=question.id, phase=phase)
        return group_id

    async def _roll_out(self, group_id: str) -> None:
        state = self._state
        while True:
            group = state.ledger.group(group_id)
            question = state.universe.question(group.question_id)
            rules = state.config.rules(group.phase, question.source)
            lease_s = state.config.rollout.group_timeout_s  # the pool keeps it: a late group comes back as GroupVoided
            attempt = state.ledger.start(group_id, "pool", state.version, time.monotonic(), lease_s)
            request = GroupRequest(
                run_id=state.config.run.name, group_id=group_id, attempt=attempt, phase=group.phase, question=question,
                n=state.config.rollout.group_size, temperature=rules.temperature,
                seed=zlib.crc32(f"{state.config.run.seed}/{group_id}/{attempt}".encode()),
                budget=state.config.phase_budget(rules), recipe=state.config.rewards[rules.reward],
            )  # fmt: skip
            try:
                summary, rows = await state.pool.run_group(request)
                table = await rows
            except GroupVoided as error:
                if state.ledger.lost(group_id, attempt, str(error)) is Fate.REQUEUED:
                    state.journal.events.append(EventKind.REQUEUED, group_id=group_id, attempt=attempt, reason=str(error))
                    continue
                state.journal.endings(state.ledger, state.finished, state.version)
                state.slot_free.set()
                return
            if state.ledger.finish(group_id, attempt, summary.oldest, time.monotonic()):
                state.finished[group_id] = FinishedGroup(summary, question.source, rows, table)
                state.watchdog.progress(f"group {group_id} finished")
                state.arrived.set()
            return
