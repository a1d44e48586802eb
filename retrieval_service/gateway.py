"""The same retrieval over HTTP, for callers outside the cluster: our own `/search`, and Search-R1's `/retrieve`.

Loopback only. A failure is a status and a sentence: 404 an unknown collection, 429 over the bound (with Retry-After), 504 too late,
502 anything else; never an empty list of documents.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from retrieval_service.client import RetrievalClient
from retrieval_service.config import RetrievalConfig
from retrieval_service.types import (
    RetrievalError,
    RetrievalRejected,
    RetrievalTimeout,
    SearchQuery,
    SearchResult,
    UnknownCollection,
)

HOST = "127.0.0.1"
STATUSES = {UnknownCollection: 404, RetrievalRejected: 429, RetrievalTimeout: 504}
RETRY_AFTER_S = 1  # a full queue of lists drains within about a second

api = FastAPI(title="medr3 retrieval", description="Hybrid retrieval with evidence levels and the index hash on every answer.")


class RetrieveRequest(BaseModel):
    """Search-R1's request."""

    queries: list[str] = Field(min_length=1, max_length=512)
    topk: int = Field(default=3, ge=1, le=100)
    return_scores: bool = False


@api.exception_handler(RetrievalError)
async def _failed(request: Request, error: Exception) -> JSONResponse:
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 502)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 429 else None
    return JSONResponse({"error": type(error).__name__, "detail": str(error)}, status, headers)


@serve.deployment(name="Gateway", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1024)
@serve.ingress(api)
class Gateway:
    """Speaks HTTP and hands every query to the replicas through the client that the rollout actors use."""

    def __init__(self, replica: DeploymentHandle[Any], config: RetrievalConfig) -> None:
        self._client, self._mode = RetrievalClient(replica, config), config.mode

    @api.post("/search")
    async def search(self, query: SearchQuery) -> SearchResult:
        """One query."""
        return await self._client.search(query)

    @api.post("/retrieve")
    async def retrieve(self, request: RetrieveRequest) -> dict[str, Any]:
        """Search-R1's protocol: `{"result": [[{"document": {"id", "contents"}, "score"}]]}`, documents alone without scores."""
        queries = [SearchQuery(query=query, k=request.topk, mode=self._mode) for query in request.queries]
        results = await asyncio.gather(*map(self._client.search, queries))
        found: list[list[dict[str, Any]]] = []
        for result in results:
            documents = [
                {"id": hit.id, "contents": f"{hit.title}\n{hit.text}" if hit.title else hit.text} for hit in result.hits
            ]
            scored = [{"document": d, "score": hit.score} for d, hit in zip(documents, result.hits, strict=True)]
            found.append(scored if request.return_scores else documents)
        return {"result": found}
