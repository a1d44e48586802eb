"""Names the stage that makes no progress, and ends the run instead of polling for hours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

# Asking every engine what it does takes a ping.
_EXPLAIN_S = 10


class RunStalled(Exception):
    """A stage went without progress for too long; the text names it and the last good thing that happened."""


class Watchdog:
    """Keeps the seconds that every stage took, and raises `RunStalled` in `watch()` when one takes too long.

    `progress()` is called with every good thing that happens, so a long stage that moves is not a stall.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = {}
        self._timeout_s, self._clock = timeout_s, clock
        self._stage, self._last, self._last_at = "start", "nothing yet", clock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The main loop is in this stage; its seconds are added up, also where it ends by an error."""
        started = self._clock()
        outer, self._stage = self._stage, name
        self._last_at = started
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - started
            self._stage = outer
            self._last_at = self._clock()

    @property
    def current(self) -> str:
        """The stage that the main loop is in."""
        return self._stage

    def progress(self, what: str) -> None:
        """Something good happened."""
        self._last, self._last_at = what, self._clock()

    def overdue(self) -> bool:
        """Whether nothing good has happened for too long."""
        return self._clock() - self._last_at > self._timeout_s

    async def watch(self, explain: Callable[[str], Awaitable[str]]) -> None:
        """Checks for ever; `explain` says in words what a stage that stands still waits for, and may ask others for it."""
        while True:
            await asyncio.sleep(min(1.0, self._timeout_s / 4))
            if self.overdue():
                stage = await self._explained(explain)
                if self.overdue():  # still, after having asked
                    waited = self._clock() - self._last_at
                    raise RunStalled(f"no progress for {waited:.0f} s in stage {stage}; the last good thing: {self._last}")

    async def _explained(self, explain: Callable[[str], Awaitable[str]]) -> str:
        try:
            return await asyncio.wait_for(explain(self._stage), _EXPLAIN_S)
        except Exception as error:  # whoever is asked may be what hangs
            return f"{self._stage} (why, nobody could tell: {type(error).__name__})"
