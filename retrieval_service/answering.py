"""Answers batches from an index and a cache, and counts. No Ray: the Serve replica and offline evaluation both use it."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from retrieval_service.cache import AnswerCache, CacheKey
from retrieval_service.index import HybridIndex
from retrieval_service.messages import ReplicaStats, SearchFailure
from retrieval_service.types import SearchQuery, SearchResult

_LATENCIES_KEPT = 4096  # enough for a p99 that forty batches stand above


class Answering:
    """One query that cannot be answered fails alone; equal queries of a batch are searched once.

    `failure_rate` is the share of searches that fail on purpose, for chaos runs.
    """

    def __init__(self, index: HybridIndex, cache_entries: int, failure_rate: float = 0.0) -> None:
        self._index, self._cache, self._failure_rate = index, AnswerCache(cache_entries), failure_rate
        self._queries = self._batches = self._cached = self._failed = 0
        self._latencies_ms: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    def answer(self, queries: Sequence[SearchQuery]) -> list[SearchResult | SearchFailure]:
        """One result or failure for each query, in order."""
        started = time.perf_counter()
        answers: dict[int, SearchResult | SearchFailure] = {}
        missing: dict[CacheKey, list[int]] = {}
        for i, query in enumerate(queries):
            key = CacheKey.of(query, self._index.index_hash)
            if self._failure_rate and random.random() < self._failure_rate:
                answers[i] = SearchFailure("injected by retrieval.inject_failure_rate")
            elif query.collection not in self._index.collections:
                answers[i] = SearchFailure(f"collection {query.collection!r} is not in the index", unknown_collection=True)
            elif (kept := self._cache.get(key)) is not None:
                answers[i] = kept
            else:
                missing.setdefault(key, []).append(i)
        found = self._index.search([queries[places[0]] for places in missing.values()])
        for (key, places), result in zip(missing.items(), found, strict=True):
            self._cache.put(key, result)
            answers |= dict.fromkeys(places, result)
        self._count(list(answers.values()), (time.perf_counter() - started) * 1e3)
        return [answers[i] for i in range(len(queries))]

    def _count(self, answers: list[SearchResult | SearchFailure], latency_ms: float) -> None:
        self._queries += len(answers)
        self._batches += 1
        self._cached += sum(isinstance(answer, SearchResult) and answer.cached for answer in answers)
        self._failed += sum(isinstance(answer, SearchFailure) for answer in answers)
        self._latencies_ms.append(latency_ms)

    def stats(self) -> ReplicaStats:
        p50, p99 = np.percentile(self._latencies_ms, (50, 99)).tolist() if self._latencies_ms else (0.0, 0.0)
        return ReplicaStats(
            os.getpid(), self._index.index_hash, self._queries, self._batches, self._cached, self._failed, p50, p99
        )
