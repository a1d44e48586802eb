"""The episode protocol against any model and any engine: rows are valid, budgets hold, and a broken engine changes nothing.

Each example plays one episode. The model writes noise, phrases, or one of the bad habits; the engine cuts as a real one does, and now
and then breaks the contract first, which must be refused and leave no trace.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import EpisodeBudget
from actors.protocol import Call, EpisodeProtocol, Finish, Generate, Search
from actors.tokens import TagReader
from tests.unit.test_actors_protocol import PARTS, TAG_IDS, TAG_STRINGS, WORDS, as_row, encode_parts, ids, record
from trajectories.schema import Source, VersionSpan, check, to_table

ANSWERED = ("answer", "forced")
BUDGETS = st.builds(
    lambda room, reserve, **bounds: EpisodeBudget(max_response_tokens=room, answer_tokens=min(reserve, room - 1), **bounds),
    st.one_of(st.integers(1, 60), st.just(200), st.just(200)),
    st.sampled_from([0, 4, 8]),
    retrieval=st.sampled_from([True, True, True, False]),
    forbid_search=st.sampled_from([False, False, False, True]),
    max_searches=st.integers(0, 4),
    regenerations=st.integers(0, 2),
    parallel_searches=st.sampled_from([1, 2, 3]),
    tools=st.sampled_from([(), ("read",)]),
    distinct_passages=st.booleans(),
    max_turn_tokens=st.one_of(st.integers(1, 12), st.just(100), st.just(100)),
)
THOUGHTS = ["", "lomab", "lomab 42", "42 42 42"]
SOUND = [
    "<search> lomab </search>", "<search> 42 </search>", "<search> 42 || 42 lomab </search>", "<search> lomab 42 || lomab </search>",
    "<call> read 42 </call>", "<call> read lomab </call>", "</think> <answer> 42 </answer>",
]  # fmt: skip
ODD = [
    "<call> lomab </call>", "42 </answer>", "</think> <answer> 42", "<search> 42", "<document> 42 </document>", "<think>",
    "lomab " * 40, "",
]  # fmt: skip


def turns(tags: TagReader, prompt_ids: list[int]) -> st.SearchStrategy[list[int]]:
    """Mostly well-formed, or hardly an episode would ever get past its first turn; else phrases among noise."""
    encode = ids if tags is TAG_IDS else encode_parts
    tokens = len(WORDS) if tags is TAG_IDS else len(PARTS)
    before = tags.text(prompt_ids)
    opening = "" if "<think>" in before else "<think> "
    thinking = st.builds(lambda thought, then: f"{opening}{thought} {then}", st.sampled_from(THOUGHTS), st.sampled_from(SOUND))
    sound = (st.just("42 </answer>") if before.endswith("<answer>") else thinking).map(encode)
    stretch = st.one_of(st.integers(0, tokens - 1).map(lambda token: [token]), st.sampled_from([encode(text) for text in ODD]))
    wild = st.lists(stretch, max_size=6).map(lambda parts: encode(opening) + list(chain(*parts)))
    return st.integers(0, 7).flatmap(lambda kind: sound if kind else wild)


class Play:
    """What was written and shown is kept beside the protocol, and compared with what it asks and what it leaves."""

    def __init__(self, tags: TagReader, prompt: list[int], budget: EpisodeBudget) -> None:
        self.tags, self.prompt, self.budget = tags, prompt, budget
        self.protocol = EpisodeProtocol(tags, prompt, budget)
        self.written: list[int] = []  # by the model, in turns that count
        self.found: list[list[int]] = []
        self.version = 0
        self.steps = 0

    def generate(self, data: st.DataObject) -> None:
        broken = data.draw(st.sampled_from(["", "", "", "too many", "log-probabilities", "gap", "overlap", "short"]))
        action = self.protocol.next()
        assert isinstance(action, Generate)
        assert 1 <= action.max_tokens <= max(self.budget.max_turn_tokens, self.budget.answer_tokens)
        self.steps += 1
        assert self.steps <= (self.budget.max_searches + 2) * (1 + self.budget.regenerations), "no episode runs for ever"
        stream = data.draw(turns(self.tags, action.prompt_ids))
        output: list[int] = []
        for token in stream[: action.max_tokens]:
            if token in action.forbidden_token_ids:
                continue
            output.append(token)
            if token in action.stop_token_ids:
                break
        if broken:
            self.refused(action, output, broken)
        attempt, before = self.protocol.attempt, len(self.written)
        cut = data.draw(st.integers(0, len(output)))
        self.version += 1
        spans = [VersionSpan(1, self.version - 1, 0, cut), VersionSpan(1, self.version, cut, len(output))]
        self.protocol.on_tokens(output, [-0.25] * len(output), spans, action)
        if self.protocol.attempt > attempt:  # thrown away, and asked for again
            assert self.protocol.next() == action
            assert self.protocol.attempt <= self.budget.regenerations
        else:
            self.written += output
            assert len(self.written) == before + len(output)
        with pytest.raises(RuntimeError):  # the same answer once more
            self.protocol.on_tokens(output, [-0.25] * len(output), spans, action)

    def refused(self, action: Generate, output: list[int], how: str) -> None:
        n = len(output)
        whole = [VersionSpan(1, 0, 0, n)]
        answers: dict[str, tuple[list[int], list[float], list[VersionSpan]]] = {
            "too many": ([1] * (action.max_tokens + 1), [-1.0] * (action.max_tokens + 1), whole),
            "log-probabilities": (output, [-1.0] * (n + 1), whole),
            "gap": (output, [-1.0] * n, [VersionSpan(1, 0, 1, n + 1)]),
            "overlap": ([*output[: n - 1], 1], [-1.0] * max(n, 1), [VersionSpan(1, 0, 0, 1), VersionSpan(1, 1, 0, max(n, 1))]),
            "short": (output, [-1.0] * n, [VersionSpan(1, 0, 0, n - 1)] if n else [VersionSpan(1, 0, 0, 1)]),
        }
        with pytest.raises(ValueError):
            self.protocol.on_tokens(*answers[how])
        assert self.protocol.next() is action

    def look_up(self, data: st.DataObject) -> None:
        action = self.protocol.next()
        assert self.budget.retrieval and not self.budget.forbid_search
        if isinstance(action, Call):
            assert action.tool in self.budget.tools
            queries: tuple[str, ...] = (action.arguments,)
        else:
            assert isinstance(action, Search)
            queries = action.queries
            assert 1 <= len(queries) <= self.budget.parallel_searches
            assert all(query.strip() == query != "" for query in queries)
        with pytest.raises(RuntimeError):
            self.protocol.on_tokens([], [], [])
        found = data.draw(st.lists(st.integers(1, len(PARTS) - 1), max_size=12))
        self.protocol.on_documents(found, *(record(self.protocol.turn, query) for query in queries))
        self.found += [found] if found else []

    def late(self) -> None:
        """Whatever comes after the end is refused."""
        with pytest.raises(RuntimeError):
            self.protocol.on_tokens([], [], [])
        with pytest.raises(RuntimeError):
            self.protocol.on_documents([], record(0, "dose"))

    def prompts_only_grow(self) -> None:
        action = self.protocol.next()
        if isinstance(action, Generate):
            assert action.prompt_ids[: len(self.prompt)] == self.prompt
            length = len(action.prompt_ids) - len(self.prompt)
            assert length + action.max_tokens <= self.budget.max_response_tokens

    def the_row_is_valid(self) -> None:
        episode = as_row(self.protocol)
        assert check(asdict(episode)) == []
        assert check(to_table([episode]).to_pylist()[0]) == []
        assert len(episode.token_ids) - len(self.prompt) <= self.budget.max_response_tokens
        assert len(episode.searches) <= self.budget.max_searches
        trained = [token for token, masked_in in zip(episode.token_ids, episode.loss_mask, strict=True) if masked_in]
        assert trained == self.written
        shown = [episode.token_ids[s.start : s.end] for s in episode.segments if s.source == Source.DOCUMENT]
        assert shown in (self.found, self.found[:-1]), "everything but what had no room, which is the last"
        bridges = [s for s in episode.segments if s.source == Source.PROMPT and s.start >= len(self.prompt)]
        assert len(bridges) <= bool(self.budget.answer_tokens)
        assert bool(episode.answer) == (episode.finish in ANSWERED)
        assert (episode.finish != "forced") or bridges
        by_turn = {s.turn for s in episode.segments if s.source == Source.MODEL}
        assert {search.turn for search in episode.searches} <= by_turn, "a process reward finds its turn's tokens"


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([TAG_IDS, TAG_STRINGS]), st.sampled_from([[], [1], [11, 12]]), BUDGETS)
def test_any_episode_ends_in_a_valid_row(
    data: st.DataObject, tags: TagReader, prompt: list[int], budget: EpisodeBudget
) -> None:
    play = Play(tags, prompt, budget)
    while not isinstance(action := play.protocol.next(), Finish):
        play.prompts_only_grow()
        if isinstance(action, Generate):
            play.generate(data)
        else:
            play.look_up(data)
    play.the_row_is_valid()
    play.late()
