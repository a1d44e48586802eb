"""The hybrid index: dense and lexical search over the same documents, fused, restricted to a collection where asked.

documents ─▶ rows, ordered by (collection, hash of the id) ─▶ documents.parquet   what is shown
               a collection is a range of rows              ─▶ dense.faiss         cosine, FAISS
                                                            ─▶ lexical.*           BM25, one matrix per collection
                                                            ─▶ manifest.json       written last
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval_service import analyzer, dense, manifest
from retrieval_service.config import RetrievalConfig
from retrieval_service.dense import DenseIndex
from retrieval_service.encoders import Encoder, load_encoder
from retrieval_service.lexical import LexicalIndex, Scope
from retrieval_service.manifest import Identity, IndexManifest, IndexRefused, Part
from retrieval_service.ranking import NOTHING, Ranking, Rows, fuse
from retrieval_service.types import Hit, SearchQuery, SearchResult, UnknownCollection
from tasks.questions import Document

__all__ = ["HybridIndex", "IndexRefused", "UnknownCollection"]

DOCUMENTS_FILE = "documents.parquet"
DOCUMENT_SCHEMA = pa.schema(
    {
        "id": pa.string(), "text": pa.string(), "title": pa.string(), "collection": pa.string(),
        "publication_type": pa.string(), "evidence_level": pa.int8(), "year": pa.int16(),
    }
)  # fmt: skip

# How many candidates each half hands to the fusion: the largest k that may be asked for. It is the same for every query, so
# that no answer depends on the other queries of its batch.
CANDIDATES = 100
_CANARY_CHARACTERS = 200


class HybridIndex:
    """A loaded index. `search` is thread-safe: nothing changes after loading.

    Example:
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
        documents: pa.Table,
        dense_index: DenseIndex,
        lexical_index: LexicalIndex,
        encoder: Encoder,
        config: RetrievalConfig,
    ) -> None:
        self.manifest = built
        self.index_hash = built.index_hash
        self._shown = documents.select(["id", "text", "title", "publication_type", "evidence_level"])
        self._dense, self._lexical, self._encoder = dense_index, lexical_index, encoder
        self._weights = (config.dense_weight, config.lexical_weight)
        self._scopes = _scopes(built.collections)
        self._place_of = {scope.name: place for place, scope in enumerate(self._scopes)}
        if len(built.collections) == 1:  # then it is the whole corpus
            self._place_of[next(iter(built.collections))] = 0

    @property
    def collections(self) -> frozenset[str]:
        """What a query may name; the empty string stands for everything."""
        return frozenset(self._place_of)

    @staticmethod
    def build(documents: Iterable[Document], folder: Path, config: RetrievalConfig) -> IndexManifest:
        """Builds the index beside `folder` and renames it when it is complete, so a folder is whole or is not there.

        An identical index that is there already is left as it is; another one is never overwritten (IndexRefused).
        """
        rows = _in_row_order(documents)
        encoder = load_encoder(config.encoder, config.dimensions)
        collections = dict(Counter(document.collection for document in rows))
        contents = [_contents(document) for document in rows]
        vectors = encoder.encode(contents, "document")
        dense_index = DenseIndex.build(vectors, config.factory, config.nprobe, config.ef_search)
        lexical_index = LexicalIndex.build([analyzer.analyze(text) for text in contents], _scopes(collections))
        table = pa.Table.from_pylist([document.model_dump() for document in rows], schema=DOCUMENT_SCHEMA)

        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.building-", dir=folder.parent))
        try:
            unfinished.chmod(0o755)  # mkdtemp's folders are closed to the other users of a cluster
            pq.write_table(table, unfinished / DOCUMENTS_FILE)
            dense_index.save(unfinished)
            lexical_index.save(unfinished)
            built = IndexManifest(
                identity=expected_identity(config),
                corpus_hash=manifest.corpus_checksum(rows),
                documents=len(rows),
                collections=collections,
                recall=None if config.factory == "Flat" else dense_index.recall(vectors),
                files={path.name: manifest.file_checksum(path) for path in sorted(unfinished.iterdir())},
            ).sealed()
            built.write(unfinished)
            return _put_in_place(unfinished, folder, built)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, config: RetrievalConfig) -> HybridIndex:
        """Opens an index, or raises IndexRefused with the one reason why it must not be used."""
        built = IndexManifest.read(folder)
        encoder = load_encoder(config.encoder, config.dimensions)
        built.require(expected_identity(config), folder)
        built.verify_files(folder)
        try:
            dense_index = DenseIndex.load(folder, built.documents, encoder.dimensions, config.nprobe, config.ef_search)
        except ValueError as error:
            raise IndexRefused(f"{folder / dense.FILE}: {error}; build the index again") from error
        table = pq.read_table(folder / DOCUMENTS_FILE, schema=DOCUMENT_SCHEMA)
        return cls(built, table, dense_index, LexicalIndex.load(folder), encoder, config)

    def canary(self) -> SearchQuery:
        """A search that always has the same answer: the beginning of the first document."""
        text = self._shown["text"][0].as_py()
        return SearchQuery(query=text[:_CANARY_CHARACTERS] or "canary")

    def search(self, queries: Sequence[SearchQuery]) -> list[SearchResult]:
        """Answers a batch, which may mix collections, modes and k. No query's answer depends on the others."""
        if not queries:
            return []
        for query in queries:
            if query.collection not in self._place_of:
                raise UnknownCollection(f"collection {query.collection!r} is not in index {self.index_hash[:12]}")
        places = np.array([self._place_of[query.collection] for query in queries])
        modes = np.array([query.mode for query in queries])
        texts = [query.query for query in queries]

        width = min(CANDIDATES, self.manifest.documents)
        by_dense, by_words = Ranking.empty(len(queries), width), Ranking.empty(len(queries), width)
        wanted = np.flatnonzero((modes == "dense") | (modes == "hybrid"))
        vectors = self._encoder.encode([texts[i] for i in wanted], "query")

        def near(part: Rows, place: int) -> Ranking:
            scope = self._scopes[place]
            return self._dense.search(vectors[np.searchsorted(wanted, part)], scope.start, scope.stop, CANDIDATES)

        def sharing_words(part: Rows, place: int) -> Ranking:
            tokens = [analyzer.analyze(texts[i]) for i in part]
            return self._lexical.search(tokens, place, self._scopes[place], CANDIDATES)

        _by_scope(near, wanted, places, by_dense)
        _by_scope(sharing_words, np.flatnonzero((modes == "lexical") | (modes == "hybrid")), places, by_words)

        fused = fuse(list(zip((by_dense, by_words), self._weights, strict=True)), width)
        for mode, ranking in (("dense", by_dense), ("lexical", by_words)):
            fused.rows[modes == mode], fused.scores[modes == mode] = ranking.rows[modes == mode], ranking.scores[modes == mode]
        for i in np.flatnonzero(modes == "id"):
            row = self._row_of(texts[i], self._scopes[places[i]])
            fused.rows[i, 0], fused.scores[i, 0] = (NOTHING, 0.0) if row is None else (row, 1.0)
        return self._results(queries, fused)

    def _row_of(self, document_id: str, scope: Scope) -> int | None:
        """Looked for row by row, about a millisecond per million: a map of all ids would take more memory than the index."""
        place = pc.index(self._shown["id"].slice(scope.start, scope.stop - scope.start), document_id).as_py()
        return None if place < 0 else scope.start + place

    def _results(self, queries: Sequence[SearchQuery], ranking: Ranking) -> list[SearchResult]:
        """Fetches the documents of all queries at once."""
        asked = np.minimum([query.k for query in queries], ranking.rows.shape[1])
        shown = (np.arange(ranking.rows.shape[1]) < asked[:, None]) & (ranking.rows != NOTHING)
        fields = self._shown.take(pa.array(ranking.rows[shown])).to_pydict()
        hits = [
            Hit(id=id_, text=text, score=score, title=title, publication_type=kind, evidence_level=level or 0)
            for id_, text, score, title, kind, level in zip(
                fields["id"], fields["text"], ranking.scores[shown].tolist(), fields["title"],
                fields["publication_type"], fields["evidence_level"], strict=True,
            )
        ]  # fmt: skip
        ends = np.cumsum(shown.sum(axis=1)).tolist()
        return [SearchResult(hits=hits[start:end], index_hash=self.index_hash) for start, end in pairwise([0, *ends])]


