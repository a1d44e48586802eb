"""What the retrieval service is asked and what it answers. Failures are types, never an empty list of documents."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LARGEST_K = 100  # as many candidates as each half of the hybrid hands to the fusion
LONGEST_QUERY = 10_000  # characters; a page of text asks as well as a book


class Filters(BaseModel):
    """Which documents may be found at all. What a document does not say of itself (no year, level 0) passes no bound on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    year_from: int | None = Field(default=None, ge=0, le=9999)
    year_to: int | None = Field(default=None, ge=0, le=9999)
    publication_types: tuple[str, ...] = Field(default=(), max_length=64, description="any of these; empty: all types")
    evidence_level: int | None = Field(default=None, ge=1, le=6, description="this level or a better one; 1 is the best")
    exclude_retracted: bool = False

    @model_validator(mode="after")
    def _some_year_is_left(self) -> Self:
        if self.year_from is not None and self.year_to is not None and self.year_from > self.year_to:
            raise ValueError(f"year_from {self.year_from} is after year_to {self.year_to}: no document could be found")
        return self


class SearchQuery(BaseModel):
    """One query. `collection` restricts the search to one body of literature; empty means all of it.

    In mode "id" the query is a document's id, and the answer that document, or none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str = Field(min_length=1, max_length=LONGEST_QUERY)
    k: int = Field(default=3, ge=1, le=LARGEST_K)
    mode: str = Field(default="hybrid", pattern="^(dense|lexical|hybrid|id)$")
    collection: str = ""
    filters: Filters = Filters()


class Hit(BaseModel):
    """One found document, best first in its result. Evidence level 0 means unknown."""

    model_config = ConfigDict(frozen=True)

    id: str
    text: str
    score: float
    title: str = ""
    publication_type: str = ""
    evidence_level: int = 0
    year: int | None = None
    retracted: bool = False


class SearchResult(BaseModel):
    """The hits of one query, with the hash of the index that answered it."""

    model_config = ConfigDict(frozen=True)

    hits: list[Hit]
    index_hash: str
    latency_ms: float = 0.0
    degraded: bool = False  # one half of the hybrid did not answer
    cached: bool = False


class RetrievalError(Exception):
    """The search failed: the episode is voided and its group re-leased; nothing is trained on."""


class UnknownCollection(RetrievalError):
    """The query names a collection that the index does not hold."""


class RetrievalTimeout(RetrievalError):
    """No answer within the deadline."""


class RetrievalRejected(RetrievalError):
    """The service is over its bound and said so."""


class RetrievalUnavailable(RetrievalError):
    """The service failed again and again; until it has shown that it is back, nothing is sent to it."""
