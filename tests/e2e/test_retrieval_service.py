"""The retrieval service with real replicas: many searches, a killed replica, a full queue, a missed deadline."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from retrieval_service.app import deploy, undeploy
from retrieval_service.client import RetrievalClient
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex, IndexRefused
from retrieval_service.types import RetrievalError, RetrievalRejected, RetrievalTimeout, SearchQuery, SearchResult
from tasks.questions import Document

pytestmark = pytest.mark.e2e

APP = "test-retrieval"
CONFIG = RetrievalConfig(dimensions=64, replica_cpus=0.5)
DOCUMENTS = [Document(id=f"d{i}", text=f"finding {i} of ward {i % 7}", collection=f"ward-{i % 2}") for i in range(200)]

Serve = Callable[..., RetrievalClient]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "index"
    HybridIndex.build(DOCUMENTS, path, CONFIG)
    return path


@pytest.fixture
def serve_index(ray_session: Any, folder: Path) -> Iterator[Serve]:
    def start(**changes: object) -> RetrievalClient:
        config = CONFIG.model_copy(update=changes)
        return RetrievalClient(deploy(folder, config, APP), config)

    yield start
    undeploy(APP)


def query(i: int) -> SearchQuery:
    return SearchQuery(query=DOCUMENTS[i].text, k=1, collection=DOCUMENTS[i].collection)


async def outcomes(client: RetrievalClient, queries: list[SearchQuery]) -> list[SearchResult | BaseException]:
    return await asyncio.gather(*map(client.search, queries), return_exceptions=True)


def replica_pid() -> int:
    from ray.util.state import list_actors

    (replica,) = [
        actor for actor in list_actors(filters=[("state", "=", "ALIVE")], detail=True) if f"{APP}#Replica" in (actor.name or "")
    ]
    assert replica.pid is not None
    return replica.pid


def test_searches_are_answered_together_and_remembered(serve_index: Serve, folder: Path) -> None:
    async def scenario() -> None:
        client = serve_index()
        with pytest.raises(RetrievalError, match="collection 'ward-9' is not in the index"):
            await client.search(SearchQuery(query="finding", collection="ward-9"))
        for repeated in (False, True):
            results = await outcomes(client, [query(i) for i in range(200)])
            for document, result in zip(DOCUMENTS, results, strict=True):
                assert isinstance(result, SearchResult), result
                assert [hit.id for hit in result.hits] == [document.id]
                assert result.cached is repeated and result.latency_ms > 0
        (stats,) = await client.stats()
        assert (stats.queries, stats.cached, stats.failed) == (401, 200, 1)
        assert stats.batches <= 10  # 401 searches came in few messages
        assert stats.index_hash == HybridIndex.load(folder, CONFIG).index_hash

    asyncio.run(scenario())


def test_an_asyncio_actor_searches(serve_index: Serve, folder: Path) -> None:
    @ray.remote(num_cpus=0)
    class Explorer:
        def __init__(self, client_of: Callable[[], RetrievalClient]) -> None:
            self._client = client_of()

        async def explore(self, i: int) -> SearchResult:
            return await self._client.search(query(i))

    handle = deploy(folder, CONFIG, APP)
    explorer = Explorer.remote(lambda: RetrievalClient(handle, CONFIG))
    results = ray.get([explorer.explore.remote(i) for i in range(50)], timeout=30)
    assert [result.hits[0].id for result in results] == [document.id for document in DOCUMENTS[:50]]
    serve_index()  # the fixture takes the application down


def test_a_killed_replica_ends_in_an_answer_or_a_typed_failure(serve_index: Serve) -> None:
    async def scenario() -> None:
        client = serve_index(inject_delay_s=0.5, deadline_s=30.0)
        await client.search(query(0))
        running = asyncio.create_task(outcomes(client, [query(i) for i in range(100)]))
        await asyncio.sleep(0.2)  # the batch is in the replica now
        os.kill(replica_pid(), signal.SIGKILL)
        for i, outcome in enumerate(await running):
            assert isinstance(outcome, (SearchResult, RetrievalError)), outcome
            assert isinstance(outcome, RetrievalError) or outcome.hits[0].id == f"d{i}"
        assert (await client.search(query(1))).hits[0].id == "d1"  # a new replica has taken over

    asyncio.run(scenario())


def test_without_retries_a_killed_replica_is_a_typed_failure(serve_index: Serve) -> None:
    async def scenario() -> None:
        client = serve_index(inject_delay_s=2.0, retries=0, deadline_s=30.0)
        running = asyncio.create_task(outcomes(client, [query(i) for i in range(5)]))
        await asyncio.sleep(1.0)
        os.kill(replica_pid(), signal.SIGKILL)
        found = await running
        assert all(type(outcome) is RetrievalError and "replica was lost" in str(outcome) for outcome in found), found

    asyncio.run(scenario())


def test_deadline_bound_and_chaos_are_typed(serve_index: Serve) -> None:
    async def scenario() -> None:
        slow = serve_index(inject_delay_s=1.0, deadline_s=0.3)
        started = asyncio.get_running_loop().time()
        late = await outcomes(slow, [query(0), query(1)])
        assert [type(outcome) for outcome in late] == [RetrievalTimeout, RetrievalTimeout]
        assert asyncio.get_running_loop().time() - started < 0.9
        assert "within 0.3 s to 'finding 0 of ward 0'" in str(late[0])

        full = serve_index(inject_delay_s=0.2, max_batch=1, max_queued=1)
        found = await outcomes(full, [query(i) for i in range(12)])
        kinds = {type(outcome) for outcome in found}
        assert kinds == {SearchResult, RetrievalRejected}, kinds

        chaos = serve_index(inject_failure_rate=1.0)
        failed = await outcomes(chaos, [query(0)])
        assert type(failed[0]) is RetrievalError and "injected" in str(failed[0])

    asyncio.run(scenario())


def test_a_wrong_index_is_refused_before_anything_starts(ray_session: Any, folder: Path) -> None:
    with pytest.raises(IndexRefused, match="built with dimensions 64, wanted is 32"):
        deploy(folder, CONFIG.model_copy(update={"dimensions": 32}), APP)
