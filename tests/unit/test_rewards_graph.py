"""The reasoning graph: what the thinking states, and how like a reference it is."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.extraction import MAX_NAME_CHARACTERS, MAX_TRIPLES, graph_of, settled_by_rule, statements, thinking_by_turn
from rewards.findings import NO_FINDINGS, Findings, Triple
from rewards.graph import (
    MAX_PATHS,
    graph_logic,
    graph_semantic,
    graph_statistic,
    jaccard,
    likenesses,
    paths,
    reasoning_graph,
)
from tasks.config import WorldConfig
from tasks.questions import Question
from tasks.world import SOURCES, World
from tests.rewarded import CAUSE, CAUSE_WRONG, FIRST, HONEST, HOSTILE, INHIBITOR, QUESTION, QUESTIONS, SECOND, STRANGER, episode
from trajectories.schema import Episode

REFERENCE = QUESTION.reference_graphs[0]
CHAIN = ("dovun", "disease-cause", "kawib"), ("kawib", "gene-inhibitor", "muzel")


def own(*triples: tuple[str, str, str]) -> Findings:
    return Findings(graph=tuple(Triple(*triple) for triple in triples))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CAUSE, [("disease-cause", "dovun", 3, "kawib")]),
        (f"so {CAUSE} and {INHIBITOR}", [("disease-cause", "dovun", 3, "kawib"), ("gene-inhibitor", "kawib", 1, "muzel")]),
        ("drug-dose lomab rct 7 . 7 * 6 = 42 .", [("drug-dose", "lomab", 2, "7")]),
        (CAUSE.removesuffix(" ."), []),
        ("disease-cause dovun cohort .", []),
        ("disease-cause dovun kawib cohort .", []),
        ("Disease-cause dovun cohort kawib .", []),
        (CAUSE.replace("dovun", "x" * (MAX_NAME_CHARACTERS + 1)), []),
        ("", []),
    ],
)
def test_statements(text: str, expected: list[tuple[str, str, int, str]]) -> None:
    assert [tuple(statement) for statement in statements(text)] == expected


def test_a_triple_is_retrieved_only_where_a_search_brought_it_before() -> None:
    assert graph_of(HONEST, NO_FINDINGS) == (Triple(*CHAIN[0], 0), Triple(*CHAIN[1], 1))
    guessed = episode(CAUSE, FIRST, CAUSE, SECOND, STRANGER)
    assert graph_of(guessed, NO_FINDINGS) == (Triple(*CHAIN[0]), Triple("duwib", "gene-inhibitor", "muzal"))
    assert graph_of(episode(FIRST, SECOND), NO_FINDINGS) == (), "documents and queries are no thoughts"


def test_the_thinking_falls_into_the_models_turns() -> None:
    assert [text.split() for text in thinking_by_turn(HONEST)] == [[], CAUSE.split(), INHIBITOR.split()]
    closed_early = episode(FIRST, "a </search> b </search> c")
    assert len(thinking_by_turn(closed_early)) == 2, "tags of the model's own make no turns"


def test_a_judges_graph_is_taken_instead_of_the_rule_and_freed_of_repeats() -> None:
    found = own(*CHAIN, CHAIN[0])
    assert graph_of(episode("nothing"), found) == (Triple(*CHAIN[0]), Triple(*CHAIN[1]))


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([], set()),
        ([("a", "a")], set()),
        ([("a", "b")], {"ab"}),
        ([("a", "b"), ("b", "a")], {"ab", "ba"}),
        ([("a", "b"), ("b", "c"), ("a", "c")], {"ab", "bc", "abc", "ac"}),
        ([("a", "b"), ("b", "c"), ("c", "a")], {"ab", "bc", "ca", "abc", "bca", "cab"}),
    ],
)
def test_paths(edges: list[tuple[str, str]], expected: set[str]) -> None:
    assert {"".join(path) for path in paths(edges)} == expected


@given(st.sets(st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde")), max_size=12), st.integers(1, 4))
def test_paths_are_all_simple_directed_walks_up_to_the_hops(edges: set[tuple[str, str]], hops: int) -> None:
    walks = {
        walk
        for length in range(2, hops + 2)
        for walk in itertools.permutations("abcde", length)
        if all(step in edges for step in itertools.pairwise(walk))
    }
    assert paths(sorted(edges), max_hops=hops) == walks


def test_a_dense_graph_costs_no_more_than_the_cap_and_keeps_the_short_paths() -> None:
    edges = [(f"n{a}", f"n{b}") for a in range(16) for b in range(16) if a != b]
    found = paths(edges)
    assert len(found) == MAX_PATHS and set(edges) <= found
    assert paths(reversed(edges)) == found, "the order of the edges does not decide"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(set(), set(), 0.0), ({1}, set(), 0.0), ({1}, {1}, 1.0), ({1, 2}, {2, 3}, 1 / 3)],
)
def test_jaccard(one: set[object], other: set[object], expected: float) -> None:
    assert jaccard(one, other) == expected


@pytest.mark.parametrize(
    ("graph", "logic", "statistic"),
    [
        (CHAIN, 1.0, 1.0),
        ((("The Dovun", "x", "KAWIB."), ("kawib", "y", "muzel")), 1.0, 1.0),  # names normalised, relations free
        (CHAIN[:1], 1 / 3, 2 / 3),
        (tuple((end, relation, start) for start, relation, end in CHAIN), 0.0, 1.0),  # backwards
        ((*CHAIN, ("muzel", "r", "rusin")), 3 / 6, 3 / 4),
        ((("a", "r", "b"),), 0.0, 0.0),
        ((("!", "r", "?"),), 0.0, 0.0),  # names that are nothing once normalised
    ],
)
def test_terms(graph: tuple[tuple[str, str, str], ...], logic: float, statistic: float) -> None:
    found = Findings(graph=own(*graph).graph, similarity=(0.5,))
    of = episode("thinking")
    assert graph_logic(QUESTION, of, found).value == pytest.approx(logic)
    assert graph_statistic(QUESTION, of, found).value == pytest.approx(statistic)
    assert graph_semantic(QUESTION, of, found).value == 0.5
    assert reasoning_graph(QUESTION, of, found).value == pytest.approx((logic + 0.5 + statistic) / 3)
    assert reasoning_graph(QUESTION, of, found, weights=[2, 0, 1]).value == pytest.approx((2 * logic + statistic) / 3)


def test_the_best_reference_counts_and_its_terms_are_the_ones_logged() -> None:
    other = (("a", "r", "b"),)
    question = QUESTION.model_copy(update={"reference_graphs": (other, REFERENCE, *(other,) * 7, other, REFERENCE)})
    found = Findings(graph=own(*CHAIN).graph, similarity=(0.9, 0.1, *(0.0,) * 8, 1.0))
    of = episode("thinking")
    assert reasoning_graph(question, of, found).value == pytest.approx((1 + 0.1 + 1) / 3), "the eleventh is never looked at"
    assert [term(question, of, found).value for term in (graph_logic, graph_semantic, graph_statistic)] == [1.0, 0.1, 1.0]


@pytest.mark.parametrize(("cosine", "expected"), [(-1.0, 0.0), (math.nan, 0.0), (1.0000001, 1.0), (0.25, 0.25)])
def test_semantic_stays_within_its_range(cosine: float, expected: float) -> None:
    assert graph_semantic(QUESTION, HONEST, Findings(similarity=(cosine,))).value == expected


def test_without_an_encoder_words_are_compared() -> None:
    right, wrong = (graph_semantic(QUESTION, episode(FIRST, line), NO_FINDINGS).value for line in (CAUSE, CAUSE_WRONG))
    assert 1 > graph_semantic(QUESTION, HONEST, NO_FINDINGS).value > right > wrong > 0
    assert graph_semantic(QUESTION, episode("dovun kawib muzel"), NO_FINDINGS).value == 0, (
        "words that state nothing are no reasoning"
    )


def test_more_of_the_chain_is_worth_more() -> None:
    chains = [episode("muzel"), episode(STRANGER), episode(FIRST, CAUSE), HONEST]
    values = [reasoning_graph(QUESTION, of, NO_FINDINGS).value for of in chains]
    assert values == sorted(values) and values[0] == 0 and len(set(values)) == 4


@pytest.mark.parametrize("weights", [[1, 1], [0, 0, 0], [-1, 1, 1], [math.nan, 1, 1], [math.inf, 1, 1]])
def test_weights_are_checked(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="three weights"):
        reasoning_graph(QUESTION, HONEST, NO_FINDINGS, weights=weights)


@settings(deadline=None)
@given(HOSTILE, QUESTIONS)
def test_any_episode_has_terms_in_range_that_average_to_the_whole(of: Episode, question: Question) -> None:
    terms = [term(question, of, NO_FINDINGS).value for term in (graph_logic, graph_semantic, graph_statistic)]
    assert all(0 <= term <= 1 for term in terms)
    assert reasoning_graph(question, of, NO_FINDINGS).value == pytest.approx(sum(terms) / 3)
    assert len(likenesses(question, of, NO_FINDINGS)) == len(question.reference_graphs)


@settings(deadline=None)
@given(HOSTILE, QUESTIONS)
def test_answers_and_finishes_change_nothing(of: Episode, question: Question) -> None:
    before = reasoning_graph(question, of, NO_FINDINGS)
    of.text += " </think>"
    settled = reasoning_graph(question, of, NO_FINDINGS)
    of.answer, of.finish, of.text = "dovun", "budget", f"{of.text} {CAUSE} <answer> {INHIBITOR} </answer>"
    assert before == settled == reasoning_graph(question, of, NO_FINDINGS)


def test_hostile_length_is_bounded() -> None:
    lines = " ".join(f"disease-cause a{i % 97} rct a{i % 89} ." for i in range(40_000))
    of = episode(lines, answer="a1")
    started = time.perf_counter()
    assert len(graph_of(of, NO_FINDINGS)) <= MAX_TRIPLES
    assert 0 <= reasoning_graph(QUESTION, of, NO_FINDINGS).value <= 1
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("source", SOURCES)
def test_the_worlds_questions_carry_the_facts_that_answer_them(source: str) -> None:
    world = World("train-0", WorldConfig(), held_out=False)
    for question in world.questions(source, 40):
        (graph,) = question.reference_graphs
        assert len(graph) == question.hops and settled_by_rule(question)
        assert all(world.facts[relation, subject].object == value for subject, relation, value in graph)
        perfect = episode(*(world.facts[relation, subject].documents[0].text for subject, relation, _ in graph))
        assert graph_logic(question, perfect, NO_FINDINGS).value == graph_statistic(question, perfect, NO_FINDINGS).value == 1
    assert Question.model_validate_json(question.model_dump_json()) == question
    old = question.model_dump(exclude={"reference_graphs"})
    assert Question.model_validate(old).reference_graphs == (), "questions that were written before can be read"
