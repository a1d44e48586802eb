"""The retrieval service with real replicas: many searches, a killed replica, a full queue, a missed deadline."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from retrieval_service.app import deploy, undeploy
from retrieval_service.client import RetrievalClient
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex, IndexRefused
from retrieval_service.types import (
    RetrievalError,
    RetrievalRejected,
    RetrievalTimeout,
    SearchQuery,
    SearchResult,
    UnknownCollection,
)
from tasks.questions import Document

pytestmark = pytest.mark.e2e

CONFIG = RetrievalConfig(dimensions=64, replica_cpus=0.5)
DOCUMENTS = [Document(id=f"d{i}", text=f"finding {i} of ward {i % 7}", collection=f"ward-{i % 2}") for i in range(200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "index"
    HybridIndex.build(DOCUMENTS, path, CONFIG)
    return path


@pytest.fixture(scope="module")
def app(ray_session: Any) -> Iterator[str]:
    """A name to deploy under; a test that needs other settings deploys anew."""
    yield "test-retrieval"
    undeploy("test-retrieval")


def query(i: int) -> SearchQuery:
    return SearchQuery(query=DOCUMENTS[i].text, k=1, collection=DOCUMENTS[i].collection)


async def outcomes(client: RetrievalClient, numbers: Iterable[int]) -> list[SearchResult | BaseException]:
    return await asyncio.gather(*(client.search(query(i)) for i in numbers), return_exceptions=True)


async def kill_replica(client: RetrievalClient) -> None:
    (stats,) = await client.stats()
    os.kill(stats.pid, signal.SIGKILL)


def test_searches_are_answered_together_and_remembered(app: str, folder: Path) -> None:
    @ray.remote(num_cpus=0)
    class Explorer:
        def __init__(self, handle: Any, config: RetrievalConfig) -> None:
            self._client = RetrievalClient(handle, config)

        async def explore(self, query: SearchQuery) -> SearchResult:
            return await self._client.search(query)

    handle = deploy(folder, CONFIG, app)
    client = RetrievalClient(handle, CONFIG)

    async def from_this_process() -> None:
        with pytest.raises(UnknownCollection, match="collection 'ward-9' is not in the index"):
            await client.search(SearchQuery(query="finding", collection="ward-9"))
        for repeated in (False, True):
            for document, result in zip(DOCUMENTS, await outcomes(client, range(200)), strict=True):
                assert isinstance(result, SearchResult), result
                assert [hit.id for hit in result.hits] == [document.id]
                assert result.cached is repeated and result.latency_ms > 0
        (stats,) = await client.stats()
        assert (stats.queries, stats.cached, stats.failed) == (401, 200, 1)
        assert stats.batches <= 10  # 401 searches came in few messages
        assert stats.index_hash == HybridIndex.load(folder, CONFIG).index_hash

    asyncio.run(from_this_process())
    assert asyncio.run(client.search(query(7))).hits[0].id == "d7"  # in another event loop
    explorer = Explorer.remote(  # type: ignore[attr-defined]
        handle, CONFIG
    )
    results = ray.get([explorer.explore.remote(query(i)) for i in range(50)], timeout=30)
    assert [result.hits[0].id for result in results] == [document.id for document in DOCUMENTS[:50]]


def test_a_killed_replica_ends_in_a_typed_failure_or_a_later_answer(app: str, folder: Path) -> None:
    config = CONFIG.model_copy(update={"inject_delay_s": 1.0, "deadline_s": 30.0})
    handle = deploy(folder, config, app)

    async def scenario() -> None:
        patient = RetrievalClient(handle, config)
        impatient = RetrievalClient(handle, config.model_copy(update={"retries": 0}))
        await patient.search(query(0))

        orphan = asyncio.create_task(outcomes(patient, range(60, 61)))  # one that is not remembered
        await asyncio.sleep(0.1)
        for task in asyncio.all_tasks():
            if "RetrievalClient._send" in repr(task.get_coro()):
                task.cancel()
        (outcome,) = await asyncio.wait_for(orphan, 0.5)
        assert type(outcome) is RetrievalError and "CancelledError" in str(outcome)

        running = [asyncio.create_task(outcomes(client, range(50))) for client in (patient, impatient)]
        await asyncio.sleep(0.5)  # both messages are in the replica now, which answers after a second
        await kill_replica(patient)
        later, lost = await asyncio.gather(*running)
        assert [outcome.hits[0].id for outcome in later if isinstance(outcome, SearchResult)] == [f"d{i}" for i in range(50)]
        assert all(type(outcome) is RetrievalError and "replica was lost" in str(outcome) for outcome in lost), lost

    asyncio.run(scenario())


def test_a_missed_deadline_and_a_full_queue_are_typed(app: str, folder: Path) -> None:
    config = CONFIG.model_copy(update={"inject_delay_s": 0.4, "max_batch": 1, "max_queued": 1})
    handle = deploy(folder, config, app)

    async def scenario() -> None:
        clock = asyncio.get_running_loop().time
        await RetrievalClient(handle, config).search(query(0))
        hasty = RetrievalClient(handle, config.model_copy(update={"deadline_s": 0.1}))
        started = clock()
        (late,) = await outcomes(hasty, range(70, 71))
        assert type(late) is RetrievalTimeout and "within 0.1 s to 'finding 70 of ward 0'" in str(late)
        assert clock() - started < 0.35
        # One search is in the replica, one may wait; the others are told so at once.
        kinds = Counter(type(outcome) for outcome in await outcomes(RetrievalClient(handle, config), range(1, 13)))
        assert set(kinds) == {SearchResult, RetrievalRejected} and kinds[SearchResult] <= 3, kinds

    asyncio.run(scenario())


def test_a_wrong_index_is_refused_before_anything_starts(app: str, folder: Path) -> None:
    with pytest.raises(IndexRefused, match="built with dimensions 64, wanted is 32"):
        deploy(folder, CONFIG.model_copy(update={"dimensions": 32}), app)
