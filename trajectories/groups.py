"""The words of the ledger: where a group is, how it ended, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from trajectories.schema import WeightVersion


class State(StrEnum):
    """Where an open group is."""

    WAITING = "waiting"
    INFLIGHT = "inflight"
    FINISHED = "finished"
    TAKEN = "taken"


class Outcome(StrEnum):
    """How a group ended."""

    TRAINED = "trained"
    DROPPED = "dropped"
    VOIDED = "voided"


class Fate(StrEnum):
    """What `Ledger.lost` did: the group waits again, is given up, or the report was about an attempt that is over."""

    REQUEUED = "requeued"
    VOIDED = "voided"
    IGNORED = "ignored"


class LedgerError(RuntimeError):
    """The owner of the ledger broke its contract; a late answer from outside is never an error."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a ledger keeps to.

    Example:
        >>> Rules(groups_per_step=32, max_staleness=1).max_attempts
        3
    """

    groups_per_step: int
    max_staleness: int
    max_attempts: int = 3  # a group that failed so often is voided
    wait_for_slow: bool = True  # rather than drop as stale what finishes too late
    oversample: float = 1.0  # synchronous mode: so many times a batch is rolled out, and the first that finish make the batch
    max_uniform: int = 0  # groups of equal rewards that may be dropped for one step

    def __post_init__(self) -> None:
        if self.groups_per_step < 1 or self.max_staleness < 0 or self.max_attempts < 1 or self.max_uniform < 0:
            raise LedgerError(
                f"ledger: needs groups_per_step ≥ 1, max_staleness ≥ 0, max_attempts ≥ 1, max_uniform ≥ 0, got "
                f"{self.groups_per_step}, {self.max_staleness}, {self.max_attempts}, {self.max_uniform}"
            )
        if self.oversample < 1 or (self.oversample > 1 and self.max_staleness):
            raise LedgerError(
                f"ledger: oversample is {self.oversample:g} with max_staleness {self.max_staleness}: it must be 1 or more, and 1"
                " where groups may finish later than the batch that they were admitted for"
            )


@dataclass(slots=True)
class Group:
    """An open group. `attempt` names the answer that is awaited; only `failures` count against the attempts allowed."""

    group_id: str
    question_id: str
    phase: str
    admitted_at: float
    sequence: int  # place in the order of admission
    state: State = State.WAITING
    attempt: int = 0
    failures: int = 0
    engine_id: str = ""
    oldest: WeightVersion | None = None  # of its tokens; while it is in flight, what its engine served when it started
    finished_at: float = 0.0
    age: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """The one outcome of one group, as the event log writes it. `step` is -1 unless it was trained."""

    group_id: str
    question_id: str
    phase: str
    attempt: int
    engine_id: str
    outcome: Outcome
    reason: str
    step: int
    age: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over the life of the ledger: `admitted == trained + dropped + voided + open`, always."""

    admitted: int
    trained: int
    dropped: int
    voided: int
    open: int
    requeued: int
    late: int
    states: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)  # of the dropped and the voided
