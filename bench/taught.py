"""Whole episodes on models that know nothing: the engine samples as many tokens as the teacher wrote, and the teacher's go on.

A random model never searches, and one that was taught takes minutes. So every turn asks the real engine for exactly as many tokens as the
teacher's turn has; those are sampled, transported and scored like any others, and then the teacher's words take their place. Protocol,
retrieval, rewards and Arrow see well-formed episodes of several searches, imperfect as the teacher is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from actors.config import EpisodeBudget
from actors.engine import Completion, PolicyEngine
from actors.episodes import EpisodeRunner
from actors.messages import GroupRequest
from actors.rollout import RolloutActor, searcher_for
from actors.tokens import EpisodeTokenizer
from retrieval_service.config import RetrievalConfig
from retrieval_service.index import HybridIndex
from retrieval_service.types import SearchQuery, SearchResult
from rewards.config import RewardRecipe
from tasks.questions import Document
from tasks.teacher import demonstrate
from tasks.vocabulary import build_tokenizer
from tasks.world import Universe

SOURCE = "world/joint"  # several hops, each with its search, unless the teacher stops early
BUDGET = EpisodeBudget(max_turn_tokens=64, max_response_tokens=256)  # the demo's
# The demo's last phase.
RECIPE = RewardRecipe.model_validate(
    {"terms": [{"name": "correct"}, {"name": "format", "weight": 0.1}, {"name": "evidence", "weight": 0.5}]}
)
Turns = list[list[int]]  # token ids of every turn


class Sent(NamedTuple):
    """One request as the engine got it."""

    request_id: str
    prompt_ids: list[int]
    tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Lessons:
    """Groups to roll out, what the teacher writes in each of their episodes, and what every search of theirs finds."""

    requests: list[GroupRequest]
    turns: dict[str, Turns]  # by episode: group id, a dot, index
    found: dict[SearchQuery, SearchResult]

    def tokens(self, requests: list[GroupRequest]) -> int:
        """What the model writes in these groups."""
        members = (f"{request.group_id}.{member}" for request in requests for member in range(request.n))
        return sum(len(turn) for member in members for turn in self.turns[member])


def prepare_lessons(universe: Universe, index: HybridIndex, config: RetrievalConfig, groups: int, group_size: int) -> Lessons:
    """The first training questions; the members of a group differ as the teacher's choices do."""
    lessons = Lessons([], {}, {})
    tokenizer = build_tokenizer()

    def search(collection: str, words: str) -> list[Document]:
        query = SearchQuery(query=words, k=BUDGET.top_k, mode=config.mode, collection=collection)
        if query not in lessons.found:
            lessons.found[query] = index.search([query])[0]
        return [Document(id=hit.id, text=hit.text) for hit in lessons.found[query].hits]

    for number in range(groups):
        question = universe.training_question(SOURCE, number)
        group_id = f"g{number}"
        lessons.requests.append(GroupRequest("bench", group_id, 0, "joint", question, group_size, 1.0, number, BUDGET, RECIPE))
        for member in range(group_size):
            taught = demonstrate(
                question=question,
                world=universe.training[number % len(universe.training)],
                rng=random.Random(f"{number}/{member}"),
                search=search,
            )
            own = [text for text, is_own in taught.pieces if is_own]
            lessons.turns[f"{group_id}.{member}"] = [tokenizer.encode(text, add_special_tokens=False) for text in own]
    return lessons


class SleepingService:
    """In the place of a Serve handle: answers what was found before, after a while. The client before it is the real one."""

    def __init__(self, found: dict[SearchQuery, SearchResult], delay_s: float) -> None:
        self._found, self._delay_s = found, delay_s
        self.search = self

    def remote(self, queries: Sequence[SearchQuery]) -> asyncio.Task[list[SearchResult]]:
        return asyncio.get_running_loop().create_task(self._answer(queries))

    async def _answer(self, queries: Sequence[SearchQuery]) -> list[SearchResult]:
        await asyncio.sleep(self._delay_s)
        return [self._found[query] for query in queries]


@dataclass
class TaughtPolicy:
    """The engine with the teacher's words. Keeps what it sent, and when how many tokens came."""

    engine: PolicyEngine
    turns: dict[str, Turns]
    sent: list[Sent] = field(default_factory=list)
    came: list[tuple[float, int]] = field(default_factory=list)

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
    ) -> Completion:
        group_id, _, member, _, turn = request_id.rsplit(".", 4)
        words = self.turns[f"{group_id}.{member}"][int(turn)]
        assert len(words) <= max_tokens, "the teacher keeps to the budget"
        self.sent.append(Sent(request_id, list(prompt_ids), len(words), temperature, seed))
        sampled = await self.engine.generate(
            request_id, prompt_ids, max_tokens=len(words), temperature=temperature, seed=seed, stop_token_ids=(),
            forbidden_token_ids=forbidden_token_ids,
        )  # fmt: skip
        self.came.append((time.perf_counter(), len(words)))
        return sampled._replace(token_ids=words)


class TaughtActor(RolloutActor):
    """The rollout actor in this very process, with the teacher between its engine and its episodes."""

    @property
    def llm(self) -> Any:
        """The bare AsyncLLM, which the other side of the comparison calls."""
        assert self._engine is not None
        return self._engine._engine()  # no part of the system needs it, only this comparison

    def teach(self, model_dir: str, lessons: Lessons, handle: Any, config: RetrievalConfig) -> TaughtPolicy:
        """From here on episodes follow the lessons and search through this handle."""
        assert self._engine is not None
        policy = TaughtPolicy(self._engine, lessons.turns)
        tokenizer = EpisodeTokenizer.from_folder(model_dir)
        self._runner = EpisodeRunner(policy, tokenizer, searcher_for(handle, config), config.mode, 512)
        return policy


async def replay(llm: Any, sent: list[Sent], width: int) -> None:
    """The same requests with nothing around them: every episode's turns one after the other, `width` groups at a time."""
    groups: dict[str, dict[str, list[Sent]]] = defaultdict(lambda: defaultdict(list))
    for request in sent:
        group_id, _, member, _, _ = request.request_id.rsplit(".", 4)
        groups[group_id][member].append(request)

    async def episode(requests: list[Sent]) -> None:
        for request in requests:
            await _bare(llm, request)

    async def group(episodes: dict[str, list[Sent]]) -> None:
        await asyncio.gather(*map(episode, episodes.values()))

    await at_once([lambda each=each: group(each) for each in groups.values()], width)  # type: ignore[misc]


async def _bare(llm: Any, request: Sent) -> None:
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    parameters = SamplingParams(
        max_tokens=request.tokens, temperature=request.temperature, seed=request.seed, ignore_eos=True, detokenize=False, logprobs=0,
        flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip
    async for output in llm.generate(tokens_input(request.prompt_ids), parameters, request.request_id):
        assert len(output.outputs[0].token_ids) == request.tokens


async def at_once(calls: Sequence[Callable[[], Awaitable[Any]]], width: int) -> list[Any]:
    """Begins the calls in order, the next one whenever one of `width` ends; their results in order."""
    places = asyncio.Semaphore(width)

    async def placed(call: Callable[[], Awaitable[Any]]) -> Any:
        async with places:
            return await call()

    return await asyncio.gather(*map(placed, calls))


def build_index(universe: Universe, folder: Path, config: RetrievalConfig) -> HybridIndex:
    HybridIndex.build(universe.documents(), folder, config)
    return HybridIndex.load(folder, config)
