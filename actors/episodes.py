"""Carries out what the episode protocol says: one question's episodes against one engine and one retrieval client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from actors.config import EpisodeBudget
from actors.engine import Completion
from actors.messages import GroupRequest, GroupVoided
from actors.protocol import EpisodeProtocol, Finish, Generate
from actors.tokens import EpisodeTokenizer
from retrieval_service.types import RetrievalError, SearchQuery, SearchResult
from tasks.questions import Document
from trajectories.schema import Episode
from trajectories.schema import Search as SearchRecord


class Searcher(Protocol):
    """The retrieval client, as far as an episode needs it."""

    async def search(self, query: SearchQuery) -> SearchResult: ...


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
    ) -> Completion: ...


class EpisodeRunner:
    """Runs the episodes of groups. A search that fails voids its whole group; it never becomes an empty document."""

    def __init__(
        self, policy: Policy, tokenizer: EpisodeTokenizer, searcher: Searcher, search_mode: str, max_model_len: int
    ) -> None:
        self._policy = policy
        self._tokenizer = tokenizer
        self._searcher = searcher
        self._search_mode = search_mode
        self._max_model_len = max_model_len

    async def run(self, request: GroupRequest) -> list[Episode]:
        """All `request.n` episodes at once; the first failure cancels the others and voids the group."""
        prompt_ids = self._tokenizer.prompt(request.question)
        budget = self._within_context(request, len(prompt_ids))
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(self._episode(request, budget, prompt_ids, i)) for i in range(request.n)]
        except BaseExceptionGroup as failures:
            first = _first(failures)
            if isinstance(first, RetrievalError):
                raise GroupVoided(f"retrieval failed for group {request.group_id}: {type(first).__name__}: {first}") from first
            raise first from None
        return [task.result() for task in running]

    async def _episode(self, request: GroupRequest, budget: EpisodeBudget, prompt_ids: list[int], index: int) -> Episode:
        protocol = EpisodeProtocol(self._tokenizer.tags, prompt_ids, budget)
        episode_id = f"{request.group_id}.{request.attempt}.{index}"
        started_at, generate_s, search_s = time.time(), 0.0, 0.0
        while not isinstance(action := protocol.next(), Finish):
            begun = time.perf_counter()
            if isinstance(action, Generate):
                completion = await self._policy.generate(
                    f"{episode_id}.{protocol.attempt}.{protocol.turn}",
                    action.prompt_ids,
                    max_tokens=action.max_tokens,
                    temperature=request.temperature,
                    seed=turn_seed(request.seed, index, protocol.turn, protocol.attempt),
                    stop_token_ids=action.stop_token_ids,
                    stop_strings=action.stop_strings,
                )
                generate_s += time.perf_counter() - begun
                protocol.on_tokens(completion.token_ids, completion.logprobs, completion.version_spans)
            else:
                query = SearchQuery(
                    query=action.query, k=budget.top_k, mode=self._search_mode, collection=request.question.collection
                )
                found = await self._searcher.search(query)
                search_s += time.perf_counter() - begun
                shown = protocol.admitted([hit.id for hit in found.hits])
                found = found.model_copy(update={"hits": [found.hits[i] for i in shown]})
                documents = [Document(id=hit.id, text=hit.text) for hit in found.hits]
                protocol.on_documents(self._tokenizer.observation(documents), _record(protocol.turn, action.query, found))
        return protocol.to_episode(
            request.question,
            run_id=request.run_id,
            group_id=request.group_id,
            episode_id=episode_id,
            attempt=request.attempt,
            phase=request.phase,
            temperature=request.temperature,
            started_at=started_at,
            generate_s=generate_s,
            search_s=search_s,
        )

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


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The innermost first exception of a group of them."""
    first: BaseException = failures
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
