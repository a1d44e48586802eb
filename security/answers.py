"""Requests to servers that a setting names: no redirects, no forbidden peers, and answers of a bounded size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from security.addresses import refusal

# A verdict or a turn is a few kilobytes; log-probabilities of 32,000 tokens are 3 MB of JSON.
MOST_BYTES = 16 * 2**20


class AddressRefused(httpx.ConnectError):
    """A name turned out to stand for an address that nothing may be sent to."""


class AnswerTooLarge(httpx.HTTPError):
    """An answer goes beyond the bound, or is packed, so that no bound on its bytes would be one."""


class Answer(NamedTuple):
    """What a server said."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """ValueError or RecursionError where it is none."""
        return json.loads(self.content)


def careful_client(headers: Mapping[str, str] | None = None, **settings: Any) -> httpx.AsyncClient:
    """A client that asks for answers as they are, goes where it is told and nowhere else, and looks whom it has reached.

    A proxy of the environment is used as always; it is then the proxy that is looked at.
    """
    return httpx.AsyncClient(
        headers={"Accept-Encoding": "identity", **(headers or {})},
        follow_redirects=False,
        event_hooks={"request": [_watched]},
        **settings,
    )


async def ask(client: httpx.AsyncClient, method: str, url: str, *, content: Any = None, most_bytes: int = MOST_BYTES) -> Answer:
    """One request with a JSON body; AnswerTooLarge as soon as more bytes came than may come."""
    async with client.stream(method, url, json=content) as response:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise AnswerTooLarge("its answer is packed although that was not asked for")
        found = bytearray()
        async for part in response.aiter_raw():
            found += part
            if len(found) > most_bytes:
                raise AnswerTooLarge(f"its answer has more than {most_bytes:,} bytes")
    return Answer(response.status_code, response.headers, bytes(found))


async def _watched(request: httpx.Request) -> None:
    request.extensions["trace"] = _look


async def _look(event: str, info: Mapping[str, Any]) -> None:
    """Before the first byte is sent: a name may stand for any address, and for another one than a moment ago."""
    if event != "connection.connect_tcp.complete":
        return
    stream = info["return_value"]
    peer = stream.get_extra_info("server_addr")
    if peer and (problem := refusal(str(peer[0]))):
        await stream.aclose()
        raise AddressRefused(f"{peer[0]} {problem}")
