"""Remembers answers. The index never changes under its hash, so an answer is as good as new for as long as it is kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from retrieval_service.analyzer import normalise
from retrieval_service.types import Filters, SearchQuery, SearchResult


class CacheKey(NamedTuple):
    """Searches with equal keys have equal answers."""

    index_hash: str
    text: str
    k: int
    mode: str
    collection: str
    filters: Filters = Filters()

    @classmethod
    def of(cls, query: SearchQuery, index_hash: str, exact: bool = False) -> CacheKey:
        """With `exact`, for encoders that see a difference between two spellings, texts are equal only letter by letter."""
        keep = exact or query.mode == "id"  # ids differ by their letters, case included
        text = query.query if keep else normalise(query.query)
        return cls(index_hash, text, query.k, query.mode, query.collection, query.filters)


class AnswerCache:
    """Forgets the answer that was asked for the longest time ago. Safe to use from several threads.

    Example:
        >>> cache = AnswerCache(1)
        >>> a, b = (CacheKey.of(SearchQuery(query=text), "hash") for text in ("a", "b"))
        >>> cache.put(a, SearchResult(hits=[], index_hash="hash"))
        >>> cache.put(b, SearchResult(hits=[], index_hash="hash"))
        >>> cache.get(a) is None, cache.get(b).cached
        (True, True)
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._answers: OrderedDict[CacheKey, SearchResult] = OrderedDict()
        self._lock = threading.Lock()  # looked up on the event loop, filled by the searching thread

    def get(self, key: CacheKey) -> SearchResult | None:
        with self._lock:
            answer = self._answers.get(key)
            if answer is not None:
                self._answers.move_to_end(key)
            return answer

    def put(self, key: CacheKey, answer: SearchResult) -> None:
        """Keeps whole answers only: what one half of the hybrid said alone would be repeated when both are back."""
        if answer.degraded:
            return
        with self._lock:
            self._answers[key] = answer.model_copy(update={"cached": True})
            self._answers.move_to_end(key)
            while len(self._answers) > self._entries:
                self._answers.popitem(last=False)
