"""The hybrid index: what it finds, what it keeps apart, and what it refuses."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import bm25s
import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_service.analyzer import analyze
from retrieval_service.cache import CacheKey
from retrieval_service.config import RetrievalConfig
from retrieval_service.encoders import HashedNgrams
from retrieval_service.index import HybridIndex, IndexRefused, UnknownCollection
from retrieval_service.ladder import LEAST_EF_SEARCH, Rung
from retrieval_service.manifest import IndexManifest, file_checksum
from retrieval_service.postings import K1, B
from retrieval_service.types import SearchQuery
from tasks.questions import Document

CONFIG = RetrievalConfig(dimensions=128)
ORGANS = ("liver", "kidney", "heart", "lung")
DRUGS = ("metformin", "aspirin", "heparin", "insulin", "ramipril")
COLLECTIONS = {"cardiology": 30, "nephrology": 25, "": 5}


def corpus() -> list[Document]:
    rng = random.Random(0)
    return [
        Document(
            id=f"{collection or 'loose'}-{i}",
            text=f"{rng.choice(DRUGS)} in {rng.choice(ORGANS)} disease, cohort {i} of {collection or 'no field'}",
            title=f"study {i}" if i % 2 else "",
            collection=collection,
            publication_type="cohort",
            evidence_level=1 + i % 6 if i % 3 else None,
        )
        for collection, count in COLLECTIONS.items()
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("retrieval") / "index"
    HybridIndex.build(corpus(), path, CONFIG)
    return path


@pytest.fixture(scope="module")
def index(folder: Path) -> HybridIndex:
    return HybridIndex.load(folder, CONFIG)


def ids(index: HybridIndex, query: SearchQuery) -> list[str]:
    return [hit.id for hit in index.search([query])[0].hits]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_a_document_is_found_by_its_own_text(index: HybridIndex, mode: str) -> None:
    documents = corpus()
    results = index.search(
        [SearchQuery(query=document.text, mode=mode, collection=document.collection) for document in documents]
    )
    for document, result in zip(documents, results, strict=True):
        best = result.hits[0]
        assert (best.id, best.text, best.title) == (document.id, document.text, document.title)
        assert (best.publication_type, best.evidence_level) == ("cohort", document.evidence_level or 0)
        assert result.index_hash == index.index_hash


def test_lexical_scores_are_those_of_bm25s_over_the_collection_alone(index: HybridIndex) -> None:
    documents = [document for document in corpus() if document.collection == "nephrology"]
    alone = bm25s.BM25(method="lucene", k1=K1, b=B)
    alone.index([analyze(f"{document.title} {document.text}") for document in documents], show_progress=False)
    scores = alone.get_scores(analyze("heparin in kidney disease"))
    expected = {document.id: score for document, score in zip(documents, scores.tolist(), strict=True)}
    query = SearchQuery(query="heparin in kidney disease", k=100, mode="lexical", collection="nephrology")
    found = {hit.id: hit.score for hit in index.search([query])[0].hits}
    assert found == pytest.approx({id_: score for id_, score in expected.items() if score > 0}, rel=1e-5)


def test_dense_scores_are_cosines(index: HybridIndex, folder: Path) -> None:
    documents = {document.id: document for document in corpus()}
    encoder = HashedNgrams(CONFIG.dimensions).load(folder)
    hits = index.search([SearchQuery(query="aspirin heart", k=100, mode="dense", collection="cardiology")])[0].hits
    assert len(hits) == COLLECTIONS["cardiology"]
    vectors = encoder.encode([f"{documents[hit.id].title} {hit.text}" for hit in hits], "document")
    cosines = vectors @ encoder.encode(["aspirin heart"], "query")[0]
    np.testing.assert_allclose([hit.score for hit in hits], cosines, atol=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            SearchQuery,
            query=st.one_of(st.text(min_size=1, max_size=40), st.sampled_from([*DRUGS, "in", "heart disease", "cohort 3"])),
            k=st.integers(1, 100),
            mode=st.sampled_from(["dense", "lexical", "hybrid"]),
            collection=st.sampled_from(["", "cardiology", "nephrology"]),
        ),
        max_size=8,
    )
)
def test_any_batch_is_answered_query_by_query(index: HybridIndex, queries: list[SearchQuery]) -> None:
    collection_of = {document.id: document.collection for document in corpus()}
    together = index.search(queries)
    assert together == [index.search([query])[0] for query in queries]
    for query, result in zip(queries, together, strict=True):
        found = [hit.id for hit in result.hits]
        scores = [hit.score for hit in result.hits]
        size = sum(query.collection in ("", collection) for collection in collection_of.values())
        assert len(found) == len(set(found)) <= min(query.k, size)
        assert query.mode == "lexical" or len(found) == min(query.k, size)
        assert scores == sorted(scores, reverse=True)
        assert query.collection == "" or {collection_of[id_] for id_ in found} <= {query.collection}


def test_only_the_words_of_a_collection_are_found_in_it(index: HybridIndex) -> None:
    assert ids(index, SearchQuery(query="nephrology", mode="lexical", collection="cardiology")) == []
    assert len(ids(index, SearchQuery(query="nephrology", mode="lexical", k=100))) == COLLECTIONS["nephrology"]


def test_a_document_is_fetched_by_its_id_from_its_own_collection_alone(index: HybridIndex) -> None:
    def fetch(name: str, collection: str = "") -> list[tuple[str, float]]:
        [result] = index.search([SearchQuery(query=name, k=3, mode="id", collection=collection)])
        return [(hit.id, hit.score) for hit in result.hits]

    for document in corpus():
        assert fetch(document.id) == [(document.id, 1.0)]
    assert fetch("cardiology-3", "cardiology") == [("cardiology-3", 1.0)]
    assert fetch("cardiology-3", "nephrology") == []
    assert fetch("Cardiology-3") == fetch("cardiology") == []
    mixed = [SearchQuery(query="liver", mode=mode) for mode in ("hybrid", "dense", "lexical")]
    fetched = SearchQuery(query="loose-0", mode="id")
    together = index.search([mixed[0], fetched, *mixed[1:]])
    assert [together[0], *together[2:]] == index.search(mixed), "a fetch changes no other answer of its batch"
    assert [hit.id for hit in together[1].hits] == ["loose-0"]


def test_ids_that_differ_by_case_alone_are_remembered_apart() -> None:
    keys = {CacheKey.of(SearchQuery(query=name, mode="id"), "hash") for name in ("D1", "d1", "d 1")}
    assert len(keys) == 3


def test_a_half_without_weight_finds_nothing(folder: Path) -> None:
    lexical_only = HybridIndex.load(folder, RetrievalConfig(dimensions=128, dense_weight=0))
    assert ids(lexical_only, SearchQuery(query="wordless")) == []
    both = SearchQuery(query="heparin in kidney", k=5, collection="nephrology")
    assert ids(lexical_only, both) == ids(lexical_only, both.model_copy(update={"mode": "lexical"}))
    with pytest.raises(ValueError, match="no document could ever be found"):
        RetrievalConfig(dense_weight=0, lexical_weight=0)


def test_an_unknown_collection_is_an_error(index: HybridIndex) -> None:
    with pytest.raises(UnknownCollection, match="'surgery'"):
        index.search([SearchQuery(query="x", collection="surgery")])


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_the_order_of_equal_documents_says_nothing_about_evidence(tmp_path: Path, mode: str) -> None:
    documents = [Document(id=f"d{i:03d}", text="the very same text", evidence_level=1 + i // 15) for i in range(90)]
    random.Random(1).shuffle(documents)
    HybridIndex.build(documents, tmp_path / "index", CONFIG)
    hits = HybridIndex.load(tmp_path / "index", CONFIG).search([SearchQuery(query="same text", k=90, mode=mode)])[0].hits
    assert sorted(hit.id for hit in hits) == sorted(document.id for document in documents)
    levels = [hit.evidence_level for hit in hits]
    # Six levels of 15 documents: in a random order the correlation of level and place has a deviation of 0.11.
    assert abs(np.corrcoef(levels, range(90))[0, 1]) < 0.33
    mirrored = [document.model_copy(update={"evidence_level": 7 - (document.evidence_level or 0)}) for document in documents]
    HybridIndex.build(mirrored, tmp_path / "mirrored", CONFIG)
    again = HybridIndex.load(tmp_path / "mirrored", CONFIG).search([SearchQuery(query="same text", k=90, mode=mode)])[0].hits
    assert [hit.id for hit in again] == [hit.id for hit in hits]


def test_the_same_corpus_in_any_order_is_the_same_index(folder: Path, tmp_path: Path) -> None:
    documents = corpus()
    random.Random(2).shuffle(documents)
    again = HybridIndex.build(documents, tmp_path / "again", CONFIG)
    assert again.index_hash == IndexManifest.read(folder).index_hash
    assert HybridIndex.build(documents, tmp_path / "again", CONFIG).built_at == again.built_at  # left as it was
    other = HybridIndex.build(documents[1:], tmp_path / "other", CONFIG)
    assert other.index_hash != again.index_hash
    with pytest.raises(IndexRefused, match="holds another index"):
        HybridIndex.build(documents[1:], tmp_path / "again", CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]  # nothing unfinished is left behind


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FAISS cannot build 'Nonsense'"):
        HybridIndex.build(corpus(), tmp_path / "index", CONFIG.model_copy(update={"factory": "Nonsense"}))
    with pytest.raises(ValueError, match="at least one document"):
        HybridIndex.build([], tmp_path / "index", CONFIG)
    with pytest.raises(ValueError, match="1 document ids occur more than once, for instance 'cardiology-0'"):
        HybridIndex.build([*corpus(), corpus()[0]], tmp_path / "index", CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("factory", ["IVF4,Flat", "HNSW16", "IVF4,SQ8", "PCA32,IVF4,Flat", "IVF4,PQ16x4,RFlat"])
def test_other_factories_record_their_recall_and_keep_collections_apart(tmp_path: Path, factory: str) -> None:
    config = CONFIG.model_copy(update={"factory": factory, "nprobe": 4})
    built = HybridIndex.build(corpus(), tmp_path / "index", config)
    assert built.recall.keys() == {"10", "32"} and all(0.5 < recall <= 1.0 for recall in built.recall.values())
    index = HybridIndex.load(tmp_path / "index", config)
    found = ids(index, SearchQuery(query="aspirin in heart disease", k=20, mode="dense", collection="nephrology"))
    assert len(found) == 20 and all(id_.startswith("nephrology") for id_ in found)
    query = SearchQuery(query="aspirin in heart disease", k=100, mode="dense")
    HybridIndex.build(corpus(), tmp_path / "exact", CONFIG)
    exact = {hit.id: hit.score for hit in HybridIndex.load(tmp_path / "exact", CONFIG).search([query])[0].hits}
    for hit in index.search([query])[0].hits:  # whatever the codes say, what is found is scored by the vectors themselves
        assert hit.score == pytest.approx(exact[hit.id], abs=2e-5)


def _resign(folder: Path, **changes: object) -> None:
    """A manifest that is consistent in itself, but does not tell the truth about the code or the files."""
    manifest = IndexManifest.read(folder)
    files = {name: file_checksum(folder / name) for name in manifest.files}
    changed = manifest.model_copy(update={"identity": manifest.identity.model_copy(update=changes), "files": files})
    (folder / "manifest.json").write_bytes(changed.sealed().as_bytes())


def _flip_byte(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


def _l2_index(folder: Path) -> None:
    index = faiss.IndexFlatL2(CONFIG.dimensions)
    index.add(np.zeros((sum(COLLECTIONS.values()), CONFIG.dimensions), dtype=np.float32))
    faiss.write_index(index, str(folder / "dense.faiss"))
    _resign(folder)


def _edit_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"documents": 1}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        *((lambda folder, name=name: _flip_byte(folder, name), f"{name} is damaged") for name in
          ("documents.arrow", "dense.faiss", "encoder.npy", "lexical-starts.npy", "lexical-rows.npy", "lexical-scores.npy",
           "spelling-keys.npy", "vocabulary.json")),
        (lambda folder: (folder / "dense.faiss").unlink(), "dense.faiss cannot be read"),
        (lambda folder: (folder / "manifest.json").unlink(), "build it first"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "not a manifest of schema version 2"),
        (_edit_manifest, "was changed after the index was built"),
        (lambda folder: _resign(folder, metric="l2"), "built with metric 'l2', wanted is 'inner_product'"),
        (_l2_index, "not the inner product"),
        (lambda folder: _resign(folder, schema_version=0), "built with schema_version 0, wanted is 2"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_index_is_refused(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    HybridIndex.build(corpus(), tmp_path / "index", CONFIG)
    damage(tmp_path / "index")
    with pytest.raises(IndexRefused) as refused:
        HybridIndex.load(tmp_path / "index", CONFIG)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dimensions": 64}, "built with dimensions 128, wanted is 64"),
        ({"factory": "HNSW16"}, "built with factory 'Flat', wanted is 'HNSW16'"),
        ({"nprobe": 1}, "built with nprobe 32, wanted is 1"),
    ],
)
def test_an_index_of_another_configuration_is_refused(folder: Path, change: dict[str, object], reason: str) -> None:
    with pytest.raises(IndexRefused, match=reason):
        HybridIndex.load(folder, CONFIG.model_copy(update=change))


def test_a_graph_that_the_ladder_chose_has_the_effort_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval_service.ladder.LADDER", (Rung(math.inf, "HNSW32,SQ8"),))
    built = HybridIndex.build(corpus(), tmp_path / "index", CONFIG)
    assert (built.identity.factory, built.identity.ef_search) == ("HNSW32,SQ8", LEAST_EF_SEARCH)
    assert built.recall["32"] > 0.98
    HybridIndex.load(tmp_path / "index", CONFIG)
    with pytest.raises(IndexRefused, match="built with ef_search 512, wanted is 64"):
        HybridIndex.load(tmp_path / "index", CONFIG.model_copy(update={"factory": "HNSW32,SQ8"}))
    with pytest.raises(IndexRefused, match="built with ef_search 512, wanted is 600"):
        HybridIndex.load(tmp_path / "index", CONFIG.model_copy(update={"ef_search": 600}))


def test_an_index_of_another_encoder_or_analyzer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    HybridIndex.build(corpus(), tmp_path / "index", CONFIG)
    monkeypatch.setattr("retrieval_service.analyzer.VERSION", "2")
    with pytest.raises(IndexRefused, match="built with encoder 'hashed-ngrams' version '2-analyzer-1', wanted is"):
        HybridIndex.load(tmp_path / "index", CONFIG)
