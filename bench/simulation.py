"""Where does one run loop become the bottleneck, and what does each policy of the ledger cost? A simulation of events.

The ledger and the engines' windows are the real objects; time, engines and learner are not. What the driver does for a group
is measured on this machine, with Ray, before it is simulated.

```
 admit ─▶ [driver] ─▶ waits for an engine ─▶ [driver: dispatch] ─▶ engine: its length ─▶ [driver: finish] ─▶ FINISHED
                                                        learner: take ─▶ its time ─▶ [driver: end the step] ─▶ retire
```
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from actors.flow import GroupWindow
from bench.driver_costs import Costs, measure
from bench.harness import Result, figure, ratio, result
from trajectories.groups import Rules
from trajectories.ledger import Ledger
from trajectories.schema import WeightVersion

ENGINES = (1, 8, 64, 512)
SEATS = 16  # groups that an engine has in hand
MEAN_S, SIGMA = 20.0, 0.8  # of a group's time on its engine: lognormal; its longest of 100 takes about six times its median
STEPS, POLICY_STEPS = 12, 64  # of hundreds of groups each; a policy's steps are few groups
WARM_UP = 4  # the pipeline is full, and its first stragglers are through
STALENESS = 4
KEPT_BUSY = 0.9  # of 64 engines' time: a cluster of that size must not wait for its driver
POLICY_ENGINES = 8


def run() -> Result:
    """Groups a second and the driver's load from 1 to 512 engines; then staleness, drops and length bias of every policy."""
    costs = measure()
    figures = [figure(f"driver, {name}", 1e6 * seconds, "µs a group") for name, seconds in costs.by_name().items()]
    busy = {}
    for engines in ENGINES:
        seen = Simulation(saturating(engines, costs)).run()
        busy[engines] = seen.engines_busy
        figures += [
            figure(f"{engines} engines: groups trained", seen.groups_per_s, "1/s"),
            figure(f"{engines} engines: driver at work", 100 * seen.driver_busy, "%"),
            figure(f"{engines} engines: engines at work", 100 * seen.engines_busy, "%"),
        ]
    for name, rules in policies(POLICY_ENGINES).items():
        figures += _of_policy(name, Simulation(balanced(POLICY_ENGINES, rules, costs)).run())
    per_group = costs.group
    figures.append(figure("one driver's limit", 1 / per_group, "groups/s"))
    figures.append(figure("engines of this kind that one driver feeds", MEAN_S / SEATS / per_group, "engines"))
    notes = [
        f"an engine has {SEATS} groups in hand, of {MEAN_S:g} s on average, lognormal with sigma {SIGMA:g}",
        "length bias: the mean length of trained groups over that of all admitted ones; 1 is none",
    ]
    return result(figures, [ratio("64 engines: their time at work", busy[64], KEPT_BUSY)], notes, threads=1)


def _of_policy(name: str, seen: Seen) -> list[Result]:
    return [
        figure(f"{name}: groups trained", seen.groups_per_s, "1/s"),
        figure(f"{name}: mean age", seen.mean_age, "versions"),
        figure(f"{name}: dropped", 100 * seen.dropped_share, "%"),
        figure(f"{name}: length bias", seen.length_bias, "x"),
    ]


