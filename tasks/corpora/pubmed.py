"""PubMed's baseline and update files: one article at a time, entities and network off, in constant memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.corpora.evidence import evidence
from tasks.questions import Document
from tasks.reading import Malformed
from tasks.rows import in_one_line
from tasks.rows.opening import Damaged, open_bytes

_YEAR = re.compile(r"[12]\d{3}")
_YEARS = (
    "Article/Journal/JournalIssue/PubDate/Year",
    "Article/Journal/JournalIssue/PubDate/MedlineDate",
    "Article/ArticleDate/Year",
)
RETRACTED = "Retracted Publication"
SHOWN_CHARACTERS = 300  # of what the parser says: it quotes the file


def read_pubmed(path: Path) -> Iterator[Document | Malformed]:
    """The articles of a ``pubmed25n0001.xml.gz``: title, abstract with the labels of its sections, type, level, year, retraction.

    Articles without an abstract are left out, as MedRAG leaves them out: there is nothing to be read in them.
    """
    from lxml import etree

    with open_bytes(path) as file:
        # Nothing outside the file is looked at, and what an entity stands for is not put in: neither leaks nor grows.
        articles = etree.iterparse(
            file, events=("end",), tag=("PubmedArticle", "PubmedBookArticle"),
            resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True,
        )  # fmt: skip
        seen = 0
        try:
            for _, article in articles:
                seen += 1
                try:
                    yield _document(path, article)
                except ValueError as error:
                    yield Malformed(path, f"line {article.sourceline}", in_one_line(error), "")
                article.clear()
                while article.getprevious() is not None:
                    del article.getparent()[0]
        except etree.XMLSyntaxError as error:
            yield Malformed(
                path, f"line {error.lineno or 1}", f"is no XML from here: {in_one_line(error.msg)[:SHOWN_CHARACTERS]}", ""
            )
        except Damaged as damage:
            yield Malformed(path, f"behind article {seen}", str(damage), "")


def _document(path: Path, article: Any) -> Document | Malformed:
    place = f"line {article.sourceline}"
    citation = article.find("MedlineCitation")
    if citation is None:
        return Malformed(path, place, "is no article of a journal", "", left_out=True)
    number = (citation.findtext("PMID") or "").strip()
    if not number.isascii() or not number.isdigit():
        return Malformed(path, place, f"PMID: must be a number, not {number[:40]!r}", "")
    place += f" (PMID {number})"
    abstract = " ".join(filter(None, map(_section, citation.iterfind("Article/Abstract/AbstractText"))))
    if not abstract:
        return Malformed(path, place, "has no abstract", "", left_out=True)
    types = [_text(each) for each in citation.iterfind("Article/PublicationTypeList/PublicationType")]
    headings = [each.text or "" for each in citation.iterfind("MeshHeadingList/MeshHeading/DescriptorName")]
    kind, level = evidence([each for each in types if each != RETRACTED], headings)
    notices = citation.iterfind("CommentsCorrectionsList/CommentsCorrections")
    title = citation.find("Article/ArticleTitle")
    return Document(
        id=f"PMID:{number}",
        text=abstract,
        title="" if title is None else _text(title),
        publication_type=kind,
        evidence_level=level,
        year=_year(citation),
        retracted=RETRACTED in types or any(each.get("RefType") == "RetractionIn" for each in notices),
    )


def _section(section: Any) -> str:
    text, label = _text(section), section.get("Label")
    return f"{label}: {text}" if label and text else text


def _text(element: Any) -> str:
    """The words of an element and of the markup within it: italics, subscripts, formulas."""
    if not len(element):
        return " ".join((element.text or "").split())
    for each in element.iter():
        if not isinstance(each.tag, str):  # an entity: what it stands for is not put in, and without it the text is another
            raise ValueError(f"holds the entity {each.text}")
    return " ".join("".join(element.itertext()).split())


def _year(citation: Any) -> int | None:
    for where in _YEARS:
        if found := _YEAR.search(citation.findtext(where) or ""):
            return int(found[0])
    return None
