"""What is counted between two steps, and told with the second: engines without work, acknowledgements, failed attempts."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from trajectories.publication import WeightAck


class IdleClock:
    """Seconds in which nobody works. `take` gives those since it was asked before.

    Example:
        >>> now = iter([0.0, 2.0, 5.0, 7.0])  # made at 0, one begins at 2, ends at 5, asked at 7
        >>> clock = IdleClock(lambda: next(now))
        >>> clock.begin(); clock.end(); clock.take()
        4.0
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._working, self._seconds = clock, 0, 0.0
        self._since = clock()

    def begin(self) -> None:
        if not self._working:
            self._seconds += self._clock() - self._since
        self._working += 1

    def end(self) -> None:
        self._working -= 1
        if not self._working:
            self._since = self._clock()

    def take(self) -> float:
        if not self._working:
            now = self._clock()
            self._seconds, self._since = self._seconds + now - self._since, now
        taken, self._seconds = self._seconds, 0.0
        return taken


@dataclass
class Accounts:
    """One process's counts; those that only grow begin anew with a resume."""

    engines_idle: IdleClock = field(default_factory=IdleClock)  # no group is with any engine
    failed: Counter[str] = field(default_factory=Counter)  # attempts by cause
    acks: int = 0
    refused: int = 0
    step_time: float = field(default_factory=time.time)  # when the last step ended
    step_s: float = 0.0
    _answers: list[WeightAck] = field(default_factory=list)  # since the last step

    def ack(self, ack: WeightAck) -> None:
        self.acks += ack.ok
        self.refused += not ack.ok
        self._answers.append(ack)

    def weights(self) -> dict[str, float]:
        """Of the slowest engine since this was asked before; nothing of engines that did not get as far."""
        answers, self._answers = self._answers, []
        differences = [ack.canary_difference for ack in answers if math.isfinite(ack.canary_difference)]
        whole = [ack.seconds["total"] for ack in answers if "total" in ack.seconds]
        pauses = [ack.seconds["pause"] for ack in answers if "pause" in ack.seconds]
        measured = {"canary_difference": differences, "sync_s": whole, "pause_s": pauses}
        return {f"weights/{name}": max(values) for name, values in measured.items() if values}
