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
| watch | nothing           | the clock                 | nobody: it ends the run when main stalls   |

All tasks live in one event loop of the driver, so the ledger needs no lock: between two awaits nobody else runs. With
max_staleness 0 the feed finds no slot until `retire`, which makes the run synchronous; the code is the same.
"""

from __future__ import annotations

import asyncio
import time

from curriculum.controller import DecisionKind
from medr3.run.checkpointing import Checkpointing
from medr3.run.deciding import Deciding
from medr3.run.feed import Feed
from medr3.run.journal import group_metrics
from medr3.run.state import RunState
from trajectories.publication import Publication
from trajectories.schema import WeightVersion


class TrainingLoop:
    """One run from its first step, or its last checkpoint, to the end of the last phase or to a stop."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._deciding = Deciding(state)

    async def run(self) -> None:
        """Raises whatever went wrong in any task."""
        state = self._state
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(state.watchdog.watch())
            await self._deciding.enter()
            feed, checkpoints = tasks.create_task(Feed(state).run()), Checkpointing(state, tasks)
            while not state.controller.finished and not state.stop.is_set():
                await self._step(checkpoints)
            feed.cancel()
            watch.cancel()
        if state.controller.finished:
            # A run that ended owes every admitted group an outcome; one that was stopped resumes them from its manifest.
            state.ledger.drop(state.ledger.open_ids(), "run ended")
            state.journal.endings(state.ledger, state.finished, state.version)
            state.journal.store_rest(state.progress.step, state.version.generation)

    async def _step(self, checkpoints: Checkpointing) -> None:
        """One learner step: take, learn, publish, write down, decide; admission opens again at the very end."""
        state, started = self._state, time.monotonic()
        with state.watchdog.stage("rollout"):
            batch = await self._next_batch()
        waited = time.monotonic() - started
        phase, trained_at, step = state.controller.phase, state.version, state.progress.step + 1
        groups = [state.finished[group_id] for group_id in batch]
        with state.watchdog.stage("learn"):
            result = await state.learner.step(
                [group.rows for group in groups], step, WeightVersion(trained_at.generation, trained_at.number + 1),
                phase.learning_rate,
            )  # fmt: skip
        learned = time.monotonic() - started - waited
        with state.watchdog.stage("sync"):
            await self._publish(result.publication)
        state.ledger.trained(batch, step)
        state.progress.step = step
        state.journal.endings(state.ledger, state.finished, trained_at)
        state.journal.store_step(step, trained_at.generation)
        state.journal.warn(step, result.metrics)
        metrics = group_metrics(groups, phase.name) | {f"learner/{name}": value for name, value in result.metrics.items()}
        seconds = time.monotonic() - started
        tokens = sum(group.summary.model_tokens for group in groups)
        metrics |= {
            "rollout/tokens_per_s": tokens / seconds, "rollout/episodes_per_s": sum(len(g.summary.rewards) for g in groups) / seconds,
            "time/rollout": waited, "time/learn": learned, "time/sync": seconds - waited - learned,
            "curriculum/phase_index": float(state.controller.phase_index),
        }  # fmt: skip
        state.progress.model_tokens += tokens
        state.progress.rollout_s += seconds
        state.controller.observe(step, metrics["reward/mean"])
        decision = await self._deciding.decide()
        if decision is not None:
            metrics["heldout/accuracy"] = decision.evidence["score"]
        state.journal.tracker.log(step, phase.name, metrics)
        left = decision is not None and decision.kind is not DecisionKind.STAY
        if left or step % state.config.run.checkpoint_every == 0 or state.stop.is_set():
            with state.watchdog.stage("checkpoint"):
                await checkpoints.order(phase)
                if left or state.stop.is_set():
                    await checkpoints.finish()
        state.journal.status(
            state="training", phase=phase.name, step=step, reward=metrics["reward/mean"], tokens_per_s=metrics["rollout/tokens_per_s"],
            version=str(state.version), engines=state.pool.states(), last_checkpoint=checkpoints.last_step,
        )  # fmt: skip
        state.ledger.retire(step)
        state.slot_free.set()

    async def _next_batch(self) -> list[str]:
        state = self._state
        while (batch := state.ledger.take(state.version)) is None:
            state.journal.endings(state.ledger, state.finished, state.version)  # what `take` dropped as stale
            state.slot_free.set()
            state.arrived.clear()
            await state.arrived.wait()
        return batch

    async def _publish(self, publication: Publication) -> None:
        state = self._state
        state.journal.published(publication)
        await state.pool.update(publication)  # each ack is written down as it comes
        state.version = publication.version
