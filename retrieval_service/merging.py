"""Searches together what waits, one batch at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

R = TypeVar("R")


class Sized(Protocol):
    """A part of a batch."""

    @property
    def size(self) -> int: ...


P = TypeVar("P", bound=Sized)


class _Waiting(NamedTuple, Generic[P, R]):
    part: P
    result: asyncio.Future[R]


class Merger(Generic[P, R]):
    """Hands parts to `work`, in the order in which they came: all that wait, up to `most` in size, while nothing else is worked on.

    Unlike `@serve.batch`, which closes a batch when its wait is over even while the one before is being searched: at one message
    every two milliseconds and a search of two hundred, that makes a row of a hundred small batches, and exact search takes about as
    long for thirty queries as for one. Here all of them are the next batch.

    Example:
        >>> class Part(NamedTuple):
        ...     name: str
        ...     size: int
        >>> async def work(parts):
        ...     await asyncio.sleep(0.01)
        ...     together = "+".join(part.name for part in parts)
        ...     return [together] * len(parts)
        >>> async def ask():
        ...     merger = Merger(work, most=3)
        ...     first = asyncio.create_task(merger.submit(Part("a", 1)))
        ...     await asyncio.sleep(0)
        ...     return await asyncio.gather(first, *(merger.submit(Part(*part)) for part in [("b", 2), ("c", 1), ("d", 1)]))
        >>> asyncio.run(ask())
        ['a', 'b+c', 'b+c', 'd']
    """

    def __init__(self, work: Callable[[Sequence[P]], Awaitable[Sequence[R]]], most: int, wait_s: float = 0.0) -> None:
        self.most, self.wait_s = most, wait_s  # may be changed at any time
        self._work = work
        self._queue: deque[_Waiting[P, R]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def submit(self, part: P) -> R:
        """What `work` says of this part, or raises for its whole batch."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[R] = loop.create_future()
        self._queue.append(_Waiting(part, result))
        if self._working is None:
            self._working = loop.create_task(self._work_off())
        return await result

    async def _work_off(self) -> None:
        try:
            if self.wait_s:  # nothing is worked on: others may come with the first one
                await asyncio.sleep(self.wait_s)
            while self._queue:
                await self._together(self._next())
        finally:
            self._working = None

    def _next(self) -> list[_Waiting[P, R]]:
        """At least one, however large."""
        taken = [self._queue.popleft()]
        size = taken[0].part.size
        while self._queue and size + self._queue[0].part.size <= self.most:
            taken.append(self._queue.popleft())
            size += taken[-1].part.size
        return taken

    async def _together(self, batch: Sequence[_Waiting[P, R]]) -> None:
        try:
            results = await self._work([waiting.part for waiting in batch])
        except Exception as error:
            for waiting in batch:
                if not waiting.result.done():
                    waiting.result.set_exception(error)
            return
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.result.done():  # who asked may have given up
                waiting.result.set_result(result)
