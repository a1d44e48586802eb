"""The life of one engine as the pool sees it: a pure state machine that refuses impossible steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum


class EngineState(StrEnum):
    """Only HEALTHY engines are given work."""

    JOINING = "joining"  # its process is starting
    STALE = "stale"  # it runs, but its weights are not proved to be the newest
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # it missed a deadline; a ping decides
    DRAINING = "draining"  # it finishes what it has and takes nothing new
    DEAD = "dead"


_ALLOWED: dict[EngineState, frozenset[EngineState]] = {
    EngineState.JOINING: frozenset({EngineState.STALE, EngineState.DRAINING, EngineState.DEAD}),
    EngineState.STALE: frozenset({EngineState.HEALTHY, EngineState.DRAINING, EngineState.DEAD}),
    EngineState.HEALTHY: frozenset({EngineState.STALE, EngineState.SUSPECT, EngineState.DRAINING, EngineState.DEAD}),
    # Not straight back to HEALTHY: an update may have passed it by while it did not answer.
    EngineState.SUSPECT: frozenset({EngineState.STALE, EngineState.DRAINING, EngineState.DEAD}),
    EngineState.DRAINING: frozenset({EngineState.DEAD}),
    EngineState.DEAD: frozenset(),
}

# Enough to read how an engine came to its state, bounded because a run lasts for weeks.
_HISTORY = 32


class ImpossibleTransition(Exception):
    """A bug in the pool: an engine was moved along an arrow that does not exist."""


@dataclass(slots=True)
class EngineHealth:
    """One engine's state and the steps that led to it. DEAD is final: a replacement is another engine with another id.

    Example:
        >>> health = EngineHealth("engine-0")
        >>> health.move(EngineState.STALE, "started"); health.move(EngineState.HEALTHY, "acked 1.0")
        >>> health.state.value, health.takes_work
        ('healthy', True)
    """

    engine_id: str
    state: EngineState = EngineState.JOINING
    history: deque[tuple[EngineState, str]] = field(default_factory=lambda: deque(maxlen=_HISTORY))

    @property
    def takes_work(self) -> bool:
        return self.state is EngineState.HEALTHY

    @property
    def alive(self) -> bool:
        return self.state is not EngineState.DEAD

    @property
    def was_drained(self) -> bool:
        return any(state is EngineState.DRAINING for state, _ in self.history)

    @property
    def last_reason(self) -> str:
        return self.history[-1][1] if self.history else "starting"

    def may(self, state: EngineState) -> bool:
        return state in _ALLOWED[self.state]

    def move(self, state: EngineState, reason: str) -> None:
        """Takes one step; a step to the state it is in already only notes the reason."""
        if state is not self.state and not self.may(state):
            raise ImpossibleTransition(f"engine {self.engine_id}: {self.state.value} → {state.value} ({reason})")
        self.state = state
        self.history.append((state, reason))
