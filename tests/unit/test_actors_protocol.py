"""The episode protocol under arbitrary token streams: it never raises, its rows are always valid, its budgets always hold."""

from __future__ import annotations

import functools
import operator
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import EpisodeBudget
from actors.protocol import EpisodeProtocol, Finish, FinishReason, Generate, Search
from actors.tokens import TagIds, TagReader, TagStrings
from tasks.prompting import TAGS
from tasks.questions import Question
from trajectories.schema import Episode, Source, VersionSpan, check, to_table
from trajectories.schema import Search as SearchRecord

EOS = 0
WORDS = ["<eos>", *TAGS, "drug", "dose", "lomab", "42"]
ID = {word: i for i, word in enumerate(WORDS)}
QUESTION = Question(id="q1", text="dose lomab ?", kind="number", gold="42", lower=42, upper=42)
PROMPT = [ID["drug"], ID["dose"]]
TAG_IDS = TagIds({ID[tag]: tag for tag in TAGS}, EOS, lambda ids: " ".join(WORDS[i] for i in ids))

# The same language spelled so that every tag takes several tokens, and one token runs past a tag.
PARTS = ["<eos>", "<", "</", "think", "search", "document", "answer", ">", ">\n\n", " ", "42", "lomab"]
TAG_STRINGS = TagStrings(EOS, lambda ids: "".join(PARTS[i] for i in ids))


def ids(text: str) -> list[int]:
    return [ID[word] for word in text.split()]


def parts(*spelled: str) -> list[int]:
    return [PARTS.index(part) for part in spelled]


def record(turn: int, query: str) -> SearchRecord:
    return SearchRecord(turn, query, ["d1"], ["text"], [1.0], [2], "hash", 1.5)


def feed(protocol: EpisodeProtocol, tokens: list[int]) -> None:
    protocol.on_tokens(tokens, [-0.5] * len(tokens), [VersionSpan(1, 0, 0, len(tokens))])


def as_row(protocol: EpisodeProtocol) -> Episode:
    return protocol.to_episode(QUESTION, run_id="r", group_id="g", episode_id="e", attempt=0, phase="p")


def ending(*turns: str, budget: EpisodeBudget | None = None, prompt: list[int] | None = None) -> FinishReason:
    """Plays turns, each search answered by one document, and says how the episode ended."""
    protocol = EpisodeProtocol(TAG_IDS, PROMPT if prompt is None else prompt, budget or EpisodeBudget())
    for turn in turns:
        assert isinstance(protocol.next(), Generate)
        feed(protocol, ids(turn))
        if isinstance(action := protocol.next(), Search):
            protocol.on_documents(ids("<document> dose </document>"), record(protocol.turn, action.query))
    action = protocol.next()
    assert isinstance(action, Finish), action
    return action.reason


def test_a_whole_episode_with_one_search() -> None:
    protocol = EpisodeProtocol(TAG_IDS, PROMPT, EpisodeBudget())
    first, found, second = ids("<think> <search> dose lomab </search>"), ids("<document> 42 </document>"), None
    feed(protocol, first)
    assert protocol.next() == Search("dose lomab")
    protocol.on_documents(found, record(0, "dose lomab"))
    again = protocol.next()
    assert isinstance(again, Generate)
    assert again.prompt_ids == PROMPT + first + found
    second = ids("lomab 42 </think> <answer> 42 </answer>")
    feed(protocol, second)
    assert protocol.next() == Finish(FinishReason.ANSWER)
    episode = as_row(protocol)
    assert episode.answer == "42"
    assert episode.finish == "answer"
    assert episode.token_ids == PROMPT + first + found + second
    assert [(s.source, s.turn) for s in episode.segments] == [("prompt", -1), ("model", 0), ("document", 0), ("model", 1)]
    assert sum(episode.loss_mask) == len(first) + len(second)
    assert episode.text.startswith("<think> <search> dose lomab </search> <document>")
    assert check(asdict(episode)) == []
    assert to_table([episode]).num_rows == 1


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (["<think> 42 </think> <answer> 42 </answer>"], "answer"),
        (["<think> 42 </think> <answer> 42 </answer> <eos>"], "answer"),
        (["<answer> 42 </answer>"], "malformed"),  # no thinking
        (["dose <think> 42 </think> <answer> 42 </answer>"], "malformed"),  # words before thinking
        (["<think> </think> dose <answer> 42 </answer>"], "malformed"),  # words between thinking and answer
        (["<think> </think> <answer> </answer>"], "malformed"),  # empty answer
        (["<think> <think> </think> <answer> 42 </answer>"], "malformed"),
        (["<think> <document> 42 </document>"], "malformed"),  # invents a document
        (["<think> <search> </search>"], "malformed"),  # empty query
        (["<search> dose </search>"], "malformed"),  # outside thinking
        (["<think> </think> <search> dose </search>"], "malformed"),  # after thinking
        (["<think> <search> dose </think> <answer> 42 </answer>"], "malformed"),  # never closed
        (["<think> </search>"], "malformed"),  # never opened
        (["<think> dose <eos>"], "malformed"),  # ends without an answer
        (["<think> <search> dose </search>", "<eos>"], "malformed"),
        (["<think> dose dose"], "budget"),  # the engine stopped it in mid-thought
        ([""], "budget"),
        (["<think> <search> dose </search>", "<search> dose </search>"], "loop"),
        (["<think> <search> dose </search>", "<search> lomab </search>", "<search> drug </search>"], "searches"),
    ],
)
def test_how_episodes_end(turns: list[str], reason: str) -> None:
    assert ending(*turns, budget=EpisodeBudget(max_searches=2)) == reason


