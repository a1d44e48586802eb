"""The run loop: roll out, learn, decide the phase.

::

      feed ──admit──▶ WAITING ──one task per group──▶ engine ──▶ FINISHED
        ▲ capacity()                                                │ take(): a full batch, none too old
        │                                                           ▼
      retire ◀── checkpoint? ◀── probe? decide ◀── every engine acks v+1 ◀── publish ◀── learner.step

| task  | consumes          | waits for                 | is unblocked by                            |
|-------|-------------------|---------------------------|--------------------------------------------|
| feed  | questions         | a free slot of the ledger | `retire`, a group that was given up        |
| group | one slot          | an engine that is HEALTHY | acks, other groups ending                  |
| main  | finished groups   | a full batch              | group tasks                                |
| seal  | one checkpoint    | every rank's files        | the learner's writing threads              |
| scale | loads             | the clock                 | nobody: it only changes the pool's size    |
| tell  | nothing           | the clock                 | nobody: Prometheus hears how it stands     |
| watch | nothing           | the clock                 | nobody: it ends the run when main stalls   |

All tasks live in one event loop of the driver, so the ledger needs no lock: between two awaits nobody else runs. With
max_staleness 0 the feed finds no slot until `retire`, which makes the run synchronous; the code is the same.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from curriculum.config import PhaseConfig, learning_rate_at
from curriculum.controller import Decision, DecisionKind
from learner.messages import StepResult
from medr3.run.checkpointing import Checkpointing
from medr3.run.deciding import Deciding, TrainingCollapsed
from medr3.run.diagnosis import explain_wait
from medr3.run.feed import Feed
from medr3.run.journal import FinishedGroup, Seconds, step_metrics
from medr3.run.measuring import around_step, observed, tell, tell_end
from medr3.run.scaling import Scaling
from medr3.run.standing import standing
from medr3.run.state import RunState
from trajectories.publication import Publication
from trajectories.schema import WeightVersion


class TrainingLoop:
    """One run from its first step, or its last checkpoint, to the end of the last phase, to a stop, or to a roll-back."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._feed = Feed(state)
        self._deciding = Deciding(state, self._feed)
        self._scaling = Scaling(state)
        self._waited_for_slow = 0.0  # seconds of this step's wait in which a batch was finished

    async def run(self) -> Decision | None:
        """Raises whatever went wrong in any task. Returns the decision to roll back, if that is how it ended."""
        state, last = self._state, None
        checkpoints: Checkpointing | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(work) for work in (state.watchdog.watch(partial(explain_wait, state)), tell(state))]
                checkpoints = Checkpointing(state, tasks)
                await self._deciding.enter()
                beside += [tasks.create_task(work) for work in (self._feed.run(), self._scaling.run())]
                while not state.controller.finished and not state.stop.is_set() and not _rolls_back(last):
                    last = await self._step(checkpoints)
                for task in beside:
                    task.cancel()
            await checkpoints.close()
        except Exception:
            if checkpoints is not None:
                await checkpoints.rescue()
            raise
        if not _rolls_back(last):
            tell_end(state)
        if state.controller.finished:
            # A run that ended owes every admitted group an outcome; one that was stopped resumes them from its manifest.
            state.ledger.drop(state.ledger.open_ids(), "run ended")
            state.journal.endings(state.ledger, state.finished, state.version)
            state.journal.store_rest(state.progress.step)
            if state.reports is not None:
                await state.reports.finish()
        return last if _rolls_back(last) else None

    async def _step(self, checkpoints: Checkpointing) -> Decision | None:
        """One learner step: take, learn, publish, write down, decide; admission opens again at the very end."""
        state, started = self._state, time.monotonic()
        with state.watchdog.stage("rollout"):
            batch = await self._next_batch()
        self._feed.give_up(state.ledger.surplus(), "surplus")
        waited = time.monotonic() - started
        phase, trained_at, step = state.controller.phase, state.version, state.progress.step + 1
        groups = [state.finished[group_id] for group_id in batch]
        result = await self._learn(groups, phase, step)
        learned = time.monotonic() - started - waited
        with state.watchdog.stage("sync"):
            await self._publish(result.publication)
        seconds = Seconds(waited, self._waited_for_slow, learned, time.monotonic() - started)
        ages = [state.ledger.group(group_id).age for group_id in batch]
        state.ledger.trained(batch, step)
        state.progress.stepped(step, sum(group.summary.model_tokens for group in groups), seconds.whole)
        state.journal.endings(state.ledger, state.finished, trained_at)
        state.journal.store_step(step)
        state.journal.warn(step, result.metrics)
        metrics = step_metrics(groups, phase.name, result.metrics, seconds) | around_step(state, groups, seconds.whole)
        decision = await self._deciding.after_step(step, metrics)
        told = metrics | state.progress.probed_at(step, phase.name)
        state.journal.tracker.log(step, phase.name, told, observed(groups, ages))
        if decision is not None and decision.left_by == "collapse":
            raise TrainingCollapsed(f"phase {decision.phase!r}: {decision.reason}: lower its learning rate")
        if not _rolls_back(decision):
            await self._checkpoint(checkpoints, phase, decision)
        state.journal.status(
            state="training", phase=phase.name, step=step, reward=metrics["reward/mean"], tokens_per_s=metrics["rollout/tokens_per_s"],
            version=str(state.version), engines=state.pool.states(), last_checkpoint=checkpoints.last_step,
            **standing(state, self._scaling.target),
        )  # fmt: skip
        state.ledger.retire(step)
        state.slot_free.set()
        return decision

    async def _learn(self, groups: list[FinishedGroup], phase: PhaseConfig, step: int) -> StepResult:
        state, colocated = self._state, self._state.config.rollout.colocated
        with state.watchdog.stage("learn"):
            if colocated:
                await state.pool.sleep()
            result = await state.learner.step(
                [group.rows for group in groups], step, WeightVersion(state.version.generation, state.version.number + 1),
                learning_rate_at(phase, state.controller.steps_in_phase) * state.controller.learning_rate_factor,
            )  # fmt: skip
            if colocated:
                await state.pool.wake()
        return result

    async def _checkpoint(self, checkpoints: Checkpointing, phase: PhaseConfig, decision: Decision | None) -> None:
        """At its times; and at once, and to the disk, where a phase or the run ends."""
        state = self._state
        last = state.stop.is_set() or (decision is not None and decision.kind is not DecisionKind.STAY)
        if not last and state.progress.step % state.config.run.checkpoint_every:
            return
        with state.watchdog.stage("checkpoint"):
            await checkpoints.order(phase, ends=state.stop.is_set() or state.controller.finished)
            if last:
                await checkpoints.finish()

    async def _next_batch(self) -> list[str]:
        state, self._waited_for_slow = self._state, 0.0
        while (batch := state.ledger.take(state.version)) is None:
            state.journal.endings(state.ledger, state.finished, state.version)  # what `take` dropped as stale
            state.slot_free.set()
            state.arrived.clear()
            slow, began = state.ledger.waits_for(state.version), time.monotonic()
            await state.arrived.wait()
            self._waited_for_slow += time.monotonic() - began if slow else 0.0
        return batch

    async def _publish(self, publication: Publication) -> None:
        state = self._state
        state.journal.published(publication)
        await state.pool.update(publication)  # each ack is written down as it comes
        state.version, state.publication = publication.version, publication


def _rolls_back(decision: Decision | None) -> bool:
    return decision is not None and decision.kind is DecisionKind.ROLL_BACK