def policies(engines: int) -> dict[str, Rules]:
    """As many groups in hand as engines have seats, whatever the staleness."""

    def of(staleness: int, wait_for_slow: bool = True, oversample: float = 1.0) -> Rules:
        size = max(1, engines * SEATS // (staleness + 1))
        return Rules(size, staleness, wait_for_slow=wait_for_slow, oversample=oversample)

    return {
        "synchronous": of(0), "synchronous, oversample 1.25": of(0, oversample=1.25),
        "staleness 1, waits for slow": of(1), "staleness 1, drops slow": of(1, wait_for_slow=False),
        "staleness 4, waits for slow": of(4), "staleness 4, drops slow": of(4, wait_for_slow=False),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    engines: int
    rules: Rules
    costs: Costs
    learner_s: float
    steps: int = STEPS
    seed: int = 0


def saturating(engines: int, costs: Costs) -> Setting:
    """A learner that takes no time, and twice the groups that fill the engines: only engines and driver are left to wait for."""
    size = max(1, 2 * engines * SEATS // (STALENESS + 1))
    return Setting(engines, Rules(size, STALENESS, wait_for_slow=False), costs, learner_s=0.0)


def balanced(engines: int, rules: Rules, costs: Costs) -> Setting:
    """A learner that needs as long for a batch as all engines together."""
    return Setting(engines, rules, costs, learner_s=rules.groups_per_step * MEAN_S / (engines * SEATS), steps=POLICY_STEPS)


@dataclass(frozen=True, slots=True)
class Seen:
    """Over the steps behind the warm-up."""

    groups_per_s: float
    driver_busy: float
    engines_busy: float
    mean_age: float
    max_age: int
    dropped_share: float
    length_bias: float


@dataclass(slots=True)
class _Tally:
    since: float = 0.0
    driver_s: float = 0.0
    seat_s: float = 0.0
    trained: int = 0
    dropped: int = 0
    ages: Counter[int] = field(default_factory=Counter)
    trained_length: float = 0.0


class Simulation:
    """One run of one setting. Everything happens at a time in `_later`; the driver does one thing after the other."""

    def __init__(self, setting: Setting) -> None:
        self._at, self._costs = setting, setting.costs
        self._ledger = Ledger(setting.rules)
        self._windows = [GroupWindow(start=SEATS) for _ in range(setting.engines)]
        self._free = deque(e for _ in range(SEATS) for e in range(setting.engines))  # seats, engines in turn
        self._waiting: deque[str] = deque()
        self._length: dict[str, float] = {}
        self._engine: dict[str, int] = {}
        self._rng = random.Random(setting.seed)
        self._now, self._count, self._step, self._admitted = 0.0, 0, 0, 0
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._to_do: deque[tuple[float, Callable[[], None]]] = deque()
        self._driving = self._admitting = self._learning = False
        self._version = WeightVersion(1, 0)
        self._tally = _Tally()

    def run(self) -> Seen:
        self._feed()
        while self._step < self._at.steps:
            self._now, _, happens = heapq.heappop(self._later)
            happens()
        tally, elapsed = self._tally, self._now - self._tally.since
        ended = tally.trained + tally.dropped
        ages = tally.ages
        return Seen(
            tally.trained / elapsed, tally.driver_s / elapsed, tally.seat_s / elapsed / (self._at.engines * SEATS),
            sum(age * n for age, n in ages.items()) / max(1, ages.total()), max(ages, default=0), tally.dropped / max(1, ended),
            tally.trained_length / max(1, tally.trained) / MEAN_S,
        )  # fmt: skip

    # The clock and the driver

    def _in(self, seconds: float, happens: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._later, (self._now + seconds, self._count, happens))

    def _drive(self, seconds: float, deed: Callable[[], None]) -> None:
        self._to_do.append((seconds, deed))
        if not self._driving:
            self._next_deed()

    def _next_deed(self) -> None:
        self._driving = bool(self._to_do)
        if self._driving:
            seconds, deed = self._to_do.popleft()
            self._in(seconds, partial(self._done, seconds, deed))

    def _done(self, seconds: float, deed: Callable[[], None]) -> None:
        self._tally.driver_s += seconds
        deed()
        self._next_deed()

    # A group's life

    def _feed(self) -> None:
        if not self._admitting and self._ledger.capacity():
            self._admitting = True
            self._drive(self._costs.admit, self._admit)

    def _admit(self) -> None:
        self._admitting = False
        if not self._ledger.capacity():
            return
        name = f"g{self._admitted}"
        self._admitted += 1
        self._ledger.admit(name, "q", "p", self._now)
        self._length[name] = self._rng.lognormvariate(math.log(MEAN_S) - SIGMA**2 / 2, SIGMA)
        self._waiting.append(name)
        self._assign()
        self._feed()

    def _assign(self) -> None:
        while self._waiting and self._free:
            name, engine = self._waiting.popleft(), self._free.popleft()
            self._windows[engine].begin()
            self._engine[name] = engine
            self._drive(self._costs.dispatch, partial(self._start, name))

    def _start(self, name: str) -> None:
        if name not in self._engine:  # given up while it was handed over
            return
        attempt = self._ledger.start(name, f"e{self._engine[name]}", self._version)
        self._in(self._length[name], partial(self._answered, name, attempt, self._version))

    def _answered(self, name: str, attempt: int, oldest: WeightVersion) -> None:
        if name in self._engine:
            self._leave(name)
            self._drive(self._costs.finish, partial(self._finish, name, attempt, oldest))

    def _leave(self, name: str) -> None:
        engine = self._engine.pop(name)
        self._windows[engine].end()
        self._tally.seat_s += self._length[name]
        self._free.append(engine)
        self._assign()

    def _finish(self, name: str, attempt: int, oldest: WeightVersion) -> None:
        self._ledger.finish(name, attempt, oldest, self._now)
        self._take()

    # A step

    def _take(self) -> None:
        if self._learning or (batch := self._ledger.take(self._version)) is None:
            self._count_endings()
            return
        self._learning = True
        surplus = self._ledger.surplus()
        self._ledger.drop(surplus, "surplus")
        for name in surplus:
            if name in self._engine:
                self._abort(name)
        self._waiting = deque(name for name in self._waiting if self._ledger.is_open(name))
        self._in(self._at.learner_s, partial(self._learned, batch))

    def _abort(self, name: str) -> None:
        """Its seat is free at once; the part of its length that was generated is not told apart."""
        self._length[name] = 0.0
        self._leave(name)

    def _learned(self, batch: list[str]) -> None:
        self._drive(self._costs.end * len(batch), partial(self._end_step, batch))

    def _end_step(self, batch: list[str]) -> None:
        self._step += 1
        self._learning = False
        self._ledger.trained(batch, self._step)
        self._count_endings()
        self._version = WeightVersion(1, self._step)
        self._ledger.retire(self._step)
        if self._step == WARM_UP:
            self._tally = _Tally(since=self._now)
        self._feed()
        self._take()

    def _count_endings(self) -> None:
        for ending in self._ledger.drain_endings():
            length = self._length.pop(ending.group_id)
            if ending.outcome.value == "trained":
                self._tally.trained += 1
                self._tally.ages[ending.age] += 1
                self._tally.trained_length += length
            else:
                self._tally.dropped += 1
        self._feed()
