"""One replica, without the cluster around it: equal questions at once, callers that give up, another index, a full queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.messages import SearchFailure
from retrieval_service.replica import Replica, settings_of
from retrieval_service.types import SearchQuery, SearchResult
from tasks.questions import Document

CONFIG = RetrievalConfig(dimensions=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("replica")
    for word in ("old", "new"):
        documents = [Document(id=f"d{i}", text=f"{word} finding {i}") for i in range(30)]
        HybridIndex.build(documents, parent / word, CONFIG)
    return {word: parent / word for word in ("old", "new")}


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110  what is waited for ends in a thread
            await asyncio.sleep(0.01)


def with_replica(folder: Path, scenario: Callable[[Replica], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        replica = Replica()
        await replica.reconfigure(settings_of(folder, CONFIG.model_copy(update=settings)))
        await replica.check_health()
        await scenario(replica)

    asyncio.run(run())


def query(i: int, **more: Any) -> SearchQuery:
    return SearchQuery(query=f"finding {i}", k=1, **more)


def test_equal_questions_at_once_are_searched_once_and_none_hangs_on_who_asked_first(folders: dict[str, Path]) -> None:
    async def scenario(replica: Replica) -> None:
        first = asyncio.create_task(replica.search([query(3), query(4)]))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(replica.search([query(4), query(3)])) for _ in range(5)]
        await asyncio.sleep(0.01)
        first.cancel()
        for answers in await asyncio.gather(*others):
            assert [answer.hits[0].id for answer in answers if isinstance(answer, SearchResult)] == ["d4", "d3"]
        stats = replica.stats()
        assert (stats.batches, stats.batch_size, stats.shared, stats.cached, stats.waiting) == (1, 2.0, 10, 0, 0)
        (again,) = await replica.search([query(3)])
        assert isinstance(again, SearchResult) and again.cached

    with_replica(folders["old"], scenario, inject_delay_s=0.05)


def test_a_call_keeps_the_index_that_it_met(folders: dict[str, Path]) -> None:
    async def scenario(replica: Replica) -> None:
        old = replica.stats().index_hash
        running = [asyncio.create_task(replica.search([query(i), query(i + 1)])) for i in range(10)]
        await asyncio.sleep(0.05)
        wanted = settings_of(folders["new"], CONFIG.model_copy(update={"inject_delay_s": 0.3}))
        await replica.reconfigure(wanted)
        while replica.settings() != (wanted, ""):
            assert not replica.settings()[1]
            running.append(asyncio.create_task(replica.search([query(1), query(2), query(3)])))
            await asyncio.sleep(0.01)
        running += [asyncio.create_task(replica.search([query(1), query(2)])) for _ in range(3)]
        found = [
            {(answer.index_hash, answer.hits[0].text.split()[0]) for answer in answers if isinstance(answer, SearchResult)}
            for answers in await asyncio.gather(*running)
        ]
        new = replica.stats().index_hash
        assert all(len(seen) == 1 for seen in found) and {each for seen in found for each in seen} == {
            (old, "old"),
            (new, "new"),
        }
        assert found[-3:] == [{(new, "new")}] * 3 and replica.stats().swaps == 1

        broken = {**wanted, "folder": str(folders["new"].parent / "nowhere")}
        await replica.reconfigure(broken)
        await until(lambda: bool(replica.settings()[1]))
        assert replica.settings()[0] == wanted and "is not an index" in replica.stats().refused
        await replica.check_health()

    with_replica(folders["old"], scenario, inject_delay_s=0.3)


def test_weights_and_cache_change_without_a_restart(folders: dict[str, Path]) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.search([query(1)])
        wanted = settings_of(folders["old"], CONFIG.model_copy(update={"dense_weight": 0.0, "cache_entries": 0}))
        await replica.reconfigure(wanted)
        await until(lambda: replica.settings()[0] == wanted)
        for _ in range(2):
            (answer,) = await replica.search([query(1)])
            assert isinstance(answer, SearchResult) and not answer.cached

    with_replica(folders["old"], scenario)


def test_beyond_the_bound_a_call_is_rejected_and_a_large_call_alone_is_not(folders: dict[str, Path]) -> None:
    async def scenario(replica: Replica) -> None:
        first = asyncio.create_task(replica.search([query(i) for i in range(9)]))  # in parts, as one batch takes four
        await asyncio.sleep(0.02)
        rejected = await replica.search([query(20), query(21)])
        assert [type(answer) for answer in rejected] == [SearchFailure] * 2
        assert all(isinstance(answer, SearchFailure) and answer.rejected for answer in rejected)
        assert [answer.hits[0].id for answer in await first if isinstance(answer, SearchResult)] == [f"d{i}" for i in range(9)]
        stats = replica.stats()
        assert (stats.rejected, stats.batches, stats.waiting) == (2, 3, 0) and stats.queue_p99_ms > 0

    with_replica(folders["old"], scenario, max_queued=8, max_batch=4, inject_delay_s=0.05)


def test_what_comes_while_a_batch_is_searched_is_the_next_batch(folders: dict[str, Path]) -> None:
    async def scenario(replica: Replica) -> None:
        calls = []
        for i in range(12):  # one every 10 ms, while a search takes 200
            calls.append(asyncio.create_task(replica.search([query(i)])))
            await asyncio.sleep(0.01)
        answers = [answer for (answer,) in await asyncio.gather(*calls)]
        assert [answer.hits[0].id for answer in answers if isinstance(answer, SearchResult)] == [f"d{i}" for i in range(12)]
        assert replica.stats().batches <= 3, "the first alone, and then all that waited for it"

    with_replica(folders["old"], scenario, inject_delay_s=0.2)


def test_one_unknown_collection_harms_nobody_else(folders: dict[str, Path]) -> None:
    async def scenario(replica: Replica) -> None:
        good, bad = await replica.search([query(1), query(1, collection="z")])
        assert isinstance(good, SearchResult)
        assert bad == SearchFailure("collection 'z' is not in the index", unknown_collection=True)

    with_replica(folders["old"], scenario)
