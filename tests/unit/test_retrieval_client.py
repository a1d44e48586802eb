"""When a client may try again, when it does not ask at all, and how much it sends together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import serve

from retrieval_service.budgets import CircuitBreaker, RetryBudget
from retrieval_service.client import RetrievalClient
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.messages import Answer
from retrieval_service.replica import Replica, settings_of
from retrieval_service.types import SearchQuery, SearchResult
from tasks.questions import Document

EVENTS = st.lists(st.sampled_from(["failed", "succeeded", "wait"]), max_size=60)


@given(st.lists(st.booleans(), max_size=200), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(1, 20))
def test_retries_are_never_more_than_the_burst_and_their_share(asks: list[bool], share: float, burst: int) -> None:
    budget, requests, retries = RetryBudget(share, burst), 0, 0
    for retry in asks:
        if retry:
            retries += budget.take()
        else:
            budget.requested()
            requests += 1
        assert retries <= burst + share * requests + 1e-9


@given(EVENTS, st.integers(1, 5))
def test_an_open_breaker_lets_one_probe_through_and_closes_with_the_first_success(events: list[str], failures: int) -> None:
    breaker, now, in_a_row = CircuitBreaker(failures=failures, first_pause_s=1.0, longest_pause_s=4.0), 0.0, 0
    for event in events:
        if event == "wait":
            now += 0.7
        elif event == "succeeded":
            breaker.succeeded()
            in_a_row = 0
        else:
            breaker.failed(now)
            in_a_row += 1
        assert breaker.is_open == (in_a_row >= failures)
        assert 0 <= breaker.wait_s(now) <= 4.0 + 1e-9
        if not breaker.is_open:
            assert breaker.admit(now) and breaker.admit(now)
    if breaker.is_open:
        now += breaker.wait_s(now) + 1e-9  # sums of floats may fall short
        assert [breaker.admit(now) for _ in range(3)] == [True, False, False]
        assert breaker.admit(now + breaker.wait_s(now) + 1e-9)  # a probe that never came back is followed by another


def test_the_pause_doubles_while_probes_fail_and_starts_again_small() -> None:
    breaker, pauses, now = CircuitBreaker(failures=2, first_pause_s=0.5, longest_pause_s=8.0), [], 0.0
    breaker.failed(now)
    for _ in range(7):
        breaker.failed(now)
        pauses.append(breaker.wait_s(now))
        now += pauses[-1]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0] and breaker.opened == 1
    breaker.succeeded()
    breaker.failed(now), breaker.failed(now)
    assert (breaker.wait_s(now), breaker.opened) == (0.5, 2)


SLOW = RetrievalConfig(dimensions=64, inject_delay_s=0.15)


class Started(Replica):
    """A replica behind a handle in this process, where Serve hands it no settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self._first = settings

    async def search(self, queries: list[SearchQuery]) -> list[Answer]:
        if self._served is None:
            await self.reconfigure(self._first)
        return await super().search(queries)


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("client") / "index"
    HybridIndex.build([Document(id=f"d{i}", text=f"finding {i}") for i in range(60)], folder, SLOW)
    deployment: Any = serve.deployment(name="Replica")(Started)
    return serve.run(deployment.bind(settings_of(folder, SLOW)), name="client", route_prefix=None, _local_testing_mode=True)


def test_while_messages_are_on_their_way_searches_are_collected_and_a_lone_one_leaves_at_once(handle: Any) -> None:
    client = RetrievalClient(handle, SLOW)

    async def scenario() -> None:
        await client.search(SearchQuery(query="finding 59", k=1))  # the index is loaded
        sent = client.counts["messages"]
        lone = await client.search(SearchQuery(query="finding 58", k=1))
        assert lone.latency_ms < 1e3 * (SLOW.inject_delay_s + 0.1)
        waiting = []
        for i in range(40):  # one every 5 ms, while a search takes 150: without collecting, every one would be a message
            waiting.append(asyncio.create_task(client.search(SearchQuery(query=f"finding {i}", k=1))))
            await asyncio.sleep(0.005)
        found = await asyncio.gather(*waiting)
        assert [result.hits[0].id for result in found if isinstance(result, SearchResult)] == [f"d{i}" for i in range(40)]
        assert client.counts["messages"] - sent <= 20, client.counts
        # Who came last waited for the search that was on, a pause, and its own.
        assert found[-1].latency_ms < 1e3 * (3 * SLOW.inject_delay_s + 0.1)

    asyncio.run(scenario())
