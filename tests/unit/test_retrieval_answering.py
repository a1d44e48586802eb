"""The cache, and answering with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_service.answering import Answering
from retrieval_service.cache import AnswerCache, CacheKey
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.messages import SearchFailure
from retrieval_service.types import SearchQuery, SearchResult
from tasks.questions import Document


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> HybridIndex:
    folder = tmp_path_factory.mktemp("answering") / "index"
    documents = [Document(id=f"d{i}", text=f"finding {i}", collection="ab"[i % 2]) for i in range(20)]
    HybridIndex.build(documents, folder, RetrievalConfig())
    return HybridIndex.load(folder, RetrievalConfig())


def asked(text: str, k: int = 3, collection: str = "a") -> SearchQuery:
    return SearchQuery(query=text, k=k, collection=collection)


def test_the_second_answer_is_the_first_one_and_says_so(index: HybridIndex) -> None:
    answering = Answering(index, cache_entries=10)
    first, other_k, other_collection = answering.answer(
        [asked("Finding 4"), asked("finding 4", k=2), asked("finding 4", collection="b")]
    )
    again = answering.answer([asked("  finding   4 ")])[0]
    assert isinstance(first, SearchResult) and isinstance(again, SearchResult) and isinstance(other_k, SearchResult)
    assert (first.cached, again.cached) == (False, True)
    assert again.hits == first.hits and len(other_k.hits) == 2
    assert isinstance(other_collection, SearchResult) and other_collection.hits != first.hits
    stats = answering.stats()
    assert (stats.queries, stats.batches, stats.cached, stats.failed, stats.index_hash) == (4, 1, 1, 0, index.index_hash)
    assert 0 < stats.p50_ms <= stats.p99_ms


def test_equal_queries_of_a_batch_have_equal_answers_without_any_cache(index: HybridIndex) -> None:
    answering = Answering(index, cache_entries=0)
    answers = answering.answer([asked("finding 1"), asked("finding 3"), asked("finding 1")])
    assert answers[0] == answers[2] != answers[1]
    assert answering.answer([asked("finding 1")]) == [answers[0]]  # nothing was remembered, so nothing says "cached"


def test_one_bad_query_does_not_harm_its_neighbours(index: HybridIndex) -> None:
    good, bad = Answering(index, cache_entries=10).answer([asked("finding"), asked("finding", collection="z")])
    assert isinstance(good, SearchResult)
    assert bad == SearchFailure("collection 'z' is not in the index", unknown_collection=True)


def test_injected_failures_fail(index: HybridIndex) -> None:
    answering = Answering(index, cache_entries=10, failure_rate=1.0)
    assert all(isinstance(answer, SearchFailure) for answer in answering.answer([asked("finding 1"), asked("finding 2")]))
    assert answering.stats().failed == 2


class _Broken:
    """An encoder that has run out of memory."""

    def encode(self, texts: list[str], side: str) -> None:
        raise MemoryError("no memory for the vectors")


def test_a_lost_half_degrades_who_can_do_without_it_and_fails_the_others(
    index: HybridIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = Answering(index, cache_entries=10)
    with monkeypatch.context() as broken:
        broken.setattr(index, "_encoder", _Broken())
        hybrid, dense, lexical = (SearchQuery(query="finding 4", mode=mode) for mode in ("hybrid", "dense", "lexical"))
        degraded, failed, whole = answering.answer([hybrid, dense, lexical])
        assert isinstance(degraded, SearchResult) and degraded.degraded and not degraded.cached
        assert isinstance(whole, SearchResult) and not whole.degraded
        assert [hit.id for hit in degraded.hits] == [hit.id for hit in whole.hits] != []
        assert isinstance(failed, SearchFailure) and "MemoryError: no memory for the vectors" in failed.reason
        assert answering.answer([lexical])[0] == whole.model_copy(update={"cached": True})
        assert (answering.stats().degraded, answering.stats().failed) == (1, 1)
    again = answering.answer([hybrid])[0]
    assert isinstance(again, SearchResult) and not again.degraded and not again.cached  # half an answer was not remembered


@given(st.lists(st.tuples(st.sampled_from(["get", "put"]), st.integers(0, 6))), st.integers(0, 4))
def test_the_cache_forgets_what_was_asked_for_the_longest_time_ago(steps: list[tuple[str, int]], entries: int) -> None:
    cache = AnswerCache(entries)
    order: list[int] = []  # from the oldest use to the newest
    for step, number in steps:
        key = CacheKey("hash", str(number), 3, "hybrid", "")
        if step == "get":
            assert (cache.get(key) is not None) == (number in order)
        elif entries:
            cache.put(key, SearchResult(hits=[], index_hash="hash"))
        if number in order or (step == "put" and entries):
            order = [other for other in order if other != number] + [number]
            order = order[-entries:]
