"""`NAME query`: any search service that answers in JSON, over HTTP, within a deadline and a bound on bytes."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from actors.tools import ToolAnswer, ToolFailed, ToolRejected, ToolTimeout
from actors.tools_config import JsonApiConfig
from retrieval_service.types import Hit
from security.answers import careful_client
from security.hiding import hide, scrub
from tasks.questions import Question

Json = Any


class JsonApi:
    """Redirects are not followed: where a query goes is for the configuration to say."""

    def __init__(self, config: JsonApiConfig) -> None:
        self._config = config
        self._host = urlsplit(config.url).netloc
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        missing = [variable for variable in config.header_variables.values() if variable not in os.environ]
        if missing:
            raise ValueError(f"environment variable {missing[0]} is not set on this machine")
        self._headers = {name: _key(variable) for name, variable in config.header_variables.items()}

    async def call(self, arguments: str, question: Question) -> ToolAnswer:
        if not arguments.strip():
            return ToolAnswer(note="this tool needs a query", origin=self._host)
        try:
            async with asyncio.timeout(self._config.deadline_s):
                content = await self._request(arguments.strip())
        except (TimeoutError, httpx.TimeoutException):
            raise ToolTimeout(f"{self._host}: no answer within {self._config.deadline_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ToolFailed(f"{self._host}: {type(error).__name__} {error}".strip()) from None
        return ToolAnswer(hits=tuple(self._hits(content)), origin=self._host)

    async def _request(self, query: str) -> bytes:
        config = self._config
        url = config.url.format(query=quote(query, safe=""), k=config.k)
        body = _filled(config.body, query, config.k) if config.body is not None else None
        async with self._connected().stream(config.method, url, json=body) as response:
            if response.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
                raise ToolRejected(f"{self._host}: status {response.status_code}")
            if response.status_code != httpx.codes.OK:
                raise ToolFailed(f"{self._host}: status {response.status_code}")
            content = bytearray()
            async for part in response.aiter_raw():
                content += part
                if len(content) > config.max_bytes:
                    raise ToolFailed(f"{self._host}: its answer has more than {config.max_bytes} bytes")
        return bytes(content)

    def _connected(self) -> httpx.AsyncClient:
        """A client of the running loop: connections of another one would never answer."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            limits = httpx.Limits(max_connections=self._config.connections)
            self._client = careful_client(headers=self._headers, limits=limits, timeout=self._config.deadline_s)
            self._loop = loop
        return self._client

    def _hits(self, content: bytes) -> list[Hit]:
        try:
            results = _at(json.loads(content), self._config.results)
        except (ValueError, RecursionError):
            raise ToolFailed(f"{self._host}: its answer is no JSON") from None
        except LookupError:
            raise ToolFailed(f"{self._host}: its answer has nothing at {self._config.results!r}") from None
        if not isinstance(results, list):
            raise ToolFailed(f"{self._host}: at {self._config.results!r} stands {type(results).__name__}, no list")
        return [self._hit(result, place) for place, result in enumerate(results[: self._config.k])]

    def _hit(self, result: Json, place: int) -> Hit:
        try:
            text = _at(result, self._config.text)
        except LookupError:
            raise ToolFailed(f"{self._host}: result {place} has nothing at {self._config.text!r}") from None
        if not isinstance(text, str):
            raise ToolFailed(f"{self._host}: result {place} has no text at {self._config.text!r}")
        try:
            name = _at(result, self._config.id)
        except LookupError:
            name = place
        id_ = name if isinstance(name, str) else json.dumps(name)
        # A server that repeats a request's headers must not write their secrets into rows.
        shown = _sound(scrub(text)[: self._config.max_characters])
        return Hit(id=f"{self._host}/{_sound(scrub(id_))}", text=shown, score=1 / (place + 1))

    async def close(self) -> None:
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.aclose()
        self._client = None


def _at(value: Json, path: str) -> Json:
    """What stands at a path such as `data.0.hits`; LookupError where there is nothing.

    Example:
        >>> _at({"data": [{"hits": ["a"]}]}, "data.0.hits"), _at([1], "")
        (['a'], [1])
    """
    for step in path.split(".") if path else ():
        if isinstance(value, dict):
            value = value[step]
        elif isinstance(value, list) and step.isascii() and step.isdecimal():
            value = value[int(step)]
        else:
            raise LookupError(step)
    return value


def _filled(template: Json, query: str, k: int) -> Json:
    """A string that is `{k}` and nothing else becomes the number."""
    if isinstance(template, str):
        return k if template == "{k}" else template.format(query=query, k=k)
    if isinstance(template, dict):
        return {key: _filled(value, query, k) for key, value in template.items()}
    return [_filled(value, query, k) for value in template] if isinstance(template, list) else template


def _sound(text: str) -> str:
    """JSON may carry halves of characters, which neither Arrow nor a tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _key(variable: str) -> str:
    """What a header may hold: an HTTP library's error would show anything else."""
    value = os.environ[variable].strip()
    if not value.isascii() or not value.isprintable() or not value:
        raise ValueError(f"environment variable {variable} holds no key on this machine")
    return hide(value)