def _by_scope(search: Callable[[Rows, int], Ranking], queries: Rows, places: Rows, into: Ranking) -> None:
    """Calls `search` once for each scope that occurs among the queries."""
    for place in np.unique(places[queries]).tolist():
        part = queries[places[queries] == place]
        into.put(part, search(part, place))


def expected_identity(config: RetrievalConfig) -> Identity:
    """What the manifest of an index must say so that this code may use it under this configuration."""
    encoder = load_encoder(config.encoder, config.dimensions)
    return Identity(
        schema_version=manifest.SCHEMA_VERSION,
        metric=dense.METRIC,
        encoder=Part(name=encoder.name, version=encoder.revision),
        dimensions=encoder.dimensions,
        analyzer=Part(name=analyzer.NAME, version=analyzer.VERSION),
        factory=config.factory,
        nprobe=config.nprobe,
        ef_search=config.ef_search,
    )


def _in_row_order(documents: Iterable[Document]) -> list[Document]:
    """By collection, then by a hash of the id: the order in which equal scores are shown."""

    def key(document: Document) -> tuple[str, bytes, str]:
        return document.collection, hashlib.blake2b(document.id.encode("utf-8", "surrogatepass")).digest(), document.id

    rows = sorted(documents, key=key)
    if not rows:
        raise ValueError("an index needs at least one document")
    twice = [id_ for id_, count in Counter(document.id for document in rows).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} document ids occur more than once, for instance {twice[0]!r}; ids must be unique")
    return rows


def _scopes(collections: dict[str, int]) -> list[Scope]:
    """The whole corpus first, then every named collection that is not the whole."""
    scopes, start = [Scope("", 0, sum(collections.values()))], 0
    for name, count in collections.items():
        if name and len(collections) > 1:
            scopes.append(Scope(name, start, start + count))
        start += count
    return scopes


def _contents(document: Document) -> str:
    """What is searched: the title, unless the text begins with it, and the text."""
    return document.text if document.text.startswith(document.title) else f"{document.title} {document.text}"


def _put_in_place(unfinished: Path, folder: Path, built: IndexManifest) -> IndexManifest:
    try:
        unfinished.rename(folder)  # over an empty folder it succeeds, over anything else it fails
    except OSError:
        present = IndexManifest.read(folder)
        if present.index_hash != built.index_hash:
            raise IndexRefused(f"{folder} holds another index, and an index is immutable; choose another folder") from None
        return present
    return built
