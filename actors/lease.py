"""Deadlines of groups, which stand still while the engines sleep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Leases:
    """Used inside one event loop. A lease that is over ends its block with `TimeoutError`."""

    def __init__(self) -> None:
        self._left: dict[asyncio.Timeout, float] = {}  # seconds, as known when the clock was stopped last
        self._stopped = False

    @asynccontextmanager
    async def lease(self, seconds: float) -> AsyncIterator[None]:
        async with asyncio.timeout(None if self._stopped else seconds) as running:
            self._left[running] = seconds
            try:
                yield
            finally:
                del self._left[running]

    def stop_clock(self) -> None:
        """Engines that sleep owe nobody an answer."""
        if self._stopped:
            return
        self._stopped, now = True, asyncio.get_running_loop().time()
        for running in self._left:
            if not running.expired() and (when := running.when()) is not None:
                self._left[running] = when - now
                running.reschedule(None)

    def go_on(self) -> None:
        if not self._stopped:
            return
        self._stopped, now = False, asyncio.get_running_loop().time()
        for running, left in self._left.items():
            if not running.expired():
                running.reschedule(now + left)
