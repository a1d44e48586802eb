"""The episode protocol, path by path. What it does under arbitrary streams is in test_actors_protocol_machine.py."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from actors.config import EpisodeBudget
from actors.protocol import Call, EpisodeProtocol, Finish, FinishReason, Generate, Search
from actors.tokens import TagIds, TagStrings
from tasks.prompting import ALL_TAGS, CALL_OPEN, SEARCH_OPEN
from tasks.questions import Question
from trajectories.schema import Episode, VersionSpan, check, to_table
from trajectories.schema import Search as SearchRecord

EOS = 0
WORDS = ["<eos>", *ALL_TAGS, "drug", "dose", "lomab", "42", "||", "read", "reason"]
ID = {word: i for i, word in enumerate(WORDS)}
QUESTION = Question(id="q1", text="dose lomab ?", kind="number", gold="42", lower=42, upper=42)
PROMPT = [ID["drug"], ID["dose"]]
TAG_IDS = TagIds({ID[tag]: tag for tag in ALL_TAGS}, EOS, lambda ids: " ".join(WORDS[i] for i in ids))

# The same language spelled so that every tag takes several tokens, and one token runs past a tag.
PARTS = ["<eos>", "<", "</", "think", "search", "document", "answer", "call", ">", ">\n\n", " ", "42", "lomab", "||", "read"]


def encode_parts(text: str) -> list[int]:
    """The longest part first, as a merging tokenizer would."""
    found: list[int] = []
    while text:
        part = max((part for part in PARTS if text.startswith(part)), key=len)
        found.append(PARTS.index(part))
        text = text[len(part) :]
    return found


TAG_STRINGS = TagStrings(EOS, lambda ids: "".join(PARTS[i] for i in ids), encode_parts, ALL_TAGS)


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
            protocol.on_documents(ids("<document> dose </document>"), record(protocol.turn, action.queries[0]))
    action = protocol.next()
    assert isinstance(action, Finish), action
    return action.reason


def test_a_whole_episode_with_one_search() -> None:
    protocol = EpisodeProtocol(TAG_IDS, PROMPT, EpisodeBudget())
    first, found, second = ids("<think> <search> dose lomab </search>"), ids("<document> 42 </document>"), None
    feed(protocol, first)
    assert protocol.next() == Search(("dose lomab",))
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
    assert (protocol.next(), protocol.attempt) == (Search(("dose lomab",)), 0), "the next turn has its own attempts"
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
    assert protocol.next() == Search(("lomab",))
    protocol.on_documents([], record(0, "lomab"))
    feed(protocol, parts("</", "think", ">\n\n", "<", "answer", ">", "42", "</", "answer", ">"))
    episode = as_row(protocol)
    assert episode.answer == "42"
    assert episode.token_ids[: len(turn)] == turn
    assert all(episode.loss_mask)
    assert check(asdict(episode)) == []


def play(*turns: str, budget: EpisodeBudget, found: str = "<document> dose </document>") -> EpisodeProtocol:
    """Plays turns as an engine would, cut at the limit; every query and call brings one document."""
    protocol = EpisodeProtocol(TAG_IDS, PROMPT, budget)
    for turn in turns:
        request = protocol.next()
        assert isinstance(request, Generate), request
        feed(protocol, ids(turn)[: request.max_tokens])
        if isinstance(action := protocol.next(), Search | Call):
            queries = action.queries if isinstance(action, Search) else (action.arguments,)
            protocol.on_documents(ids(" ".join([found] * len(queries))), *(record(protocol.turn, query) for query in queries))
    return protocol


def shape(episode: Episode) -> list[tuple[str, int, str]]:
    return [(s.source, s.turn, TAG_IDS.text(episode.token_ids[s.start : s.end])) for s in episode.segments[1:]]


def test_an_answer_is_forced_when_the_response_runs_out() -> None:
    budget = EpisodeBudget(max_response_tokens=20, answer_tokens=4)
    protocol = play("<think> " + "dose lomab drug " * 4, budget=budget)
    action = protocol.next()
    assert isinstance(action, Generate)
    assert action.max_tokens == 4
    assert protocol.turn == 1, "the answer is a turn of its own, so that its request and its seed are"
    feed(protocol, ids("42 </answer>"))
    assert protocol.next() == Finish(FinishReason.FORCED)
    episode = as_row(protocol)
    assert episode.answer == "42"
    # Of 20 tokens, 4 are kept for the answer and 3 for the longest that may have to be written before it.
    assert shape(episode) == [
        ("model", 0, "<think> dose lomab drug dose lomab drug dose lomab drug dose lomab drug"),
        ("prompt", 0, "</think> <answer>"),
        ("model", 1, "42 </answer>"),
    ]
    bridge = episode.segments[2]
    assert not any(episode.loss_mask[bridge.start : bridge.end])
    assert episode.logprobs[bridge.start : bridge.end] == [0.0, 0.0]
    assert check(asdict(episode)) == []


@pytest.mark.parametrize(
    ("turns", "bounds", "bridge", "reason"),
    [
        # one search more than allowed
        (
            ["<think> <search> dose </search>", "<search> lomab </search>", "42 </answer>"],
            {"max_searches": 1},
            "</think> <answer>",
            "forced",
        ),
        (["<think> <search> dose </search>", "42 </answer>"], {"max_searches": 0}, "</think> <answer>", "forced"),
        (
            ["<think> <call> read 42 </call>", "42 </answer>"],
            {"max_searches": 0, "tools": ("read",)},
            "</think> <answer>",
            "forced",
        ),
        # a turn that ran out of its own budget, in thought, in a query, in a call, before anything
        (["<think> dose lomab", "42 </answer>"], {"max_turn_tokens": 3}, "</think> <answer>", "forced"),
        (["<think> <search> dose", "42 </answer>"], {"max_turn_tokens": 3}, "</search> </think> <answer>", "forced"),
        (
            ["<think> <call> read", "42 </answer>"],
            {"max_turn_tokens": 3, "tools": ("read",)},
            "</call> </think> <answer>",
            "forced",
        ),
        (["", "42 </answer>"], {}, "<think> </think> <answer>", "forced"),
        # already on its way to the answer: nothing is written for it, and nothing was forced
        (["<think> dose </think>", "<answer> 42 </answer>"], {"max_turn_tokens": 3}, None, "answer"),
        (["<think> </think> <answer> 42", "lomab </answer>"], {"max_turn_tokens": 4}, None, "answer"),
        # what a model may still do wrong with its reserve
        (["<think> dose", "42 42 42 42"], {}, "</think> <answer>", "budget"),
        (["<think> dose", "<search> dose </search>"], {}, "</think> <answer>", "malformed"),
        (["<think> dose", "</answer>"], {}, "</think> <answer>", "malformed"),
        # the same search again is a loop still
        (["<think> <search> dose </search>", "<search> dose </search>"], {}, None, "loop"),
    ],
)
def test_where_an_answer_is_forced(turns: list[str], bounds: dict[str, object], bridge: str | None, reason: str) -> None:
    protocol = play(*turns, budget=EpisodeBudget(answer_tokens=4, **bounds))
    episode = as_row(protocol)
    assert episode.finish == reason
    assert [text for source, _, text in shape(episode) if source == "prompt"] == ([bridge] if bridge else [])
    assert bool(episode.answer) == (reason in ("answer", "forced"))
    assert check(asdict(episode)) == []


def test_an_answer_in_two_turns_is_read_as_one() -> None:
    protocol = play("<think> </think> <answer> 42", "lomab </answer>", budget=EpisodeBudget(answer_tokens=4, max_turn_tokens=4))
    assert protocol.answer == "42 lomab"


def test_documents_without_room_force_the_answer() -> None:
    budget = EpisodeBudget(max_response_tokens=16, answer_tokens=4)
    protocol = play("<think> <search> dose </search>", budget=budget, found="<document> lomab lomab lomab lomab </document>")
    assert isinstance(protocol.next(), Generate)
    feed(protocol, ids("42 </answer>"))
    episode = as_row(protocol)
    assert episode.finish == "forced"
    assert [search.documents for search in episode.searches] == [[]], "the model was not shown them"
    assert [source for source, _, _ in shape(episode)] == ["model", "prompt", "model"]


def test_a_context_too_small_for_the_reserve_ends_in_budget() -> None:
    def budget(room: int) -> EpisodeBudget:
        return EpisodeBudget(max_response_tokens=64, answer_tokens=8).model_copy(update={"max_response_tokens": room})

    assert EpisodeProtocol(TAG_IDS, PROMPT, budget(3)).next() == Finish(FinishReason.BUDGET)
    protocol = EpisodeProtocol(TAG_IDS, PROMPT, budget(5))  # the three tags fit, and two tokens
    feed(protocol, ids("42 </answer>"))
    assert (protocol.next(), protocol.turn) == (Finish(FinishReason.FORCED), 0)
    assert check(asdict(as_row(protocol))) == []


def test_an_answer_reserve_must_leave_something_to_think_with() -> None:
    with pytest.raises(ValueError, match=r"answer_tokens \(256\) must stay below max_response_tokens \(256\)"):
        EpisodeBudget(answer_tokens=256)


def test_a_forced_answer_is_spelled_where_tags_take_several_tokens() -> None:
    protocol = EpisodeProtocol(TAG_STRINGS, [], EpisodeBudget(max_turn_tokens=5, answer_tokens=9))
    feed(protocol, parts("<", "think", ">\n\n", "lomab", "</"))  # cut in the middle of a tag
    feed(protocol, parts("42", "</", "answer", ">"))
    episode = as_row(protocol)
    assert (episode.finish, episode.answer) == ("forced", "42")
    assert episode.text == "<think>\n\nlomab</</think> <answer>42</answer>"
    with pytest.raises(ValueError, match="without `encode`"):
        EpisodeProtocol(TagStrings(EOS, TAG_STRINGS.decode), [], EpisodeBudget(answer_tokens=9))


@pytest.mark.parametrize(
    ("query", "bounds", "expected"),
    [
        ("dose || lomab", {"parallel_searches": 2}, Search(("dose", "lomab"))),
        ("dose || lomab", {}, Search(("dose || lomab",))),  # ordinary text
        ("dose", {"parallel_searches": 2}, Search(("dose",))),
        ("dose ||", {"parallel_searches": 2}, Finish(FinishReason.MALFORMED)),
        ("||", {"parallel_searches": 2}, Finish(FinishReason.MALFORMED)),
        ("dose || dose", {"parallel_searches": 2}, Finish(FinishReason.LOOP)),
        ("dose || lomab || 42", {"parallel_searches": 2}, Finish(FinishReason.SEARCHES)),
        ("dose || lomab || 42", {"parallel_searches": 3, "max_searches": 2}, Finish(FinishReason.SEARCHES)),
    ],
)
def test_queries_of_one_turn(query: str, bounds: dict[str, int], expected: object) -> None:
    protocol = EpisodeProtocol(TAG_IDS, PROMPT, EpisodeBudget(**bounds))
    feed(protocol, ids(f"<think> <search> {query} </search>"))
    assert protocol.next() == expected


def test_parallel_searches_count_one_by_one_and_share_a_turn() -> None:
    budget = EpisodeBudget(parallel_searches=2, max_searches=3)
    searched = "<think> <search> dose || lomab </search>"
    protocol = play(searched, budget=budget)
    with pytest.raises(RuntimeError, match="documents arrived"):
        protocol.on_documents([], record(0, "dose"))
    feed(protocol, ids("<search> 42 || drug </search>"))
    assert protocol.next() == Finish(FinishReason.SEARCHES)
    episode = as_row(protocol)
    assert [(search.turn, search.query) for search in episode.searches] == [(0, "dose"), (0, "lomab")]
    two = EpisodeProtocol(TAG_IDS, PROMPT, budget)
    feed(two, ids(searched))
    with pytest.raises(ValueError, match="1 records arrived for 2 queries"):
        two.on_documents([], record(0, "dose"))


@pytest.mark.parametrize(
    ("turns", "bounds", "reason"),
    [
        (["<think> <call> read 42 </call>", "dose </think> <answer> 42 </answer>"], {}, "answer"),
        (["<think> <call> read </call>", "dose </think> <answer> 42 </answer>"], {}, "answer"),  # the tool says what is missing
        (["<think> <call> dose 42 </call>"], {}, "malformed"),  # no such tool
        (["<think> <call> read 42 </call>"], {"tools": ()}, "malformed"),
        (["<think> <call> read 42 </call>"], {"retrieval": False}, "malformed"),
        (["<think> <call> </call>"], {}, "malformed"),
        (["<think> <call> read <search> dose </search> </call>"], {}, "malformed"),
        (["<think> <call> read 42 </search>"], {}, "malformed"),
        (["<think> <call> read 42 </call>", "<call> read 42 </call>"], {}, "loop"),
        (["<think> <call> read dose </call>", "<search> dose </search>", "</think> <answer> 42 </answer>"], {}, "answer"),
        (["<think> <call> read 42 </call>", "<search> dose </search>"], {"max_searches": 1}, "searches"),
    ],
)
def test_calls_of_tools(turns: list[str], bounds: dict[str, object], reason: str) -> None:
    protocol = play(*turns, budget=EpisodeBudget(**({"tools": ("read",)} | bounds)))
    assert protocol.next() == Finish(FinishReason(reason))


def test_a_call_names_its_tool_and_hands_on_its_arguments_as_written() -> None:
    protocol = EpisodeProtocol(TAG_STRINGS, [], EpisodeBudget(tools=("read",)))
    feed(protocol, encode_parts("<think><call> read 42  lomab </call>"))
    assert protocol.next() == Call("read", "42  lomab")


def test_where_tools_are_off_a_call_tag_is_ordinary_text() -> None:
    plain = TagStrings(EOS, TAG_STRINGS.decode, encode_parts)
    protocol = EpisodeProtocol(plain, [], EpisodeBudget())
    feed(protocol, encode_parts("<think><call>42</call></think><answer>42</answer>"))
    assert protocol.next() == Finish(FinishReason.ANSWER)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ("<think> " + "dose lomab " * 16, "loop"),
        ("<think> " + "dose lomab " * 12, "budget"),  # too few to be sure
        ("<think> " + "dose " * 40, "loop"),
        ("<think> " + "dose " * 40 + "lomab", "budget"),  # it came out of it
        ("<think> " + "dose " * 40 + "</think> <answer> 42 </answer>", "answer"),
        ("<think> " + "dose " * 40 + "</answer>", "malformed"),
    ],
)
def test_a_turn_that_says_the_same_over_and_over_is_a_loop(turn: str, reason: str) -> None:
    assert ending(turn) == reason
    if reason == "loop":
        assert ending(turn, budget=EpisodeBudget(answer_tokens=8)) == "loop", "there is nothing to conclude from"


def test_a_closed_book_forbids_the_tags_that_open_a_search_or_a_call() -> None:
    closed = EpisodeProtocol(TAG_IDS, PROMPT, EpisodeBudget(forbid_search=True, answer_tokens=4, max_turn_tokens=2))
    assert set(closed.next().forbidden_token_ids) == {ID[SEARCH_OPEN], ID[CALL_OPEN]}
    feed(closed, ids("<think> dose"))
    assert set(closed.next().forbidden_token_ids) == {ID[SEARCH_OPEN], ID[CALL_OPEN]}, "for the forced answer as well"
    assert EpisodeProtocol(TAG_IDS, PROMPT, EpisodeBudget()).next().forbidden_token_ids == ()
    # Where a tag is several tokens, none of them can be forbidden alone; a search is then malformed.
    spelled = EpisodeProtocol(TAG_STRINGS, [], EpisodeBudget(forbid_search=True))
    assert spelled.next().forbidden_token_ids == ()
    feed(spelled, encode_parts("<think><search>lomab</search>"))
    assert spelled.next() == Finish(FinishReason.MALFORMED)


def test_an_engine_that_answers_twice_is_told_so() -> None:
    protocol = EpisodeProtocol(TAG_IDS, PROMPT, EpisodeBudget(regenerations=1))
    request, malformed = protocol.next(), ids("</think>")
    answer = (malformed, [-1.0], [VersionSpan(1, 0, 0, 1)], request)
    protocol.on_tokens(*answer)
    assert protocol.next() == request, "the same is asked again"
    with pytest.raises(RuntimeError, match="answered before"):
        protocol.on_tokens(*answer)
    feed(protocol, malformed)
    with pytest.raises(RuntimeError, match="waits for Finish"):
        feed(protocol, malformed)
