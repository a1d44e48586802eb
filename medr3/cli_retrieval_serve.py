"""`medr3 retrieval serve`: an index for whoever may ask."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from medr3.errors import UserError


def serve(
    index: Annotated[
        Path, typer.Argument(metavar="INDEX", help="folder of a built index, or a link to one, which is followed")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="address to bind to; beyond loopback only with --token-file")] = "127.0.0.1",
    token_file: Annotated[
        Path | None, typer.Option(help="file with the token that callers must send as a bearer token")
    ] = None,
    encoder: Annotated[str, typer.Option(help="folder of the encoder's model, where the index was built with one")] = "",
    mode: Annotated[Literal["hybrid", "dense", "lexical"], typer.Option(help="what /retrieve searches with")] = "hybrid",
    replicas: Annotated[int, typer.Option(min=1, help="copies of the index")] = 1,
    max_queued: Annotated[int, typer.Option(min=1, help="queries that may wait; more are answered with 429")] = 4096,
    deadline: Annotated[float, typer.Option(min=0.1, help="seconds after which a request is answered with 504")] = 60.0,
    cache: Annotated[int, typer.Option(min=0, help="answers that a replica remembers")] = 16_384,
) -> None:
    """Serve an index over HTTP (/search, Search-R1's /retrieve, MCP) until Ctrl-C."""
    from pydantic import ValidationError

    from medr3.validation import describe_validation
    from retrieval_service.config import RetrievalConfig

    wanted = {"encoder": encoder} if encoder else {}
    try:
        config = RetrievalConfig.model_validate(
            {
                **wanted, "mode": mode, "replicas": replicas, "max_queued": max_queued, "deadline_s": deadline, "cache_entries": cache,
                "replica_cpus": max(1, (os.cpu_count() or 1) // replicas), "http_port": port, "http_host": host,
                "http_token_file": str(token_file.resolve()) if token_file else "",
            }
        )  # fmt: skip
    except ValidationError as error:
        raise UserError("\n".join(describe_validation(error, RetrievalConfig))) from None
    from retrieval_service.gateway import PortTaken
    from retrieval_service.manifest import IndexRefused
    from retrieval_service.serving import RayNotStarted, serve_alone

    try:
        serve_alone(index, config, lambda line: print(line, flush=True))
    except (IndexRefused, PortTaken, RayNotStarted, ValueError) as error:
        raise UserError(str(error)) from None
