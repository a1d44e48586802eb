"""Corpora as they are published become documents, and what is none is named."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from tasks.corpora import Chunking, chunks, read_corpus
from tasks.corpora.evidence import LEVEL_OF_HEADING, LEVEL_OF_TYPE, evidence
from tasks.questions import Document
from tasks.reading import Malformed
from tasks.rows import FileRefused

DATA = Path(__file__).parents[1] / "data" / "corpora"
PUBMED = DATA / "pubmed25n0001.xml"
ARTICLES = 2_000  # of each kind: 4 MB, which a tree of all of it would be many times over


def test_snippets_of_medrag() -> None:
    first, second = read_corpus(DATA / "textbooks_Anatomy.jsonl")
    assert (first.id, first.title) == ("Anatomy_Gray_0", "Anatomy_Gray")
    assert first.text == "The diaphragm is supplied by the phrenic nerve.", "the content, without the title before it"
    assert second.id == "Anatomy_Gray_1"
    (article,) = read_corpus(DATA / "pubmed_chunk.jsonl")
    assert article.id == "PMID:99900001"


@pytest.mark.parametrize("packed", [False, True])
def test_articles_of_pubmed(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "pubmed25n0001.xml.gz" if packed else PUBMED
    if packed:
        path.write_bytes(gzip.compress(PUBMED.read_bytes()))
    told: list[Malformed] = []
    trial, cohort = read_corpus(path, on_malformed=told.append)
    assert trial == Document(
        id="PMID:99900001",
        text="BACKGROUND: Iron deficiency is common. RESULTS: Of 120 women 88 responded (p < 0.01).",
        title="Oral iron in women with low ferritin: IL-6 and hepcidin.",
        publication_type="Randomized Controlled Trial",
        evidence_level=2,
        year=2011,
    )
    assert (cohort.publication_type, cohort.evidence_level, cohort.year) == ("Cohort Studies", 4, 1998) and cohort.retracted
    (letter,) = told
    assert letter.left_out and "(PMID 99900003)" in letter.place and letter.reason == "has no abstract"
    assert list(read_corpus(path)) == [trial, cohort], "what has no abstract is no fault"


def test_levels_of_evidence_are_one_to_six_and_the_best_counts() -> None:
    assert {*LEVEL_OF_TYPE.values(), *LEVEL_OF_HEADING.values()} == {1, 2, 3, 4, 5, 6}
    assert evidence(["Review", "Meta-Analysis", "Journal Article"]) == ("Meta-Analysis", 1)
    assert evidence(["Case Reports"], ["Cohort Studies"]) == ("Case Reports", 5), "a heading only where no type says more"
    assert evidence([]) == ("", None)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("<PMID Version=\"1\">99900002</PMID>", "<PMID>12x</PMID>", "PMID: must be a number, not '12x'"),
        ('<PMID Version="1">99900003</PMID>', "<PMID>99900003</PMI>", "is no XML from here"),
        ("Activity was better", "Activity &undeclared; better", "holds the entity &undeclared;"),
    ],
)  # fmt: skip
def test_a_broken_article_is_named_and_those_before_it_are_kept(tmp_path: Path, before: str, after: str, reason: str) -> None:
    path = tmp_path / "p.xml"
    text = PUBMED.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    told: list[Malformed] = []
    found = list(read_corpus(path, on_malformed=told.append))
    assert found[0].id == "PMID:99900001"
    faults = [each for each in told if not each.left_out]
    assert len(faults) == 1 and reason in str(faults[0]) and f"{path}, line " in str(faults[0])
    with pytest.raises(FileRefused, match=r"p\.xml, line \d+"):
        list(read_corpus(path))


def test_entities_are_not_put_in_and_nothing_outside_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    text = PUBMED.read_text()
    head, tail = text[: text.index("<!DOCTYPE")], text[text.index("<PubmedArticleSet>") :]
    for entities, used in ((f'<!ENTITY x SYSTEM "{secret.as_uri()}">', "&x;"), (f'<!ENTITY l0 "ha">{laughs}', "&l11;")):
        path = tmp_path / "p.xml"
        path.write_text(f"{head}<!DOCTYPE PubmedArticleSet [{entities}]>\n{tail.replace('Activity was', used)}")
        told: list[Malformed] = []
        found = list(read_corpus(path, on_malformed=told.append))
        assert found[0].id == "PMID:99900001"
        assert "holds the entity" in "".join(map(str, told)) or "is no XML" in "".join(map(str, told))
        assert all("SECRET" not in each.text and "haha" not in each.text and len(each.text) < 1000 for each in found)


def test_pubmed_is_read_in_constant_memory(tmp_path: Path) -> None:
    text = PUBMED.read_text()
    start, end = text.index("  <PubmedArticle>"), text.index("  <DeleteCitation>")
    path = tmp_path / "big.xml"
    with path.open("w") as file:
        file.write(text[:start])
        for _ in range(ARTICLES):
            file.write(text[start:end])
        file.write("</PubmedArticleSet>")
    sum(1 for _ in read_corpus(PUBMED))
    before = _resident()
    count = sum(1 for _ in read_corpus(path))
    assert count == 2 * ARTICLES
    assert _resident() - before < path.stat().st_size, "a tree of all articles takes ten times the file"


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def test_a_cut_archive_keeps_the_whole_articles(tmp_path: Path) -> None:
    text = PUBMED.read_text()
    start, end = text.index("  <PubmedArticle>"), text.index("  <DeleteCitation>")
    articles = "".join(text[start:end].replace("99900001", str(i * 7919 % 100_003)) for i in range(300))
    packed = gzip.compress((text[:start] + articles + "</PubmedArticleSet>").encode())
    path = tmp_path / "p.xml.gz"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    told: list[Malformed] = []
    found = list(read_corpus(path, on_malformed=told.append))
    assert 100 < len(found) < 600 and "archive ends early" in next(each for each in told if not each.left_out).reason


def test_plain_text_in_pieces_with_stable_ids(tmp_path: Path) -> None:
    found = list(read_corpus(DATA / "notes"))
    assert [each.id for each in found] == [f"Anaemia_{i}" for i in range(len(found))] and len(found) > 1
    assert found == list(read_corpus(DATA / "notes")) and found[0].text.startswith("Iron is absorbed in the duodenum.")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("Two.")
    (tmp_path / "a.txt").write_bytes("\ufeffOne é.".encode("utf-8"))
    assert [(each.id, each.text) for each in read_corpus(tmp_path)] == [("a_0", "One é."), ("deep/b_0", "Two.")]
    (tmp_path / "a.txt").write_bytes(b"One \xe9 cut")
    told: list[Malformed] = []
    assert [each.id for each in read_corpus(tmp_path, on_malformed=told.append)] == ["deep/b_0"]
    assert [(each.place, each.reason) for each in told] == [("behind byte 4", "is no UTF-8 from here")]


def test_a_folder_of_different_files_is_one_corpus() -> None:
    ids = [each.id for each in read_corpus(DATA)]
    assert {"Anaemia_0", "Anatomy_Gray_0", "PMID:99900002", "PMID:99900001"} <= {each.split("/")[-1] for each in ids}
    assert [each.id for each in read_corpus(DATA, "pubmed")] == ["PMID:99900001", "PMID:99900002"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: is no JSON"), ("[]", "line 2: must be an object, not list"), ('{"id": "x"}', "line 2: no text: one of"),
        ('{"text": "x"}', "line 2: id: Field required"), ('{"id": "x", "text": "y", "evidence_level": 9}', "line 2: evidence_level:"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "b"}) + "\n" + line + "\n")
    with pytest.raises(FileRefused) as refused:
        list(read_corpus(path))
    assert f"{path}, {reason}" in str(refused.value)
    assert [each.id for each in read_corpus(path, on_malformed=lambda _: None)] == ["a"]


def test_what_is_no_corpus_is_one_line(tmp_path: Path) -> None:
    for path, format_, reason in (
        (tmp_path / "gone", None, "No such file"), (tmp_path, None, "holds no file of rows"), (DATA, "pdf", "no such format of a corpus"),
        (DATA / "notes", "pubmed", "holds no file of the format pubmed"),
    ):  # fmt: skip
        with pytest.raises(FileRefused, match=reason):
            list(read_corpus(path, format_))


def test_long_documents_are_cut_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(
        json.dumps({"id": "a", "text": "Iron is low. " * 30, "year": 2001}) + "\n" + json.dumps({"id": "b", "text": "x"})
    )
    found = list(read_corpus(path, chunking=Chunking(size=100, overlap=20)))
    assert [each.id for each in found] == [*(f"a#{i}" for i in range(len(found) - 1)), "b"] and found[0].year == 2001
    assert all(len(each.text) <= 100 for each in found)


@given(
    st.text(st.sampled_from("ab. \n?é"), max_size=2_000),
    st.integers(50, 200),
    st.integers(0, 25),
    st.lists(st.integers(1, 500), max_size=5),
)
def test_pieces_cover_the_text_and_do_not_depend_on_how_it_comes(text: str, size: int, overlap: int, cuts: list[int]) -> None:
    chunking = Chunking(size=size, overlap=overlap)
    whole = list(chunks([text], chunking))
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    assert list(chunks([text[a:b] for a, b in pairwise(places)], chunking)) == whole
    assert all(piece and len(piece) <= size for piece in whole)
    if overlap == 0:
        assert "".join("".join(whole).split()) == "".join(text.split())
    assert set(text.split()) <= {word for piece in whole for word in piece.split()} or any(
        len(w) > size // 2 for w in text.split()
    )


@given(st.binary(max_size=300), st.sampled_from(["a.xml", "a.txt", "a.jsonl", "a.xml.gz", "a.parquet"]))
def test_no_bytes_do_anything_else_than_read_or_refuse(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    if name == "a.xml":
        content = PUBMED.read_bytes()[:1500] + content + PUBMED.read_bytes()[1500 + len(content) :]
    path.write_bytes(content)
    refusal = ""
    try:
        assert all(isinstance(each, Document) for each in read_corpus(path))
    except FileRefused as refused:
        refusal = str(refused)
    assert not refusal or (str(path) in refusal and "\n" not in refusal)


def test_lxml_keeps_its_own_bounds() -> None:
    """What the reader relies on: without `huge_tree` a depth beyond 256 is an error."""
    with pytest.raises(etree.XMLSyntaxError):
        etree.fromstring(b"<a>" * 300 + b"</a>" * 300)
