"""What was found: evidence over all that was retrieved, gold, gain, proportion; and the properties of all these components."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.config import RewardRecipe
from rewards.earned import Earned
from rewards.evidence import NINE_TYPES_QUALITY, evidence, evidence_quality, evidence_relative
from rewards.findings import NO_FINDINGS, Findings, Triple
from rewards.registry import COMPONENTS, needs
from rewards.retrieval import gold_precision, gold_recall, information_gain, retrieval_proportion
from tasks.questions import Question
from tests.rewarded import (
    CAUSE,
    CAUSE_WRONG,
    FIRST,
    HONEST,
    HOSTILE,
    INHIBITOR,
    INHIBITOR_WRONG,
    QUESTION,
    QUESTIONS,
    SECOND,
    STRANGER,
    episode,
    search,
)
from trajectories.schema import Episode

NO_GOLD = QUESTION.model_copy(update={"gold_documents": ()})
NAMES = (
    "evidence", "evidence_quality", "evidence_relative", "gold_recall", "gold_precision", "information_gain", "retrieval_proportion",
    "grounding", "contrary_evidence",
)  # fmt: skip


def test_evidence_quality_is_of_all_that_was_retrieved_and_evidence_of_what_is_cited() -> None:
    of = episode(FIRST, CAUSE_WRONG, SECOND, INHIBITOR)  # levels III and IV, then I and VI; cited IV and I
    assert evidence_quality(QUESTION, of, NO_FINDINGS).value == pytest.approx((0.6 + 0.4 + 1 + 0) / 4)
    assert evidence_quality(QUESTION, of, NO_FINDINGS).turns == pytest.approx({0: 0.25, 1: 0.25})
    assert evidence(QUESTION, of, NO_FINDINGS).value == pytest.approx((0.4 + 1) / 2)
    nine = evidence_quality(QUESTION, of, NO_FINDINGS, quality="nine-types")
    assert nine.value == pytest.approx((5 / 9 + 4 / 9 + 17 / 18 + 1 / 9) / 4)
    assert list(NINE_TYPES_QUALITY) == sorted(NINE_TYPES_QUALITY, reverse=True)
    assert evidence_quality(QUESTION, episode(search(0, "q")), NO_FINDINGS).value == 0
    unknown = episode(search(0, "free", "free text"))
    free = QUESTION.model_copy(update={"reference_graphs": ()})
    assert [evidence_quality(free, unknown, NO_FINDINGS, unknown=u).value for u in (0.0, 0.3)] == [0.0, 0.3]


def test_evidence_that_does_not_concern_the_question_has_no_quality() -> None:
    of = episode(search(0, "q", INHIBITOR_WRONG.replace("opinion", "case"), INHIBITOR, STRANGER), STRANGER, INHIBITOR)
    of.searches[0].evidence_levels[:] = [5, 4, 1]
    quality = evidence_quality(QUESTION, of, NO_FINDINGS)
    assert quality.value == pytest.approx((0.2 + 0.4 + 0) / 3) == quality.turns[0], "all three documents are in the mean"
    assert evidence(QUESTION, of, NO_FINDINGS).value == pytest.approx((1.0 + 0.4) / 2), "asked for nothing, pays for any"
    assert evidence(QUESTION, of, NO_FINDINGS, relevant_only=True).value == pytest.approx(0.4 / 2)
    judged = Findings(relevance={0: 0.0})
    assert evidence_quality(QUESTION, of, judged).value == evidence(QUESTION, of, judged, relevant_only=True).value == 0


def test_what_was_retrieved_about_something_else_is_no_retrieved_step() -> None:
    of = episode(search(0, "q", STRANGER, INHIBITOR), STRANGER, INHIBITOR, CAUSE, CAUSE_WRONG)
    assert retrieval_proportion(QUESTION, of, NO_FINDINGS, low=1.0).value == 1 / 4
    assert retrieval_proportion(QUESTION, episode(search(0, "q", STRANGER), STRANGER), NO_FINDINGS).value == 0
    free = QUESTION.model_copy(update={"source": "medqa", "reference_graphs": ()})
    values = [retrieval_proportion(free, HONEST, replace(thought(2, 2), relevance={0: judged})).value for judged in (0.0, 0.7)]
    assert values == [0.0, 1.0], "a judged graph goes by the judged relevance of its turns"


def test_only_a_recipe_that_asks_for_relevance_needs_a_judge_of_it() -> None:
    def wanted(name: str, **arguments: object) -> frozenset[str]:
        return needs(RewardRecipe.model_validate({"terms": [{"name": name, "arguments": arguments}]}))

    assert wanted("evidence") == wanted("evidence", relevant_only=False) == frozenset()
    assert wanted("evidence", relevant_only=True) == wanted("evidence_quality") == {"relevance"}
    assert wanted("retrieval_proportion") == {"graph", "relevance"}


@pytest.mark.parametrize("component", [evidence, evidence_quality])
@pytest.mark.parametrize("quality", ["seven-levels", [1, 0], [2, 0, 0, 0, 0, 0], [math.nan, 0, 0, 0, 0, 0]])
def test_a_table_of_quality_is_checked(component: Callable[..., Earned], quality: object) -> None:
    with pytest.raises(ValueError, match="quality"):
        component(QUESTION, HONEST, NO_FINDINGS, quality=quality)


@pytest.mark.parametrize(
    ("of", "recall", "precision"),
    [
        (HONEST, 1.0, 0.5),
        (episode(FIRST, CAUSE), 0.5, 0.5),
        (episode(search(0, "q", STRANGER)), 0.0, 0.0),
        (episode(search(0, "q", CAUSE), search(1, "q", CAUSE)), 0.5, 1.0),  # the same document is one document
        (episode(CAUSE), 0.0, 0.0),
    ],
)
def test_gold(of: Episode, recall: float, precision: float) -> None:
    assert gold_recall(QUESTION, of, NO_FINDINGS).value == recall
    assert gold_precision(QUESTION, of, NO_FINDINGS).value == precision
    assert gold_recall(NO_GOLD, of, NO_FINDINGS).value == gold_precision(NO_GOLD, of, NO_FINDINGS).value == 0


def test_a_gold_document_counts_for_the_turn_that_first_found_it() -> None:
    of = episode(search(0, "q", STRANGER), search(1, "r", CAUSE, STRANGER), search(2, "s", CAUSE, INHIBITOR))
    assert gold_recall(QUESTION, of, NO_FINDINGS).turns == {1: 0.5, 2: 0.5}
    assert gold_recall(QUESTION, of, NO_FINDINGS).reason == "2 of 2 gold documents found"
    assert gold_precision(QUESTION, of, NO_FINDINGS).turns == pytest.approx({1: 1 / 3, 2: 1 / 3})


def test_gain_minus_redundancy_of_every_search() -> None:
    of = episode(search(0, "q", STRANGER), search(1, "r", CAUSE, STRANGER), search(2, "s", CAUSE, STRANGER))
    earned = information_gain(QUESTION, of, NO_FINDINGS)
    assert earned.turns == pytest.approx({0: 0.0, 1: 1 / 2 - 1 / 2 / 3, 2: -1 / 3})
    assert earned.value == pytest.approx(0.0)
    assert information_gain(QUESTION, of, NO_FINDINGS, redundancy=0).value == 0.5
    assert information_gain(QUESTION, HONEST, NO_FINDINGS).value == 1.0


def test_without_gold_the_gain_is_new_and_judged_relevant() -> None:
    of = episode(search(0, "q", "a", "b"), search(1, "r", "b", "c"))
    assert information_gain(NO_GOLD, of, NO_FINDINGS, redundancy=0).value == 0
    earned = information_gain(NO_GOLD, of, Findings(relevance={0: 1.0, 1: 0.6}), redundancy=0)
    assert earned.turns == pytest.approx({0: 0.5, 1: 0.15})


@pytest.mark.parametrize("redundancy", [-0.1, 1.1, math.nan])
def test_redundancy_is_checked(redundancy: float) -> None:
    with pytest.raises(ValueError, match="redundancy"):
        information_gain(QUESTION, HONEST, NO_FINDINGS, redundancy=redundancy)


def thought(retrieved: int, own: int) -> Findings:
    triples = [Triple(f"r{i}", "r", "x", 0) for i in range(retrieved)] + [Triple(f"o{i}", "r", "x") for i in range(own)]
    return Findings(graph=tuple(triples))


@pytest.mark.parametrize(
    ("retrieved", "own", "band", "expected"),
    [
        (0, 0, {}, 0.0),
        (0, 4, {}, 0.0),
        (1, 3, {}, 0.5),
        (2, 2, {}, 1.0),
        (4, 0, {}, 1.0),  # by default a cap: more retrieval is worth no more
        (4, 0, {"high": 0.75}, 0.0),  # nothing but copying
        (7, 1, {"high": 0.75}, 0.5),
        (3, 1, {"high": 0.75}, 1.0),
        (1, 3, {"low": 0.25, "high": 0.25}, 1.0),
    ],
)
def test_retrieval_proportion(retrieved: int, own: int, band: dict[str, float], expected: float) -> None:
    assert retrieval_proportion(QUESTION, HONEST, thought(retrieved, own), **band).value == pytest.approx(expected)


def test_copying_one_line_often_is_one_step() -> None:
    mixed = episode(FIRST, CAUSE, STRANGER, INHIBITOR, INHIBITOR_WRONG)
    copied = episode(FIRST, *[CAUSE] * 20, STRANGER, INHIBITOR, INHIBITOR_WRONG)
    values = [retrieval_proportion(QUESTION, of, NO_FINDINGS) for of in (mixed, copied)]
    assert values[0] == values[1] and values[0].turns == {0: 0.5}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.6, 0.5), (0.5, 1.1), (math.nan, 1)])
def test_a_band_is_checked(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="band"):
        retrieval_proportion(QUESTION, HONEST, NO_FINDINGS, low=low, high=high)


def compute(name: str, question: Question, of: Episode) -> Earned:
    earned: Earned = COMPONENTS[name].compute(question, of, NO_FINDINGS)
    return earned


@settings(deadline=None)
@given(HOSTILE, QUESTIONS)
def test_nothing_raises_leaves_its_range_or_loses_a_turns_share(of: Episode, question: Question) -> None:
    for name in NAMES:
        earned = compute(name, question, of)
        assert COMPONENTS[name].low <= earned.value <= COMPONENTS[name].high
        assert sum(earned.turns.values()) == pytest.approx(earned.value)
        assert earned.reason and "\n" not in earned.reason


@settings(deadline=None)
@given(HOSTILE, QUESTIONS, st.text())
def test_what_a_component_does_not_read_changes_nothing(of: Episode, question: Question, noise: str) -> None:
    changed = replace(of, answer=noise, finish=noise, question_id=noise, reward=1.0)
    for name in NAMES[:-2]:  # the answer decides what is grounded
        assert compute(name, question, of) == compute(name, question, changed)
    unthought = replace(of, text=noise)
    for name in ("evidence_quality", "gold_recall", "gold_precision", "information_gain"):
        assert compute(name, question, of) == compute(name, question, unthought)


def test_hostile_length_is_linear() -> None:
    long = "lozes " * 160_000
    of = episode(search(0, "q", CAUSE, *["x y z " * 1000] * 40), CAUSE * 2000, answer=long)
    started = time.perf_counter()
    for name in NAMES:
        compute(name, QUESTION, of)
    assert time.perf_counter() - started < 20


def test_only_the_best_on_a_subject_is_relatively_good() -> None:
    assert evidence_relative(QUESTION, HONEST, NO_FINDINGS).value == 1.0
    assert evidence_relative(QUESTION, episode(FIRST, CAUSE_WRONG), NO_FINDINGS).value == 0.0
