"""One copy of the index, served: remembers, merges, searches, and takes another index without dropping a search.

::

    call ─▶ remembered? ─▶ asked by another caller right now? ─▶ waits to be merged ─▶ one batch at a time in the searching thread
             │ event loop    │ waits for that search               └ up to `max_batch` queries   dense ‖ lexical ─▶ fused
             ▼               ▼
           answer          answer        A call keeps the index that it met: all its answers carry one hash, also during a swap.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from retrieval_service.answering import Answering
from retrieval_service.cache import CacheKey
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.merging import Merger
from retrieval_service.messages import Answer, ReplicaStats, SearchFailure
from retrieval_service.meter import Meter
from retrieval_service.types import Hit, SearchQuery


@dataclass(eq=False, slots=True)
class Served:
    """An index that is served, with everything that belongs to it and to no other one."""

    settings: dict[str, Any]
    answering: Answering
    config: RetrievalConfig
    canary: SearchQuery
    canary_hits: list[Hit]
    flying: dict[CacheKey, asyncio.Future[Answer]] = field(default_factory=dict)

    @classmethod
    def load(cls, settings: dict[str, Any], meter: Meter) -> Served:
        """Opens and tries the index that the settings name; see `settings_of`."""
        config = RetrievalConfig.model_validate(settings["config"])
        index = HybridIndex.load(Path(settings["folder"]), config)
        canary = index.canary()
        answering = Answering(index, config.cache_entries, config.inject_failure_rate, meter)
        return cls(settings, answering, config, canary, index.search([canary])[0].hits)


def settings_of(folder: Path, config: RetrievalConfig) -> dict[str, Any]:
    """What Serve hands to `Replica.reconfigure`: plain JSON, as Serve wants it."""
    return {"folder": str(folder.resolve()), "config": config.model_dump(mode="json")}


class _Part(NamedTuple):
    """Queries of one call, for one index, on their way to be merged with others."""

    served: Served
    queries: Sequence[SearchQuery]
    keys: Sequence[CacheKey]
    arrived: float

    @property
    def size(self) -> int:
        return len(self.queries)


class Replica:
    """What Ray Serve runs. Which index it serves, and how, comes by `reconfigure` alone."""

    def __init__(self) -> None:
        self._meter = Meter()
        self._served: Served | None = None
        self._swap: asyncio.Task[None] | None = None
        self._refused = ""
        self._waiting = 0
        self._flights: set[asyncio.Task[None]] = set()  # the event loop keeps no strong reference to its tasks
        # One thread: a batch keeps the cores busy anyway, and the event loop stays free for health checks and remembered answers.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._merger: Merger[_Part, list[Answer]] = Merger(self._search_together, most=1)

    async def reconfigure(self, settings: dict[str, Any]) -> None:
        """The first index is loaded before the replica counts as started. Every other one is loaded beside the searches."""
        if self._served is None:
            self._take(await asyncio.to_thread(Served.load, settings, self._meter))
            return
        if self._swap is not None:
            self._swap.cancel()  # the newest wish counts; what it was loading is thrown away
        self._refused = ""
        self._swap = asyncio.create_task(self._swap_to(settings))

    async def _swap_to(self, settings: dict[str, Any]) -> None:
        """Whatever is wrong with the new index, the old one goes on being served, and `stats` say so."""
        try:
            served = await asyncio.to_thread(Served.load, settings, self._meter)
        except Exception as error:
            self._refused = f"{type(error).__name__}: {error}"
            return
        self._meter.swapped()
        self._take(served)

    def _take(self, served: Served) -> None:
        self._merger.most, self._merger.wait_s = served.config.max_batch, served.config.batch_wait_s
        self._served, self._refused = served, ""

    async def search(self, queries: list[SearchQuery]) -> list[Answer]:
        """One answer for each query, in order, all of one index. Beyond `max_queued` waiting queries the call is rejected."""
        served = self._now_served()
        if self._waiting and self._waiting + len(queries) > served.config.max_queued:
            full = SearchFailure(
                f"{self._waiting} queries are waiting already, the bound is {served.config.max_queued}", rejected=True
            )
            self._meter.answered([full] * len(queries))
            return [full] * len(queries)
        self._waiting += len(queries)
        try:
            if served.config.inject_latency_s:
                await asyncio.sleep(served.config.inject_latency_s)
            return await self._answer(served, queries)
        finally:
            self._waiting -= len(queries)

    async def _answer(self, served: Served, queries: list[SearchQuery]) -> list[Answer]:
        waits: list[Answer | asyncio.Future[Answer]] = []
        mine: dict[CacheKey, SearchQuery] = {}
        shared = 0
        for query in queries:
            key = served.answering.key(query)
            if (known := served.answering.known(query, key)) is not None:
                waits.append(known)
                continue
            if key in served.flying:
                shared += 1
            else:
                served.flying[key] = asyncio.get_running_loop().create_future()
                mine[key] = query
            waits.append(served.flying[key])
        if mine:  # in a task of its own: whoever asked first may give up, others wait for the same answer
            flight = asyncio.create_task(self._fly(served, mine))
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)
        answers = [await asyncio.shield(each) if isinstance(each, asyncio.Future) else each for each in waits]
        self._meter.answered(answers, shared)
        return answers

    async def _fly(self, served: Served, wanted: dict[CacheKey, SearchQuery]) -> None:
        """Every future that was promised gets an answer, however the search ends."""
        keys, arrived, step = list(wanted), time.perf_counter(), served.config.max_batch
        parts = [keys[start : start + step] for start in range(0, len(keys), step)]
        calls = [self._merger.submit(_Part(served, [wanted[key] for key in part], part, arrived)) for part in parts]
        for part, found in zip(parts, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(found, BaseException):
                found = [SearchFailure(f"the search failed: {type(found).__name__}: {found}")] * len(part)
            for key, answer in zip(part, found, strict=True):
                served.flying.pop(key).set_result(answer)

    async def _search_together(self, parts: Sequence[_Part]) -> list[list[Answer]]:
        """Parts of one index are searched together; there are two only around a swap."""
        if delay_s := parts[0].served.config.inject_delay_s:
            await asyncio.sleep(delay_s)
        found: dict[int, list[Answer]] = {}
        for served in dict.fromkeys(part.served for part in parts):
            places = [i for i, part in enumerate(parts) if part.served is served]
            queries = [query for i in places for query in parts[i].queries]
            keys = [key for i in places for key in parts[i].keys]
            now = time.perf_counter()
            for i in places:
                self._meter.waited((now - parts[i].arrived) * 1e3)
            answers = iter(await self._in_thread(served.answering.find, queries, keys))
            found |= {i: [next(answers) for _ in parts[i].queries] for i in places}
        return [found[i] for i in range(len(parts))]

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def check_health(self) -> None:
        """Serve replaces a replica that raises here: one whose canary is not answered as it was at the start."""
        served = self._now_served()
        found = await self._in_thread(served.answering.index.search, [served.canary])
        if found[0].hits != served.canary_hits:
            raise RuntimeError(f"the canary {served.canary.query!r} is answered otherwise than at the start")

    def settings(self) -> tuple[dict[str, Any], str]:
        """Of what is served now, and why the last settings that came were refused, if they were."""
        return self._now_served().settings, self._refused

    def stats(self) -> ReplicaStats:
        return self._now_served().answering.stats(self._waiting, self._refused)

    def _now_served(self) -> Served:
        assert self._served is not None, "Serve configures a replica before it is asked anything"
        return self._served
