"""HTTP and MCP for callers outside the cluster: a Serve deployment that keeps a server of its own.

It does not go through Serve's proxy, which would hand every request on to a second process before it is even read, and would take
bodies of any size. Serve still starts, watches, restarts and ends it. One runs, on the node of whoever deployed it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from ray.serve.handle import DeploymentHandle

from retrieval_service.client import RetrievalClient
from retrieval_service.config import RetrievalConfig, is_loopback
from retrieval_service.http_api import make_api
from retrieval_service.http_guard import Guard, read_token
from retrieval_service.serving import allow_many_connections

_BACKLOG = 4096  # connections that arrive within one turn of the event loop; the kernel's own bound is the same by default
_KEEP_ALIVE_S = 30  # longer than an episode thinks between two searches
_START_TIMEOUT_S = 30.0


class PortTaken(Exception):
    """Another program has the port."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket, or PortTaken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise PortTaken(f"{host}:{port} cannot be bound ({error.strerror}): free it or choose another port") from None


class Gateway:
    """Speaks HTTP and hands every query to the replicas through the client that the rollout actors use."""

    async def __init__(self, replica: DeploymentHandle[Any], config: RetrievalConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        token = read_token(config.http_token_file) if config.http_token_file else ""
        local = is_loopback(config.http_host) and not token
        api = make_api(RetrievalClient(replica, config), config.mode, config.max_queued, local=local)
        self._server = uvicorn.Server(
            uvicorn.Config(
                Guard(api, token),
                log_level="warning",
                access_log=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                server_header=False,
                ws="none",
            )
        )
        allow_many_connections()
        listening = bound_socket(config.http_host, config.http_port)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not self._server.started:
                if self._serving.done():
                    self._serving.result()
                    raise RuntimeError("the HTTP server ended while it started")
                await asyncio.sleep(0.01)

    async def check_health(self) -> None:
        """Serve replaces a gateway whose server has ended."""
        if self._serving.done():
            raise RuntimeError("the HTTP server has ended")
