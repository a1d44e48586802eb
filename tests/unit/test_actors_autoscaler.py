"""The autoscaler: bounds and patience under anything, and a closed loop that converges and then stays."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.autoscale_config import AutoscaleConfig
from actors.autoscaler import Decision, Fleet, Load, LoadWindow, PoolAutoscaler
from actors.config import RolloutConfig

STARVED = Load(engines_at_work=2.0, trainer_busy=0.2, buffered=0.0, most_full=100.0)
IDLE = Load(engines_at_work=0.5, trainer_busy=1.0, buffered=2.0, most_full=100.0)
EAGER = AutoscaleConfig(max_engines=8, up_cooldown_s=0, down_cooldown_s=0, pending_timeout_s=60)

shares = st.floats(0, 1)
loads = st.builds(Load, st.floats(0, 12), shares, st.floats(0, 4), st.floats(0, 20))
fleets = st.builds(Fleet, st.integers(0, 10), st.integers(0, 10), st.integers(0, 4))
configs = st.builds(
    AutoscaleConfig,
    min_engines=st.integers(1, 4),
    max_engines=st.integers(4, 10),
    up_cooldown_s=st.sampled_from([0, 10, 50]),
    down_cooldown_s=st.sampled_from([0, 10, 50]),
    pending_timeout_s=st.sampled_from([5, 40]),
)


@given(configs, st.lists(st.tuples(fleets, st.none() | loads, st.floats(0.1, 30)), max_size=40))
def test_bounds_hold_and_nothing_changes_without_a_reason(
    config: AutoscaleConfig, observations: list[tuple[Fleet, Load | None, float]]
) -> None:
    scaler, now, before = PoolAutoscaler(config), 0.0, None
    changed_at = -math.inf
    for fleet, load, seconds in observations:
        now += seconds
        decision = scaler.observe(fleet, load, now)
        assert config.min_engines <= decision.target <= config.max_engines
        if before is not None:
            if decision.target != before:
                assert decision.reason
                assert before / 2 <= decision.target <= before * 2 or fleet.joining  # giving up may go down to what works
            if "engines are wanted" in decision.reason:
                assert not fleet.joining
            if decision.target > before:
                assert not fleet.joining
                assert now - changed_at >= config.up_cooldown_s
                assert load is not None and load.buffered < 1
            if decision.target < before and "not one of" not in decision.reason:
                assert now - changed_at >= config.down_cooldown_s
        if decision.target != before and before is not None:
            changed_at = now
        before = decision.target


def test_growth_waits_for_what_was_asked_for() -> None:
    scaler = PoolAutoscaler(EAGER)
    assert scaler.observe(Fleet(2), STARVED, 0).target == 4
    for now in range(1, 60):
        assert scaler.observe(Fleet(2, joining=2), STARVED, now) == Decision(4)
    given_up = scaler.observe(Fleet(2, joining=2), STARVED, 61)
    assert given_up.target == 2
    assert "not one of 2 engines came in 60 s" in given_up.reason
    assert scaler.observe(Fleet(2), STARVED, 90).target == 2  # nor asks at once again
    assert scaler.observe(Fleet(2), STARVED, 122).target == 4


def test_a_window_measured_while_engines_join_gives_none_of_them_back() -> None:
    """They take processor time from those that work, and the update of all waits for the slowest: the trainer looks busy."""
    scaler = PoolAutoscaler(EAGER)
    assert scaler.observe(Fleet(2), STARVED, 0).target == 4
    assert scaler.observe(Fleet(2, joining=2), IDLE, 5) == Decision(4)
    assert scaler.observe(Fleet(4), IDLE, 9).target == 2


def test_every_engine_that_arrives_renews_the_patience() -> None:
    scaler = PoolAutoscaler(EAGER)
    scaler.observe(Fleet(2), STARVED, 0)
    scaler.observe(Fleet(2, joining=2), None, 1)
    assert scaler.observe(Fleet(3, joining=1), None, 50).reason == ""
    assert scaler.observe(Fleet(3, joining=1), None, 100).reason == ""
    assert scaler.observe(Fleet(3, joining=1), None, 110).target == 3


def test_engines_on_nodes_about_to_go_are_replaced_at_once() -> None:
    scaler = PoolAutoscaler(AutoscaleConfig(max_engines=4))
    assert scaler.observe(Fleet(3), None, 0).reason == ""
    notice = scaler.observe(Fleet(1, leaving=2), None, 1)
    assert notice.target == 3
    assert notice.reason == "engines on nodes that are about to go: 2"
    assert scaler.observe(Fleet(1, joining=2, leaving=2), None, 2).reason == ""
    another = scaler.observe(Fleet(0, joining=2, leaving=3), None, 3)
    assert another.target == 3 and another.reason
    assert scaler.observe(Fleet(0, joining=3), None, 9).reason == ""


def test_an_engine_that_was_lost_for_good_is_asked_for_again_but_not_all_the_time() -> None:
    scaler = PoolAutoscaler(AutoscaleConfig(max_engines=4, up_cooldown_s=30))
    scaler.observe(Fleet(3), None, 0)
    asked = [now for now in range(1, 100) if scaler.observe(Fleet(2), None, now).reason]
    assert asked == [1, 31, 61, 91]


def test_a_number_set_by_hand_stands_until_it_is_taken_back() -> None:
    scaler = PoolAutoscaler(EAGER)
    scaler.observe(Fleet(2), None, 0)
    scaler.manual = 12
    assert scaler.observe(Fleet(2), IDLE, 1).reason == "set by hand"
    assert scaler.observe(Fleet(12), IDLE, 2) == scaler.observe(Fleet(12), STARVED, 3)
    scaler.manual = None
    assert scaler.observe(Fleet(12), None, 4).target == EAGER.max_engines


def test_a_full_buffer_forbids_growth_and_too_few_groups_bound_it() -> None:
    full = Load(STARVED.engines_at_work, STARVED.trainer_busy, 1.0, 100.0)
    assert PoolAutoscaler(EAGER).observe(Fleet(2), full, 0).target == 2
    few = Load(STARVED.engines_at_work, 0.0, 0.0, most_full=1.5)
    assert PoolAutoscaler(EAGER).observe(Fleet(2), few, 0).target == 3


def test_bounds_are_checked_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="min_engines"):
        AutoscaleConfig(min_engines=3, max_engines=2)
    with pytest.raises(ValueError, match="colocated engines share the learner's hardware"):
        RolloutConfig(colocated=True, autoscale=AutoscaleConfig(max_engines=2))


# --- a closed loop: fluid engines, a trainer, a bounded number of open groups, and engines that take a while to join

SEATS, PER_STEP, TICK = 16, 32, 0.25


@dataclass
class Simulation:
    """A run: `rate` groups per second and engine, `learn_s` per step. `targets` keeps every change."""

    scaler: PoolAutoscaler
    staleness: int
    rate: float = 1.0
    noise: random.Random = field(default_factory=lambda: random.Random(1))
    learn_s: float = 16.0
    join_s: float = 45.0
    now: float = 0.0
    engines: int = 1
    joining: list[float] = field(default_factory=list)
    running: float = 0.0
    finished: float = 0.0
    learns_until: float | None = None
    steps: int = 0
    targets: list[tuple[float, int]] = field(default_factory=list)
    _window: LoadWindow = field(default_factory=lambda: LoadWindow(SEATS, PER_STEP))
    _window_began: float = 0.0
    _window_steps: int = 0

    def run(self, seconds: float) -> int:
        end = self.now + seconds
        while self.now < end:
            self.now += TICK
            self._work()
            self._observe()
        return self.engines + len(self.joining)

    def _work(self) -> None:
        self.engines += sum(at <= self.now for at in self.joining)
        self.joining = [at for at in self.joining if at > self.now]
        if self.learns_until is not None and self.now >= self.learns_until:
            self.learns_until, self.steps = None, self.steps + 1
        taken = PER_STEP if self.learns_until is not None else 0
        self.running += (self.staleness + 1) * PER_STEP - self.running - self.finished - taken if not taken else 0
        rate = self.rate * self.noise.uniform(0.5, 1.5)
        done = min(self.running, rate * TICK * min(self.engines, self.running / SEATS))
        self.running, self.finished = self.running - done, self.finished + done
        if self.learns_until is None and self.finished >= PER_STEP - 0.01:
            self.finished, self.learns_until = max(0.0, self.finished - PER_STEP), self.now + self.learn_s

    def _observe(self) -> None:
        self._window.sample(self.engines, round(self.running), 0, round(self.finished), self.learns_until is None)
        load = None
        if self.now - self._window_began >= self.scaler.config.window_s and self.steps > self._window_steps:
            load = self._window.load()
            self._window, self._window_began, self._window_steps = LoadWindow(SEATS, PER_STEP), self.now, self.steps
        decision = self.scaler.observe(Fleet(self.engines, len(self.joining)), load, self.now)
        if decision.reason:
            self.targets.append((self.now, decision.target))
            more = decision.target - self.engines - len(self.joining)
            self.joining += [self.now + self.join_s] * max(0, more)
            self.engines = min(self.engines, decision.target)


def simulation(staleness: int) -> Simulation:
    return Simulation(
        PoolAutoscaler(AutoscaleConfig(min_engines=1, max_engines=12, window_s=40, down_cooldown_s=120)), staleness
    )


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_the_loop_follows_the_load_and_then_stays(staleness: int) -> None:
    run = simulation(staleness)
    fillable = (staleness + 1) * PER_STEP / SEATS / run.scaler.config.min_fill
    numbers = []
    for rate, learn_s in [
        (1.0, 16.0),
        (0.4, 16.0),
        (2.0, 64.0),
    ]:  # then episodes become longer; then short, with a slow learner
        run.rate, run.learn_s = rate, learn_s
        numbers.append(run.run(2400))
        settled = len(run.targets)
        assert run.run(2400) == numbers[-1]
        assert len(run.targets) == settled, f"flapping: {run.targets}"
    assert numbers[0] < numbers[1] > numbers[2] == 1
    assert abs(numbers[0] - PER_STEP / 16.0) <= 1
    assert abs(numbers[1] - min(PER_STEP / 16.0 / 0.4, fillable)) <= 1.5
    assert len(run.targets) <= 12, f"more changes than the load had reasons for: {run.targets}"
