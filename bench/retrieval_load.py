"""Many HTTP clients at once, each asking its next query when it has the answer to its last one."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TRY_AGAIN = (429, 503, 504)
_TRIES = 60  # with the server's own pauses, minutes: a client that gives up earlier than the queue drains counts as a failure


@dataclass(slots=True)
class Outcome:
    """What the clients saw. `seconds` is the time from the first question to the last answer."""

    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    tried_again: int = 0
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds


def load(url: str, bodies: list[dict[str, Any]], clients: int) -> Outcome:
    """Asks every body once."""
    return asyncio.run(_load(url, bodies, clients))


async def _load(url: str, bodies: list[dict[str, Any]], clients: int) -> Outcome:
    outcome, waiting = Outcome(), iter(bodies)
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connections, timeout=aiohttp.ClientTimeout(total=120)) as session:
        started = time.perf_counter()
        await asyncio.gather(*(_client(session, url, waiting, outcome) for _ in range(clients)))
        outcome.seconds = time.perf_counter() - started
    return outcome


async def _client(session: aiohttp.ClientSession, url: str, waiting: Iterator[dict[str, Any]], outcome: Outcome) -> None:
    for body in waiting:
        asked = time.perf_counter()
        for _ in range(_TRIES):
            status, pause_s = await _ask(session, url, body)
            if status not in TRY_AGAIN:
                break
            outcome.tried_again += 1
            await asyncio.sleep(pause_s * random.uniform(1.0, 1.5))
        if status == 200:
            outcome.answered += 1
            outcome.latencies_s.append(time.perf_counter() - asked)
        else:
            outcome.failed[str(status)] += 1


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int | str, float]:
    try:
        async with session.post(url, json=body) as response:
            answer = await response.json()
            if response.status == 200 and not answer["hits"]:
                return "empty", 0.0
            return response.status, float(response.headers.get("Retry-After", "1"))
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__, 0.0
