"""The rollout actor: one engine, its episodes, their rewards. A plain class that the pool turns into a Ray actor."""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa

from actors.config import EngineConfig, RolloutConfig
from actors.engine import PolicyEngine
from actors.episodes import EpisodeRunner
from actors.failures import EngineLost
from actors.messages import GroupRequest, GroupSummary, GroupVoided
from actors.scoring import Scored, Scorer
from actors.tokens import EpisodeTokenizer
from retrieval_service.config import RetrievalConfig
from retrieval_service.types import RetrievalError, SearchQuery, SearchResult
from rewards.config import RewardRecipe
from trajectories.publication import Publication, WeightAck
from trajectories.schema import Episode, Source, WeightVersion, to_table

# An evaluation asks whether answers are right and what they rest on, which rules tell: no judge and no reward of the user's own
# can spoil it.
EXAMINATION = RewardRecipe.model_validate({"terms": [{"name": "correct"}]})


class RolloutActor:
    """Rolls out whole groups. Work is refused (`EngineFenced`) until the first `update` was proved."""

    def __init__(self) -> None:
        self._engine: PolicyEngine | None = None
        self._runner: EpisodeRunner | None = None
        self._scorer: Scorer | None = None
        self._config = RolloutConfig()
        self._groups = 0

    async def start(
        self,
        model_dir: str,
        engine_config: EngineConfig,
        engine_id: str,
        retrieval_handle: Any,
        retrieval_config: RetrievalConfig,
        rollout_config: RolloutConfig,
    ) -> None:
        """Starts the engine; it still has no weights that it would sample from. Without a handle every search fails."""
        tokenizer = EpisodeTokenizer.from_folder(model_dir)
        self._config = rollout_config
        self._scorer = Scorer(rollout_config.judge)
        self._engine = PolicyEngine(engine_id, engine_config, rollout_config.canary_tolerance)
        await self._engine.start(model_dir, needs_text=bool(tokenizer.tags.stop_strings))
        self._runner = EpisodeRunner(
            self._engine,
            tokenizer,
            _searcher(retrieval_handle, retrieval_config),
            retrieval_config.mode,
            engine_config.max_model_len,
        )

    async def run_group(self, request: GroupRequest) -> tuple[GroupSummary, pa.Table]:
        """Rolls out, scores, and returns the summary and the Arrow rows; called with `num_returns=2`."""
        if self._runner is None or self._engine is None:
            raise EngineLost("the rollout actor was not started")
        self._groups += 1
        try:
            scored = await self._scored(request, request.recipe, await self._runner.run(request))
            table = await asyncio.to_thread(to_table, scored.episodes)
        finally:
            self._groups -= 1
        return _summary(request, self._engine, scored), table

    async def examine(self, requests: list[GroupRequest]) -> list[GroupSummary]:
        """Several questions in one call, without Arrow rows: an evaluation wants scores, and its groups are too small to travel alone."""
        if self._runner is None or self._engine is None:
            raise EngineLost("the rollout actor was not started")
        rolled = await asyncio.gather(*map(self._runner.run, requests))
        scored = await asyncio.gather(
            *(self._scored(request, EXAMINATION, episodes) for request, episodes in zip(requests, rolled, strict=True))
        )
        return [_summary(request, self._engine, each) for request, each in zip(requests, scored, strict=True)]

    async def _scored(self, request: GroupRequest, recipe: RewardRecipe, episodes: list[Episode]) -> Scored:
        assert self._scorer is not None, "it starts with the engine"
        try:
            async with asyncio.timeout(self._config.reward_timeout_s):
                return await self._scorer.score(request, recipe, episodes)
        except TimeoutError:
            raise GroupVoided(f"rewards of group {request.group_id} took over {self._config.reward_timeout_s:g} s") from None

    async def update(self, publication: Publication) -> WeightAck:
        if self._engine is None:
            raise EngineLost("the rollout actor was not started")
        return await self._engine.update(publication)

    async def ping(self) -> dict[str, Any]:
        """Answers only while the engine process lives."""
        if self._engine is None:
            return {"engine_id": "", "version": "", "groups": 0, "pid": os.getpid()}
        self._engine.raise_if_lost()
        version = str(self._engine.version or "")
        return {"engine_id": self._engine.engine_id, "version": version, "groups": self._groups, "pid": os.getpid()}

    async def stop(self) -> None:
        if self._scorer is not None:
            await self._scorer.close()
        if self._engine is not None:
            self._engine.stop()


def _summary(request: GroupRequest, engine: PolicyEngine, scored: Scored) -> GroupSummary:
    episodes, scores = scored.episodes, scored.scores
    versions = [WeightVersion(span.generation, span.number) for episode in episodes for span in episode.versions]
    if not versions:
        raise GroupVoided(f"group {request.group_id} has not a single sampled token")
    tokens: Counter[str] = Counter()
    for episode in episodes:
        for segment in episode.segments:
            tokens[segment.source] += segment.end - segment.start
    values: defaultdict[str, list[float]] = defaultdict(list)
    for earned in scores:
        for part in earned.parts:
            values[part.name].append(part.value)
    return GroupSummary(
        group_id=request.group_id,
        attempt=request.attempt,
        engine_id=engine.engine_id,
        oldest=min(versions),
        newest=max(versions),
        rewards=[earned.total for earned in scores],
        correct=[earned.correct for earned in scores],
        components={name: sum(each) / len(each) for name, each in values.items()},
        finishes=dict(Counter(episode.finish for episode in episodes)),
        model_tokens=tokens[Source.MODEL],
        document_tokens=tokens[Source.DOCUMENT],
        prompt_tokens=tokens[Source.PROMPT],
        searches=sum(len(episode.searches) for episode in episodes),
        evidence_levels=[level for earned in scores for level in earned.cited_levels],
        generate_s=sum(episode.generate_s for episode in episodes),
        search_s=sum(episode.search_s for episode in episodes),
        dropped_samples=scored.dropped,
    )


class _NoRetrieval:
    """A run without a retrieval service. A search is then a failure, never an empty result."""

    async def search(self, query: SearchQuery) -> SearchResult:
        raise RetrievalError(f"this run has no retrieval service, but a phase allows the search {query.query!r}")


def _searcher(handle: Any, config: RetrievalConfig) -> Any:
    if handle is None:
        return _NoRetrieval()
    from retrieval_service.client import RetrievalClient

    return RetrievalClient(handle, config)
