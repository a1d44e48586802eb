"""Searches that fail on purpose in a share of the episodes, so that a student sees what to do then (MedResearcher-R1)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from actors.tools import Searcher
from retrieval_service.types import Hit, SearchQuery, SearchResult

FAILURES = (
    "The search service did not answer in time. Search again in other words.",
    "The search service is over its limit at the moment. Search again in other words.",
    "The search failed: the connection was lost. Search again in other words.",
)
FAILURE_ID = "tool-failure"


@dataclass(frozen=True)
class ToolNoise:
    """How many episodes meet failures, and how many of their calls fail. Never two calls in a row: the second try may succeed."""

    episodes: float = 0.3
    calls: float = 0.25


class NoisySearcher:
    """The searcher of one episode."""

    def __init__(self, searcher: Searcher, noise: ToolNoise, seed: str) -> None:
        self._searcher, self._rng = searcher, random.Random(seed)
        self._share = noise.calls if self._rng.random() < noise.episodes else 0.0
        self._just_failed = False

    async def search(self, query: SearchQuery) -> SearchResult:
        self._just_failed = not self._just_failed and self._rng.random() < self._share
        if self._just_failed:
            said = Hit(id=FAILURE_ID, text=self._rng.choice(FAILURES), score=0.0)
            return SearchResult(hits=[said], index_hash="")
        return await self._searcher.search(query)


def is_failure(text: str) -> bool:
    """Whether an observation is a failure made here."""
    return text.strip() in FAILURES
