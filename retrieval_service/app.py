"""The Ray Serve application.

client ──list of queries──▶ handle: bounded queue ──▶ replica: calls that wait are merged ──▶ one thread: cache, FAISS, BM25
                             └─ full: BackPressureError      └─ at most max_batch queries together
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from retrieval_service.answering import Answering
from retrieval_service.config import RetrievalConfig
from retrieval_service.gateway import HOST, Gateway
from retrieval_service.index import HybridIndex, expected_identity
from retrieval_service.manifest import IndexManifest
from retrieval_service.messages import ReplicaStats, SearchFailure
from retrieval_service.types import SearchQuery, SearchResult

Answer = SearchResult | SearchFailure

# A canary that takes this long means that the searching thread is stuck: the largest batches take well under a second.
_HEALTH_TIMEOUT_S = 30.0
_HEALTH_PERIOD_S = 5.0
_STARTS = 3  # a replica that cannot load its index will not learn it at the twentieth try, which is Serve's default
_DRAIN_S = 2.0  # for the batches in flight when the application is taken down


def _queries_in(calls: list[list[SearchQuery]]) -> int:
    return sum(map(len, calls))


class Replica:
    """Holds one copy of the index."""

    def __init__(self, folder: str, config: RetrievalConfig) -> None:
        index = HybridIndex.load(Path(folder), config)
        self._answering = Answering(index, config.cache_entries, config.inject_failure_rate)
        self._delay_s, self._latency_s = config.inject_delay_s, config.inject_latency_s
        # One thread: searches keep a core busy anyway, and the event loop stays free for health checks and cancellations.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._index, self._canary = index, index.canary()
        self._canary_hits = index.search([self._canary])[0].hits
        self._max_batch = config.max_batch
        merged: Any = self._merged  # the decorator's methods are not in its types
        merged.set_max_batch_size(config.max_batch)
        merged.set_batch_wait_timeout_s(config.batch_wait_s)

    async def search(self, queries: list[SearchQuery]) -> list[Answer]:
        """One answer for each query, in order; the index searches up to `max_batch` queries of several callers together."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        parts = [queries[start : start + self._max_batch] for start in range(0, len(queries), self._max_batch)]
        answered: list[list[Answer]] = await asyncio.gather(*map(self._merged, parts))
        return [answer for part in answered for answer in part]

    @serve.batch(batch_size_fn=_queries_in)
    async def _merged(self, calls: list[list[SearchQuery]]) -> list[list[Answer]]:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        answers = iter(await self._in_thread([query for call in calls for query in call]))
        return [[next(answers) for _ in call] for call in calls]

    async def _in_thread(self, queries: Sequence[SearchQuery]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answering.answer, queries)

    async def check_health(self) -> None:
        """Serve replaces a replica that raises here: one whose canary is not answered as it was at the start."""
        found = await asyncio.get_running_loop().run_in_executor(self._thread, self._index.search, [self._canary])
        if found[0].hits != self._canary_hits:
            raise RuntimeError(f"the canary {self._canary.query!r} is answered otherwise than at the start")

    def stats(self) -> ReplicaStats:
        return self._answering.stats()


def deploy(index_folder: Path, config: RetrievalConfig, app_name: str) -> DeploymentHandle[Any]:
    """Serves an index and returns the handle, once every replica is up. The folder must be readable on every node.

    An index that does not fit the configuration is refused here (IndexRefused), before anything starts.
    """
    IndexManifest.read(index_folder).require(expected_identity(config), index_folder)
    if config.http_port:
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=HOST, port=config.http_port))
    else:
        serve.start(proxy_location="Disabled")
    deployment = serve.deployment(
        name="Replica",
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": config.replica_cpus},
        # Calls beyond one full batch of lone queries wait at the handle, where they are counted against max_queued.
        max_ongoing_requests=config.max_batch,
        max_queued_requests=config.max_queued,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=_DRAIN_S,
        max_constructor_retry_count=_STARTS,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )(Replica)
    replica = deployment.bind(str(index_folder.resolve()), config)
    if not config.http_port:
        return serve.run(replica, name=app_name, route_prefix=None)
    serve.run(Gateway.bind(replica, config), name=app_name, route_prefix="/")  # type: ignore[attr-defined]
    return serve.get_deployment_handle("Replica", app_name)


def undeploy(app_name: str) -> None:
    """Takes the application down and waits until it is gone. Serve itself stays, for others may use it."""
    serve.delete(app_name)
