"""The rollout actor: one engine, its episodes, their rewards. A plain class that the pool turns into a Ray actor."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa

from actors.config import EngineConfig, RolloutConfig
from actors.engine import PolicyEngine
from actors.episodes import EpisodeRunner
from actors.examining import examined
from actors.failures import EngineLost
from actors.messages import Examined, GroupRequest, GroupSummary, GroupVoided
from actors.protocol import SEARCH
from actors.scoring import Scored, Scorer
from actors.tokens import EpisodeTokenizer, TagReader
from actors.tools import Tool, build_tools, close_tools
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
        self._tools: dict[str, Tool] = {}
        self._tags: TagReader | None = None
        self._config = RolloutConfig()
        self._groups = 0
        self._scoring = 0  # episodes

    async def node_id(self) -> str:
        """Of the node that it was placed on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

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
        tokenizer = EpisodeTokenizer.from_folder(model_dir, tools=bool(rollout_config.tools))
        searcher = searcher_for(retrieval_handle, retrieval_config)
        self._tools = build_tools(rollout_config.tools, searcher, tokenizer)
        self._config = rollout_config
        self._scorer = Scorer(rollout_config.judge)
        self._tags = tokenizer.tags
        self._engine = PolicyEngine(engine_id, engine_config, rollout_config.canary_tolerance, sleeps=rollout_config.colocated)
        await self._engine.start(model_dir, needs_text=bool(tokenizer.tags.stop_strings))
        self._runner = EpisodeRunner(
            self._engine,
            tokenizer,
            searcher,
            retrieval_config.mode,
            engine_config.max_model_len,
            self._tools,
        )
        gc.collect()
        gc.freeze()  # else every full collection looks at 700,000 objects of imported libraries: 0.4 s in which no episode goes on

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

    async def examine(self, requests: list[GroupRequest]) -> list[tuple[GroupSummary, list[Examined]]]:
        """Several questions in one call, without Arrow rows: an evaluation wants records, and its groups are too small to travel alone."""
        if self._runner is None or self._engine is None or self._tags is None:
            raise EngineLost("the rollout actor was not started")
        rolled = await asyncio.gather(*map(self._runner.run, requests))
        scored = await asyncio.gather(
            *(self._scored(request, EXAMINATION, episodes) for request, episodes in zip(requests, rolled, strict=True))
        )
        records = await asyncio.to_thread(_examined, requests, scored, self._tags)
        summaries = [_summary(request, self._engine, each) for request, each in zip(requests, scored, strict=True)]
        return list(zip(summaries, records, strict=True))

    async def _scored(self, request: GroupRequest, recipe: RewardRecipe, episodes: list[Episode]) -> Scored:
        assert self._scorer is not None, "it starts with the engine"
        self._scoring += len(episodes)
        try:
            async with asyncio.timeout(self._config.reward_timeout_s):
                return await self._scorer.score(request, recipe, episodes)
        except TimeoutError:
            raise GroupVoided(
                f"rewards of group {request.group_id} took over {self._config.reward_timeout_s:g} s", "reward"
            ) from None
        finally:
            self._scoring -= len(episodes)

    async def update(self, publication: Publication) -> WeightAck:
        if self._engine is None:
            raise EngineLost("the rollout actor was not started")
        return await self._engine.update(publication)

    async def sleep(self) -> None:
        """Samples nothing until the next update."""
        if self._engine is not None:
            await self._engine.sleep()

    async def wake(self) -> None:
        """Takes the memory of its weights back; the next update ends the sleep."""
        if self._engine is not None:
            await self._engine.wake()

    async def ping(self) -> dict[str, Any]:
        """What it does, in episodes and by its engine's own count; answers only while the engine process lives."""
        answer: dict[str, Any] = {"engine_id": "", "version": "", "groups": self._groups, "pid": os.getpid()}
        if self._engine is None or self._runner is None:
            return answer
        self._engine.raise_if_lost()
        doing = self._runner.activity
        activity = {"generating": doing["generating"], "searching": doing["searching"], "scoring": self._scoring}
        version = str(self._engine.version or "")
        return answer | self._engine.load() | {"engine_id": self._engine.engine_id, "version": version, "activity": activity}

    async def stop(self) -> None:
        await close_tools(self._tools)
        if self._scorer is not None:
            await self._scorer.close()
        if self._engine is not None:
            self._engine.stop()


def _examined(requests: list[GroupRequest], scored: list[Scored], tags: TagReader) -> list[list[Examined]]:
    """Runs in a thread: reading and decoding long episodes must not hold up those that are still sampled."""
    return [
        [
            examined(request.question, episode, score, sample, tags)
            for sample, (episode, score) in enumerate(zip(each.episodes, each.scores, strict=True))
        ]
        for request, each in zip(requests, scored, strict=True)
    ]


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
    searches = [search for episode in episodes for search in episode.searches if search.tool == SEARCH]
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
        kv_use=engine.take_peak(),
        preemptions=int(engine.load()["preemptions"]),
        search_ms=[search.latency_ms for search in searches],
        searches_cached=sum(search.cached for search in searches),
        searches_degraded=sum(search.degraded for search in searches),
        searches_empty=sum(not search.documents for search in searches),
    )


class _NoRetrieval:
    """A run without a retrieval service. A search is then a failure, never an empty result."""

    async def search(self, query: SearchQuery) -> SearchResult:
        raise RetrievalError(f"this run has no retrieval service, but a phase allows the search {query.query!r}")


def searcher_for(handle: Any, config: RetrievalConfig) -> Any:
    if handle is None:
        return _NoRetrieval()
    from retrieval_service.client import RetrievalClient

    return RetrievalClient(handle, config)
