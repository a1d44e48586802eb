"""What stands before the HTTP API: who may ask, under which host name, and how much may be sent. Plain ASGI.

The checks come before a body is read, so that a stranger costs nothing.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health"})  # for load balancers, which have no token; it tells nothing but whether we are alive
LARGEST_BODY = 4 * 2**20  # bytes; the largest batch that is allowed fits, with queries of a thousand characters
POLICY_VIOLATION = 1008  # of RFC 6455
SHORTEST_TOKEN = 16  # characters; less can be tried out
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Refusal(NamedTuple):
    """Why a request does not reach the application."""

    status: int
    error: str
    detail: str
    header: tuple[bytes, bytes] | None = None


class TooLarge(Exception):
    """The body goes beyond the limit."""


class Guard:
    """Answers 401, 413 and 421 itself and lets everything else through.

    Without a token it serves this machine only, and then insists on a local host name: a web page that a browser of this machine
    has open could otherwise ask under a name of its own that it points here.
    """

    def __init__(self, app: App, token: str = "", largest_body: int = LARGEST_BODY) -> None:
        self._app, self._token, self._largest = app, token.encode(), largest_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing behind this speaks it, and it would come in unasked
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(scope["path"], dict(scope["headers"]))) is not None:
            await refuse(send, refusal)
            return
        body = _Body(receive, send, self._largest)
        with suppress(TooLarge):
            await self._app(scope, body.receive, body.send)
        if body.too_large:
            await refuse(send, self._too_large())

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> Refusal | None:
        if self._token and path not in OPEN_PATHS and not self._knows_token(headers.get(b"authorization", b"")):
            return Refusal(
                401, "Unauthorized", "send the header 'Authorization: Bearer TOKEN'", (b"www-authenticate", b"Bearer")
            )
        if not self._token and _name(headers.get(b"host", b"")) not in LOCAL_NAMES:
            return Refusal(421, "WrongHost", "this server is for its own machine: ask it as 127.0.0.1 or localhost")
        declared = headers.get(b"content-length", b"0")
        return self._too_large() if not declared.isdigit() or int(declared) > self._largest else None

    def _too_large(self) -> Refusal:
        return Refusal(413, "TooLarge", f"the body is larger than {self._largest:,} bytes; send fewer queries at a time")

    def _knows_token(self, header: bytes) -> bool:
        scheme, _, token = header.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


async def refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"error": refusal.error, "detail": refusal.detail}).encode()
    # The body was not read, so the connection cannot be used again.
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    headers = about + ([refusal.header] if refusal.header else [])
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def read_token(path: str) -> str:
    """The token of a file; ValueError where there is none that would keep anybody out."""
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"retrieval.http_token_file: cannot read {path}: {error}") from None
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise ValueError(
            f"retrieval.http_token_file: {path} must hold one line of at least {SHORTEST_TOKEN} characters without spaces,"
            " such as `openssl rand -hex 32` prints"
        )
    return token


class _Body:
    """Counts a body that may come in pieces and without saying how large it will be.

    Once it is too large nothing that the application answers is sent: it saw half a body, and may have caught what is raised here.
    """

    def __init__(self, receive: Receive, send: Send, largest: int) -> None:
        self._receive, self._send, self._left = receive, send, largest
        self.too_large = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.too_large = True
            raise TooLarge
        return message

    async def send(self, message: Message) -> None:
        if not self.too_large:
            await self._send(message)


def _name(host: bytes) -> str:
    """The host without its port."""
    text = host.decode("latin-1").lower()
    return text[: text.index("]") + 1] if text.startswith("[") and "]" in text else text.partition(":")[0]
