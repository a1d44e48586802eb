"""What the retrieval service is asked and what it answers. Failures are types, never an empty list of documents."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SearchQuery(BaseModel):
    """One query. `collection` restricts the search to one body of literature; empty means all of it.

    In mode "id" the query is a document's id, and the answer that document, or none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str = Field(min_length=1, max_length=10_000)
    k: int = Field(default=3, ge=1, le=100)
    mode: str = Field(default="hybrid", pattern="^(dense|lexical|hybrid|id)$")
    collection: str = ""


class Hit(BaseModel):
    """One found document, best first in its result. Evidence level 0 means unknown."""

    model_config = ConfigDict(frozen=True)

    id: str
    text: str
    score: float
    title: str = ""
    publication_type: str = ""
    evidence_level: int = 0


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
