"""The account of every group that was ever admitted: a pure state machine without I/O, tasks or a clock of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from trajectories.groups import Counts, Ending, Fate, Group, Lease, LedgerError, Outcome, State
from trajectories.schema import WeightVersion

__all__ = ["Counts", "Ending", "Fate", "Group", "Lease", "Ledger", "LedgerError", "Outcome", "State"]

_OUT = (State.INFLIGHT, State.SCORING)  # states in which an engine holds a lease


class Ledger:
    """Admits groups, leases them to engines, hands full batches to the learner, and ends each group exactly once.

    ::

        admit ─▶ WAITING ─start─▶ INFLIGHT ─scoring─▶ SCORING ─finish─▶ FINISHED ─take─▶ TAKEN ─trained─▶ trained
                    ▲                │  └───────────finish──────────────▲  │               │
                    └─── lost: attempt + 1, from every state but WAITING ◀─┴───────────────┘
        lost too often ─▶ voided          drop, or too old at take ─▶ dropped

    **Bound.** At the step that trains a group, learner number − number of its oldest token ≤ S = `max_staleness`; `take`
    checks it, so it always holds. Admission makes sure that it hardly ever costs a group. With P = `groups_per_step`, a
    group is admitted at learner number a only while fewer than (S + 1)·P groups are open and every trained step is
    retired, so every engine serves at least a and no token of it is older. Batches go oldest admission first. A finished
    group is passed over only by a batch of P older ones, and at most (S + 1)·P − 1 were open before it: that happens at
    most S times, so it is taken at learner number a + S or earlier. Only a group that is still unfinished when its turn
    comes can get too old. With S = 0 at most P groups are open and none can be passed over: the synchronous mode.

    What ended is announced once by `drain_endings`, whoever ended it. Times are the caller's, in any unit.

    Example:
        >>> ledger = Ledger(groups_per_step=1, max_staleness=0)
        >>> ledger.capacity()
        1
        >>> ledger.admit("g0", question_id="q7", phase="retrieval", now=0.0)
        >>> attempt = ledger.start("g0", engine_id="e0", version=WeightVersion(1, 0), now=1.0, lease_s=60.0)
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

    def __init__(self, groups_per_step: int, max_staleness: int, max_attempts: int = 3) -> None:
        if groups_per_step < 1 or max_staleness < 0 or max_attempts < 1:
            raise LedgerError(
                f"ledger: needs groups_per_step ≥ 1, max_staleness ≥ 0, max_attempts ≥ 1, got "
                f"{groups_per_step}, {max_staleness}, {max_attempts}"
            )
        self.groups_per_step = groups_per_step
        self.max_staleness = max_staleness
        self.max_attempts = max_attempts
        self.ages: Counter[int] = Counter()  # of the trained groups, in versions
        self._open: dict[str, Group] = {}  # in order of admission, which is the order of training
        self._ended: set[str] = set()
        self._endings: list[Ending] = []
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._admitted = self._requeued = self._late = 0
        self._last_step = -1
        self._unretired: set[int] = set()

    # Admission

    def capacity(self) -> int:
        """Groups that may be admitted now; none between a trained step and its retirement, for they would be born too old."""
        if self._unretired:
            return 0
        return max(0, (self.max_staleness + 1) * self.groups_per_step - len(self._open))

    def admit(self, group_id: str, question_id: str, phase: str, now: float) -> None:
        if group_id in self._open or group_id in self._ended:
            raise LedgerError(f"group {group_id}: admitted twice; group ids must be unique")
        if self.capacity() < 1:
            raise LedgerError(f"group {group_id}: admitted without a free slot; ask capacity() first")
        self._open[group_id] = Group(group_id, question_id, phase, admitted_at=now)
        self._admitted += 1

    def open_ids(self) -> list[str]:
        """Groups without an outcome, oldest admission first."""
        return list(self._open)

    # Rollout

    def waiting(self) -> list[str]:
        """Groups that need an engine, oldest admission first."""
        return [group.group_id for group in self._open.values() if group.state is State.WAITING]

    def start(self, group_id: str, engine_id: str, version: WeightVersion, now: float, lease_s: float) -> int:
        """Leases a waiting group to an engine that serves `version`; returns the attempt that its answer must name."""
        group = self._must_be(group_id, State.WAITING)
        group.state, group.engine_id, group.oldest, group.lease_until = State.INFLIGHT, engine_id, version, now + lease_s
        return group.attempt

    def scoring(self, group_id: str, attempt: int, now: float, lease_s: float) -> bool:
        """The episodes are generated and a judge outside the actor scores them, under a lease of its own."""
        group = self._awaited(group_id, attempt, (State.INFLIGHT,))
        if group is None:
            return False
        group.state, group.lease_until = State.SCORING, now + lease_s
        return True

    def finish(self, group_id: str, attempt: int, oldest: WeightVersion, now: float) -> bool:
        """The group's answer has arrived; False, and no more, where nobody awaits this attempt any longer."""
        group = self._awaited(group_id, attempt, _OUT)
        if group is None:
            return False
        group.state, group.oldest, group.finished_at = State.FINISHED, oldest, now
        return True

    def lost(self, group_id: str, attempt: int, reason: str) -> Fate:
        """The attempt failed, or its bytes are gone although it had finished: try again, or give the group up."""
        group = self._awaited(group_id, attempt, (*_OUT, State.FINISHED, State.TAKEN))
        if group is None:
            return Fate.IGNORED
        group.failures += 1
        if group.failures >= self.max_attempts:
            self._end(group, Outcome.VOIDED, reason)
            return Fate.VOIDED
        self._requeue(group)
        self._requeued += 1
        return Fate.REQUEUED

    def expired(self, now: float) -> list[Lease]:
        """Leases that are over; the caller reports each as `lost`."""
        return [
            Lease(group.group_id, group.attempt, group.engine_id)
            for group in self._open.values()
            if group.state in _OUT and group.lease_until <= now
        ]

    # Learning

    def take(self, learner: WeightVersion) -> list[str] | None:
        """A full batch for the learner at this version, oldest admission first; None while there are not enough groups.

        Finished groups that are too old, or that an earlier generation sampled, are dropped as "stale" on the way.
        """
        if taken := [group.group_id for group in self._open.values() if group.state is State.TAKEN]:
            # A second batch would be trained one version later than the age it was checked for.
            raise LedgerError(f"take: {len(taken)} groups are still taken, {taken[0]} first; end them before the next batch")
        fresh: list[Group] = []
        for group in [group for group in self._open.values() if group.state is State.FINISHED]:
            assert group.oldest is not None, "a finished group knows its oldest token"
            if group.oldest > learner:
                raise LedgerError(f"group {group.group_id}: sampled under {group.oldest}, but the learner is at {learner}")
            group.age = learner.number - group.oldest.number
            if group.oldest.generation != learner.generation or group.age > self.max_staleness:
                self._end(group, Outcome.DROPPED, "stale")
            else:
                fresh.append(group)
        if len(fresh) < self.groups_per_step:
            return None
        batch = fresh[: self.groups_per_step]
        for group in batch:
            group.state = State.TAKEN
        return [group.group_id for group in batch]

    def trained(self, group_ids: Iterable[str], step: int) -> None:
        """The step used these groups. It stays unretired, and admission closed, until `retire(step)`."""
        groups = [self._must_be(group_id, State.TAKEN) for group_id in group_ids]
        if step <= self._last_step:
            raise LedgerError(f"step {step}: the last trained step was {self._last_step}; steps only grow")
        self._last_step = step
        self._unretired.add(step)
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
            states=dict(Counter(group.state.value for group in self._open.values())),
            reasons=dict(reasons),
        )

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
            group = Group(**record)
            self._requeue(group)
            self._open[group.group_id] = group

    # Inside

    def _must_be(self, group_id: str, *states: State) -> Group:
        group = self._open.get(group_id)
        if group is None:
            raise LedgerError(f"group {group_id}: {'ended already' if group_id in self._ended else 'was never admitted'}")
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
        group.state, group.attempt = State.WAITING, group.attempt + 1
        group.engine_id, group.oldest, group.lease_until, group.finished_at, group.age = "", None, 0.0, 0.0, 0

    def _end(self, group: Group, outcome: Outcome, reason: str, step: int = -1) -> None:
        del self._open[group.group_id]
        self._ended.add(group.group_id)
        self._outcomes[(outcome.value, reason)] += 1
        self._endings.append(
            Ending(
                group.group_id, group.question_id, group.phase, group.attempt, group.engine_id, outcome, reason, step, group.age
            )
        )
