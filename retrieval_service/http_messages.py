"""What HTTP and MCP callers send and get. Strangers are checked more strictly than our own actors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from retrieval_service.types import LARGEST_K, LONGEST_QUERY, Filters, Hit, SearchQuery

# A trainer that speaks Search-R1's protocol sends the queries of a whole batch at once: 512 prompts × 5 samples and some.
MOST_QUERIES = 4096
SHOWN_CHARACTERS = 200  # of one part of a problem
SEARCH_R1_K = 3  # documents where the request does not say how many
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # tabs and line breaks are text


def _printable(text: str) -> str:
    if found := _UNPRINTABLE.search(text):
        raise ValueError(f"control character U+{ord(found[0]):04X} at position {found.start()}")
    return text


def _asks_something(text: str) -> str:
    if not text.strip():
        raise ValueError("a query of white space asks nothing")
    return text


Text = Annotated[str, AfterValidator(_printable)]


class AskedFilters(Filters):
    """Filters, as a stranger may give them."""

    model_config = ConfigDict(strict=True)  # true is no year

    publication_types: tuple[Annotated[Text, Field(max_length=200)], ...] = Field(default=(), max_length=64, strict=False)


def _our_own(asked: AskedFilters) -> Filters:
    """The checked filters as ours, for those of two types are never equal: not to no filters, nor to those of a remembered answer."""
    return Filters.model_construct(**dict(asked))


class AskedQuery(SearchQuery):
    """A query, as a stranger may ask it. Mode "id" looks a document up by its id."""

    model_config = ConfigDict(strict=True)

    query: Annotated[Text, AfterValidator(_asks_something)] = Field(min_length=1, max_length=LONGEST_QUERY)
    collection: Text = Field(default="", max_length=200)
    filters: Annotated[AskedFilters, AfterValidator(_our_own)] = Field(default=AskedFilters(), validate_default=True)


class AskedTogether(BaseModel):
    """Queries that are answered by one and the same index."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queries: list[AskedQuery] = Field(min_length=1, max_length=MOST_QUERIES)


class RetrieveRequest(BaseModel):
    """Search-R1's request. Its trainer also sends what a model wrote between empty tags, and lists of no queries at all.

    As lenient as the original: unknown fields are ignored, "3" is a number.
    """

    queries: list[Annotated[Text, Field(max_length=LONGEST_QUERY)]] = Field(max_length=MOST_QUERIES)
    topk: int | None = Field(default=None, ge=1, le=LARGEST_K)
    return_scores: bool = False


class Health(BaseModel):
    status: str = "ok"


class Problem(BaseModel):
    """Every failure: its kind, and a sentence for a person."""

    error: str
    detail: str


class TogetherAnswer(BaseModel):
    """One result or problem for each query, in order; all results are of the index `index_hash`."""

    index_hash: str
    results: list[Any]


class RetrieveAnswer(BaseModel):
    """Search-R1's answer: for each query its documents `{"id", "contents"}`, or with scores `{"document", "score"}`."""

    result: list[list[dict[str, Any]]]


def search_r1_documents(hits: Sequence[Hit], scores: bool) -> list[dict[str, Any]]:
    """Documents as Search-R1 has them: `contents` is the title, a line break, and the text.

    Its clients take the first line for the title, so a document without one shows its id there.

    Example:
        >>> search_r1_documents([Hit(id="d1", text="lowers glucose", score=0.5, title="Metformin")], scores=True)
        [{'document': {'id': 'd1', 'contents': 'Metformin\\nlowers glucose'}, 'score': 0.5}]
    """
    documents = [{"id": hit.id, "contents": f"{' '.join(hit.title.split()) or hit.id}\n{hit.text}"} for hit in hits]
    if not scores:
        return documents
    return [{"document": document, "score": hit.score} for document, hit in zip(documents, hits, strict=True)]


def in_one_sentence(errors: Sequence[Any]) -> str:
    """Validation errors for a person, without repeating what was sent: it may be a megabyte."""
    shown = [f"{_place(each['loc'])}: {' '.join(each['msg'].split())[:SHOWN_CHARACTERS]}" for each in errors[:5]]
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return "; ".join(shown) + more


def _place(location: Sequence[object]) -> str:
    """Dotted; a stranger's own name of a field may be anything."""
    said = ".".join(str(part) for part in location if part != "body")
    return " ".join(said.split())[:SHOWN_CHARACTERS] or "body"
