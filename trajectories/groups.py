"""The words of the ledger: where a group is, how it ended, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from trajectories.schema import WeightVersion


class State(StrEnum):
    """Where an open group is."""

    WAITING = "waiting"
    INFLIGHT = "inflight"
    SCORING = "scoring"
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


class Lease(NamedTuple):
    """One attempt at one group, as an engine holds it."""

    group_id: str
    attempt: int
    engine_id: str


@dataclass(slots=True)
class Group:
    """An open group. `attempt` names the answer that is awaited; only `failures` count against the attempts allowed."""

    group_id: str
    question_id: str
    phase: str
    admitted_at: float
    state: State = State.WAITING
    attempt: int = 0
    failures: int = 0
    engine_id: str = ""
    lease_until: float = 0.0
    oldest: WeightVersion | None = None
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
