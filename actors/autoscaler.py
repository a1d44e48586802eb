"""How many engines a run wants: a pure object without a clock, tasks or I/O. `medr3/run/scaling.py` feeds it and obeys it.

```
 wanted = engines at work on average ÷ share of time in which the trainer did not wait for a batch

 trainer waits, engines busy   ─▶ wanted > there are ─▶ more    (engines are the bottleneck)
 trainer busy, engines wait    ─▶ wanted < there are ─▶ fewer   (the trainer is: its buffer is full, nothing is admitted)
 both wait in turn (max_staleness 0) ─▶ as many as make rollout as long as learning
```

With asynchronous rollouts only one side waits, and with synchronous ones each waits while the other works; the quotient is
right for both, and does not depend on how many engines there happen to be. So a number that was changed to it stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from actors.autoscale_config import AutoscaleConfig

# One decision at most doubles or halves: a window says little about loads far from its own.
_LARGEST_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Load:
    """What whole steps measured."""

    engines_at_work: float  # on average; an engine counts by how full it was
    trainer_busy: float  # share of time in which the trainer did not wait for a batch
    buffered: float  # finished groups that waited for the trainer, on average, in steps' worth
    most_full: float  # engines that all groups which could have been in hand at one time would have filled


class LoadWindow:
    """Adds samples up to one `Load`. `seats`: groups that one engine decodes at once; more only wait inside of it.

    Example:
        >>> window = LoadWindow(seats=4, groups_per_step=8)
        >>> window.sample(engines=2, groups=12, admissible=0, finished=0, trainer_waits=True)
        >>> window.sample(engines=2, groups=4, admissible=0, finished=8, trainer_waits=False)
        >>> window.load()
        Load(engines_at_work=1.5, trainer_busy=0.5, buffered=0.5, most_full=3.0)
    """

    def __init__(self, seats: int, groups_per_step: int) -> None:
        self._seats, self._groups_per_step = max(1, seats), groups_per_step
        self._engines: list[int] = []
        self._groups: list[int] = []
        self._finished = self._most_groups = self._waited = 0

    def sample(self, engines: int, groups: int, admissible: int, finished: int, trainer_waits: bool) -> None:
        """At one moment: engines in work, groups that run or wait for one, groups that might be admitted, finished groups."""
        self._engines.append(engines)
        self._groups.append(groups)
        self._most_groups = max(self._most_groups, groups + admissible)
        self._finished += finished
        self._waited += trainer_waits

    def load(self) -> Load | None:
        """None without a sample."""
        if not (samples := len(self._engines)):
            return None
        return Load(
            sum(map(self._at_work, self._engines, self._groups)) / samples,
            1 - self._waited / samples,
            self._finished / samples / self._groups_per_step,
            self._most_groups / self._seats,
        )

    def _at_work(self, engines: int, groups: int) -> float:
        """Where there are too few groups to fill every engine, all of them in hand is as busy as engines can be."""
        full = min(engines * self._seats, self._most_groups)
        return engines * min(1.0, groups / full) if full else 0.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """The engines of a moment. Those on nodes that are about to go are `leaving`, whatever else they are, and nothing else."""

    working: int
    joining: int = 0
    leaving: int = 0

    @property
    def staying(self) -> int:
        return self.working + self.joining


@dataclass(frozen=True, slots=True)
class Decision:
    """How many engines the pool is to have beside those that leave. Without a reason nothing is to be done."""

    target: int
    reason: str = ""


@dataclass(slots=True)
class PoolAutoscaler:
    """Turns what is observed into a target. Bounds always hold; a change of the target has a reason; times are the caller's.

    Load waits for what was asked for: while engines join, it decides nothing. If none of them arrives in `pending_timeout_s`,
    they are given up and, for as long again, not asked for. Engines on nodes about to go are replaced at once, without cooldown.

    Example:
        >>> scaler = PoolAutoscaler(AutoscaleConfig(max_engines=4, up_cooldown_s=0))
        >>> starved = Load(engines_at_work=1.0, trainer_busy=0.4, buffered=0.0, most_full=8.0)
        >>> scaler.observe(Fleet(working=1), starved, now=0.0)
        Decision(target=2, reason='2.5 engines are wanted: the trainer waited 60% of the time, 1.0 of 1 engines were at work')
        >>> scaler.observe(Fleet(working=1, joining=1), starved, now=5.0)
        Decision(target=2, reason='')
    """

    config: AutoscaleConfig
    manual: int | None = None  # a number set by hand; bounds and load have no say then
    _target: int | None = None
    _changed_at: float = -math.inf
    _joining_since: float | None = None
    _most_working: int = 0
    _no_growth_before: float = -math.inf
    _leaving: int = 0

    @property
    def target(self) -> int | None:
        """What was decided last; None before the first observation."""
        return self._target

    def observe(self, fleet: Fleet, load: Load | None, now: float) -> Decision:
        """`load` is None while no window is complete; engines and nodes are watched all the same."""
        if self._target is None:
            self._target = fleet.staying + fleet.leaving
        target, reason = self._decide(fleet, load, now)
        if target != self._target:
            self._target, self._changed_at = target, now
        elif missing := max(0, target - fleet.staying):
            if fleet.leaving > self._leaving:
                reason = f"engines on nodes that are about to go: {fleet.leaving}"
            elif now - self._changed_at >= self.config.up_cooldown_s:
                self._changed_at = now
                reason = f"engines that ended and that nothing replaces: {missing}"
        self._leaving = fleet.leaving
        return Decision(target, reason)

    def _decide(self, fleet: Fleet, load: Load | None, now: float) -> tuple[int, str]:
        assert self._target is not None, "observe sets it"
        given_up = self._pending_too_long(fleet, now)
        if self.manual is not None:
            return self.manual, "" if self.manual == self._target else "set by hand"
        bounded = self._bounded(self._target)
        if bounded != self._target:
            return bounded, f"bounds are {self.config.min_engines} to {self.config.max_engines}"
        if given_up and (there := self._bounded(fleet.working)) < self._target:
            self._no_growth_before = now + self.config.pending_timeout_s
            waited = f"not one of {fleet.joining} engines came in {self.config.pending_timeout_s:g} s"
            return there, f"{waited}: has the cluster room for them?"
        if load is None or fleet.joining or not fleet.working:  # what is measured now is not the pool that was asked for
            return self._target, ""
        return self._follow(fleet, load, now)

    def _follow(self, fleet: Fleet, load: Load, now: float) -> tuple[int, str]:
        """What the load wants, if that is far enough from what there is, and the last change long enough ago."""
        assert self._target is not None, "observe sets it"
        there, wanted = self._target, self._wanted(load)
        why = (
            f"{wanted:.1f} engines are wanted: the trainer waited {1 - load.trainer_busy:.0%} of the time,"
            f" {load.engines_at_work:.1f} of {fleet.working} engines were at work"
        )
        rested = now - self._changed_at
        half = 0.5  # nearer than that, the next whole number is the one there is
        if wanted > there + half + self.config.up_threshold * there:
            blocked = now < self._no_growth_before or load.buffered >= 1
            target = self._bounded(min(round(wanted), there * _LARGEST_FACTOR))
            if target > there and not blocked and rested >= self.config.up_cooldown_s:
                return target, why
        elif wanted < there - half - self.config.down_threshold * there:
            target = self._bounded(max(round(wanted), math.ceil(there / _LARGEST_FACTOR)))
            if target < there and rested >= self.config.down_cooldown_s:
                return target, why
        return there, ""

    def _wanted(self, load: Load) -> float:
        """Never more than there are groups to fill, however long the trainer waits."""
        most = load.most_full / self.config.min_fill
        if load.trainer_busy * most <= load.engines_at_work:
            return most
        return load.engines_at_work / load.trainer_busy

    def _bounded(self, target: int) -> int:
        return min(max(target, self.config.min_engines), self.config.max_engines)

    def _pending_too_long(self, fleet: Fleet, now: float) -> bool:
        """The time counts anew with every engine that arrives."""
        if not fleet.joining:
            self._joining_since = None
            self._most_working = fleet.working
            return False
        if self._joining_since is None or fleet.working > self._most_working:
            self._joining_since = now
        self._most_working = max(self._most_working, fleet.working)
        return now - self._joining_since >= self.config.pending_timeout_s
