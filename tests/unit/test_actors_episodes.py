"""What a group becomes when its searches succeed, and when one fails. The policy is scripted, because a random model never searches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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
from tests.e2e.actors_tiny_model import build_byte_tokenizer, build_tokenizer
from trajectories.schema import Episode, VersionSpan, check, to_table

QUESTION = Question(id="q1", text="what dose lomab ?", kind="number", gold="7", lower=7, upper=7, collection="world-3")
TOKENIZER = EpisodeTokenizer(build_tokenizer())
TURNS = ["<think> <search> dose lomab </search>", "lomab 7 </think> <answer> 7 </answer>"]


@dataclass
class ScriptedPolicy:
    """Says one turn of `TURNS` after the other and remembers its requests."""

    seeds: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    temperatures: dict[str, float] = field(default_factory=dict)
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
        forbidden_token_ids: Sequence[int] = (),
    ) -> Completion:
        self.requests.append(request_id)
        self.temperatures[request_id.split(".")[2]] = temperature
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


@dataclass
class Spoken:
    """Says what a function of the request's id says."""

    says: Callable[[str], str]
    words: EpisodeTokenizer

    async def generate(self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, **sampling: object) -> Completion:
        ids = self.words.tags.spell(self.says(request_id))[:max_tokens]
        return Completion(ids, [-0.5] * len(ids), [VersionSpan(1, 0, 0, len(ids))])


def group(budget: EpisodeBudget, *, n: int, temperatures: tuple[float, ...] = ()) -> GroupRequest:
    recipe = RewardRecipe(terms=[RewardTerm(name="correct")])
    return GroupRequest("run", "g", 2, "joint", QUESTION, n, 1.0, 5, budget, recipe, temperatures)


def roll_out(
    policy: ScriptedPolicy,
    library: Library,
    *,
    n: int = 3,
    max_model_len: int = 128,
    temperatures: tuple[float, ...] = (),
    **bounds: object,
) -> list[Episode]:
    request = group(EpisodeBudget(**({"top_k": 4} | bounds)), n=n, temperatures=temperatures)
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


def test_a_budget_may_name_another_way_to_search() -> None:
    library = Library()
    roll_out(ScriptedPolicy(), library, retrieval_mode="dense")
    assert {query.mode for query in library.queries} == {"dense"}


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


@dataclass
class Habit:
    """A model that does one thing for ever, cut as a real engine cuts it; or an engine that breaks its contract."""

    text: str = ""
    engine: Callable[[list[int], int], Completion] | None = None
    asked: int = 0

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, stop_token_ids: Sequence[int], **sampling: object
    ) -> Completion:
        await asyncio.sleep(0)
        self.asked += 1
        ids: list[int] = []
        opening = "" if self.asked > 1 else "<think> "
        for token in BYTES.encode(opening + self.text.format(self.asked) * 400, add_special_tokens=False)[:max_tokens]:
            ids.append(token)
            if any(BYTES.decode(ids).rstrip().endswith(stop) for stop in sampling["stop_strings"]):
                break
        if self.engine is not None:
            return self.engine(ids, max_tokens)
        return Completion(ids, [-0.5] * len(ids), [VersionSpan(1, 0, 0, len(ids))])


BYTES = build_byte_tokenizer()
BROKEN_BYTE = BYTES.convert_tokens_to_ids("Ã")  # the first half of a character in two bytes


def with_habit(habit: Habit, *, n: int = 1, max_model_len: int = 4096, **bounds: object) -> list[Episode]:
    request = group(EpisodeBudget(**({"max_turn_tokens": 200, "max_response_tokens": 2000} | bounds)), n=n)
    return asyncio.run(EpisodeRunner(habit, EpisodeTokenizer(BYTES), Library(), "lexical", max_model_len).run(request))


@pytest.mark.parametrize(
    ("text", "bounds", "finish", "searches"),
    [
        ("so it is that {0} ", {}, "loop", 0),
        ("<document> rct 7 </document>", {}, "malformed", 0),
        ("</think> <answer> 7 </answer>", {}, "answer", 0),
        (
            "<search> dose {0} </search>",
            {"max_searches": 100, "max_response_tokens": 8000, "max_turn_tokens": 64},
            "searches",
            100,
        ),
        ("<search> dose {0} </search>", {}, "searches", 4),
        ("<search> dose </search>", {}, "loop", 1),
        ("<search> dose {0} </search>", {"max_searches": 100, "max_response_tokens": 120}, "budget", 2),
    ],
)
def test_bad_habits_end_in_rows_that_say_so(text: str, bounds: dict[str, int], finish: str, searches: int) -> None:
    [episode] = with_habit(Habit(text), max_model_len=16_384, **bounds)
    assert (episode.finish, len(episode.searches)) == (finish, searches)
    assert check(asdict(episode)) == []
    assert to_table([episode]).num_rows == 1


