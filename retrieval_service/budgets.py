"""When a client may ask again, and when it had better not ask at all. Pure: others tell the time and what happened.

A service that is slow gets slower when everybody asks twice, and one that is down is not helped by more calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RetryBudget:
    """Retries are at most `share` of the requests, beside a few that may come at once: trouble is never multiplied.

    Example:
        >>> budget = RetryBudget(share=0.5, burst=2)
        >>> [budget.take() for _ in range(3)]
        [True, True, False]
        >>> budget.requested(); budget.requested(); budget.take()
        True
    """

    share: float = 0.2  # one message in five may be a second try: a dead replica of five is survived without a refusal
    burst: float = 20.0  # what a client sends within the seconds that a replica needs to come back
    _saved: float = field(init=False)

    def __post_init__(self) -> None:
        self._saved = self.burst

    def requested(self) -> None:
        self._saved = min(self.burst, self._saved + self.share)

    def take(self) -> bool:
        """Whether one more try is paid for; it is then spent."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


@dataclass(slots=True)
class CircuitBreaker:
    """Opens after `failures` in a row; then one call in `pause` seconds may try, and the pause doubles while they fail.

    ::

        CLOSED ──failures in a row──▶ OPEN ──pause──▶ one probe ──succeeded──▶ CLOSED
                                       ▲                  │
                                       └── pause × 2 ─────┘ failed

    Example:
        >>> breaker = CircuitBreaker(failures=2, first_pause_s=1.0)
        >>> breaker.failed(0.0); breaker.failed(0.0)
        >>> breaker.wait_s(0.5), breaker.admit(0.5)
        (0.5, False)
        >>> breaker.admit(1.0), breaker.admit(1.0)  # the probe, and who comes with it
        (True, False)
        >>> breaker.succeeded(); breaker.admit(1.1)
        True
    """

    failures: int = 5  # whole messages: one lost replica makes two or three of them
    first_pause_s: float = 0.5
    longest_pause_s: float = 8.0  # under the default deadline, so that every waiting search sees at least one probe
    opened: int = 0  # how often it has opened so far
    _in_a_row: int = 0
    _pause_s: float = 0.0  # 0: closed
    _until: float = 0.0

    @property
    def is_open(self) -> bool:
        return self._pause_s > 0

    def admit(self, now: float) -> bool:
        """Whether a call may leave now. While open this hands out the one probe, so a refused caller asks again later."""
        if not self.is_open:
            return True
        if now < self._until:
            return False
        self._until = now + self._pause_s  # a probe that never comes back is followed by another one
        return True

    def wait_s(self, now: float) -> float:
        """How long until the next probe may leave."""
        return max(0.0, self._until - now) if self.is_open else 0.0

    def succeeded(self) -> None:
        self._in_a_row, self._pause_s = 0, 0.0

    def failed(self, now: float) -> None:
        self._in_a_row += 1
        if self.is_open:
            self._pause_s = min(self._pause_s * 2, self.longest_pause_s)
        elif self._in_a_row >= self.failures:
            self._pause_s = self.first_pause_s
            self.opened += 1
        else:
            return
        self._until = now + self._pause_s
