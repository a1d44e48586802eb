"""Carries out what the episode protocol says: one question's episodes against one engine, one retrieval client and some tools."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Protocol

from actors.config import EpisodeBudget
from actors.engine import Completion
from actors.messages import GroupRequest, GroupVoided
from actors.protocol import Call, EpisodeProtocol, Finish, Generate, Search
from actors.tokens import EpisodeTokenizer
from actors.tools import Searcher, Tool, ToolAnswer, ToolFailed
from retrieval_service.types import RetrievalError, RetrievalRejected, RetrievalTimeout, SearchQuery, SearchResult
from tasks.questions import Document, Question
from trajectories.schema import Episode
from trajectories.schema import Search as SearchRecord


class Policy(Protocol):
    """The engine, as far as an episode needs it."""

    async def generate(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop_token_ids: Sequence[int],
        stop_strings: Sequence[str] = (),
        forbidden_token_ids: Sequence[int] = (),
    ) -> Completion: ...


class _ToolDown(Exception):
    """A tool failed; the message names it."""


class EpisodeRunner:
    """Runs the episodes of groups. A search or call that fails voids its whole group; it never becomes an empty document.

    `activity` says how many episodes are "generating" and how many are "searching" at this moment.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: EpisodeTokenizer,
        searcher: Searcher,
        search_mode: str,
        max_model_len: int,
        tools: Mapping[str, Tool] | None = None,
    ) -> None:
        self._policy = policy
        self._tokenizer = tokenizer
        self._searcher = searcher
        self._search_mode = search_mode
        self._max_model_len = max_model_len
        self._tools = dict(tools or {})
        self.activity: Counter[str] = Counter()

    async def run(self, request: GroupRequest) -> list[Episode]:
        """All `request.n` episodes at once; the first failure cancels the others and voids the group."""
        prompt_ids = self._tokenizer.prompt(request.question)
        budget = self._within_context(request, len(prompt_ids))
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(self._episode(request, budget, prompt_ids, i)) for i in range(request.n)]
        except BaseExceptionGroup as failures:
            first = _first(failures)
            if isinstance(first, _ToolDown):
                raise GroupVoided(f"group {request.group_id}: {first}", "tool") from first
            if isinstance(first, RetrievalError):
                reason = f"retrieval failed for group {request.group_id}: {type(first).__name__}: {first}"
                raise GroupVoided(reason, _cause(first)) from first
            raise first from None
        return [task.result() for task in running]

    async def _episode(self, request: GroupRequest, budget: EpisodeBudget, prompt_ids: list[int], index: int) -> Episode:
        protocol = EpisodeProtocol(self._tokenizer.tags, prompt_ids, budget)
        ladder = request.temperatures or (request.temperature,)
        temperature = ladder[index % len(ladder)]
        episode_id = f"{request.group_id}.{request.attempt}.{index}"
        started_at, generate_s, search_s = time.time(), 0.0, 0.0
        while not isinstance(action := protocol.next(), Finish):
            begun = time.perf_counter()
            if isinstance(action, Generate):
                with self._doing("generating"):
                    completion = await self._policy.generate(
                        f"{episode_id}.{protocol.attempt}.{protocol.turn}",
                        action.prompt_ids,
                        max_tokens=action.max_tokens,
                        temperature=temperature,
                        seed=turn_seed(request.seed, index, protocol.turn, protocol.attempt),
                        stop_token_ids=action.stop_token_ids,
                        stop_strings=action.stop_strings,
                        forbidden_token_ids=action.forbidden_token_ids,
                    )
                generate_s += time.perf_counter() - begun
                protocol.on_tokens(completion.token_ids, completion.logprobs, completion.version_spans, action)
                continue
            with self._doing("searching"):
                if isinstance(action, Search):
                    await self._search(protocol, action, request.question, budget)
                else:
                    await self._call(protocol, action, request.question)
            search_s += time.perf_counter() - begun
        return protocol.to_episode(
            request.question,
            run_id=request.run_id,
            group_id=request.group_id,
            episode_id=episode_id,
            attempt=request.attempt,
            phase=request.phase,
            temperature=temperature,
            started_at=started_at,
            generate_s=generate_s,
            search_s=search_s,
        )

    async def _search(self, protocol: EpisodeProtocol, action: Search, question: Question, budget: EpisodeBudget) -> None:
        """All queries of a turn at once; what they found is shown in their order."""
        mode = budget.retrieval_mode or self._search_mode
        async with asyncio.TaskGroup() as tasks:
            searches = [
                tasks.create_task(
                    self._searcher.search(SearchQuery(query=query, k=budget.top_k, mode=mode, collection=question.collection))
                )
                for query in action.queries
            ]
        found = [search.result() for search in searches]
        places = [(number, hit) for number, result in enumerate(found) for hit in result.hits]
        shown = [places[i] for i in protocol.admitted([hit.id for _, hit in places])]
        documents = [Document(id=hit.id, text=hit.text) for _, hit in shown]
        records = [
            _record(protocol.turn, query, result.model_copy(update={"hits": [hit for at, hit in shown if at == number]}))
            for number, (query, result) in enumerate(zip(action.queries, found, strict=True))
        ]
        protocol.on_documents(self._tokenizer.observation(documents), *records)

    async def _call(self, protocol: EpisodeProtocol, action: Call, question: Question) -> None:
        begun = time.perf_counter()
        try:
            answer = await self._tools[action.tool].call(action.arguments, question)
        except (ToolFailed, RetrievalError) as error:
            raise _ToolDown(f"tool {action.tool} failed: {type(error).__name__}: {error}") from error
        latency_ms = (time.perf_counter() - begun) * 1e3
        observation = self._tokenizer.observation(Document(id="", text=text) for text in answer.texts)
        protocol.on_documents(observation, _call_record(protocol.turn, action, answer, latency_ms))

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Counts this episode in, and out again however it ends."""
        self.activity[what] += 1
        try:
            yield
        finally:
            self.activity[what] -= 1

    def _within_context(self, request: GroupRequest, prompt_tokens: int) -> EpisodeBudget:
        """The response may not outgrow the engine's context, whatever the phase allows."""
        if prompt_tokens == 0:
            raise GroupVoided(f"question {request.question.id} became no tokens at all: this tokenizer does not know its words")
        room = self._max_model_len - prompt_tokens
        if room < 1:
            raise GroupVoided(
                f"question {request.question.id} has a prompt of {prompt_tokens} tokens, the engine's context holds"
                f" {self._max_model_len}; raise rollout.engine.max_model_len or drop the question"
            )
        if missing := sorted(set(request.budget.tools) - self._tools.keys()):
            raise GroupVoided(
                f"group {request.group_id} may call {missing[0]!r}, which no tool is named: add it to rollout.tools or take"
                " it out of the budget"
            )
        return request.budget.model_copy(update={"max_response_tokens": min(request.budget.max_response_tokens, room)})


