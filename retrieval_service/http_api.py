"""The retrieval service over HTTP: `/search` and its kin are ours, `/retrieve` is Search-R1's, `/mcp` is for agents; `/docs` shows.

A failure is a status and a sentence: 404 an unknown collection or document, 422 a request that makes no sense, 429 over the bound
(with Retry-After), 503 not there at the moment, 504 too late, 502 anything else; never an empty list of documents.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from retrieval_service.http_messages import (
    SEARCH_R1_K,
    AskedQuery,
    AskedTogether,
    Health,
    Problem,
    RetrieveAnswer,
    RetrieveRequest,
    Text,
    TogetherAnswer,
    in_one_sentence,
    search_r1_documents,
)
from retrieval_service.mcp_endpoint import mcp_app
from retrieval_service.messages import ReplicaStats
from retrieval_service.types import (
    Hit,
    RetrievalError,
    RetrievalRejected,
    RetrievalTimeout,
    RetrievalUnavailable,
    SearchQuery,
    SearchResult,
    UnknownCollection,
)

STATUSES = {UnknownCollection: 404, RetrievalRejected: 429, RetrievalUnavailable: 503, RetrievalTimeout: 504}
RETRIEVE = "/retrieve"
RETRY_AFTER_S = 1  # at least; how long the queue takes is told where it is known
_LONGEST_PAUSE_S = 30  # whatever the pace was, by then it is another one
_PACE_S, _PACE_REQUESTS = 10.0, 4096  # the pace of late is taken over so much
_STREAMED_AT_ONCE = 64  # results of a large answer: enough to fill a packet, few enough to keep none waiting
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 404, 413, 421, 422, 429, 502, 503, 504)
}


class Searcher(Protocol):
    """The retrieval client, as far as HTTP needs it."""

    async def search(self, query: SearchQuery) -> SearchResult: ...

    async def search_together(self, queries: Sequence[SearchQuery]) -> list[SearchResult | RetrievalError]: ...

    async def stats(self) -> list[ReplicaStats]: ...


class AsciiJSON(JSONResponse):
    """Errors may quote what cannot be encoded otherwise."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True).encode()


def make_api(searcher: Searcher, mode: str, max_queued: int, *, local: bool) -> FastAPI:
    """The API over a searcher. `mode` is what `/retrieve` searches with; `local` is told to MCP, which checks host names, too."""
    mcp = mcp_app(searcher, local=local)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with mcp.running():
            yield

    api = FastAPI(
        title="medr3 retrieval",
        description="Hybrid retrieval with evidence levels and the index hash on every answer.",
        lifespan=lifespan,
        responses=_PROBLEMS,
    )
    api.exception_handler(RetrievalError)(_failed)
    api.exception_handler(RequestValidationError)(_invalid)
    api.exception_handler(StarletteHTTPException)(_refused)  # FastAPI's own is one of them
    bound = Bound(max_queued)
    _add_ours(api, searcher, bound)
    _add_search_r1(api, searcher, mode, bound)
    api.router.routes.extend(mcp.routes)
    return api


