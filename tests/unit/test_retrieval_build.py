"""Building an index stage by stage: what is kept, what is shared between versions, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_service import documents as store
from retrieval_service.building import BuildFailed, Source, build_from
from retrieval_service.config import RetrievalConfig
from retrieval_service.documents import Documents, as_batch, gather
from retrieval_service.index import HybridIndex
from retrieval_service.ladder import choose
from retrieval_service.manifest import IndexManifest, IndexRefused, Origin
from retrieval_service.staging import CorpusRefused
from retrieval_service.types import Filters, SearchQuery
from retrieval_service.vectors import VectorShards
from retrieval_service.versions import update
from tasks.questions import Document

CONFIG = RetrievalConfig(dimensions=64)
TYPES = ("meta-analysis", "cohort study", "case series")


def corpus(count: int = 60, first: int = 0) -> list[Document]:
    return [
        Document(
            id=f"d{i}", text=f"finding {i} of ward {i % 7}", collection="ab"[i % 2], publication_type=TYPES[i % 3],
            evidence_level=1 + i % 6 if i % 5 else None, year=1990 + i % 30 if i % 4 else None, retracted=i % 11 == 0,
        )
        for i in range(first, first + count)
    ]  # fmt: skip


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty documents in eight batches, as sixty thousand would be."""
    for module in ("retrieval_service.documents", "retrieval_service.staging"):
        monkeypatch.setattr(f"{module}.BATCH_ROWS", 8)


def source(documents: list[Document], fingerprint: str = "one") -> Source:
    return Source(lambda: iter(documents), fingerprint, Origin(sources=("corpus.jsonl",), date="2026-01", licence="CC0"))


