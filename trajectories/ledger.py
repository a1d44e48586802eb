"""The account of every group that was ever admitted: a pure state machine without I/O, tasks or a clock of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from heapq import nsmallest
from typing import Any

from trajectories.groups import Counts, Ending, Fate, Group, LedgerError, Outcome, Rules, State
from trajectories.schema import WeightVersion

__all__ = ["Counts", "Ending", "Fate", "Group", "Ledger", "LedgerError", "Outcome", "Rules", "State"]


class Ledger:
    """Admits groups, notes which engine has them, hands full batches to the learner, and ends each group exactly once.

    ::

        admit ─▶ WAITING ─start─▶ INFLIGHT ─finish─▶ FINISHED ─take─▶ TAKEN ─trained─▶ trained
                    ▲                │                  │  └ uniform      │
                    └── lost: attempt + 1 ◀─────────────┴────────────────┘
        lost too often ─▶ voided          drop, uniform, or too old at take ─▶ dropped

    **Bound.** At the step that trains a group, learner number − number of its oldest token ≤ S = `max_staleness`. `take`
    checks it, so it always holds.

    **Dates.** A group that started at number a is due at the learner's number a + S. Fewer than (S + 1)·P groups are open at
    a time (P = `groups_per_step`), and none is admitted between a trained step and its retirement. `take` hands out those
    that are due first, and waits for slow ones rather than train younger groups in their place when that would leave more
    groups due by some number than the steps up to it can train. So no group gets too old, however slow, and long episodes
    are trained as often as short ones. Where `wait_for_slow` is off, the learner never waits while P groups are finished,
    and those that come too late are dropped as "stale". With S = 0 at most P groups are open: the synchronous mode.

    **Uniform groups** teach nothing where advantages compare the episodes of a group. `drop_uniform` ends them, up to
    `max_uniform` for one step; then they are trained as they are, so that a batch is never starved.

    What ended is announced once by `drain_endings`, whoever ended it. Times are the caller's, in any unit.

    Example:
        >>> ledger = Ledger(Rules(groups_per_step=1, max_staleness=0))
        >>> ledger.capacity()
        1
        >>> ledger.admit("g0", question_id="q7", phase="retrieval", now=0.0)
        >>> attempt = ledger.start("g0", engine_id="e0", version=WeightVersion(1, 0))
        >>> ledger.finish("g0", attempt, oldest=WeightVersion(1, 0), now=2.0)
        True
        >>> ledger.take(WeightVersion(1, 0))
        ['g0']
        >>> ledger.trained(["g0"], step=1)
        >>> ledger.capacity()  # the engines do not serve the new weights yet
        0
        >>> ledger.retire(1)
        >>> ledger.capacity(), [ending.outcome.value for ending in ledger.drain_endings()]
        (1, ['trained'])
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.ages: Counter[int] = Counter()  # of the trained groups, in versions
        self._open: dict[str, Group] = {}  # in order of admission
        self._finished: dict[str, Group] = {}
        self._taken: set[str] = set()
        self._started: Counter[int] = Counter()  # groups in flight by the number that they started at
        self._ready: Counter[int] = Counter()  # finished groups by the number of their oldest token
        self._unchecked: list[str] = []  # finished since the last take
        self._learner: WeightVersion | None = None  # of the last take
        self._endings: list[Ending] = []
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._admitted = self._requeued = self._late = self._uniform = 0
        self._last_step = -1
        self._unretired: set[int] = set()
        self._slots = math.ceil((rules.max_staleness + 1) * rules.groups_per_step * rules.oversample)

    # Admission

    def capacity(self) -> int:
        """Groups that may be admitted now; none between a trained step and its retirement, for they would be born too old."""
        return 0 if self._unretired else max(0, self._slots - len(self._open))

    def admit(self, group_id: str, question_id: str, phase: str, now: float) -> None:
        if group_id in self._open:
            raise LedgerError(f"group {group_id}: admitted twice; group ids must be unique")
        if self.capacity() < 1:
            raise LedgerError(f"group {group_id}: admitted without a free slot; ask capacity() first")
        self._open[group_id] = Group(group_id, question_id, phase, admitted_at=now, sequence=self._admitted)
        self._admitted += 1

    def open_ids(self) -> list[str]:
        """Groups without an outcome, oldest admission first."""
        return list(self._open)

    # Rollout

    def waiting(self) -> list[str]:
        """Groups that need an engine, oldest admission first."""
        return [group.group_id for group in self._open.values() if group.state is State.WAITING]

    def start(self, group_id: str, engine_id: str, version: WeightVersion) -> int:
        """An engine that serves `version` begins with a waiting group; returns the attempt that its answer must name."""
        group = self._must_be(group_id, State.WAITING)
        group.engine_id = engine_id
        self._move(group, State.INFLIGHT, version)
        return group.attempt

    def finish(self, group_id: str, attempt: int, oldest: WeightVersion, now: float) -> bool:
        """The group's answer has arrived; False, and no more, where nobody awaits this attempt any longer."""
        group = self._awaited(group_id, attempt, (State.INFLIGHT,))
        if group is None:
            return False
        group.finished_at = now
        self._move(group, State.FINISHED, oldest)
        self._unchecked.append(group_id)
        return True

    def drop_uniform(self, group_id: str) -> bool:
        """Ends a finished group whose episodes all earned the same; False where as many were dropped for this step as may be."""
        group = self._must_be(group_id, State.FINISHED)
        if self._uniform >= self.rules.max_uniform:
            return False
        self._uniform += 1
        self._end(group, Outcome.DROPPED, "uniform")
        return True

    def lost(self, group_id: str, attempt: int, reason: str, *, failed: bool = True) -> Fate:
        """The attempt failed, or its bytes are gone although it had finished: try again, or give the group up.

        An engine that was drained on purpose has not `failed`: that uses up none of the group's attempts.
        """
        group = self._awaited(group_id, attempt, tuple(State))
        if group is None:
            return Fate.IGNORED
        group.failures += failed
        if group.failures >= self.rules.max_attempts:
            self._end(group, Outcome.VOIDED, reason)
            return Fate.VOIDED
        self._requeue(group)
        self._requeued += 1
        return Fate.REQUEUED

    # Learning

    def take(self, learner: WeightVersion) -> list[str] | None:
        """A full batch for the learner at this version, those first that are due first; None while it has to wait.

        Finished groups that are too old, or that an earlier generation sampled, are dropped as "stale" on the way.
        """
        if self._taken:
            # A second batch would be trained one version later than the age it was checked for.
            raise LedgerError(f"take: {len(self._taken)} groups are still taken; end them before the next batch")
        self._drop_stale(learner)
        size = self.rules.groups_per_step
        if len(self._finished) < size or (self.rules.wait_for_slow and self._someone_would_be_late(learner)):
            return None
        batch = nsmallest(size, self._finished.values(), key=_due)
        for group in batch:
            group.age = learner.number - _oldest(group).number
            self._move(group, State.TAKEN, group.oldest)
        return [group.group_id for group in batch]

    def waits_for(self, learner: WeightVersion) -> list[str]:
        """Groups in flight that `take` waits for although a batch is finished, those first that are due first."""
        if len(self._finished) < self.rules.groups_per_step or not self._someone_would_be_late(learner):
            return []
        slow = [group for group in self._open.values() if group.state is State.INFLIGHT]
        return [group.group_id for group in sorted(slow, key=_due)]

    def surplus(self) -> list[str]:
        """Once a batch is taken in synchronous mode: what was rolled out beyond it and can never be young enough."""
        if not self._taken or self.rules.max_staleness:
            return []
        return [group_id for group_id in self._open if group_id not in self._taken]

    def trained(self, group_ids: Iterable[str], step: int) -> None:
        """The step used these groups. It stays unretired, and admission closed, until `retire(step)`."""
        groups = [self._must_be(group_id, State.TAKEN) for group_id in group_ids]
        if step <= self._last_step:
            raise LedgerError(f"step {step}: the last trained step was {self._last_step}; steps only grow")
        self._last_step = step
        self._unretired.add(step)
        self._uniform = 0
        for group in groups:
            self.ages[group.age] += 1
            self._end(group, Outcome.TRAINED, "", step)

    def retire(self, step: int) -> None:
        """Every engine in work serves the weights that this step made: admission opens again."""
        if step not in self._unretired:
            raise LedgerError(f"step {step}: retired without having been trained, or twice")
        self._unretired.remove(step)

    def drop(self, group_ids: Iterable[str], reason: str) -> None:
        """Ends open groups that will not be trained, whatever their state."""
        for group_id in group_ids:
            self._end(self._must_be(group_id, *State), Outcome.DROPPED, reason)

    # What is known

    def group(self, group_id: str) -> Group:
        """The record of an open group, to read."""
        return self._must_be(group_id, *State)

    def is_open(self, group_id: str) -> bool:
        return group_id in self._open

    def drain_endings(self) -> list[Ending]:
        """Groups that ended since the last call, in order: each group appears once in the life of the ledger."""
        endings, self._endings = self._endings, []
        return endings

    def counts(self) -> Counts:
        by_outcome: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for (outcome, reason), n in self._outcomes.items():
            by_outcome[outcome] += n
            if outcome != Outcome.TRAINED:
                reasons[reason] += n
        return Counts(
            admitted=self._admitted,
            trained=by_outcome[Outcome.TRAINED],
            dropped=by_outcome[Outcome.DROPPED],
            voided=by_outcome[Outcome.VOIDED],
            open=len(self._open),
            requeued=self._requeued,
            late=self._late,
            states=self.states(),
            reasons=dict(reasons),
        )

    def states(self) -> dict[str, int]:
        """Open groups by state, without those states that no group is in."""
        inflight, finished, taken = self._started.total(), len(self._finished), len(self._taken)
        waiting = len(self._open) - inflight - finished - taken
        counted = {State.WAITING: waiting, State.INFLIGHT: inflight, State.FINISHED: finished, State.TAKEN: taken}
        return {state.value: n for state, n in counted.items() if n}

    # The manifest

    def snapshot(self) -> dict[str, Any]:
        """JSON for the manifest. Ended groups survive as sums; write the drained endings before."""
        if self._endings:
            raise LedgerError(f"snapshot: {len(self._endings)} endings are not announced yet; call drain_endings() first")
        return {
            "admitted": self._admitted,
            "requeued": self._requeued,
            "late": self._late,
            "last_step": self._last_step,
            "outcomes": [[outcome, reason, n] for (outcome, reason), n in self._outcomes.items()],
            "ages": sorted([age, n] for age, n in self.ages.items()),
            "open": [asdict(group) for group in self._open.values()],
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Takes over a snapshot. Rollouts did not survive the restart, so every open group waits again, under a new attempt."""
        if self._admitted:
            raise LedgerError("restore: needs a new ledger, this one has admitted groups")
        self._admitted, self._requeued, self._late = snapshot["admitted"], snapshot["requeued"], snapshot["late"]
        self._last_step = snapshot["last_step"]
        self._outcomes = Counter({(outcome, reason): n for outcome, reason, n in snapshot["outcomes"]})
        self.ages = Counter(dict(snapshot["ages"]))
        for record in snapshot["open"]:
            group = Group(**record | {"state": State.WAITING, "oldest": None})
            self._requeue(group)
            self._open[group.group_id] = group

    # Inside

    def _drop_stale(self, learner: WeightVersion) -> None:
        """Ages change with the learner's version only, so all finished groups are looked at once per version."""
        looked_at = self._unchecked if learner == self._learner else list(self._finished)
        self._learner, self._unchecked = learner, []
        for group_id in looked_at:
            group = self._finished.get(group_id)
            if group is None:
                continue
            oldest = _oldest(group)
            if oldest > learner:
                raise LedgerError(f"group {group_id}: sampled under {oldest}, but the learner is at {learner}")
            if oldest.generation != learner.generation or learner.number - oldest.number > self.rules.max_staleness:
                group.age = learner.number - oldest.number
                self._end(group, Outcome.DROPPED, "stale")

    def _someone_would_be_late(self, learner: WeightVersion) -> bool:
        """Whether training the finished groups that are due first leaves more that are due by some number than can be trained by it."""
        to_take, left, staleness = self.rules.groups_per_step, 0, self.rules.max_staleness
        numbers = {*self._started, *self._ready}
        for start in range(min(numbers, default=learner.number), learner.number):
            taken = min(to_take, self._ready[start])
            to_take -= taken
            left += self._ready[start] - taken + self._started[start]
            if left > max(0, start + staleness - learner.number) * self.rules.groups_per_step:
                return True
        return False

    def _move(self, group: Group, state: State, oldest: WeightVersion | None) -> None:
        """The one place that changes a group's state, so that what is counted by state stays true."""
        if group.state is State.INFLIGHT:
            self._started -= Counter([_oldest(group).number])
        elif group.state is State.FINISHED:
            self._ready -= Counter([_oldest(group).number])
            del self._finished[group.group_id]
        elif group.state is State.TAKEN:
            self._taken.remove(group.group_id)
        group.state, group.oldest = state, oldest
        if state is State.INFLIGHT:
            self._started[_oldest(group).number] += 1
        elif state is State.FINISHED:
            self._ready[_oldest(group).number] += 1
            self._finished[group.group_id] = group
        elif state is State.TAKEN:
            self._taken.add(group.group_id)

    def _must_be(self, group_id: str, *states: State) -> Group:
        group = self._open.get(group_id)
        if group is None:
            raise LedgerError(f"group {group_id}: is not open; it has ended, or was never admitted")
        if group.state not in states:
            raise LedgerError(f"group {group_id}: is {group.state}, needed {' or '.join(states)}")
        return group

    def _awaited(self, group_id: str, attempt: int, states: tuple[State, ...]) -> Group | None:
        group = self._open.get(group_id)
        if group is None or group.attempt != attempt or group.state not in states:
            self._late += 1
            return None
        return group

    def _requeue(self, group: Group) -> None:
        self._move(group, State.WAITING, None)
        group.attempt += 1
        group.engine_id, group.finished_at, group.age = "", 0.0, 0

    def _end(self, group: Group, outcome: Outcome, reason: str, step: int = -1) -> None:
        engine_id, age = group.engine_id, group.age
        self._move(group, State.WAITING, None)
        del self._open[group.group_id]
        self._outcomes[(outcome.value, reason)] += 1
        self._endings.append(
            Ending(group.group_id, group.question_id, group.phase, group.attempt, engine_id, outcome, reason, step, age)
        )


def _oldest(group: Group) -> WeightVersion:
    assert group.oldest is not None, "a group that has started knows its version"
    return group.oldest


def _due(group: Group) -> tuple[int, int]:
    return _oldest(group).number, group.sequence
