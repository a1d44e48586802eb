"""Names the stage that makes no progress, and ends the run instead of polling for hours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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

    def progress(self, what: str) -> None:
        """Something good happened."""
        self._last, self._last_at = what, self._clock()

    def check(self) -> None:
        """Raises where the time is over."""
        waited = self._clock() - self._last_at
        if waited > self._timeout_s:
            raise RunStalled(f"no progress in stage {self._stage!r} for {waited:.0f} s; the last good thing: {self._last}")

    async def watch(self) -> None:
        """Checks for ever."""
        while True:
            await asyncio.sleep(min(1.0, self._timeout_s / 4))
            self.check()