class Busy(RetrievalRejected):
    """Over the bound of this server, which knows how long its queue will take."""

    def __init__(self, waiting: int, most: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} queries are waiting already, the bound is {most}: ask again after {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Bound:
    """How many queries may be on their way at once. A request larger than the bound is taken when nothing else is.

    Example:
        >>> bound = Bound(2)
        >>> with bound.room_for(2):
        ...     try:
        ...         with bound.room_for(1): pass
        ...     except Busy as error:
        ...         print(error)
        2 queries are waiting already, the bound is 2: ask again after 1 s
    """

    def __init__(self, most: int) -> None:
        self._most, self._waiting = most, 0
        self._ended: deque[tuple[float, int]] = deque(maxlen=_PACE_REQUESTS)

    @contextmanager
    def room_for(self, queries: int) -> Iterator[None]:
        if self._waiting and self._waiting + queries > self._most:
            raise Busy(self._waiting, self._most, self._drained_s())
        self._waiting += queries
        try:
            yield
        finally:
            self._waiting -= queries
            self._ended.append((time.monotonic(), queries))

    def _drained_s(self) -> int:
        """When, at the pace of late, those who wait now will have been answered."""
        lately = [(at, count) for at, count in self._ended if at > time.monotonic() - _PACE_S]
        seconds = self._waiting * (time.monotonic() - lately[0][0]) / sum(count for _, count in lately) if lately else 0.0
        return min(max(RETRY_AFTER_S, math.ceil(seconds)), _LONGEST_PAUSE_S)


def _add_ours(api: FastAPI, searcher: Searcher, bound: Bound) -> None:
    @api.get("/health", response_model=Health)
    async def health() -> Response:
        """Whether at least one replica answers."""
        if not await searcher.stats():
            raise RetrievalUnavailable("no replica is running")
        return JSONResponse({"status": "ok"})

    @api.get("/stats", response_model=list[ReplicaStats])
    async def stats() -> list[ReplicaStats]:
        """What every replica has counted."""
        return await searcher.stats()

    @api.post("/search", response_model=SearchResult)
    async def search(query: AskedQuery) -> Response:
        """One query."""
        with bound.room_for(1):
            return _json((await searcher.search(query)).model_dump_json())

    @api.post("/search/batch", response_model=TogetherAnswer)
    async def search_batch(request: AskedTogether) -> Response:
        """Many queries, answered by one index; one that fails is a problem in its place."""
        with bound.room_for(len(request.queries)):
            answers = await searcher.search_together(request.queries)
        if not any(isinstance(answer, SearchResult) for answer in answers):
            raise next(answer for answer in answers if isinstance(answer, RetrievalError))
        index_hash = next(answer.index_hash for answer in answers if isinstance(answer, SearchResult))
        return _streamed(f'{{"index_hash":{json.dumps(index_hash)},"results":[', map(_line, answers), "]}", len(answers))

    @api.get("/documents/{document_id:path}", response_model=Hit)
    async def document(document_id: Annotated[Text, Path(min_length=1, max_length=1000)]) -> Response:
        """One document by its id."""
        with bound.room_for(1):
            found = await searcher.search(SearchQuery(query=document_id, k=1, mode="id"))
        if not found.hits:
            raise HTTPException(404, "the index has no document of this id")
        return _json(found.hits[0].model_dump_json())


def _add_search_r1(api: FastAPI, searcher: Searcher, mode: str, bound: Bound) -> None:
    @api.post(RETRIEVE, response_model=RetrieveAnswer)
    async def retrieve(request: RetrieveRequest) -> Response:
        """Search-R1's protocol. Queries without a word find nothing, unless there is no other; a failed search fails them all.

        Being over the bound is 503 here.
        """
        asked = [query for query in request.queries if query.strip()]
        if request.queries and not asked:
            raise HTTPException(422, "queries: a query of white space asks nothing")
        k = request.topk or SEARCH_R1_K
        with bound.room_for(len(asked)):
            found = await searcher.search_together([SearchQuery(query=query, k=k, mode=mode) for query in asked])
        for answer in found:
            if isinstance(answer, RetrievalError):
                raise answer
        hits = iter([answer.hits for answer in found if isinstance(answer, SearchResult)])
        lists = (search_r1_documents(next(hits), request.return_scores) if query.strip() else [] for query in request.queries)
        return _streamed('{"result":[', map(_dumped, lists), "]}", len(request.queries))


def _dumped(documents: list[dict[str, Any]]) -> str:
    return json.dumps(documents, ensure_ascii=True)


def _line(answer: SearchResult | RetrievalError) -> str:
    if isinstance(answer, SearchResult):
        return answer.model_dump_json()
    return json.dumps({"error": type(answer).__name__, "detail": str(answer)})


def _json(content: str) -> Response:
    return Response(content.encode("utf-8", "backslashreplace"), media_type="application/json")


def _streamed(opening: str, parts: Iterator[str], closing: str, count: int) -> Response:
    """Large answers leave piece by piece, so that they never stand in memory as a whole."""
    if count <= _STREAMED_AT_ONCE:
        return _json(opening + ",".join(parts) + closing)

    def pieces() -> Iterator[bytes]:
        piece = opening
        for number, part in enumerate(parts):
            piece += ("," if number else "") + part
            if number % _STREAMED_AT_ONCE == 0:
                yield piece.encode("utf-8", "backslashreplace")
                piece = ""
        yield (piece + closing).encode("utf-8", "backslashreplace")

    return StreamingResponse(pieces(), media_type="application/json")


def _problem(status: int, error: str, detail: str, retry_after_s: int = RETRY_AFTER_S) -> Response:
    headers = {"Retry-After": str(retry_after_s)} if status in (429, 503) else None
    return AsciiJSON({"error": error, "detail": detail}, status, headers)


async def _failed(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 502)
    if status == 429 and request.url.path == RETRIEVE:
        status = 503  # verl's client of that protocol tries again after 503, and gives up after 429
    return _problem(status, type(error).__name__, str(error), getattr(error, "retry_after_s", RETRY_AFTER_S))


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _problem(422, "InvalidRequest", in_one_sentence(error.errors()))


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    names = {400: "BadRequest", 404: "NotFound", 405: "WrongMethod", 422: "InvalidRequest"}
    return _problem(error.status_code, names.get(error.status_code, "Refused"), str(error.detail))
