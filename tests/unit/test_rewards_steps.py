"""Rewards of single steps: relevance, validity, efficiency, authority; and the table of components over stored rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.earned import Earned
from rewards.findings import NO_FINDINGS, Findings
from rewards.registry import COMPONENTS
from rewards.relevance import steps
from rewards.steps import authority, search_efficiency, step_relevance, step_validity
from rewards.table import as_markdown, component_table, episode_of
from tasks.config import WorldConfig
from tasks.questions import Question
from tasks.world import Universe, statement
from tests.rewarded import (
    CAUSE,
    CAUSE_WRONG,
    FIRST,
    HONEST,
    HOSTILE,
    INHIBITOR,
    QUESTION,
    QUESTIONS,
    SECOND,
    STRANGER,
    episode,
    search,
)
from trajectories.schema import Episode, Search, WeightVersion, to_table
from trajectories.store import TrajectoryStore, with_ending

NO_REFERENCE = QUESTION.model_copy(update={"reference_graphs": (), "gold_documents": (CAUSE,)})
NAMES = ("step_relevance", "step_validity", "search_efficiency", "authority")


@pytest.mark.parametrize(
    ("found", "relevance"),
    [
        (search(0, "q", CAUSE), 1.0),
        (search(0, "q", CAUSE, CAUSE_WRONG), 1.0),  # the better one agrees with the reference
        (search(0, "q", CAUSE_WRONG), 0.0),  # what was found contradicts it
        (search(0, "q", CAUSE_WRONG, INHIBITOR), 0.0),
        (search(0, "q", CAUSE, statement("disease-cause", "dovun", 3, "aaa")), 1.0),  # equals do not outweigh each other
        (search(0, "q", STRANGER, INHIBITOR), 1.0),
        (search(0, "gene-inhibitor duwib", STRANGER), 0.0),  # on its query's subject, but not on the question's way
        (search(0, "q"), 0.0),
        (search(0, "q", "free text"), 0.0),
    ],
)
def test_relevance_by_rule_follows_the_reference(found: Search, relevance: float) -> None:
    assert [step.relevance for step in steps(QUESTION, episode(found), NO_FINDINGS)] == [relevance]


@pytest.mark.parametrize(
    ("found", "relevance"),
    [
        (search(0, "gene-inhibitor DUWIB", STRANGER), 1.0),  # begins with the query's words
        (search(0, "anything", CAUSE), 1.0),  # gold
        (search(0, "kawib", INHIBITOR), 0.0),
        (search(0, "", INHIBITOR), 0.0),
    ],
)
def test_without_a_reference_it_follows_query_and_gold(found: Search, relevance: float) -> None:
    assert [step.relevance for step in steps(NO_REFERENCE, episode(found), NO_FINDINGS)] == [relevance]


def test_a_judges_relevance_goes_before_the_rule_but_nothing_new_is_nothing() -> None:
    of = episode(search(0, "q", CAUSE), search(1, "r", CAUSE), search(2, "s", INHIBITOR))
    assert [step.relevance for step in steps(QUESTION, of, Findings(relevance={0: 0.3, 1: 0.9}))] == [0.3, 0.0, 1.0]
    assert [len(step.new) for step in steps(QUESTION, of, NO_FINDINGS)] == [1, 0, 1], "documents are counted once, by id"


@pytest.mark.parametrize(
    ("of", "factor"),
    [
        (HONEST, 1.6),
        (episode(FIRST, CAUSE, SECOND, INHIBITOR, answer="nopox"), 0.8),
        (episode(FIRST, CAUSE, SECOND, INHIBITOR, answer="", finish="budget"), 0.9),
        (episode(FIRST, CAUSE, SECOND, INHIBITOR, answer="", finish="malformed"), 1.0),
        (episode(FIRST, CAUSE, SECOND, "</think>"), 1.0),  # answered, but not well-formed
    ],
)
def test_lambda_goes_by_the_ending(of: Episode, factor: float) -> None:
    earned = step_relevance(QUESTION, of, Findings(relevance={0: 0.7, 1: 0.59}))
    assert earned.turns == pytest.approx({0: factor * 0.7 / 2}), "below the pass mark is nothing"
    assert earned.value == pytest.approx(factor * 0.35)


def test_a_judges_verdict_makes_a_text_right_and_an_accepted_phrase_needs_none() -> None:
    other = episode(FIRST, SECOND, answer="an inhibitor like muzel")
    values = [step_relevance(QUESTION, other, Findings(judged=judged)).value for judged in (None, 1, 2)]
    assert values == pytest.approx([0.8, 0.8, 1.6])
    assert step_relevance(QUESTION, HONEST, Findings(judged=0)).value == pytest.approx(1.6)


def test_more_searches_earn_no_more() -> None:
    longer = episode(FIRST, search(1, "q", STRANGER), SECOND, INHIBITOR)
    longer.searches[2] = replace(longer.searches[2], turn=2)
    assert step_relevance(QUESTION, longer, NO_FINDINGS).value < step_relevance(QUESTION, HONEST, NO_FINDINGS).value
    assert step_relevance(QUESTION, episode("muzel"), NO_FINDINGS).value == 0


def test_validity_blames_the_last_turn() -> None:
    malformed = episode(FIRST, "</search> <search>", finish="malformed")
    assert step_validity(QUESTION, malformed, NO_FINDINGS) == Earned(-0.9, {1: -0.9}, "turn 1 is malformed")
    assert step_validity(QUESTION, malformed, NO_FINDINGS, penalty=0.5).value == -0.5
    assert step_validity(QUESTION, episode(FIRST, "</think>"), NO_FINDINGS).value == -0.9, "answered in a form that is none"
    assert step_validity(QUESTION, episode(FIRST, finish="budget"), NO_FINDINGS).value == 0
    assert step_validity(QUESTION, HONEST, NO_FINDINGS).value == 0


def test_efficiency_is_the_share_of_useful_searches() -> None:
    assert search_efficiency(QUESTION, HONEST, NO_FINDINGS).value == 1.0
    wasteful = episode(FIRST, search(1, "q", STRANGER), search(2, "r", CAUSE))
    assert search_efficiency(QUESTION, wasteful, NO_FINDINGS).turns == pytest.approx({0: 1 / 3})
    assert search_efficiency(QUESTION, episode("muzel"), NO_FINDINGS).value == 0
    free = Findings(relevance={0: 0.0, 1: 0.0})
    assert search_efficiency(QUESTION, HONEST, free, pass_mark=0).value == 1.0


def test_authority_weighs_relevance_and_quality_and_pays_nothing_for_what_is_irrelevant() -> None:
    earned = authority(QUESTION, HONEST, NO_FINDINGS)
    # levels III and IV, then I and VI, all in steps of relevance 1
    assert earned.turns == pytest.approx({0: (0.4 + 0.6 * 0.6 + 0.4 + 0.6 * 0.4) / 4, 1: (0.4 + 0.6 * 1.0 + 0.4 + 0.0) / 4})
    assert authority(QUESTION, episode(search(0, "q", STRANGER)), NO_FINDINGS).value == 0
    assert authority(QUESTION, episode(SECOND), NO_FINDINGS, relevance=1).value == 1.0
    assert authority(QUESTION, episode("muzel"), NO_FINDINGS).value == 0
    beside = episode(search(0, "q", INHIBITOR, STRANGER))
    assert authority(QUESTION, beside, NO_FINDINGS).value == 0.5, "a stranger earns nothing in a relevant step either"


@pytest.mark.parametrize(
    ("component", "arguments"),
    [
        (step_relevance, {"pass_mark": 1.1}),
        (step_relevance, {"right": 2.1}),
        (step_relevance, {"wrong": math.nan}),
        (step_validity, {"penalty": -1}),
        (step_validity, {"penalty": math.nan}),
        (search_efficiency, {"pass_mark": -0.1}),
        (authority, {"relevance": 1.5}),
        (authority, {"quality": [1]}),
    ],
)
def test_arguments_are_checked(component: Callable[..., Earned], arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs"):
        component(QUESTION, HONEST, NO_FINDINGS, **arguments)


def compute(name: str, question: Question, of: Episode, findings: Findings = NO_FINDINGS) -> Earned:
    earned: Earned = COMPONENTS[name].compute(question, of, findings)
    return earned


RELEVANCES = st.dictionaries(st.integers(0, 4), st.floats(0, 1), max_size=5)


@settings(deadline=None)
@given(HOSTILE, QUESTIONS, RELEVANCES, st.sampled_from([None, 0, 1, 2]))
def test_nothing_raises_leaves_its_range_or_loses_a_turns_share(
    of: Episode, question: Question, relevance: dict[int, float], judged: int | None
) -> None:
    for name in NAMES:
        earned = compute(name, question, of, Findings(relevance=relevance, judged=judged))
        assert COMPONENTS[name].low <= earned.value <= COMPONENTS[name].high
        assert sum(earned.turns.values()) == pytest.approx(earned.value)
        assert earned.reason and "\n" not in earned.reason


@settings(deadline=None)
@given(HOSTILE, QUESTIONS, st.text())
def test_the_steps_do_not_read_what_was_thought(of: Episode, question: Question, noise: str) -> None:
    changed = replace(of, text=noise, answer=noise, episode_id=noise)
    for name in ("search_efficiency", "authority"):
        assert compute(name, question, of) == compute(name, question, changed)


def test_the_table_reads_what_the_store_wrote(tmp_path: Path) -> None:
    world = WorldConfig(training_worlds=1, entities_per_type=12)
    universe = Universe.build(world, run_seed=3)
    question = universe.training_question("world/retrieval", 5)
    document = next(d for d in universe.documents() if d.id == question.gold_documents[0])
    found = Search(0, "q", [document.id], [document.text], [1.0], [document.evidence_level or 0], "h", 1.0)
    stored = replace(episode(found, document.text), question_id=question.id, source=question.source, phase="retrieval")
    other = replace(stored, question_id="mine/1", source="mine")
    table = with_ending(to_table([stored, replace(stored, searches=[]), other]), "trained", "", 1, WeightVersion(1, 0))
    TrajectoryStore(tmp_path / "trajectories").write(1, 1, [table])
    (tmp_path / "config.json").write_text(json.dumps({"run": {"seed": 3}, "world": world.model_dump(mode="json")}))

    assert episode_of(table.to_pylist()[0]).searches == [found]
    (cell,) = component_table(tmp_path, ["gold_recall"])
    assert (cell.phase, cell.source, cell.episodes) == ("retrieval", "world/retrieval", 2), (
        "other sources' questions are not there"
    )
    assert (cell.mean, cell.lowest, cell.highest, cell.nonzero) == pytest.approx(
        (1 / question.hops / 2, 0, 1 / question.hops, 0.5)
    )
    lines = as_markdown(component_table(tmp_path)).splitlines()
    assert lines[0] == "| component | retrieval, world/retrieval (2) |" and len(lines) == 2 + len(COMPONENTS)