def test_a_search_is_malformed_where_retrieval_is_off() -> None:
    assert ending("<think> <search> dose </search>", budget=EpisodeBudget(retrieval=False)) == "malformed"


def test_a_chat_template_may_open_the_thinking() -> None:
    assert ending("dose </think> <answer> 42 </answer>", prompt=ids("drug <think>")) == "answer"
    assert ending("dose </think> <answer> 42 </answer>", prompt=ids("<think> drug")) == "malformed"


def test_documents_without_room_end_the_episode_and_are_not_appended() -> None:
    protocol = EpisodeProtocol(TAG_IDS, PROMPT, EpisodeBudget(max_response_tokens=7))
    feed(protocol, ids("<think> <search> dose </search>"))
    protocol.on_documents(ids("<document> 42 </document>"), record(0, "dose"))
    assert protocol.next() == Finish(FinishReason.BUDGET)
    episode = as_row(protocol)
    assert len(episode.token_ids) == len(PROMPT) + 4
    assert len(episode.searches) == 1


def test_a_malformed_turn_is_sampled_again_and_leaves_no_trace_until_it_counts() -> None:
    budget = EpisodeBudget(regenerations=2)
    protocol = EpisodeProtocol(TAG_IDS, PROMPT, budget)
    asked, malformed = protocol.next(), ids("</think> <search>")
    for attempt in (1, 2):
        feed(protocol, malformed)
        assert (protocol.next(), protocol.attempt) == (asked, attempt)
    feed(protocol, ids("<think> <search> dose lomab </search>"))
    assert (protocol.next(), protocol.attempt) == (Search("dose lomab"), 0), "the next turn has its own attempts"
    protocol.on_documents(ids("<document> 42 </document>"), record(0, "dose lomab"))
    for _ in range(3):
        feed(protocol, malformed)
    assert protocol.next() == Finish(FinishReason.MALFORMED)
    episode = as_row(protocol)
    assert check(asdict(episode)) == []
    assert episode.token_ids.count(ID["</think>"]) == 1, "of three malformed turns only the last one counts"


def test_what_was_shown_before_and_passages_beyond_the_most_are_not_shown() -> None:
    def admitted(**bounds: object) -> list[int]:
        protocol = EpisodeProtocol(TAG_IDS, PROMPT, EpisodeBudget(**bounds))
        feed(protocol, ids("<think> <search> dose lomab </search>"))
        protocol.on_documents(ids("<document> 42 </document>"), record(0, "dose lomab"))  # shows d1
        return protocol.admitted(["d1", "d2", "d3"])

    assert admitted() == [0, 1, 2]
    assert admitted(distinct_passages=True) == [1, 2]
    assert admitted(max_passages=2) == [0]
    assert admitted(distinct_passages=True, max_passages=2) == [1]
    assert admitted(max_passages=1) == []


def test_a_broken_engine_is_told_so() -> None:
    def protocol() -> EpisodeProtocol:
        return EpisodeProtocol(TAG_IDS, PROMPT, EpisodeBudget(max_turn_tokens=2))

    with pytest.raises(ValueError, match="3 tokens with 3 log-probabilities for a request of 2"):
        feed(protocol(), ids("<think> dose dose"))
    with pytest.raises(ValueError, match="weight versions cover 1 of 2"):
        protocol().on_tokens(ids("<think> dose"), [-1.0, -1.0], [VersionSpan(1, 0, 0, 1)])
    with pytest.raises(RuntimeError, match="waits for"):
        protocol().on_documents([], record(0, "dose"))
    with pytest.raises(RuntimeError, match="not finished"):
        as_row(protocol())


