"""The ledger under random interleavings: what it promises holds after every single step."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trajectories.ledger import Ending, Fate, Ledger, LedgerError, Outcome, Rules, State
from trajectories.schema import WeightVersion


class LedgerUnderLoad(RuleBasedStateMachine):
    """Feeds, engines, a learner and restarts, in any order that their contracts allow.

    `served` is the version of the engines: between a trained step and its retirement they still serve the version before.
    """

    @initialize(
        groups_per_step=st.integers(1, 3), max_staleness=st.integers(0, 3), max_attempts=st.integers(1, 3),
        max_uniform=st.integers(0, 2), wait_for_slow=st.booleans(),
    )  # fmt: skip
    def begin(self, groups_per_step: int, max_staleness: int, max_attempts: int, max_uniform: int, wait_for_slow: bool) -> None:
        self.rules = Rules(groups_per_step, max_staleness, max_attempts, wait_for_slow, max_uniform=max_uniform)
        self.ledger = Ledger(self.rules)
        self.uniform = 0
        self.learner = self.served = WeightVersion(1, 0)
        self.now = 0.0
        self.made = self.step = 0
        self.taken: list[str] = []
        self.unretired: int | None = None
        self.endings: list[Ending] = []
        self.attempts: dict[str, int] = {}
        self.refused = 0

    def pick(self, data: st.DataObject, *states: State) -> str | None:
        fitting = [
            group_id for group_id in self.attempts if self.is_open(group_id) and self.ledger.group(group_id).state in states
        ]
        return data.draw(st.sampled_from(fitting)) if fitting else None

    def is_open(self, group_id: str) -> bool:
        return group_id not in {ending.group_id for ending in self.endings}

    def collect(self) -> None:
        self.endings += self.ledger.drain_endings()

    @rule()
    def admit(self) -> None:
        group_id = f"g{self.made}"
        if self.ledger.capacity() == 0:
            with pytest.raises(LedgerError, match="without a free slot"):
                self.ledger.admit(group_id, "q", "p", self.now)
            return
        self.made += 1
        self.attempts[group_id] = 0
        self.ledger.admit(group_id, "q", "p", self.now)

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        if group_id := self.pick(data, State.WAITING):
            attempt = self.ledger.start(group_id, "e0", self.served)
            assert attempt >= self.attempts[group_id]
            self.attempts[group_id] = attempt

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if group_id := self.pick(data, State.INFLIGHT):
            oldest = self.ledger.group(group_id).oldest
            assert oldest is not None
            assert self.ledger.finish(group_id, self.attempts[group_id], oldest, self.now)

    @rule(data=st.data())
    def find_uniform(self, data: st.DataObject) -> None:
        if group_id := self.pick(data, State.FINISHED):
            dropped = self.ledger.drop_uniform(group_id)
            assert dropped == (self.uniform < self.rules.max_uniform), "a batch is never starved of groups"
            self.uniform += dropped
            self.collect()

    @rule(data=st.data(), behind=st.integers(0, 2))
    def answer_late(self, data: st.DataObject, behind: int) -> None:
        """An answer of an attempt that is over, a second answer, an answer for a group that has ended."""
        if not self.attempts:
            return
        group_id = data.draw(st.sampled_from(sorted(self.attempts)))
        if behind == 0 and self.is_open(group_id) and self.ledger.group(group_id).state is State.INFLIGHT:
            return
        before = self.ledger.snapshot()
        assert not self.ledger.finish(group_id, self.attempts[group_id] - behind, self.served, self.now)
        self.refused += 1
        assert self.ledger.snapshot() == before | {"late": before["late"] + 1}

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if group_id := self.pick(data, State.WAITING, State.INFLIGHT, State.FINISHED, State.TAKEN):
            self.report_lost(group_id, self.ledger.group(group_id).attempt)

    def report_lost(self, group_id: str, attempt: int) -> None:
        failures = self.ledger.group(group_id).failures
        fate = self.ledger.lost(group_id, attempt, "engine died")
        assert fate is (Fate.VOIDED if failures + 1 == self.rules.max_attempts else Fate.REQUEUED)
        if group_id in self.taken:
            self.taken.remove(group_id)
        self.collect()
        assert self.ledger.lost(group_id, attempt, "engine died") is Fate.IGNORED
        self.refused += 1

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if group_id := self.pick(data, *State):
            self.ledger.drop([group_id], "all rewards equal")
            if group_id in self.taken:
                self.taken.remove(group_id)
            self.collect()

    @rule()
    def take(self) -> None:
        if self.taken:
            with pytest.raises(LedgerError, match="still taken"):
                self.ledger.take(self.learner)
            return
        before = {group_id: self.ledger.group(group_id) for group_id in self.attempts if self.is_open(group_id)}
        finished = {group_id for group_id, group in before.items() if group.state is State.FINISHED}
        batch = self.ledger.take(self.learner)
        self.collect()
        for ending in self.endings:
            if ending.group_id in finished:
                assert ending.reason == "stale"
                assert not self.rules.wait_for_slow, "who waits for the slow loses nobody"
        usable = sorted((self.due(group_id), group_id) for group_id in finished if self.is_open(group_id))
        if batch is None:
            self.must_wait(len(usable))
            return
        assert batch == [group_id for _, group_id in usable[: self.rules.groups_per_step]], "those first that are due first"
        self.taken = batch

    def due(self, group_id: str) -> tuple[int, int]:
        group = self.ledger.group(group_id)
        assert group.oldest is not None
        return group.oldest.number, group.sequence

    def must_wait(self, usable: int) -> None:
        """There was a reason not to take: too few, or somebody slow, who is named."""
        slow = self.ledger.waits_for(self.learner)
        if usable >= self.rules.groups_per_step:
            assert self.rules.wait_for_slow and slow
            assert all(self.ledger.group(group_id).state is State.INFLIGHT for group_id in slow)

    @precondition(lambda self: self.taken and self.unretired is None)
    @rule()
    def train(self) -> None:
        for group_id in self.taken:
            oldest = self.ledger.group(group_id).oldest
            assert oldest is not None
            assert oldest.generation == self.learner.generation
            assert 0 <= self.learner.number - oldest.number <= self.rules.max_staleness, "the bound"
        self.step += 1
        self.ledger.trained(self.taken, self.step)
        self.taken, self.unretired, self.uniform = [], self.step, 0
        self.learner = WeightVersion(self.learner.generation, self.learner.number + 1)
        self.collect()

    @precondition(lambda self: self.unretired is not None)
    @rule()
    def retire(self) -> None:
        assert self.ledger.capacity() == 0
        self.ledger.retire(self.unretired)
        self.served, self.unretired = self.learner, None

    @rule()
    def restart(self) -> None:
        before = self.ledger.counts()
        manifest = json.loads(json.dumps(self.ledger.snapshot()))
        self.ledger = Ledger(self.rules)
        self.ledger.restore(manifest)
        self.learner = self.served = WeightVersion(self.learner.generation + 1, self.learner.number)
        self.taken, self.unretired, self.uniform = [], None, 0
        after = self.ledger.counts()
        assert (after.admitted, after.trained, after.dropped, after.voided, after.reasons) == (
            before.admitted, before.trained, before.dropped, before.voided, before.reasons,
        )  # fmt: skip
        assert self.ledger.waiting() == [group_id for group_id in self.attempts if self.is_open(group_id)]
        self.refused = after.late

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "ledger"):
            return
        counts = self.ledger.counts()
        assert counts.admitted == self.made == counts.trained + counts.dropped + counts.voided + counts.open
        assert sum(counts.states.values()) == counts.open <= (self.rules.max_staleness + 1) * self.rules.groups_per_step
        ended = [ending.group_id for ending in self.endings]
        assert len(ended) == len(set(ended)) == counts.admitted - counts.open, "each group ends exactly once"
        assert counts.late == self.refused
        assert counts.trained == sum(self.ledger.ages.values()) == sum(e.outcome is Outcome.TRAINED for e in self.endings)
        assert counts.states == Counter(self.ledger.group(group_id).state.value for group_id in self.ledger.open_ids())
        assert all(0 <= age <= self.rules.max_staleness for age in self.ledger.ages)


LedgerUnderLoad.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLedgerUnderLoad = LedgerUnderLoad.TestCase


V = WeightVersion


def run(ledger: Ledger, group_id: str, version: WeightVersion) -> None:
    ledger.admit(group_id, "q", "p", 0.0)
    assert ledger.finish(group_id, ledger.start(group_id, "e", version), version, 0.0)


def train(ledger: Ledger, batch: list[str] | None, step: int) -> None:
    assert batch is not None
    ledger.trained(batch, step)
    ledger.retire(step)


@pytest.mark.parametrize("seed", range(20))
def test_in_long_runs_of_slow_and_lost_groups_none_gets_too_old(seed: int) -> None:
    """Hypothesis prefers short stories; dates are missed in long ones."""
    chance = random.Random(seed)
    rules = Rules(groups_per_step=chance.randint(1, 4), max_staleness=chance.randint(1, 3), max_attempts=100)
    ledger, learner, slow = Ledger(rules), V(1, 0), chance.uniform(0.02, 0.5)
    while learner.number < 60:
        for _ in range(ledger.capacity()):
            ledger.admit(f"g{ledger.counts().admitted}", "q", "p", 0.0)
        for group_id in ledger.waiting():
            if chance.random() < 0.8:
                ledger.start(group_id, "e", learner)
        flying = [group for group in map(ledger.group, ledger.open_ids()) if group.state is State.INFLIGHT]
        for group in flying:
            if chance.random() < (slow if group.sequence % 3 == 0 else 0.7):
                assert group.oldest is not None
                ledger.finish(group.group_id, group.attempt, group.oldest, 0.0)
            elif chance.random() < 0.05:
                ledger.lost(group.group_id, group.attempt, "engine died")
        if (batch := ledger.take(learner)) is not None:
            train(ledger, batch, learner.number)
            learner = V(1, learner.number + 1)
    assert ledger.counts().reasons == {}
    assert ledger.ages.total() == 60 * rules.groups_per_step


def test_the_learner_waits_for_a_straggler_rather_than_lose_it() -> None:
    ledger = Ledger(Rules(groups_per_step=1, max_staleness=1))
    ledger.admit("slow", "q", "p", 0.0)
    attempt = ledger.start("slow", "e", V(1, 0))
    run(ledger, "fast0", V(1, 0))
    train(ledger, ledger.take(V(1, 0)), 0)
    run(ledger, "fast1", V(1, 1))
    assert ledger.take(V(1, 1)) is None
    assert ledger.waits_for(V(1, 1)) == ["slow"]
    assert ledger.finish("slow", attempt, V(1, 0), 1.0)
    assert ledger.take(V(1, 1)) == ["slow"]


def test_it_waits_early_enough_where_several_are_slow() -> None:
    """Two stragglers that are due together need two steps: passing both over once more would lose one of them."""
    ledger = Ledger(Rules(groups_per_step=1, max_staleness=2))
    for group_id in ("slow0", "slow1"):
        ledger.admit(group_id, "q", "p", 0.0)
        ledger.start(group_id, "e", V(1, 0))
    run(ledger, "fast0", V(1, 0))
    train(ledger, ledger.take(V(1, 0)), 0)
    run(ledger, "fast1", V(1, 1))
    assert ledger.take(V(1, 1)) is None


def test_a_straggler_that_nobody_waits_for_is_dropped_and_said_so() -> None:
    ledger = Ledger(Rules(groups_per_step=1, max_staleness=1, wait_for_slow=False))
    ledger.admit("slow", "q", "p", 0.0)
    attempt = ledger.start("slow", "e", V(1, 0))
    for number in (0, 1):
        run(ledger, f"fast{number}", V(1, number))
        train(ledger, ledger.take(V(1, number)), number)
    assert ledger.finish("slow", attempt, V(1, 0), 1.0)
    assert ledger.take(V(1, 2)) is None
    assert ledger.drain_endings()[-1] == Ending("slow", "q", "p", 0, "e", Outcome.DROPPED, "stale", -1, 2)
    assert ledger.counts().reasons == {"stale": 1}


def test_what_is_due_first_is_trained_first_whoever_finished_first() -> None:
    ledger = Ledger(Rules(groups_per_step=2, max_staleness=1))
    attempts = {}
    for group_id in "abcd":
        ledger.admit(group_id, "q", "p", 0.0)
        attempts[group_id] = ledger.start(group_id, "e", V(1, 0))
    for group_id in "dcba":
        ledger.finish(group_id, attempts[group_id], V(1, 0), 0.0)
    assert ledger.take(V(1, 0)) == ["a", "b"]


def test_an_answer_of_an_earlier_attempt_is_not_taken_for_the_present_one() -> None:
    ledger = Ledger(Rules(groups_per_step=1, max_staleness=0))
    ledger.admit("a", "q", "p", 0.0)
    first = ledger.start("a", "e0", V(1, 0))
    assert ledger.lost("a", first, "lease over") is Fate.REQUEUED
    second = ledger.start("a", "e1", V(1, 0))
    assert second == first + 1
    assert not ledger.finish("a", first, V(1, 0), now=7.0)
    assert ledger.group("a").state is State.INFLIGHT
    assert ledger.finish("a", second, V(1, 0), now=8.0)


def test_a_restart_starts_new_attempts_but_does_not_use_them_up() -> None:
    rules = Rules(groups_per_step=1, max_staleness=0, max_attempts=1)
    ledger = Ledger(rules)
    ledger.admit("a", "q", "p", 0.0)
    attempt = ledger.start("a", "e0", V(1, 0))
    again = Ledger(rules)
    again.restore(ledger.snapshot())
    assert again.start("a", "e0", V(2, 0)) == attempt + 1


def test_another_generation_is_dropped_whatever_its_number() -> None:
    ledger = Ledger(Rules(groups_per_step=1, max_staleness=5))
    run(ledger, "old", V(1, 3))
    assert ledger.take(V(2, 3)) is None
    assert ledger.counts().dropped == 1


def test_synchronous_mode_admits_one_batch_at_a_time() -> None:
    ledger = Ledger(Rules(groups_per_step=2, max_staleness=0))
    run(ledger, "a", V(1, 0))
    run(ledger, "b", V(1, 0))
    batch = ledger.take(V(1, 0))
    assert (batch, ledger.capacity()) == (["a", "b"], 0)
    ledger.trained(["a", "b"], 0)
    assert ledger.capacity() == 0
    ledger.retire(0)
    assert ledger.capacity() == 2


def test_of_more_than_a_batch_the_first_that_finish_are_trained_and_the_rest_is_surplus() -> None:
    ledger = Ledger(Rules(groups_per_step=2, max_staleness=0, oversample=1.5))
    assert ledger.capacity() == 3
    ledger.admit("slow", "q", "p", 0.0)
    ledger.start("slow", "e", V(1, 0))
    run(ledger, "a", V(1, 0))
    assert ledger.surplus() == [], "nothing is surplus before a batch is taken"
    run(ledger, "b", V(1, 0))
    assert ledger.take(V(1, 0)) == ["a", "b"]
    assert ledger.surplus() == ["slow"]


def test_uniform_groups_are_dropped_up_to_a_bound_for_each_step() -> None:
    ledger = Ledger(Rules(groups_per_step=1, max_staleness=0, max_uniform=1))
    run(ledger, "a", V(1, 0))
    assert ledger.drop_uniform("a")
    run(ledger, "b", V(1, 0))
    assert not ledger.drop_uniform("b")
    train(ledger, ledger.take(V(1, 0)), 1)
    run(ledger, "c", V(1, 1))
    assert ledger.drop_uniform("c")
    assert ledger.counts().reasons == {"uniform": 2}


@pytest.mark.parametrize(
    ("break_contract", "words"),
    [
        (lambda ledger: ledger.admit("a", "q", "p", 0.0), "admitted twice"),
        (lambda ledger: ledger.start("a", "e", V(1, 0)), "is finished, needed waiting"),
        (lambda ledger: ledger.start("x", "e", V(1, 0)), "was never admitted"),
        (lambda ledger: ledger.trained(["a"], 0), "is finished, needed taken"),
        (lambda ledger: ledger.retire(3), "without having been trained"),
        (lambda ledger: ledger.take(V(1, 0)), "sampled under 1.4, but the learner is at 1.0"),
        (lambda ledger: (ledger.drop(["a"], "r"), ledger.drop(["a"], "r")), "has ended"),
        (lambda ledger: (ledger.drop(["a"], "r"), ledger.snapshot()), "not announced"),
        (lambda ledger: ledger.restore(ledger.snapshot()), "needs a new ledger"),
    ],
)
def test_a_broken_contract_is_one_clear_line(break_contract, words: str) -> None:
    ledger = Ledger(Rules(groups_per_step=2, max_staleness=1))
    run(ledger, "a", V(1, 4))
    with pytest.raises(LedgerError, match=words):
        break_contract(ledger)


@pytest.mark.parametrize("wrong", [{"groups_per_step": 0}, {"oversample": 0.5}, {"oversample": 2.0, "max_staleness": 1}])
def test_rules_that_no_ledger_can_keep_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(LedgerError, match="ledger: "):
        Rules(**{"groups_per_step": 1, "max_staleness": 0} | wrong)


def test_steps_only_grow() -> None:
    ledger = Ledger(Rules(groups_per_step=1, max_staleness=1))
    ledger.trained([], 4)
    with pytest.raises(LedgerError, match="steps only grow"):
        ledger.trained([], 4)
