"""What a group becomes when its searches succeed, and when one fails. The policy is scripted, because a random model never searches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import pytest

from actors.config import EpisodeBudget
from actors.engine import Completion
from actors.episodes import EpisodeRunner
from actors.messages import GroupRequest, GroupVoided
from actors.tokens import EpisodeTokenizer
from retrieval_service.types import Hit, RetrievalRejected, RetrievalTimeout, SearchQuery, SearchResult
from rewards.config import RewardRecipe, RewardTerm
from tasks.questions import Question
from tests.e2e.actors_tiny_model import build_tokenizer
from trajectories.schema import Episode, VersionSpan, check

QUESTION = Question(id="q1", text="what dose lomab ?", kind="number", gold="7", lower=7, upper=7, collection="world-3")
TOKENIZER = EpisodeTokenizer(build_tokenizer())
TURNS = ["<think> <search> dose lomab </search>", "lomab 7 </think> <answer> 7 </answer>"]


@dataclass
class ScriptedPolicy:
    """Says one turn of `TURNS` after the other and remembers its requests."""

    seeds: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    cancelled: int = 0
    slow: str = ""  # requests of this episode never end

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
    ) -> Completion:
        self.requests.append(request_id)
        self.seeds.append(seed)
        try:
            await (asyncio.Event().wait() if self.slow and self.slow in request_id else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        turn = int(request_id.rsplit(".", 1)[1])
        ids = build_tokenizer().encode(TURNS[turn], add_special_tokens=False)[:max_tokens]
        return Completion(ids, [-0.5] * len(ids), [VersionSpan(1, turn, 0, len(ids))])


@dataclass
class Library:
    """Answers every query alike, or fails from the n-th search on."""

    failure: Exception | None = None
    after: int = 0
    queries: list[SearchQuery] = field(default_factory=list)

    async def search(self, query: SearchQuery) -> SearchResult:
        self.queries.append(query)
        if self.failure is not None and len(self.queries) > self.after:
            raise self.failure
        hit = Hit(id="d1", text="lomab dose rct 7", score=0.5, evidence_level=2)
        return SearchResult(hits=[hit], index_hash="abc", latency_ms=3.0, cached=True)


def roll_out(
    policy: ScriptedPolicy, library: Library, *, n: int = 3, max_model_len: int = 128, **bounds: object
) -> list[Episode]:
    recipe = RewardRecipe(terms=[RewardTerm(name="correct")])
    request = GroupRequest("run", "g", 2, "joint", QUESTION, n, 1.0, 5, EpisodeBudget(top_k=4, **bounds), recipe)
    return asyncio.run(EpisodeRunner(policy, TOKENIZER, library, "lexical", max_model_len).run(request))


def test_documents_are_woven_into_the_episode() -> None:
    policy, library = ScriptedPolicy(), Library()
    episodes = roll_out(policy, library)
    assert [episode.episode_id for episode in episodes] == ["g.2.0", "g.2.1", "g.2.2"]
    assert len(set(policy.seeds)) == 6  # no two turns alike
    assert {(query.query, query.k, query.mode, query.collection) for query in library.queries} == {
        ("dose lomab", 4, "lexical", "world-3")
    }
    for episode in episodes:
        assert check(asdict(episode)) == []
        assert (episode.finish, episode.answer, episode.attempt) == ("answer", "7", 2)
        assert "<document> lomab dose rct 7 </document>" in episode.text
        assert [(s.turn, s.document_ids, s.evidence_levels, s.latency_ms, s.cached) for s in episode.searches] == [
            (0, ["d1"], [2], 3.0, True)
        ]
        assert [span.number for span in episode.versions] == [0, 1]


def test_a_row_holds_only_the_passages_that_the_model_was_shown() -> None:
    [episode] = roll_out(ScriptedPolicy(), Library(), n=1, max_passages=0)
    assert [search.document_ids for search in episode.searches] == [[]]
    assert "<document>" not in episode.text
    assert episode.finish == "answer"


@pytest.mark.parametrize("failure", [RetrievalTimeout("no answer within 10 s"), RetrievalRejected("queue is full")])
def test_one_failed_search_voids_the_group_and_ends_its_other_episodes(failure: Exception) -> None:
    policy = ScriptedPolicy(slow="g.2.0")
    with pytest.raises(GroupVoided, match=f"retrieval failed for group g: {type(failure).__name__}: {failure}"):
        roll_out(policy, Library(failure, after=1))
    assert policy.cancelled >= 1


def test_a_response_never_outgrows_the_context() -> None:
    prompt = len(TOKENIZER.prompt(QUESTION))
    episodes = roll_out(ScriptedPolicy(), Library(), n=1, max_model_len=prompt + 8)
    assert episodes[0].finish == "budget"
    assert len(episodes[0].token_ids) <= prompt + 8
    with pytest.raises(GroupVoided, match=r"raise rollout\.engine\.max_model_len"):
        roll_out(ScriptedPolicy(), Library(), n=1, max_model_len=prompt)
