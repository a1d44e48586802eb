"""Scaling: measures who waits for whom, asks the autoscaler, and lets the pool grow and shrink.

::

     pool.signals, ledger.counts, watchdog.current ──5 a second──▶ LoadWindow ──whole steps──▶ Load ─┐
     nodes that Ray says are about to go ─▶ pool.drain(engine, what is left)  ─▶ Fleet ──────────────┤
     a number that a person set (pool.json) ─────────────────────────────────────────────────────────┴▶ PoolAutoscaler
                                                                                                           │ with a reason
                                                   event `scaled` ◀── pool.scale(target) ◀─────────────────┘

Nobody waits for this task, and it waits for nothing but the clock and one answer of Ray's control service. Without
`rollout.autoscale` the load has no say: nodes that are about to go are heeded, and so is a number that a person set.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass

from actors.autoscale_config import AutoscaleConfig
from actors.autoscaler import Fleet, Load, LoadWindow, PoolAutoscaler
from actors.config import RolloutConfig
from actors.nodes import draining_nodes
from medr3.run.control import ControlRefused, read_pool_size
from medr3.run.state import RunState
from trajectories.events import EventKind
from trajectories.groups import State

SAMPLE_S = 0.2  # 300 samples in a window of a minute: a share is then exact to a few per cent
_TRAINING = frozenset({"rollout", "learn", "sync", "checkpoint"})  # a probe or a report says nothing about the balance
_WAITING = "rollout"
# What stopping an engine takes, and half of the shortest spot notice (30 s): groups that end until then are worth the wait.
_RESERVE_S = 10


@dataclass
class _Measuring:
    window: LoadWindow
    began: float
    step: int


class Scaling:
    """Runs for ever, but for engines that share the learner's hardware: their number is fixed."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self.autoscaler = None if state.config.rollout.colocated else make_autoscaler(state.config.rollout)
        self._leaving: set[str] = set()  # engines that were told to end because their nodes will
        self._measuring = self._measured_anew()

    def set_target(self, engines: int | None) -> None:
        """A number set by hand; None gives the decision back to the load."""
        if self.autoscaler is not None:
            self.autoscaler.manual = engines

    @property
    def target(self) -> int:
        """How many engines the pool is to have."""
        target = self.autoscaler.target if self.autoscaler is not None else None
        return self._state.config.rollout.num_engines if target is None else target

    async def run(self) -> None:
        if self.autoscaler is None:
            return
        looked_at = time.monotonic()
        async with asyncio.TaskGroup() as drains:
            while True:
                await asyncio.sleep(SAMPLE_S)
                self._sample()
                if time.monotonic() - looked_at >= self.autoscaler.config.interval_s:
                    looked_at = time.monotonic()
                    await self._look(self.autoscaler, drains)

    def _sample(self) -> None:
        state = self._state
        if (stage := state.watchdog.current) not in _TRAINING:
            return
        signals, finished = state.pool.signals(), state.ledger.counts().states.get(State.FINISHED.value, 0)
        self._measuring.window.sample(
            engines=signals.healthy,
            groups=signals.groups_running + signals.groups_waiting,
            admissible=state.ledger.capacity(),
            finished=finished,
            trainer_waits=stage == _WAITING,
        )

    async def _look(self, autoscaler: PoolAutoscaler, drains: asyncio.TaskGroup) -> None:
        state = self._state
        self._heed_a_person()
        noticed = await self._heed_notices(drains)
        signals = state.pool.signals()
        fleet = Fleet(signals.healthy + signals.suspect, signals.joining, len(self._leaving))
        decision = autoscaler.observe(fleet, self._load(autoscaler.config.window_s), time.monotonic())
        if decision.reason:
            await state.pool.scale(decision.target)
            self._measuring = self._measured_anew()  # what is under way says nothing about the new number
        if decision.reason or noticed:
            reason = decision.reason or "nodes are about to go, and the engines on them are not needed"
            state.journal.events.append(
                EventKind.SCALED, engines=fleet.staying, target=decision.target, reason=reason, drained=noticed
            )

    def _heed_a_person(self) -> None:
        state = self._state
        try:
            size = read_pool_size(state.config.run.folder)
        except ControlRefused as error:
            state.journal.say(f"warning: {error}")
            return
        if size is not None:
            self.set_target(size.engines)

    async def _heed_notices(self, drains: asyncio.TaskGroup) -> list[str]:
        """Engines on nodes that are about to go take nothing new, and give back what they cannot end in time."""
        pool, nodes = self._state.pool, await draining_nodes()
        left_s = {engine_id: nodes[node] for engine_id, node in pool.nodes().items() if node in nodes}
        noticed = sorted(left_s.keys() - self._leaving)
        self._leaving = set(left_s)
        for engine_id in noticed:
            left = left_s[engine_id]
            deadline_s = self._state.config.rollout.group_timeout_s if left is None else left - _RESERVE_S
            drains.create_task(self._drain(engine_id, max(0.0, deadline_s)))
        await asyncio.sleep(0)  # from here on they take no more work, and count as leaving
        return noticed

    async def _drain(self, engine_id: str, deadline_s: float) -> None:
        with suppress(ValueError):  # it ended by itself meanwhile
            await self._state.pool.drain(engine_id, deadline_s)

    def _load(self, window_s: float) -> Load | None:
        """Whole steps only: a part of one would show one side busy and the other waiting."""
        measuring, step = self._measuring, self._state.progress.step
        if step == measuring.step or time.monotonic() - measuring.began < window_s:
            return None
        self._measuring = self._measured_anew()
        return measuring.window.load()

    def _measured_anew(self) -> _Measuring:
        rollout = self._state.config.rollout
        window = LoadWindow(rollout.engine.max_num_seqs // rollout.group_size, rollout.groups_per_step)
        return _Measuring(window, time.monotonic(), self._state.progress.step)


def make_autoscaler(rollout: RolloutConfig) -> PoolAutoscaler:
    """Without bounds to move in, an autoscaler that moves for nothing but a person's word and nodes that go."""
    if rollout.autoscale is not None:
        return PoolAutoscaler(rollout.autoscale)
    fixed = rollout.num_engines
    bounds = AutoscaleConfig(
        min_engines=fixed, max_engines=fixed, up_cooldown_s=math.inf
    )  # inf: a place that failed stays empty
    return PoolAutoscaler(bounds, _target=fixed, _changed_at=0.0)
