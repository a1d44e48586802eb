"""Questions to whoever answers them, in calls of a size that travels well, each tried again where an engine was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from actors.config import RolloutConfig
from actors.failures import PoolDied
from actors.messages import Examined, GroupRequest, GroupVoided

ATTEMPTS = 3  # an engine may die during an evaluation as well; what fails three times is no accident
EPISODES_PER_CALL = 25  # one call costs milliseconds, and a failed one asks all of its questions again


class Examination(Protocol):
    """Who answers: the engines of a pool, or a server elsewhere."""

    async def examine(self, requests: list[GroupRequest]) -> list[Examined]: ...


def episodes_at_once(config: RolloutConfig) -> int:
    """Twice what the engines decode at once, because some episodes always wait for a search; more would outwait their lease."""
    return 2 * config.engine.max_num_seqs * config.num_engines


async def ask(
    examination: Examination, requests: list[GroupRequest], at_once: int, told: Callable[[int], None] = lambda episodes: None
) -> list[Examined]:
    """One record per episode, in the order of the requests; `told` hears of every call how many episodes it brought."""
    if not requests:
        return []
    size = max(1, EPISODES_PER_CALL // max(request.n for request in requests))
    calls = [requests[start : start + size] for start in range(0, len(requests), size)]
    free = asyncio.Semaphore(max(1, at_once // EPISODES_PER_CALL))

    async def answered(call: list[GroupRequest]) -> list[Examined]:
        async with free:
            records = await _asked(examination, call)
        told(len(records))
        return records

    tasks = [asyncio.create_task(answered(call)) for call in calls]
    try:
        return [record for records in await asyncio.gather(*tasks) for record in records]
    finally:  # after a failure nobody wants the other answers
        for task in tasks:
            task.cancel()


async def _asked(examination: Examination, requests: list[GroupRequest]) -> list[Examined]:
    for _ in range(ATTEMPTS):
        try:
            return await examination.examine(requests)
        except PoolDied:
            raise
        except GroupVoided as error:
            reason = str(error)
    raise GroupVoided(f"evaluation: {len(requests)} questions failed {ATTEMPTS} times, at last with: {reason}")
