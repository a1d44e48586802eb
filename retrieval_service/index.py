"""The hybrid index: dense and lexical search over the same documents, fused, restricted to a collection and by filters where asked.

::

    documents ─▶ rows, ordered by (collection, hash of the id) ─▶ documents.arrow     what is shown and filtered by
                   a collection is a range of rows              ─▶ dense.faiss        vectors, FAISS      [vectors.npy, encoder.npy]
                                                                ─▶ lexical-*, spelling-*, vocabulary   BM25, a matrix per collection
                                                                ─▶ manifest.json      written last

How it comes to be stands in `building.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from retrieval_service import analyzer
from retrieval_service import documents as store
from retrieval_service.config import RetrievalConfig
from retrieval_service.dense import DenseIndex
from retrieval_service.documents import Documents, Mask
from retrieval_service.encoders import WEIGHTS_FILE, Encoder, HashedNgrams, load_encoder
from retrieval_service.encoding import contents
from retrieval_service.halves import Halves, Stages
from retrieval_service.identity import expected_identity, scopes_of
from retrieval_service.lexical import VOCABULARY_FILE, LexicalIndex
from retrieval_service.manifest import IndexManifest, IndexRefused
from retrieval_service.ranking import NOTHING, Half, Ranking, Rows, fuse, with_authority
from retrieval_service.types import LARGEST_K, Filters, Hit, SearchQuery, SearchResult, UnknownCollection
from retrieval_service.vectors import DENSE_FILE
from tasks.questions import Document

if TYPE_CHECKING:
    from retrieval_service.towers import CrossEncoder

__all__ = ["DOCUMENTS_FILE", "HybridIndex", "IndexRefused", "UnknownCollection", "expected_identity"]

DOCUMENTS_FILE = store.FILE

# How many candidates each half hands to the fusion: the largest k that may be asked for. It is the same for every query, so
# that no answer depends on the other queries of its batch.
CANDIDATES = LARGEST_K
# A document that has one word less of the query keeps most of its BM25 score, but of the meaning it lost what that word said.
_LEXICAL_SHARPNESS = 4.0
_CANARY_CHARACTERS = 200
_MASKS_KEPT = 16  # a byte per document each; phases and tools use a handful of filters
_SHOWN = ("id", "text", "title", "publication_type", "evidence_level", "year", "retracted")


class HybridIndex:
    """A loaded index. `search` is thread-safe: nothing changes after loading.

    Example:
        >>> import tempfile
        >>> documents = [Document(id="d1", text="metformin lowers glucose"), Document(id="d2", text="aspirin thins blood")]
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     _ = HybridIndex.build(documents, Path(parent, "index"), RetrievalConfig())
        ...     index = HybridIndex.load(Path(parent, "index"), RetrievalConfig())
        >>> [hit.id for hit in index.search([SearchQuery(query="glucose", k=1)])[0].hits]
        ['d1']
    """

    def __init__(
        self,
        built: IndexManifest,
        documents: Documents,
        dense_index: DenseIndex,
        lexical_index: LexicalIndex,
        encoder: Encoder,
        config: RetrievalConfig,
    ) -> None:
        self.manifest = built
        self.index_hash = built.index_hash
        self._documents, self._dense, self._lexical, self._encoder = documents, dense_index, lexical_index, encoder
        self._weights = (config.dense_weight, config.lexical_weight)
        self._authority_weight = config.authority_weight
        self._authority = documents.authority() if config.authority_weight else None
        self._reranker = _reranker(config)
        self._rerank_candidates = config.rerank_candidates
        self._halves, self.stages = Halves(), Stages()
        self._scopes = scopes_of(built.collections)
        self._place_of = {scope.name: place for place, scope in enumerate(self._scopes)}
        if len(built.collections) == 1:  # then it is the whole corpus
            self._place_of[next(iter(built.collections))] = 0
        self._mask = lru_cache(_MASKS_KEPT)(documents.admitted)

    @property
    def collections(self) -> frozenset[str]:
        """What a query may name; the empty string stands for everything."""
        return frozenset(self._place_of)

    @staticmethod
    def build(documents: Iterable[Document], folder: Path, config: RetrievalConfig) -> IndexManifest:
        """Builds the index beside `folder` and renames it when it is complete, so a folder is whole or is not there.

        An identical index that is there already is left as it is; another one is never overwritten (IndexRefused).
        """
        from retrieval_service.building import build  # which a replica, that only searches, never needs

        return build(documents, folder, config)

    @classmethod
    def load(cls, folder: Path, config: RetrievalConfig) -> HybridIndex:
        """Opens an index, or raises IndexRefused with the one reason why it must not be used."""
        built = IndexManifest.read(folder)
        encoder = load_encoder(config)
        built.require(expected_identity(config), folder)
        built.verify_files(folder)
        file = WEIGHTS_FILE
        try:
            if isinstance(encoder, HashedNgrams):
                encoder = encoder.load(folder)
            file = DENSE_FILE
            part = built.identity
            dense_index = DenseIndex.load(folder, built.documents, part.dimensions, part.nprobe, part.ef_search)
            file = store.FILE
            documents = Documents.open(folder / store.FILE)
            documents.check()
            if len(documents) != built.documents:
                raise ValueError(f"it holds {len(documents)} documents, not {built.documents}")
            file = VOCABULARY_FILE
            lexical_index = LexicalIndex.load(folder)
        except (OSError, ValueError, TypeError) as error:
            raise IndexRefused(f"{folder / file}: {error}; build the index again") from error
        return cls(built, documents, dense_index, lexical_index, encoder, config)

    def missing(self, ids: set[str]) -> set[str]:
        """Which of these documents the index does not hold."""
        return ids.difference(self._documents.ids())

    def encoded(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors that the dense half searches with."""
        return self._encoder.encode(queries, "query")

    def canary(self) -> SearchQuery:
        """A search that always has the same answer: the beginning of the first document."""
        text: str = self._documents.fields(np.array([0]), ["text"])["text"][0]
        return SearchQuery(query=text[:_CANARY_CHARACTERS] or "canary")

    def search(self, queries: Sequence[SearchQuery]) -> list[SearchResult]:
        """Answers a batch, which may mix collections, modes, filters and k. No query's answer depends on the others."""
        if not queries:
            return []
        for query in queries:
            if query.collection not in self._place_of:
                raise UnknownCollection(f"collection {query.collection!r} is not in index {self.index_hash[:12]}")
        groups = _Groups(queries, self._place_of, self._mask)
        modes = np.array([query.mode for query in queries])
        texts = [query.query for query in queries]

        width = min(CANDIDATES, self.manifest.documents)
        by_dense, by_words = Ranking.empty(len(queries), width), Ranking.empty(len(queries), width)
        with_meaning = np.flatnonzero((modes == "dense") | (modes == "hybrid"))
        with_words = np.flatnonzero((modes == "lexical") | (modes == "hybrid"))

        def by_meaning() -> None:
            with self.stages.timing("encode"):
                vectors = self._encoder.encode([texts[i] for i in with_meaning], "query")

            def near(part: Rows, place: int, mask: Mask | None) -> Ranking:
                scope = self._scopes[place]
                mine = vectors[np.searchsorted(with_meaning, part)]
                return self._dense.search(mine, scope.start, scope.stop, CANDIDATES, mask)

            with self.stages.timing("dense"):
                groups.search(near, with_meaning, by_dense)

        def sharing_words(part: Rows, place: int, mask: Mask | None) -> Ranking:
            tokens = [analyzer.analyze(texts[i]) for i in part]
            return self._lexical.search(tokens, place, self._scopes[place], CANDIDATES, mask)

        def by_terms() -> None:
            with self.stages.timing("lexical"):
                groups.search(sharing_words, with_words, by_words)

        lost = self._halves.run(by_meaning if len(with_meaning) else None, by_terms if len(with_words) else None)
        if lost is not None and (modes == lost.name).any():
            raise lost.error  # a query that asked for this half alone has nothing to fall back on

        with self.stages.timing("fuse"):
            ranking = Ranking.empty(len(queries), width)
            if len(hybrid := np.flatnonzero(modes == "hybrid")):
                ranking.put(hybrid, self._fused([queries[i] for i in hybrid], by_dense.of(hybrid), by_words.of(hybrid)))
            for mode, half in (("dense", by_dense), ("lexical", by_words)):
                ranking.put(np.flatnonzero(modes == mode), half.of(modes == mode))
            for i in np.flatnonzero(modes == "id"):
                ranking.rows[i, 0], ranking.scores[i, 0] = self._named(texts[i], *groups.of(i))
        with self.stages.timing("fetch"):
            return self._results(queries, ranking, degraded=lost is not None)

    def _fused(self, queries: Sequence[SearchQuery], by_dense: Ranking, by_words: Ranking) -> Ranking:
        dense_weight, lexical_weight = self._weights
        halves = (Half(by_dense, dense_weight), Half(by_words, lexical_weight, _LEXICAL_SHARPNESS))
        ranking = fuse(halves, by_dense.rows.shape[1])
        if self._reranker is not None:
            for i, query in enumerate(queries):
                rows = ranking.rows[i][ranking.rows[i] != NOTHING][: max(self._rerank_candidates, query.k)]
                found = self._documents.fields(rows, ["title", "text"])
                texts = [contents(*pair) for pair in zip(found["title"], found["text"], strict=True)]
                ranking.reorder(i, rows, self._reranker.scores(query.query, texts))
        if self._authority is not None:
            ranking = with_authority(ranking, self._authority, self._authority_weight)
        return ranking

    def _named(self, document_id: str, place: int, mask: Mask | None) -> tuple[int, float]:
        scope = self._scopes[place]
        row = self._documents.row_of(document_id, scope.start, scope.stop)
        return (NOTHING, 0.0) if row is None or (mask is not None and not mask[row]) else (row, 1.0)

    def _results(self, queries: Sequence[SearchQuery], ranking: Ranking, degraded: bool) -> list[SearchResult]:
        """Fetches the documents of all queries at once."""
        asked = np.minimum([query.k for query in queries], ranking.rows.shape[1])
        shown = (np.arange(ranking.rows.shape[1]) < asked[:, None]) & (ranking.rows != NOTHING)
        fields = self._documents.fields(ranking.rows[shown], _SHOWN)
        hits = [
            Hit(id=id_, text=text, score=score, title=title, publication_type=kind, evidence_level=level or 0, year=year, retracted=gone)
            for score, id_, text, title, kind, level, year, gone in zip(
                ranking.scores[shown].tolist(), *(fields[name] for name in _SHOWN), strict=True
            )
        ]  # fmt: skip
        ends = np.cumsum(shown.sum(axis=1)).tolist()
        return [
            SearchResult(hits=hits[start:end], index_hash=self.index_hash, degraded=degraded and query.mode == "hybrid")
            for query, (start, end) in zip(queries, pairwise([0, *ends]), strict=True)
        ]


class _Groups:
    """The queries of a batch by where they search: those of one scope and filter are searched together."""

    def __init__(self, queries: Sequence[SearchQuery], place_of: dict[str, int], mask_of: Callable[[Filters], Mask]) -> None:
        numbers: dict[tuple[int, Filters], int] = {}
        self._group = np.array([numbers.setdefault((place_of[q.collection], q.filters), len(numbers)) for q in queries])
        nothing = Filters()
        self._where = [(place, None if filters == nothing else mask_of(filters)) for place, filters in numbers]

    def of(self, query: int) -> tuple[int, Mask | None]:
        return self._where[self._group[query]]

    def search(self, search: Callable[[Rows, int, Mask | None], Ranking], queries: Rows, into: Ranking) -> None:
        """Calls `search` once for each group that occurs among the queries."""
        for group in np.unique(self._group[queries]).tolist():
            part = queries[self._group[queries] == group]
            into.put(part, search(part, *self._where[group]))


def _reranker(config: RetrievalConfig) -> CrossEncoder | None:
    if not config.reranker:
        return None
    from retrieval_service.towers import CrossEncoder  # torch and transformers come only where a model is used

    return CrossEncoder.open(Path(config.reranker))
