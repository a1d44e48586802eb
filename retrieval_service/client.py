"""How actors search: one call at a time for the caller, many queries in one message for the service.

::

    search(q1) ─┐ coalesced                        ┌─▶ result, or RetrievalError     the replica failed, or said that it cannot
    search(q2) ─┼──────────▶ breaker ─ handle call ┼─▶ RetrievalRejected             the queue is full, and stayed so
    search(q3) ─┘              │         ▲  │      └─▶ RetrievalTimeout              each caller keeps its own deadline
                               │         └──┘ lost or rejected: again, within the retry budget
                               └─ open: waits for a probe to succeed, or ─▶ RetrievalUnavailable
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from retrieval_service.budgets import CircuitBreaker, RetryBudget
from retrieval_service.config import RetrievalConfig
from retrieval_service.messages import Answer, ReplicaStats, SearchFailure
from retrieval_service.types import (
    RetrievalError,
    RetrievalRejected,
    RetrievalTimeout,
    RetrievalUnavailable,
    SearchQuery,
    SearchResult,
)

# A search changes nothing, so it may be sent again where the answer was lost with its replica.
_LOST = (RayActorError, WorkerCrashedError, ObjectLostError, ReplicaUnavailableError)
_FIRST_PAUSE_S = 0.1  # then twice as long each time, at random between half and all of it, so that clients do not return as one
_LOOK_AGAIN_S = 0.2  # a probe that succeeds lets the others go within this
_SHOWN_CHARACTERS = 80  # of the query, in error messages
# On their way per replica, before searches wait for one to come back. Every message costs its sender and the replica about a
# millisecond, which adds up where searches take long; few would leave the replica idle between them.
_MESSAGES = 8
_LONGEST_PAUSE_S = 0.05  # a message that does not come back holds nobody up for longer


class _Waiting(NamedTuple):
    query: SearchQuery
    answer: asyncio.Future[SearchResult]


class RetrievalClient:
    """Searches through a Serve handle, inside any asyncio program. Every search ends with a result or a RetrievalError.

    `counts` says how many searches there were, how many were answered from memory (`cached`) or by one half of the hybrid alone
    (`degraded`), and how many failed, by the name of the error; `messages` and `retried` count messages.

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
        self._budget, self.breaker = RetryBudget(), CircuitBreaker()
        self.counts: Counter[str] = Counter()

    async def search(self, query: SearchQuery) -> SearchResult:
        """The result, its latency as this caller saw it."""
        self._use_running_loop()
        answer: asyncio.Future[SearchResult] = asyncio.get_running_loop().create_future()
        self._pending.append(_Waiting(query, answer))
        if len(self._pending) >= self._config.max_batch:
            self._send_pending()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._pause_s(), self._send_pending)
        return await self._answered(query, answer)

    async def search_together(self, queries: Sequence[SearchQuery]) -> list[SearchResult | RetrievalError]:
        """One answer for each query, all from the same index: they travel in one message, whatever is swapped meanwhile."""
        self._use_running_loop()
        loop = asyncio.get_running_loop()
        batch = [_Waiting(query, loop.create_future()) for query in queries]
        if batch:
            self._start(batch)
        answers = await asyncio.gather(*(self._answered(*waiting) for waiting in batch), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, RetrievalError):
                raise answer
        return list(answers)  # type: ignore[arg-type]  # anything else was raised above

    async def stats(self) -> list[ReplicaStats]:
        """What every running replica has counted."""
        try:
            async with asyncio.timeout(self._config.deadline_s):
                found: list[ReplicaStats] = await self._handle.broadcast("stats").results_async()
        except Exception as error:  # a replica that dies while it is asked, or none that is there
            raise RetrievalUnavailable(f"the replicas do not answer: {type(error).__name__}") from None
        return found

    async def _answered(self, query: SearchQuery, answer: asyncio.Future[SearchResult]) -> SearchResult:
        started = time.perf_counter()
        self.counts["searches"] += 1
        try:
            # The caller's own clock: whatever becomes of the sender, nobody waits longer.
            async with asyncio.timeout(self._config.deadline_s):
                result = await answer
        except TimeoutError:
            self.counts[RetrievalTimeout.__name__] += 1
            shown = query.query[:_SHOWN_CHARACTERS]
            raise RetrievalTimeout(f"no answer within {self._config.deadline_s:g} s to {shown!r}") from None
        except RetrievalError as error:
            self.counts[type(error).__name__] += 1
            raise
        self.counts["cached"] += result.cached
        self.counts["degraded"] += result.degraded
        return result.model_copy(update={"latency_ms": (time.perf_counter() - started) * 1e3})

    def _use_running_loop(self) -> None:
        """A timer of a loop that has ended would never fire; what waited there has ended with it."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._pending, self._timer, self._sending = loop, [], None, set()

    def _pause_s(self) -> float:
        """How long searches are collected: a moment, or until one of many messages comes back."""
        busy = len(self._sending) >= _MESSAGES * self._config.replicas
        return max(self._config.coalesce_s, _LONGEST_PAUSE_S) if busy else self._config.coalesce_s

    def _send_pending(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        batch, self._pending, self._timer = self._pending, [], None
        self._start(batch)

    def _start(self, batch: list[_Waiting]) -> None:
        self.counts["messages"] += 1
        task = asyncio.get_running_loop().create_task(self._send(batch))
        self._sending.add(task)
        task.add_done_callback(lambda ended: self._settle(ended, batch))

    async def _send(self, batch: list[_Waiting]) -> None:
        """Asks until there are answers, the retries are used up, or nobody waits any more."""
        clock = asyncio.get_running_loop().time
        end = clock() + self._config.deadline_s
        self._budget.requested()
        for attempt in range(self._config.retries + 1):
            await self._admitted(end)
            wanted = [waiting for waiting in batch if not waiting.answer.done()]
            if not wanted:
                return
            try:
                _hand_out(await self._call(wanted, end), wanted)
                self.breaker.succeeded()
                return
            except TimeoutError:  # all callers are past their deadlines
                self.breaker.failed(clock())
                return
            except (*_LOST, BackPressureError, RetrievalRejected) as error:
                if isinstance(error, _LOST):
                    self.breaker.failed(clock())
                if attempt == self._config.retries or not self._budget.take():
                    raise
                self.counts["retried"] += 1
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))
            except Exception:
                self.breaker.failed(clock())
                raise

    async def _call(self, wanted: list[_Waiting], end: float) -> list[Answer]:
        response = self._handle.search.remote([waiting.query for waiting in wanted])
        try:
            async with asyncio.timeout_at(end):
                answers: list[Answer] = await response
        except TimeoutError:
            response.cancel()
            raise
        if any(isinstance(answer, SearchFailure) and answer.rejected for answer in answers):
            raise RetrievalRejected(next(answer.reason for answer in answers if isinstance(answer, SearchFailure)))
        return answers

    async def _admitted(self, end: float) -> None:
        """While the breaker is open, messages wait here; the first one whose turn it is tries for all."""
        clock = asyncio.get_running_loop().time
        while not self.breaker.admit(clock()):
            if (left := end - clock()) <= 0 or self.breaker.wait_s(clock()) > left:
                raise RetrievalUnavailable(
                    "the retrieval service failed again and again, and is not asked before it may be back"
                )
            await asyncio.sleep(min(left, self.breaker.wait_s(clock()), _LOOK_AGAIN_S))

    def _settle(self, task: asyncio.Task[None], batch: list[_Waiting]) -> None:
        """However the sender ended, nobody is left waiting. Those that wait no more are past their deadline."""
        self._sending.discard(task)
        self._hurry()
        error = asyncio.CancelledError("cancelled") if task.cancelled() else task.exception()
        if error is None:
            return
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(_typed(error))

    def _hurry(self) -> None:
        """A message came back: who waited for that goes with those who ask next because of it."""
        loop = asyncio.get_running_loop()
        if self._timer is not None and self._loop is loop and self._timer.when() > loop.time() + self._pause_s():
            self._timer.cancel()
            self._timer = loop.call_later(self._pause_s(), self._send_pending)


def _hand_out(answers: list[Answer], wanted: list[_Waiting]) -> None:
    for waiting, answer in zip(wanted, answers, strict=True):
        if waiting.answer.done():
            continue
        if isinstance(answer, SearchFailure):
            waiting.answer.set_exception(answer.error())
        else:
            waiting.answer.set_result(answer)


def _typed(error: BaseException) -> RetrievalError:
    if isinstance(error, RetrievalError):
        return type(error)(*error.args)  # a copy for each caller: one exception raised in many tasks would mix their tracebacks
    if isinstance(error, BackPressureError):
        return RetrievalRejected(f"the retrieval service is over its bound: {error}")
    if isinstance(error, _LOST):
        return RetrievalError(f"the replica was lost and retries did not help: {type(error).__name__}")
    return RetrievalError(f"the retrieval service failed: {type(error).__name__}: {_last_line(error)}")


def _last_line(error: BaseException) -> str:
    """Ray puts the remote traceback into the message; what went wrong is its last line."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no message"