def test_bytes_that_are_no_characters_are_kept_as_tokens_and_shown_as_such() -> None:
    def half(ids: list[int], max_tokens: int) -> Completion:
        ids = [*BYTES.encode("<think> ", add_special_tokens=False), *[BROKEN_BYTE, ids[0]] * 9][:max_tokens]
        return Completion(ids, [-0.5] * len(ids), [VersionSpan(1, 0, 0, len(ids))])

    [episode] = with_habit(Habit("so", half))
    assert (episode.finish, episode.token_ids.count(BROKEN_BYTE)) == ("budget", 9)
    assert "\N{REPLACEMENT CHARACTER}" in episode.text
    assert to_table([episode])["text"][0].as_py() == episode.text
    [searched] = with_habit(Habit("<search> dose \xc3 </search>"))
    assert searched.finish == "loop"


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            lambda ids, most: Completion([1] * (most + 1), [-1.0] * (most + 1), [VersionSpan(1, 0, 0, most + 1)]),
            "for a request of 200",
        ),
        (lambda ids, most: Completion(ids, [], [VersionSpan(1, 0, 0, len(ids))]), "with 0 log-probabilities"),
        (
            lambda ids, most: Completion(ids, [-1.0] * len(ids), [VersionSpan(1, 0, 1, len(ids))]),
            "does not continue at token 0",
        ),
        (lambda ids, most: Completion(ids, [-1.0] * len(ids), []), "weight versions cover 0 of"),
    ],
)
def test_an_engine_that_breaks_its_contract_leaves_no_row(engine: Callable[[list[int], int], Completion], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_habit(Habit("so", engine), n=2)


def test_a_ladder_of_temperatures_is_climbed_by_the_episodes_of_a_group() -> None:
    policy = ScriptedPolicy()
    episodes = roll_out(policy, Library(), n=5, temperatures=(0.1, 0.4, 0.7, 1.0))
    assert [episode.temperature for episode in episodes] == [0.1, 0.4, 0.7, 1.0, 0.1]
    assert policy.temperatures == {str(i): episode.temperature for i, episode in enumerate(episodes)}
    assert {episode.temperature for episode in roll_out(ScriptedPolicy(), Library())} == {1.0}


def test_activity_is_exact_while_episodes_run_and_after_they_were_cancelled() -> None:
    async def scenario() -> None:
        policy, gate = ScriptedPolicy(), asyncio.Event()

        class Slow(Library):
            async def search(self, query: SearchQuery) -> SearchResult:
                await gate.wait()
                return await super().search(query)

        policy.slow = "g.2.0"
        runner = EpisodeRunner(policy, TOKENIZER, Slow(), "lexical", 128)
        task = asyncio.create_task(runner.run(group(EpisodeBudget(), n=4)))
        while runner.activity["searching"] < 3:  # noqa: ASYNC110 (a counter has no event)
            await asyncio.sleep(0)
        assert dict(runner.activity) == {"generating": 1, "searching": 3}
        gate.set()
        while runner.activity["searching"]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any(runner.activity.values())

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_the_queries_of_a_turn_travel_together_and_their_documents_arrive_in_order() -> None:
    class Answers(Library):
        async def search(self, query: SearchQuery) -> SearchResult:
            await asyncio.sleep(0.02 if query.query == "dose" else 0)  # the first is the last to be answered
            self.queries.append(query)
            hits = [Hit(id="shared", text="rct", score=1.0), Hit(id=query.query, text=query.query, score=0.5)]
            return SearchResult(hits=hits, index_hash="abc")

    def turns(request_id: str) -> str:
        return ["<think> <search> dose || lomab </search>", "7 </think> <answer> 7 </answer>"][
            int(request_id.rsplit(".", 1)[1])
        ]

    words = EpisodeTokenizer(build_tokenizer(("||",)))
    library = Answers()
    runner = EpisodeRunner(Spoken(turns, words), words, library, "lexical", 128)
    budget = EpisodeBudget(parallel_searches=2, distinct_passages=True)
    [episode] = asyncio.run(runner.run(group(budget, n=1)))
    assert [query.query for query in library.queries] == ["lomab", "dose"]
    assert [(search.turn, search.query, search.document_ids) for search in episode.searches] == [
        (0, "dose", ["shared", "dose"]),
        (0, "lomab", ["lomab"]),
    ]
    assert episode.text.count("<document>") == 3
    assert episode.text.index("<document> dose") < episode.text.index("<document> lomab")
    assert (episode.finish, check(asdict(episode))) == ("answer", [])


def test_a_failing_query_of_several_voids_the_group() -> None:
    words = EpisodeTokenizer(build_tokenizer(("||",)))
    runner = EpisodeRunner(
        Spoken(lambda request_id: "<think> <search> dose || lomab </search>", words), words,
        Library(RetrievalTimeout("late"), after=1), "lexical", 128,
    )  # fmt: skip
    with pytest.raises(GroupVoided, match="retrieval failed for group g: RetrievalTimeout: late"):
        asyncio.run(runner.run(group(EpisodeBudget(parallel_searches=2), n=2)))