def test_batches_change_nothing_but_memory(tmp_path: Path, small_batches: None) -> None:
    built = build_from(source(corpus()), tmp_path / "index", CONFIG)
    index = HybridIndex.load(tmp_path / "index", CONFIG)
    for mode in ("dense", "lexical", "hybrid"):
        queries = [SearchQuery(query=document.text, mode=mode, collection=document.collection) for document in corpus()]
        assert [result.hits[0].id for result in index.search(queries)] == [document.id for document in corpus()]
    assert (built.origin.date, built.origin.licence, built.origin.sources) == ("2026-01", "CC0", ("corpus.jsonl",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


def test_a_build_goes_on_where_it_was_ended(tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_from(source(corpus()), tmp_path / "whole", CONFIG)
    from retrieval_service import encoding

    encode, calls = encoding._encode, list[int]()

    def failing(work: encoding.Work, batch: int) -> None:
        calls.append(batch)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        encode(work, batch)

    monkeypatch.setattr(encoding, "_encode", failing)
    read = list[int]()

    def reading() -> Iterator[Document]:
        read.append(1)
        yield from corpus()

    with pytest.raises(
        BuildFailed, match=r"no space is left on the disk; what is done so far is kept in .*the same command goes on"
    ):
        build_from(Source(reading, "one"), tmp_path / "index", CONFIG)
    assert not (tmp_path / "index").exists()
    again = build_from(Source(reading, "one"), tmp_path / "index", CONFIG)
    assert again.index_hash == whole.index_hash
    assert calls == [0, 1, 2, 3, 3, 4, 5, 6, 7] and len(read) == 1, "nothing that was finished is done again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "whole"]


def test_what_was_begun_for_another_corpus_or_setting_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrieval_service import building

    write = building.write_lexical
    monkeypatch.setattr(building, "write_lexical", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(BuildFailed):
        build_from(source(corpus()), tmp_path / "index", CONFIG)
    monkeypatch.setattr(building, "write_lexical", write)
    other = build_from(source(corpus(30), "two"), tmp_path / "index", CONFIG)
    assert other.documents == 30
    assert other.index_hash == HybridIndex.build(corpus(30), tmp_path / "straight", CONFIG).index_hash


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    build_from(source(corpus()), tmp_path / "index", CONFIG)
    with pytest.raises(IndexRefused, match="is there already, and an index is immutable: choose another folder"):
        build_from(source(corpus()), tmp_path / "index", CONFIG)


def test_a_factory_that_cannot_be_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for factory, reason in (("Nonsense", "could not parse index string Nonsense"), ("IVF4,PQ5", "for 64 dimensions")):
        with pytest.raises(ValueError, match=f"FAISS cannot build '{factory}' .*{reason}") as refused:
            build_from(
                Source(lambda: pytest.fail("was read"), "x"), tmp_path / "index", CONFIG.model_copy(update={"factory": factory})
            )
        assert "\n" not in str(refused.value) and ".cpp" not in str(refused.value)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BuildFailed, match="file/index: Not a directory; choose a folder that can be written"):
        build_from(source(corpus()), tmp_path / "file" / "index", CONFIG)


def test_two_builds_of_one_index_do_not_meet(tmp_path: Path) -> None:
    refused = list[str]()

    def reading() -> Iterator[Document]:
        yield from corpus(20)
        with pytest.raises(IndexRefused) as error:
            build_from(source(corpus()), tmp_path / "index", CONFIG)
        refused.append(str(error.value))
        yield from corpus(20, first=20)

    assert build_from(Source(reading, "one"), tmp_path / "index", CONFIG).documents == 40
    assert "is being built by another process" in refused[0]


@pytest.mark.parametrize(
    ("documents", "reason"),
    [
        ([Document(id="d", text="half a pair \ud800")], "document 'd' holds half a surrogate pair"),
        ([Document(id="d", text="x", year=99_999)], "documents 'd' to 'd': "),
        ([*corpus(3), corpus(1)[0]], "1 document ids occur more than once, for instance 'd0'"),
        ([], "at least one document"),
    ],
)
def test_a_corpus_that_cannot_be_indexed_says_which_document(tmp_path: Path, documents: list[Document], reason: str) -> None:
    with pytest.raises(CorpusRefused) as refused:
        build_from(source(documents), tmp_path / "index", CONFIG)
    assert reason in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("factory", ["auto", "HNSW16"])
def test_a_new_version_is_what_a_build_of_its_documents_would_be(tmp_path: Path, small_batches: None, factory: str) -> None:
    config = CONFIG.model_copy(update={"factory": factory})
    old = build_from(source(corpus()), tmp_path / "old", config)
    retired = frozenset(f"d{i}" for i in range(0, 60, 9))
    changed = Document(id="d9", text="finding 9 was mended", collection="b")
    added = [*corpus(13, first=60), changed]
    new = update(tmp_path / "old", tmp_path / "new", config, add=lambda: added, added="more", retire=retired)
    documents = [*(document for document in corpus() if document.id not in retired), *added]
    random.Random(3).shuffle(documents)
    straight = HybridIndex.build(documents, tmp_path / "straight", config)
    assert new.corpus_hash == straight.corpus_hash and new.parent == old.index_hash
    assert (new.index_hash == straight.index_hash) or factory != "auto"  # a graph depends on the order of threads
    index = HybridIndex.load(tmp_path / "new", config)
    assert index.search([SearchQuery(query="finding 9 mended", k=1)])[0].hits[0].text == changed.text
    assert index.search([SearchQuery(query="d18", mode="id")])[0].hits == []
    assert IndexManifest.read(tmp_path / "old").index_hash == old.index_hash


def test_only_what_is_there_can_be_retired(tmp_path: Path) -> None:
    build_from(source(corpus()), tmp_path / "old", CONFIG)
    with pytest.raises(CorpusRefused, match=r"1 of the 2 documents to retire are not in .*, for instance 'nobody'"):
        update(tmp_path / "old", tmp_path / "new", CONFIG, retire=frozenset({"d1", "nobody"}))
    with pytest.raises(CorpusRefused, match="1 document ids occur more than once, for instance 'd1'"):
        update(tmp_path / "old", tmp_path / "new", CONFIG, add=lambda: corpus(1, first=1))


def _passes(document: Document, filters: Filters) -> bool:
    return (
        (filters.year_from is None or (document.year is not None and document.year >= filters.year_from))
        and (filters.year_to is None or (document.year is not None and document.year <= filters.year_to))
        and (not filters.publication_types or document.publication_type in filters.publication_types)
        and (
            filters.evidence_level is None
            or (document.evidence_level is not None and document.evidence_level <= filters.evidence_level)
        )
        and not (filters.exclude_retracted and document.retracted)
    )


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> HybridIndex:
    folder = tmp_path_factory.mktemp("filtered") / "index"
    HybridIndex.build(corpus(), folder, CONFIG)
    return HybridIndex.load(folder, CONFIG)


@given(
    st.builds(
        Filters,
        year_from=st.none() | st.integers(1985, 2004),
        year_to=st.none() | st.integers(2004, 2025),
        publication_types=st.lists(st.sampled_from((*TYPES, "no such type")), max_size=2).map(tuple),
        evidence_level=st.none() | st.integers(1, 6),
        exclude_retracted=st.booleans(),
    ),
    st.sampled_from(["dense", "lexical", "hybrid"]),
    st.sampled_from(["", "a"]),
)
def test_a_filter_finds_all_that_pass_it_and_nothing_else(
    filtered: HybridIndex, filters: Filters, mode: str, collection: str
) -> None:
    query = SearchQuery(query="finding of ward", k=100, mode=mode, collection=collection, filters=filters)
    wide = query.model_copy(update={"filters": Filters()})
    found, everything = (result.hits for result in filtered.search([query, wide]))
    expected = {d.id for d in corpus() if _passes(d, filters) and collection in ("", d.collection)}
    assert {hit.id for hit in found} == expected
    assert len(everything) == (30 if collection else 60)


def test_what_is_shown_of_a_document_is_what_it_says_of_itself(filtered: HybridIndex) -> None:
    for document in corpus(12):
        hit = filtered.search([SearchQuery(query=document.id, mode="id")])[0].hits[0]
        assert (hit.year, hit.retracted, hit.evidence_level) == (
            document.year,
            document.retracted,
            document.evidence_level or 0,
        )


def test_authority_prefers_strong_evidence_and_no_retracted_paper(tmp_path: Path) -> None:
    documents = [
        Document(id="weak", text="heparin works", evidence_level=6),
        Document(id="strong", text="heparin works well in most trials", evidence_level=1),
        Document(id="gone", text="heparin works well", evidence_level=1, retracted=True),
    ]
    HybridIndex.build(documents, tmp_path / "index", CONFIG)
    query = SearchQuery(query="heparin works", k=3)

    def order(weight: float) -> list[str]:
        config = CONFIG.model_copy(update={"authority_weight": weight})
        return [hit.id for hit in HybridIndex.load(tmp_path / "index", config).search([query])[0].hits]

    assert order(0.0)[0] == "weak"
    assert order(0.6)[0] == "strong" and order(1.0)[0] == "strong"


@given(st.lists(st.integers(0, 29), max_size=40), st.integers(1, 12))
def test_gathered_rows_are_those_asked_for_in_that_order(rows: list[int], size: int) -> None:
    documents = corpus(30)
    batches = [as_batch(documents[start : start + size]) for start in range(0, 30, size)]
    found = gather(batches, np.array(rows, dtype=np.int64), size)
    assert found["id"].to_pylist() == [f"d{row}" for row in rows]


def test_a_file_of_other_columns_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / store.FILE).write_bytes(b"no arrow at all")
    with pytest.raises(ValueError, match="Arrow cannot read it"):
        Documents.open(tmp_path / store.FILE)


@given(st.integers(1, 5), st.integers(1, 40))
def test_the_nearest_of_shards_are_the_nearest_of_all(parts: int, places: int) -> None:
    rng = np.random.default_rng(parts)
    vectors = rng.normal(size=(30, 8)).astype(np.float32)
    queries = rng.normal(size=(4, 8)).astype(np.float32)
    shards = VectorShards(np.array_split(vectors, parts))
    expected = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :places]
    assert (shards.nearest(queries, places) == expected).all()
    sample = shards.sample(10, seed=0)
    assert sample.shape == (10, 8) and len({line.tobytes() for line in sample}) == 10


def test_the_ladder_climbs_with_the_documents() -> None:
    assert [choose(count, 512) for count in (1, 1_000_000, 1_000_001, 10_000_000)] == [
        "Flat",
        "Flat",
        "HNSW32,SQ8",
        "HNSW32,SQ8",
    ]
    assert choose(10_000_001, 512) == "IVF8192,PQ128x4fs,Refine(SQ8)"
