"""The retrieval service as tools of the Model Context Protocol, over streamable HTTP, so that any agent can search.

Stateless: a call carries all that it needs, so that a restarted gateway loses no session.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import Field, ValidationError

from retrieval_service.http_messages import AskedFilters, AskedQuery, in_one_sentence
from retrieval_service.types import LARGEST_K, LONGEST_QUERY, Hit, RetrievalError, SearchResult

if TYPE_CHECKING:
    from retrieval_service.http_api import Searcher

PATH = "/mcp"


class McpApp(NamedTuple):
    """Routes for another application, and what must run while it does."""

    server: MCPServer
    routes: list[Any]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.server.session_manager.run():
            yield


def mcp_app(searcher: Searcher, *, local: bool) -> McpApp:
    """The tools `search` and `read_document` over a searcher."""
    server = MCPServer(
        name="medr3-retrieval",
        log_level="WARNING",  # it configures the logging of the whole process
        instructions="Search medical literature. Every document has an id to cite and, where it is known, its evidence level: 1 is"
        " the best (systematic reviews), 6 the weakest (expert opinion).",
    )

    @server.tool()
    async def search(
        query: Annotated[str, Field(min_length=1, max_length=LONGEST_QUERY, description="what to look for, in plain words")],
        k: Annotated[int, Field(ge=1, le=LARGEST_K, description="how many documents")] = 5,
        mode: Annotated[Literal["hybrid", "dense", "lexical"], Field(description="hybrid unless there is a reason")] = "hybrid",
        collection: Annotated[str, Field(max_length=200, description="one body of literature; empty: all of it")] = "",
        filters: Annotated[AskedFilters | None, Field(description="which documents may be found at all")] = None,
    ) -> SearchResult:
        """Find the documents that answer a question best, the best first."""
        return await _asked(searcher, query=query, k=k, mode=mode, collection=collection, filters=filters or AskedFilters())

    @server.tool()
    async def read_document(
        document_id: Annotated[str, Field(min_length=1, max_length=1000, description="an id that a search returned")],
    ) -> Hit:
        """Read one document whole."""
        found = await _asked(searcher, query=document_id, k=1, mode="id")
        if not found.hits:
            raise ToolError("the index has no document of this id")
        return found.hits[0]

    app = server.streamable_http_app(
        streamable_http_path=PATH,
        json_response=True,
        stateless_http=True,
        # With a token, whoever has it may ask under any name; without one, the guard insists on a local name, as this does.
        transport_security=None if local else TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    return McpApp(server, list(app.routes))


async def _asked(searcher: Searcher, **fields: Any) -> SearchResult:
    try:
        return await searcher.search(AskedQuery(**fields))
    except ValidationError as error:
        raise ToolError(in_one_sentence(error.errors())) from None
    except RetrievalError as error:
        raise ToolError(f"{type(error).__name__}: {error}") from None
