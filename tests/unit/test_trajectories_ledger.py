"""The ledger under random interleavings: what it promises holds after every single step."""

from __future__ import annotations

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trajectories.ledger import Ending, Fate, Ledger, LedgerError, Outcome, State
from trajectories.schema import WeightVersion

LEASE_S = 10.0


class LedgerUnderLoad(RuleBasedStateMachine):
    """Feeds, engines, a learner and restarts, in any order that their contracts allow.

    `served` is the version of the engines: between a trained step and its retirement they still serve the version before.
    """

    @initialize(groups_per_step=st.integers(1, 3), max_staleness=st.integers(0, 2), max_attempts=st.integers(1, 3))
    def begin(self, groups_per_step: int, max_staleness: int, max_attempts: int) -> None:
        self.settings = (groups_per_step, max_staleness, max_attempts)
        self.ledger = Ledger(*self.settings)
        self.learner = self.served = WeightVersion(1, 0)
        self.now = 0.0
        self.made = self.step = 0
        self.taken: list[str] = []
        self.unretired: int | None = None
        self.endings: list[Ending] = []
        self.attempts: dict[str, int] = {}
        self.slow: set[str] = set()  # groups that were not finished when some batch was taken
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
            attempt = self.ledger.start(group_id, "e0", self.served, self.now, LEASE_S)
            assert attempt >= self.attempts[group_id]
            self.attempts[group_id] = attempt

    @rule(data=st.data())
    def score(self, data: st.DataObject) -> None:
        if group_id := self.pick(data, State.INFLIGHT):
            assert self.ledger.scoring(group_id, self.attempts[group_id], self.now, LEASE_S)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if group_id := self.pick(data, State.INFLIGHT, State.SCORING):
            oldest = self.ledger.group(group_id).oldest
            assert oldest is not None
            assert self.ledger.finish(group_id, self.attempts[group_id], oldest, self.now)

    @rule(data=st.data(), behind=st.integers(0, 2))
    def answer_late(self, data: st.DataObject, behind: int) -> None:
        """An answer of an attempt that is over, a second answer, an answer for a group that has ended."""
        if not self.attempts:
            return
        group_id = data.draw(st.sampled_from(sorted(self.attempts)))
        if behind == 0 and self.is_open(group_id) and self.ledger.group(group_id).state in (State.INFLIGHT, State.SCORING):
            return
        before = self.ledger.snapshot()
        assert not self.ledger.finish(group_id, self.attempts[group_id] - behind, self.served, self.now)
        self.refused += 1
        assert self.ledger.snapshot() == before | {"late": before["late"] + 1}

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if group_id := self.pick(data, State.INFLIGHT, State.SCORING, State.FINISHED, State.TAKEN):
            self.report_lost(group_id, self.attempts[group_id])

    def report_lost(self, group_id: str, attempt: int) -> None:
        failures = self.ledger.group(group_id).failures
        fate = self.ledger.lost(group_id, attempt, "engine died")
        assert fate is (Fate.VOIDED if failures + 1 == self.settings[2] else Fate.REQUEUED)
        if group_id in self.taken:
            self.taken.remove(group_id)
        self.collect()
        assert self.ledger.lost(group_id, attempt, "engine died") is Fate.IGNORED
        self.refused += 1

    @rule(seconds=st.floats(0, 2 * LEASE_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for lease in self.ledger.expired(self.now):
            assert self.ledger.group(lease.group_id).lease_until <= self.now
            self.report_lost(lease.group_id, lease.attempt)
        assert not self.ledger.expired(self.now)

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
        groups = {group_id: self.ledger.group(group_id) for group_id in self.attempts if self.is_open(group_id)}
        finished = [group_id for group_id, group in groups.items() if group.state is State.FINISHED]
        batch = self.ledger.take(self.learner)
        self.collect()
        for ending in self.endings:
            if ending.group_id in finished:
                assert ending.reason == "stale"
                assert ending.group_id in self.slow, "a group that was always finished in time can never get too old"
        usable = [group_id for group_id in finished if self.is_open(group_id)]
        if batch is None:
            assert len(usable) < self.settings[0]
            return
        assert batch == usable[: self.settings[0]], "oldest admission first"
        self.taken = batch
        self.slow |= groups.keys() - set(finished)

    @precondition(lambda self: self.taken and self.unretired is None)
    @rule()
    def train(self) -> None:
        for group_id in self.taken:
            oldest = self.ledger.group(group_id).oldest
            assert oldest is not None
            assert oldest.generation == self.learner.generation
            assert 0 <= self.learner.number - oldest.number <= self.settings[1], "the bound"
        self.step += 1
        self.ledger.trained(self.taken, self.step)
        self.taken, self.unretired = [], self.step
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
        self.ledger = Ledger(*self.settings)
        self.ledger.restore(manifest)
        self.learner = self.served = WeightVersion(self.learner.generation + 1, self.learner.number)
        self.taken, self.unretired = [], None
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
        assert sum(counts.states.values()) == counts.open <= (self.settings[1] + 1) * self.settings[0]
        ended = [ending.group_id for ending in self.endings]
        assert len(ended) == len(set(ended)) == counts.admitted - counts.open, "each group ends exactly once"
        assert counts.late == self.refused
        assert counts.trained == sum(self.ledger.ages.values()) == sum(e.outcome is Outcome.TRAINED for e in self.endings)
        assert all(0 <= age <= self.settings[1] for age in self.ledger.ages)


LedgerUnderLoad.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLedgerUnderLoad = LedgerUnderLoad.TestCase


V = WeightVersion


def run(ledger: Ledger, group_id: str, version: WeightVersion) -> None:
    ledger.admit(group_id, "q", "p", 0.0)
    assert ledger.finish(group_id, ledger.start(group_id, "e", version, 0.0, 1.0), version, 0.0)


def test_a_straggler_that_gets_too_old_is_dropped_and_said_so() -> None:
    ledger = Ledger(groups_per_step=1, max_staleness=1)
    ledger.admit("slow", "q", "p", 0.0)
    attempt = ledger.start("slow", "e", V(1, 0), 0.0, 99.0)
    for number in (0, 1):
        run(ledger, f"fast{number}", V(1, number))
        assert ledger.take(V(1, number)) == [f"fast{number}"]
        ledger.trained([f"fast{number}"], number)
        ledger.retire(number)
    assert ledger.finish("slow", attempt, V(1, 0), 1.0)
    assert ledger.take(V(1, 2)) is None
    assert ledger.drain_endings()[-1] == Ending("slow", "q", "p", 0, "e", Outcome.DROPPED, "stale", -1, 2)
    assert ledger.counts().reasons == {"stale": 1}


def test_the_oldest_admission_is_trained_first_whoever_finished_first() -> None:
    ledger = Ledger(groups_per_step=2, max_staleness=1)
    attempts = {}
    for group_id in "abcd":
        ledger.admit(group_id, "q", "p", 0.0)
        attempts[group_id] = ledger.start(group_id, "e", V(1, 0), 0.0, 1.0)
    for group_id in "dcba":
        ledger.finish(group_id, attempts[group_id], V(1, 0), 0.0)
    assert ledger.take(V(1, 0)) == ["a", "b"]


def test_an_answer_of_an_earlier_attempt_is_not_taken_for_the_present_one() -> None:
    ledger = Ledger(groups_per_step=1, max_staleness=0)
    ledger.admit("a", "q", "p", 0.0)
    first = ledger.start("a", "e0", V(1, 0), now=0.0, lease_s=5.0)
    assert ledger.expired(4.9) == []
    assert ledger.expired(5.0) == [("a", first, "e0")]
    assert ledger.lost("a", first, "lease over") is Fate.REQUEUED
    second = ledger.start("a", "e1", V(1, 0), now=6.0, lease_s=5.0)
    assert second == first + 1
    assert not ledger.finish("a", first, V(1, 0), now=7.0)
    assert ledger.group("a").state is State.INFLIGHT
    assert ledger.finish("a", second, V(1, 0), now=8.0)


def test_a_restart_starts_new_attempts_but_does_not_use_them_up() -> None:
    ledger = Ledger(groups_per_step=1, max_staleness=0, max_attempts=1)
    ledger.admit("a", "q", "p", 0.0)
    attempt = ledger.start("a", "e0", V(1, 0), 0.0, 5.0)
    again = Ledger(groups_per_step=1, max_staleness=0, max_attempts=1)
    again.restore(ledger.snapshot())
    assert again.start("a", "e0", V(2, 0), 0.0, 5.0) == attempt + 1


def test_another_generation_is_dropped_whatever_its_number() -> None:
    ledger = Ledger(groups_per_step=1, max_staleness=5)
    run(ledger, "old", V(1, 3))
    assert ledger.take(V(2, 3)) is None
    assert ledger.counts().dropped == 1


def test_synchronous_mode_admits_one_batch_at_a_time() -> None:
    ledger = Ledger(groups_per_step=2, max_staleness=0)
    run(ledger, "a", V(1, 0))
    run(ledger, "b", V(1, 0))
    batch = ledger.take(V(1, 0))
    assert (batch, ledger.capacity()) == (["a", "b"], 0)
    ledger.trained(["a", "b"], 0)
    assert ledger.capacity() == 0
    ledger.retire(0)
    assert ledger.capacity() == 2


@pytest.mark.parametrize(
    ("break_contract", "words"),
    [
        (lambda ledger: ledger.admit("a", "q", "p", 0.0), "admitted twice"),
        (lambda ledger: ledger.start("a", "e", V(1, 0), 0.0, 1.0), "is finished, needed waiting"),
        (lambda ledger: ledger.start("x", "e", V(1, 0), 0.0, 1.0), "was never admitted"),
        (lambda ledger: ledger.trained(["a"], 0), "is finished, needed taken"),
        (lambda ledger: ledger.retire(3), "without having been trained"),
        (lambda ledger: ledger.take(V(1, 0)), "sampled under 1.4, but the learner is at 1.0"),
        (lambda ledger: (ledger.drop(["a"], "r"), ledger.drop(["a"], "r")), "ended already"),
        (lambda ledger: (ledger.drop(["a"], "r"), ledger.snapshot()), "not announced"),
        (lambda ledger: ledger.restore(ledger.snapshot()), "needs a new ledger"),
    ],
)
def test_a_broken_contract_is_one_clear_line(break_contract, words: str) -> None:
    ledger = Ledger(groups_per_step=2, max_staleness=1)
    run(ledger, "a", V(1, 4))
    with pytest.raises(LedgerError, match=words):
        break_contract(ledger)


def test_steps_only_grow() -> None:
    ledger = Ledger(groups_per_step=1, max_staleness=1)
    ledger.trained([], 4)
    with pytest.raises(LedgerError, match="steps only grow"):
        ledger.trained([], 4)
