"""The judge: one asynchronous client of an OpenAI-compatible server, at temperature 0.

ask ─▶ cached? ─▶ asked by another episode right now? ─▶ lane ─▶ request ─▶ strict reply ─▶ cache
                                                           ▲        │ 429, 5xx, timeout, lost connection, garbage
                                                           └─ pause ◀┘ until the attempts or the deadline are used up: JudgeFailed
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from rewards.config import JudgeConfig
from rewards.findings import JudgeFailed
from rewards.judge_cache import ReplyCache, content_key
from rewards.judge_prompts import Ask, read_reply
from security.answers import AddressRefused, AnswerTooLarge, careful_client
from security.answers import ask as ask_server
from security.hiding import hide, scrub

T = TypeVar("T")

# Besides 5xx, the answers that say "later": request timeout, conflict, too early, too many requests.
_LATER = frozenset({408, 409, 425, 429})
# What reading a reply that is none may raise.
_GARBAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


class _TryAgain(Exception):
    """An attempt failed in a way that another may not, and the server may have said after how long."""

    def __init__(self, problem: str, after_s: float = 0.0) -> None:
        super().__init__(problem)
        self.after_s = after_s


class Judge:
    """Gives verdicts, or JudgeFailed. Used within one event loop, and closed by `async with`.

    `counts` says how often it was asked, found the reply cached or under way, tried again, and failed.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self._cache = ReplyCache(config.cache) if config.cache else None
        self._lanes = _lanes(config)
        self._clients = list(self._lanes)
        self._free = asyncio.Semaphore(len(self._lanes))
        self._asking: dict[str, asyncio.Task[Any]] = {}
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Gives up what is under way and closes the connections."""
        for task in list(self._asking.values()):
            task.cancel()
        for client in self._clients:
            await client.aclose()

    async def ask(self, ask: Ask[T]) -> T:
        """The verdict; the same question asked at the same time travels once."""
        self.counts["asked"] += 1
        key = content_key(self.config.url, self.config.model, ask.instructions, ask.case)
        if (known := self._cached(key, ask)) is not None:
            self.counts["cached"] += 1
            return known
        if key in self._asking:
            self.counts["shared"] += 1
        else:
            self._asking[key] = asyncio.create_task(self._verdict(key, ask))
            self._asking[key].add_done_callback(lambda task: self._forget(key, task))
        verdict: T = await asyncio.shield(self._asking[key])  # who gives up waiting must not take it from the others
        return verdict

    def _cached(self, key: str, ask: Ask[T]) -> T | None:
        reply = self._cache.get(key) if self._cache else None
        if reply is None:
            return None
        try:
            return ask.read(read_reply(reply))
        except _GARBAGE:  # a file that somebody damaged
            return None

    def _forget(self, key: str, task: asyncio.Task[Any]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled() and task.exception() is not None:  # looking at the exception marks it as seen
            self.counts["failed"] += 1

    async def _verdict(self, key: str, ask: Ask[T]) -> T:
        problem = "no attempt ended"
        try:
            # The deadline is of the judge's work and not of the queue, and pauses hold the lane: a busy judge is asked less.
            async with self._lane() as client, asyncio.timeout(self.config.deadline_s):
                for attempt in range(1, self.config.attempts + 1):
                    try:
                        reply, verdict = await self._attempt(client, ask)
                    except _TryAgain as again:
                        problem = str(again)
                        if attempt < self.config.attempts:
                            self.counts["retried"] += 1
                            await asyncio.sleep(self._pause_s(attempt, again.after_s))
                    else:
                        if self._cache:
                            self._cache.put(key, reply)
                        return verdict
        except TimeoutError:
            problem = f"no verdict within {self.config.deadline_s:g} s; last: {problem}"
        raise self._failed(problem)

    async def _attempt(self, client: httpx.AsyncClient, ask: Ask[T]) -> tuple[str, T]:
        """One request: the reply as it came, and what it says."""
        try:
            answer = await ask_server(client, "POST", "chat/completions", content=self._payload(ask))
        except (AddressRefused, AnswerTooLarge) as error:
            raise self._failed(str(error)) from None
        except httpx.HTTPError as error:
            raise _TryAgain(f"{type(error).__name__} {error}".strip()) from error
        status = answer.status
        if status >= 500 or status in _LATER:
            raise _TryAgain(f"status {status}", _retry_after_s(answer.headers))
        if status != httpx.codes.OK:
            raise self._failed(f"status {status}, which a second attempt would not change")
        try:
            reply = answer.json()["choices"][0]["message"]["content"].strip()
            return reply, ask.read(read_reply(reply))
        except _GARBAGE as error:
            raise _TryAgain(scrub(f"no verdict in its reply: {error}")) from error

    @asynccontextmanager
    async def _lane(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client of its own for one verdict; the one used last, so that a quiet judge keeps few connections."""
        async with self._free:
            client = self._lanes.pop()
            try:
                yield client
            finally:
                self._lanes.append(client)

    def _failed(self, problem: str) -> JudgeFailed:
        return JudgeFailed(f"judge {self.config.model} at {self.config.url}: {problem}")

    def _payload(self, ask: Ask[T]) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": "system", "content": ask.instructions}, {"role": "user", "content": ask.case}],
            "temperature": 0,
            "max_tokens": self.config.max_tokens,
        }
        return payload | ({"response_format": {"type": "json_object"}} if self.config.json_mode else {})

    def _pause_s(self, attempt: int, asked_for_s: float) -> float:
        """Twice as long after every attempt, at random up to half of it shorter, so that many clients do not return at once."""
        pause_s = min(self.config.longest_pause_s, self.config.first_pause_s * 2 ** (attempt - 1))
        return max(pause_s * random.uniform(0.5, 1.0), min(asked_for_s, self.config.longest_pause_s))


def _lanes(config: JudgeConfig) -> list[httpx.AsyncClient]:
    """One client with one connection for every request in flight.

    One client's pool of 64 connections was measured to take 9 ms of CPU per request: it looks at every pair of them each time.
    """
    certificates = httpx.create_ssl_context()  # slow to make, so shared
    return [
        careful_client(
            base_url=config.url.rstrip("/") + "/",
            headers=_authorisation(config.api_key_env),
            timeout=config.request_timeout_s,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            verify=certificates,
        )
        for _ in range(config.concurrency)
    ]


def _authorisation(variable: str) -> dict[str, str]:
    if not variable:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or not key:  # a bad header's error would show the key
        raise ValueError(f"rewards.judge.api_key_env: the environment variable {variable} holds no key")
    return {"Authorization": f"Bearer {hide(key)}"}


def _retry_after_s(headers: httpx.Headers) -> float:
    """What the server asks for in seconds; a date or nonsense asks for nothing."""
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0
