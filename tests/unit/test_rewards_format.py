"""What form earns: graded and signed forms, repeated and superfluous searches, look-alikes of tags."""

from __future__ import annotations

import pytest
from hypothesis import example, given

from rewards.findings import NO_FINDINGS
from rewards.format import format_graded, format_signed, is_well_formed, malformed, repeated_search, search_count, well_formed
from rewards.text import own_text, own_thinking, tags_in_order, without
from tasks.prompting import TAGS
from tests.reward_episodes import EPISODES, LOOK_ALIKES, PIECES, QUESTIONS, WORDS, episode, searched
from trajectories.schema import Episode

QUESTION = QUESTIONS[0]
GOOD = "<think> a </think> <answer> B </answer>"


@pytest.mark.parametrize(
    ("of", "graded", "reason"),
    [
        (episode(GOOD), 1.0, "well-formed"),
        (episode("<answer> B </answer>"), 0.5, "only the answer is well-formed: the end is not one thinking and one answer"),
        (
            episode("<think> a <answer> B </answer>", finish="malformed"),
            0.5,
            "only the answer is well-formed: ended by malformed instead",
        ),
        (episode("<think> <search> q </think> <answer> B </answer>"), 0.5, "tags out of order in the thinking"),
        (episode("<think> a", finish="budget"), 0.0, "ended by budget instead of an answer"),
        (episode("<think> a </think> <answer> </answer>"), 0.0, "an empty answer"),
        (
            episode("<think> <document> x </document> </think> <answer> B </answer>"),
            0.0,
            "a document of the model's own making",
        ),
    ],
)
def test_three_grades_and_two_signs(of: Episode, graded: float, reason: str) -> None:
    earned = format_graded(QUESTION, of, NO_FINDINGS)
    assert earned.value == graded and reason in earned.reason
    assert format_signed(QUESTION, of, NO_FINDINGS).value == (1.0 if graded == 1.0 else -1.0)
    assert well_formed(QUESTION, of, NO_FINDINGS).value == float(graded == 1.0)


def test_malformed_is_what_the_protocol_called_so() -> None:
    assert malformed(QUESTION, episode("<think> <search> </search>", finish="malformed"), NO_FINDINGS).value == -1.0
    assert malformed(QUESTION, episode("<think>", finish="budget"), NO_FINDINGS).value == 0.0


@pytest.mark.parametrize(
    ("queries", "finish", "arguments", "expected", "turns"),
    [
        (["a", "b", "c"], "answer", {}, 0.0, {}),
        (["Gout drug", "gout, drug", "b"], "answer", {}, -0.5, {1: -0.5}),
        (["the gout", "Gout.", "gout"], "answer", {}, -1.0, {1: -0.5, 2: -0.5}),
        (["a", "a", "a", "a"], "answer", {}, -1.0, {1: -0.5, 2: -0.5, 3: 0.0}),  # no more to lose
        (["gout"], "loop", {}, -0.5, {1: -0.5}),  # the second one was refused
        (["gout", "gouty"], "answer", {"cost": 1.0}, 0.0, {}),
        (["gout", "Gout"], "answer", {"cost": 0.1}, -0.1, {1: -0.1}),
    ],
)
def test_repeated_search(
    queries: list[str], finish: str, arguments: dict[str, float], expected: float, turns: dict[int, float]
) -> None:
    text = "<think> <search> gout </search>" if finish == "loop" else GOOD
    of = episode(text, *[searched(turn, query) for turn, query in enumerate(queries)], finish=finish)
    earned = repeated_search(QUESTION, of, NO_FINDINGS, **arguments)
    assert (earned.value, earned.turns) == (pytest.approx(expected), pytest.approx(turns))


def test_search_count_charges_the_turns_beyond_the_free_ones() -> None:
    of = episode(GOOD, *[searched(turn, str(turn)) for turn in range(4)])
    earned = search_count(QUESTION, of, NO_FINDINGS, free=2, cost=0.3)
    assert earned.value == pytest.approx(-0.6) and earned.turns == pytest.approx({2: -0.3, 3: -0.3})
    for arguments in ({"free": -1}, {"cost": 1.5}):
        with pytest.raises(ValueError, match="needs free ≥ 0 and 0 ≤ cost ≤ 1"):
            search_count(QUESTION, of, NO_FINDINGS, **arguments)
    with pytest.raises(ValueError, match="needs 0 ≤ cost ≤ 1"):
        repeated_search(QUESTION, of, NO_FINDINGS, cost=float("nan"))


@pytest.mark.parametrize("look_alike", LOOK_ALIKES)
def test_a_look_alike_is_ordinary_text(look_alike: str) -> None:
    assert tags_in_order(look_alike) == []
    assert is_well_formed(episode(f"<think> {look_alike} </think> <answer> {look_alike} B </answer>"))


@pytest.mark.timeout(60)
def test_hostile_length_is_read_in_linear_time() -> None:
    for tag in ("<document></document>", "<document> <search> ", "<think>", "</document><document>"):
        of = episode("<think> " + tag * 50_000, searched(0, "q", *["x"] * 100_000))
        assert not is_well_formed(of)
        assert format_graded(QUESTION, of, NO_FINDINGS).value == 0.0
    assert len(without("<a>b</a>" * 200_000, "<a>", "</a>")) == 200_000


@given(EPISODES)
def test_every_form_has_a_value_in_range_and_turns_that_add_up(of: Episode) -> None:
    graded, signed = format_graded(QUESTION, of, NO_FINDINGS).value, format_signed(QUESTION, of, NO_FINDINGS).value
    assert graded in (0.0, 0.5, 1.0) and signed in (-1.0, 1.0) and (graded == 1.0) == (signed == 1.0)
    for charge in (search_count, repeated_search):
        for cost in (0.0, 0.1, 0.3, 1.0):
            earned = charge(QUESTION, of, NO_FINDINGS, cost=cost)
            assert -1.0 <= earned.value <= 0.0
            assert sum(earned.turns.values()) == pytest.approx(earned.value)


@given(WORDS, WORDS, WORDS)
def test_form_reads_tags_and_no_words(thinking: str, query: str, document: str) -> None:
    text = f"<think> {thinking} <search> {query} </search> <document> {document} </document> </think> <answer> B </answer>"
    assert is_well_formed(episode(text, searched(0, query, document)))


@given(PIECES)
@example("<thi<document> x </document>nk> <<document></document>/answer>")
def test_the_models_own_text_never_gains_tags(text: str) -> None:
    for own in (own_text(text), own_thinking(text)):
        assert all(own.count(tag) <= text.count(tag) for tag in TAGS)
