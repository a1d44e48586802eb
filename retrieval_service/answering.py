"""Answers batches from an index and a cache, and counts. No Ray: the Serve replica and offline evaluation both use it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from retrieval_service.cache import AnswerCache, CacheKey
from retrieval_service.encoders import HashedNgrams
from retrieval_service.index import HybridIndex
from retrieval_service.messages import Answer, ReplicaStats, SearchFailure
from retrieval_service.meter import Meter
from retrieval_service.types import SearchQuery

_SHOWN_CHARACTERS = 300  # of what a library says of its failure


class Answering:
    """One query that cannot be answered fails alone; equal queries of a batch are searched once.

    `failure_rate` is the share of searches that fail on purpose, for chaos runs.
    """

    def __init__(self, index: HybridIndex, cache_entries: int, failure_rate: float = 0.0, meter: Meter | None = None) -> None:
        self.index, self.meter = index, meter or Meter()
        self._cache, self._failure_rate = AnswerCache(cache_entries), failure_rate
        # Only of the embedded encoder it is known that it sees no difference between two spellings of one text.
        self._exact = index.manifest.identity.encoder.name != HashedNgrams.name

    def key(self, query: SearchQuery) -> CacheKey:
        """Queries with equal keys have equal answers."""
        return CacheKey.of(query, self.index.index_hash, self._exact)

    def known(self, query: SearchQuery, key: CacheKey) -> Answer | None:
        """The answer, where no search is needed for it."""
        if self._failure_rate and random.random() < self._failure_rate:
            return SearchFailure("injected by retrieval.inject_failure_rate")
        if query.collection not in self.index.collections:
            return SearchFailure(f"collection {query.collection!r} is not in the index", unknown_collection=True)
        return self._cache.get(key)

    def find(self, queries: Sequence[SearchQuery], keys: Sequence[CacheKey]) -> list[Answer]:
        """Searches; no two of the queries should be equal. A half that is lost fails only those who asked for it alone."""
        started = time.perf_counter()
        try:
            found: list[Answer] = list(self.index.search(queries))
        except Exception as error:
            if len({query.mode for query in queries}) > 1:
                return self._by_mode(queries, keys)
            reason = f"the search failed: {type(error).__name__}: {str(error).strip()[:_SHOWN_CHARACTERS]}"
            found = [SearchFailure(reason)] * len(queries)
        for key, answer in zip(keys, found, strict=True):
            if not isinstance(answer, SearchFailure):
                self._cache.put(key, answer)
        self.meter.batch(len(queries), (time.perf_counter() - started) * 1e3)
        return found

    def _by_mode(self, queries: Sequence[SearchQuery], keys: Sequence[CacheKey]) -> list[Answer]:
        """Each mode by itself, so that what cannot be searched harms nobody else."""
        found: dict[int, Answer] = {}
        for mode in sorted({query.mode for query in queries}):
            places = [i for i, query in enumerate(queries) if query.mode == mode]
            answers = self.find([queries[i] for i in places], [keys[i] for i in places])
            found |= dict(zip(places, answers, strict=True))
        return [found[i] for i in range(len(queries))]

    def answer(self, queries: Sequence[SearchQuery]) -> list[Answer]:
        """One result or failure for each query, in order."""
        answers: dict[int, Answer] = {}
        missing: dict[CacheKey, list[int]] = {}
        for i, query in enumerate(queries):
            key = self.key(query)
            if (known := self.known(query, key)) is not None:
                answers[i] = known
            else:
                missing.setdefault(key, []).append(i)
        if missing:
            found = self.find([queries[places[0]] for places in missing.values()], list(missing))
            for places, result in zip(missing.values(), found, strict=True):
                answers |= dict.fromkeys(places, result)
        ordered = [answers[i] for i in range(len(queries))]
        self.meter.answered(ordered, shared=sum(map(len, missing.values())) - len(missing))
        return ordered

    def stats(self, waiting: int = 0, refused: str = "") -> ReplicaStats:
        return self.meter.stats(self.index.index_hash, self.index.stages.medians(), waiting, refused)
