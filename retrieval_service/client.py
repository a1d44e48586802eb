"""How actors search: one call at a time for the caller, many queries in one message for the service.

search(q1) ─┐ coalesce_s                 ┌─▶ result, or RetrievalError     the replica failed, or said that it cannot
search(q2) ─┼──────────▶ one handle call ┼─▶ RetrievalRejected             the queue is full
search(q3) ─┘                            └─▶ RetrievalTimeout              each caller keeps its own deadline
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, NamedTuple

from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from retrieval_service.config import RetrievalConfig
from retrieval_service.messages import ReplicaStats, SearchFailure
from retrieval_service.types import (
    RetrievalError,
    RetrievalRejected,
    RetrievalTimeout,
    SearchQuery,
    SearchResult,
    UnknownCollection,
)

# A search changes nothing, so it may be sent again where the answer was lost with its replica.
_LOST = (RayActorError, WorkerCrashedError, ObjectLostError, ReplicaUnavailableError)
_FIRST_PAUSE_S = 0.1  # then twice as long each time, at random between half and all of it, so that clients do not return as one
_SHOWN_CHARACTERS = 80  # of the query, in error messages


class _Waiting(NamedTuple):
    query: SearchQuery
    answer: asyncio.Future[SearchResult]


class RetrievalClient:
    """Searches through a Serve handle, inside any asyncio program. Every search ends with a result or a RetrievalError.

    Example:
        handle = deploy(folder, config, "retrieval")          # anywhere in the cluster
        client = RetrievalClient(handle, config)              # for instance in an asyncio actor
        result = await client.search(SearchQuery(query="factor V", k=3))
    """

    def __init__(self, handle: DeploymentHandle[Any], config: RetrievalConfig) -> None:
        self._handle, self._config = handle, config
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()  # the event loop keeps no strong reference to its tasks

    async def search(self, query: SearchQuery) -> SearchResult:
        """The result, its latency as this caller saw it."""
        started = time.perf_counter()
        self._use_running_loop()
        answer: asyncio.Future[SearchResult] = asyncio.get_running_loop().create_future()
        self._pending.append(_Waiting(query, answer))
        if len(self._pending) >= self._config.max_batch:
            self._send_pending()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._config.coalesce_s, self._send_pending)
        try:
            # The caller's own clock: whatever becomes of the sender, nobody waits longer.
            async with asyncio.timeout(self._config.deadline_s):
                result = await answer
        except TimeoutError:
            raise RetrievalTimeout(
                f"no answer within {self._config.deadline_s:g} s to {query.query[:_SHOWN_CHARACTERS]!r}"
            ) from None
        return result.model_copy(update={"latency_ms": (time.perf_counter() - started) * 1e3})

    async def stats(self) -> list[ReplicaStats]:
        """What every running replica has counted."""
        found: list[ReplicaStats] = await self._handle.broadcast("stats").results_async()
        return found

    def _use_running_loop(self) -> None:
        """A timer of a loop that has ended would never fire; what waited there has ended with it."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._pending, self._timer, self._sending = loop, [], None, set()

    def _send_pending(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        batch, self._pending, self._timer = self._pending, [], None
        task = asyncio.get_running_loop().create_task(self._send(batch))
        self._sending.add(task)
        task.add_done_callback(lambda ended: self._settle(ended, batch))

    async def _send(self, batch: list[_Waiting]) -> None:
        """Asks until there is an answer, the retries are used up, or nobody waits any more."""
        end = asyncio.get_running_loop().time() + self._config.deadline_s
        for attempt in range(self._config.retries + 1):
            wanted = [waiting for waiting in batch if not waiting.answer.done()]
            if not wanted:
                return
            response = self._handle.search.remote([waiting.query for waiting in wanted])
            try:
                async with asyncio.timeout_at(end):
                    answers = await response
                break
            except TimeoutError:
                response.cancel()  # all callers are past their deadlines
                return
            except _LOST:
                if attempt == self._config.retries:
                    raise
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))
        for waiting, answer in zip(wanted, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, SearchFailure):
                failure = UnknownCollection if answer.unknown_collection else RetrievalError
                waiting.answer.set_exception(failure(answer.reason))
            else:
                waiting.answer.set_result(answer)

    def _settle(self, task: asyncio.Task[None], batch: list[_Waiting]) -> None:
        """However the sender ended, nobody is left waiting. Those that wait no more are past their deadline."""
        self._sending.discard(task)
        error = asyncio.CancelledError("cancelled") if task.cancelled() else task.exception()
        if error is None:
            return
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(_typed(error))


def _typed(error: BaseException) -> RetrievalError:
    if isinstance(error, BackPressureError):
        return RetrievalRejected(f"the retrieval service is over its bound: {error}")
    if isinstance(error, _LOST):
        return RetrievalError(f"the replica was lost and retries did not help: {type(error).__name__}")
    return RetrievalError(f"the retrieval service failed: {type(error).__name__}: {_last_line(error)}")


def _last_line(error: BaseException) -> str:
    """Ray puts the remote traceback into the message; what went wrong is its last line."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no message"
