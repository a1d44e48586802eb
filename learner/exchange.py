"""The mailbox between the driver and the learner's workers. Both sides only ever call it, so neither can block the other.

```
 driver ── put(order) ─▶ ┌──────────┐ ◀─ next_order(rank)  ── every worker, each order once and in order
 driver ── reply(n)   ─▶ │ Exchange │ ◀─ post(rank, n, …)   ── every worker when it is through; rank 0's answer counts
 driver ── written(f) ─▶ │          │ ◀─ checkpointed(…, f) ── every worker's writing thread; orders go on meanwhile
                         └──────────┘ ◀─ fail(rank, reason) ── any worker, before it ends
```
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import ray

from learner.messages import Answer, Order


class Reply(NamedTuple):
    """An answer, or in words why there is none."""

    answer: Answer = None
    failure: str = ""


class Mailbox:
    """Orders out, answers back; a plain asyncio object. `Exchange` is the same as a Ray actor.

    One order is open at a time, until every rank is through with it: then no rank can miss one.

    Example:
        >>> async def round_trip():
        ...     mailbox = Mailbox(ranks=2)
        ...     number = await mailbox.put("order")
        ...     for rank in (0, 1):
        ...         print(await mailbox.next_order(rank, timeout_s=1))
        ...         await mailbox.post(rank, number, f"answer of {rank}")
        ...     return await mailbox.reply(number, timeout_s=1)
        >>> asyncio.run(round_trip())
        (1, 'order')
        (1, 'order')
        Reply(answer='answer of 0', failure='')
    """

    def __init__(self, ranks: int) -> None:
        self._number = 0
        self._order: Order | None = None
        self._delivered = [0] * ranks  # number of the last order that each rank got
        self._done = [0] * ranks  # and of the last that it was through with
        self._answer: Answer = None
        self._failure = ""
        self._written: dict[str, set[int]] = {}  # by folder of a checkpoint, the ranks whose part is on disk
        self._changed = asyncio.Condition()

    async def put(self, order: Order) -> int:
        """Accepts one order and returns its number; refused while another is open, and after a failure with its reason."""
        async with self._changed:
            if self._failure:
                raise RuntimeError(self._failure)
            if min(self._done) < self._number:
                raise RuntimeError(f"order {self._number} ({type(self._order).__name__}) is still open: one order at a time")
            self._number, self._order = self._number + 1, order
            self._changed.notify_all()
            return self._number

    async def next_order(self, rank: int, timeout_s: float) -> tuple[int, Order] | None:
        """The order that this rank has not had yet, or None after the timeout: the worker asks again."""
        if not await self._until(lambda: self._delivered[rank] < self._number, timeout_s):
            return None
        self._delivered[rank] = self._number
        assert self._order is not None
        return self._number, self._order

    async def post(self, rank: int, number: int, answer: Answer) -> None:
        """A rank is through with an order; with the last one the order and its object references are let go of."""
        async with self._changed:
            if number != self._delivered[rank]:
                raise RuntimeError(f"rank {rank} answers order {number} but was last given {self._delivered[rank]}")
            self._done[rank] = number
            if rank == 0:
                self._answer = answer
            if min(self._done) == number:
                self._order = None
            self._changed.notify_all()

    async def fail(self, rank: int, reason: str) -> None:
        """Keeps the first reason: what other ranks report after it is its consequence."""
        async with self._changed:
            self._failure = self._failure or f"learner worker {rank} of {len(self._done)}: {reason}"
            self._changed.notify_all()

    async def reply(self, number: int, timeout_s: float) -> Reply:
        """Rank 0's answer when all ranks are through; else the failure of a worker, or of the deadline."""
        if not await self._until(lambda: bool(self._failure) or min(self._done) >= number, timeout_s):
            missing = [rank for rank, done in enumerate(self._done) if done < number]
            order = type(self._order).__name__
            return Reply(failure=f"no answer to order {number} ({order}) within {timeout_s:.0f} s from ranks {missing}")
        return Reply(failure=self._failure) if self._failure else Reply(self._answer)

    async def checkpointed(self, rank: int, folder: str) -> None:
        """A rank's part of a checkpoint is on disk."""
        async with self._changed:
            self._written.setdefault(folder, set()).add(rank)
            self._changed.notify_all()

    async def written(self, folder: str, timeout_s: float) -> Reply:
        """Empty when all ranks' parts are on disk; else the failure of a worker, or of the deadline."""
        ranks = set(range(len(self._done)))
        if not await self._until(lambda: bool(self._failure) or self._written.get(folder) == ranks, timeout_s):
            missing = sorted(ranks - self._written.get(folder, set()))
            return Reply(failure=f"checkpoint {folder} was not written within {timeout_s:.0f} s by ranks {missing}")
        self._written.pop(folder, None)
        return Reply(failure=self._failure)

    async def failure(self) -> str:
        """Why a worker failed; empty where none did."""
        return self._failure

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_s)
            except TimeoutError:
                return False
            return True


Exchange = ray.remote(num_cpus=0)(Mailbox)
