"""Searches a real index in this process: what stands behind HTTP and MCP where a test needs no cluster."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_service.answering import Answering
from retrieval_service.messages import ReplicaStats, SearchFailure
from retrieval_service.types import RetrievalError, SearchQuery, SearchResult


class LocalSearcher:
    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    async def search(self, query: SearchQuery) -> SearchResult:
        (answer,) = await self.search_together([query])
        if isinstance(answer, RetrievalError):
            raise answer
        return answer

    async def search_together(self, queries: Sequence[SearchQuery]) -> list[SearchResult | RetrievalError]:
        answers = self._answering.answer(queries)
        return [answer.error() if isinstance(answer, SearchFailure) else answer for answer in answers]

    async def stats(self) -> list[ReplicaStats]:
        return [self._answering.stats()]
