"""The feed: keeps the ledger's slots full, and leads every group from WAITING to FINISHED or voided."""

from __future__ import annotations

import asyncio
import time
import zlib
from dataclasses import replace

import ray
from ray.exceptions import RayError

from actors.failures import EngineDrained
from actors.messages import GroupRequest, GroupVoided
from medr3.run.journal import FinishedGroup
from medr3.run.recovery import Found
from medr3.run.state import RunState
from trajectories.events import EventKind
from trajectories.groups import Fate


class Feed:
    """One task that admits, and one task per open group. An error in any of them ends the run."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Admits for ever; cancelled, it takes its group tasks with it."""
        state = self._state
        async with asyncio.TaskGroup() as groups:
            for group_id in state.ledger.waiting():  # left over by a resume
                self._begin(groups, group_id)
            while True:
                while state.ledger.capacity() > 0:
                    self._begin(groups, self._admit())
                state.slot_free.clear()
                await state.slot_free.wait()

    def give_up(self, group_ids: list[str], reason: str) -> None:
        """Ends groups that nobody wants any longer; their engines stop in mid-sentence."""
        for group_id in group_ids:
            if task := self._running.pop(group_id, None):
                task.cancel()
        self._state.ledger.drop(group_ids, reason)

    def _begin(self, groups: asyncio.TaskGroup, group_id: str) -> None:
        task = self._running[group_id] = groups.create_task(self._roll_out(group_id))
        self._state.journal.accounts.engines_idle.begin()
        task.add_done_callback(lambda ended: self._ended_rolling(group_id))

    def _ended_rolling(self, group_id: str) -> None:
        self._running.pop(group_id, None)
        self._state.journal.accounts.engines_idle.end()

    def _admit(self) -> str:
        state = self._state
        group_id = state.progress.new_group_id()
        question = state.sampler.next(
            state.config.curriculum.phases, state.controller.phase_index, state.controller.steps_in_phase
        )
        phase = state.controller.phase.name
        state.ledger.admit(group_id, question.id, phase, time.monotonic())
        state.journal.events.append(EventKind.ADMITTED, group_id=group_id, question_id=question.id, phase=phase)
        return group_id

    async def _roll_out(self, group_id: str) -> None:
        """One attempt after the other, until the group is finished or given up. Each attempt's lease is kept by the pool."""
        while self._state.ledger.is_open(group_id):
            request = self._request(group_id)
            if found := self._state.recovery.take(group_id, request.question.id, request.phase):
                await self._recovered(request, found)
                return
            try:
                finished = await self._attempt(request)
            except GroupVoided as error:
                self._lost(request, error)
            else:
                self._finish(request, finished)
                return

    async def _attempt(self, request: GroupRequest) -> FinishedGroup:
        state = self._state

        def started(engine_id: str) -> None:
            state.ledger.start(request.group_id, engine_id, state.version)

        summary, rows = await state.pool.run_group(request, started)
        try:
            table = await rows
        except RayError as error:
            raise GroupVoided(f"rows lost: {summary.engine_id}: {type(error).__name__}", "rows_lost") from error
        finished = FinishedGroup(summary, request.question.source, rows, table)
        await state.journal.spooled(finished)
        return finished

    async def _recovered(self, request: GroupRequest, found: Found) -> None:
        """An earlier process rolled this group out, and the weights that it used are still of the run: nobody has to do it again."""
        state, summary = self._state, replace(found.summary, attempt=request.attempt)
        # By this thread: one of a pool that knew the Ray before a roll-back would number its objects again.
        rows = ray.put(found.table)
        group = FinishedGroup(summary, request.question.source, rows, found.table)
        await state.journal.spooled(group)
        if not state.ledger.is_open(request.group_id):  # given up meanwhile
            return
        state.ledger.start(request.group_id, summary.engine_id, summary.oldest)
        state.journal.events.append(EventKind.RECOVERED, group_id=request.group_id, engine_id=summary.engine_id)
        self._finish(request, group, observed=found.observed)

    def _request(self, group_id: str) -> GroupRequest:
        state = self._state
        group = state.ledger.group(group_id)
        question = state.universe.question(group.question_id)
        rules = state.config.rules(group.phase, question.source)
        return GroupRequest(
            run_id=state.config.run.name, group_id=group_id, attempt=group.attempt, phase=group.phase, question=question,
            n=state.config.rollout.group_size, temperature=rules.temperature,
            seed=zlib.crc32(f"{state.config.run.seed}/{group_id}/{group.attempt}".encode()),
            budget=state.config.phase_budget(rules), recipe=state.config.rewards[rules.reward], temperatures=rules.temperatures,
        )  # fmt: skip

    def _finish(self, request: GroupRequest, group: FinishedGroup, *, observed: bool = False) -> None:
        state, group_id = self._state, request.group_id
        if not state.ledger.finish(group_id, request.attempt, group.summary.oldest, time.monotonic()):
            return
        state.finished[group_id] = group
        if not observed:
            state.sampler.observe(request.question.id, sum(group.summary.correct), len(group.summary.correct))
        state.watchdog.progress(f"group {group_id} finished")
        if len(set(group.summary.rewards)) == 1 and state.ledger.drop_uniform(group_id):
            self._ended()
        state.arrived.set()

    def _lost(self, request: GroupRequest, error: GroupVoided) -> None:
        state, reason = self._state, str(error)
        state.journal.accounts.failed[error.cause] += 1
        failed = not isinstance(error, EngineDrained)
        fate = state.ledger.lost(request.group_id, request.attempt, reason, failed=failed)
        if fate is Fate.REQUEUED:
            state.journal.events.append(
                EventKind.REQUEUED, group_id=request.group_id, attempt=request.attempt, reason=reason
            )  # fmt: skip
        else:
            self._ended()

    def _ended(self) -> None:
        state = self._state
        state.journal.endings(state.ledger, state.finished, state.version)
        state.slot_free.set()