def test_a_token_that_runs_past_a_tag_is_kept_and_trained() -> None:
    turn = parts("<", "think", ">", "<", "search", ">", "lomab", "</", "search", ">\n\n")
    protocol = EpisodeProtocol(TAG_STRINGS, [], EpisodeBudget())
    assert protocol.next() == Generate([], 96, (EOS,), TAG_STRINGS.stop_strings)
    feed(protocol, turn)
    assert protocol.next() == Search("lomab")
    protocol.on_documents([], record(0, "lomab"))
    feed(protocol, parts("</", "think", ">\n\n", "<", "answer", ">", "42", "</", "answer", ">"))
    episode = as_row(protocol)
    assert episode.answer == "42"
    assert episode.token_ids[: len(turn)] == turn
    assert all(episode.loss_mask)
    assert check(asdict(episode)) == []


def engine_output(generate: Generate, stream: list[int]) -> list[int]:
    """What a real engine returns of a stream: cut after the first stop token, or at the limit."""
    output: list[int] = []
    for token in stream[: generate.max_tokens]:
        output.append(token)
        if token in generate.stop_token_ids:
            break
    return output


budgets = st.builds(
    EpisodeBudget,
    retrieval=st.booleans(),
    max_searches=st.integers(0, 3),
    regenerations=st.integers(0, 2),
    max_turn_tokens=st.integers(1, 12),
    max_response_tokens=st.integers(1, 40),
)
# Well-formed stretches among the noise, or hardly a stream would ever get past its first turn.
phrases = ["<think>", "<search> dose </search>", "<search> lomab </search>", "</think> <answer> 42 </answer>", "dose"]
noise = st.integers(0, len(WORDS) - 1).map(lambda token: [token])
streams = st.lists(st.one_of(noise, st.sampled_from([ids(phrase) for phrase in phrases])), max_size=12).map(
    lambda xs: functools.reduce(operator.iadd, xs, [])
)
part_streams = st.lists(st.integers(0, len(PARTS) - 1), max_size=20)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(st.integers(1, 9), max_size=5), budgets)
def test_any_stream_ends_in_a_valid_row(data: st.DataObject, prompt: list[int], budget: EpisodeBudget) -> None:
    tags: TagReader = data.draw(st.sampled_from([TAG_IDS, TAG_STRINGS]))
    stream = streams if tags is TAG_IDS else part_streams
    protocol = EpisodeProtocol(tags, prompt, budget)
    written: list[int] = []
    history = list(prompt)
    version = 0
    for _ in range((2 * budget.max_searches + 3) * (1 + budget.regenerations)):  # no episode takes more steps
        action = protocol.next()
        if isinstance(action, Finish):
            break
        if isinstance(action, Generate):
            assert action.prompt_ids == history  # exactly what was seen before, continued
            assert 1 <= action.max_tokens <= budget.max_turn_tokens
            output = engine_output(action, data.draw(stream))
            cut = data.draw(st.integers(0, len(output)))
            version += 1
            spans = [VersionSpan(1, version - 1, 0, cut), VersionSpan(1, version, cut, len(output))]
            protocol.on_tokens(output, [-0.25] * len(output), spans)
            if protocol.attempt:  # thrown away, and asked for again
                assert protocol.next() == action
                assert protocol.attempt <= budget.regenerations
                continue
            written += output
            history += output
        else:
            assert budget.retrieval
            assert action.query.strip() == action.query != ""
            found = data.draw(st.lists(st.integers(1, len(PARTS) - 1), max_size=8))
            protocol.on_documents(found, record(protocol.turn, action.query))
            if isinstance(following := protocol.next(), Generate):
                history += found
                assert following.prompt_ids == history
    assert isinstance(protocol.next(), Finish)
    episode = as_row(protocol)
    row = asdict(episode)
    assert check(row) == []
    assert check(to_table([episode]).to_pylist()[0]) == []
    assert episode.token_ids == history
    assert len(history) - len(prompt) <= budget.max_response_tokens
    assert len(episode.searches) <= budget.max_searches
    from_model = [token for token, masked_in in zip(episode.token_ids, episode.loss_mask, strict=True) if masked_in]
    assert from_model == written
    spans_of_model = [s for s in episode.segments if s.source == Source.MODEL]
    assert sum(s.end - s.start for s in spans_of_model) == len(written)
    assert bool(episode.answer) == (episode.finish == "answer")