def turn_seed(group_seed: int, episode: int, turn: int, attempt: int = 0) -> int:
    """A seed of its own for every attempt at a turn, so that no two sample alike and each can be sampled again.

    Example:
        >>> turn_seed(1, 0, 0) == turn_seed(1, 0, 0), turn_seed(1, 0, 0) == turn_seed(1, 1, 0), turn_seed(1, 0, 0, attempt=1)
        (True, False, 26191282391260)
    """
    name = f"{group_seed}/{episode}/{turn}" + (f"/{attempt}" if attempt else "")
    return int.from_bytes(blake2b(name.encode(), digest_size=6).digest(), "big")


def _record(turn: int, query: str, found: SearchResult) -> SearchRecord:
    return SearchRecord(
        turn=turn,
        query=query,
        document_ids=[hit.id for hit in found.hits],
        documents=[hit.text for hit in found.hits],
        scores=[hit.score for hit in found.hits],
        evidence_levels=[hit.evidence_level for hit in found.hits],
        index_hash=found.index_hash,
        latency_ms=found.latency_ms,
        degraded=found.degraded,
        cached=found.cached,
    )


def _call_record(turn: int, call: Call, answer: ToolAnswer, latency_ms: float) -> SearchRecord:
    return SearchRecord(
        turn=turn,
        query=call.arguments,
        document_ids=[hit.id for hit in answer.hits],
        documents=answer.texts,
        scores=[hit.score for hit in answer.hits],
        evidence_levels=[hit.evidence_level for hit in answer.hits],
        index_hash=answer.origin,
        latency_ms=latency_ms,
        tool=call.tool,
    )


def _cause(error: RetrievalError) -> str:
    """The failure in the words of metrics."""
    match error:
        case RetrievalRejected():
            return "retrieval_rejected"
        case RetrievalTimeout():
            return "retrieval_timeout"
        case _:
            return "retrieval_error"


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The innermost first exception of a group of them."""
    first: BaseException = failures
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
