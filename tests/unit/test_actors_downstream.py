"""What the other rooms make of a forced answer, of several searches in one turn, and of calls: rows of the real protocol."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace

import numpy as np
import pytest

from actors.config import EpisodeBudget
from learner.batch import NO_TURN, NO_VERSION, read_batch
from medr3.observe.episodes import episode_view
from rewards.answers import is_correct
from rewards.composition import score
from rewards.config import RewardRecipe
from rewards.evidence import cited
from rewards.extraction import last_turn, thinking_by_turn
from rewards.findings import NO_FINDINGS, Findings
from rewards.format import format_signed, is_well_formed, malformed, repeated_search, search_count
from rewards.gathering import Tools, gather
from rewards.judge_prompts import triples_verdict
from rewards.length import own_tokens, response_tokens
from rewards.registry import COMPONENTS
from rewards.relevance import steps
from rewards.steps import step_relevance, step_validity
from rewards.table import episode_of
from rewards.text import own_thinking
from tests.unit.test_actors_protocol import PROMPT, QUESTION, as_row, play
from trajectories.rules import broken_rows
from trajectories.schema import Episode, Search, Source, TurnReward, check, to_table

FORCED = EpisodeBudget(max_searches=1, answer_tokens=4)


def forced() -> Episode:
    """One search, one more that was not carried out, and the answer that the protocol then asked for."""
    turns = ("<think> drug <search> dose </search>", "lomab <search> lomab </search>", "42 </answer>")
    return as_row(play(*turns, budget=FORCED))


def parallel() -> Episode:
    turns = ("<think> drug <search> dose || lomab </search>", "lomab </think> <answer> 42 </answer>")
    episode = as_row(play(*turns, budget=EpisodeBudget(parallel_searches=2)))
    found = [
        replace(episode.searches[0], document_ids=["d1"], documents=["dose"], evidence_levels=[1]),
        replace(episode.searches[1], document_ids=["d2"], documents=["lomab"], evidence_levels=[4]),
    ]
    return replace(episode, searches=found)


def called() -> Episode:
    """A search, a call that calculated, and a call that read."""
    turns = (
        "<think> drug <search> dose </search>", "lomab <call> reason 42 </call>", "42 <call> read 42 </call>",
        "42 </think> <answer> 42 </answer>",
    )  # fmt: skip
    episode = as_row(play(*turns, budget=EpisodeBudget(tools=("read", "reason"))))
    search, reason, read = episode.searches
    found = [
        replace(search, document_ids=["d1"], documents=["dose"]),
        replace(reason, tool="reason", document_ids=[], documents=["dose"], scores=[], evidence_levels=[]),
        replace(read, tool="read", document_ids=["d7"], documents=["42"], evidence_levels=[3]),
    ]
    return replace(episode, searches=found)


@pytest.mark.parametrize("episode", [forced(), parallel(), called()])
def test_rows_are_sound_and_survive_arrow_and_the_store(episode: Episode) -> None:
    table = to_table([episode])
    assert (check(asdict(episode)), broken_rows(table)) == ([], {})
    [row] = table.to_pylist()
    assert [search["tool"] for search in row["searches"]] == [search.tool for search in episode.searches]
    assert episode_of(row).searches == episode.searches
    old = {name: value for name, value in row["searches"][0].items() if name != "tool"}
    assert Search(**old).tool == "search", "rows of before have no such field"


def test_the_audit_refuses_a_bridge_that_carries_loss_or_a_log_probability() -> None:
    episode = forced()
    bridge = next(s for s in episode.segments[1:] if s.source == Source.PROMPT)
    trained = replace(episode, loss_mask=[True if i == bridge.start else m for i, m in enumerate(episode.loss_mask)])
    sampled = replace(episode, logprobs=[-1.0 if i == bridge.start else p for i, p in enumerate(episode.logprobs)])
    assert set(broken_rows(to_table([episode, trained, sampled]))) == {1, 2}


def test_the_learner_trains_the_model_and_never_the_bridge() -> None:
    episode = forced()
    rewarded = replace(episode, turn_rewards=[TurnReward(0, "gain", 0.25), TurnReward(2, "grounding", 0.5)], reward=1.0)
    batch = read_batch([to_table([rewarded, replace(rewarded, episode_id="e2")])])
    bridge = next(s for s in episode.segments[1:] if s.source == Source.PROMPT)
    inside = slice(bridge.start, bridge.end)
    assert not batch.loss_mask_t[inside].any()
    assert (batch.turn_t[inside] == NO_TURN).all() and (batch.number_t[inside] == NO_VERSION).all()
    assert batch.behaviour_t[inside].tolist() == [0.0, 0.0]
    first = batch.turn_t[: len(episode.token_ids)]
    assert sorted(set(first.tolist())) == [NO_TURN, 0, 1, 2]
    assert np.flatnonzero(batch.process_t).tolist()[:2] == [
        max(np.flatnonzero(first == 0)), max(np.flatnonzero(first == 2)),
    ]  # fmt: skip
    assert batch.outcome_e.tolist() == [0.25, 0.25]


def test_a_forced_answer_counts_as_an_answer() -> None:
    episode = forced()
    assert (episode.finish, episode.answer) == ("forced", "42")
    assert is_well_formed(episode)
    assert is_correct(QUESTION, episode.answer)
    assert format_signed(QUESTION, episode, NO_FINDINGS).value == 1.0
    assert malformed(QUESTION, episode, NO_FINDINGS).value == 0.0
    assert step_validity(QUESTION, episode, NO_FINDINGS).value == 0.0
    right, wrong = (
        step_relevance(QUESTION, replace(episode, answer=answer), Findings(relevance={0: 1.0})) for answer in ("42", "7")
    )
    assert (right.value, wrong.value) == (1.6, 0.8), "not the factor of an episode without an answer"
    assert last_turn(episode) == 2
    assert [text.strip() for text in thinking_by_turn(episode)] == ["drug", "lomab", ""]
    answered = replace(episode, finish="answer")
    for name, component in COMPONENTS.items():
        assert component.compute(QUESTION, episode, NO_FINDINGS) == component.compute(QUESTION, answered, NO_FINDINGS), name


def test_the_bridge_counts_towards_the_response_but_is_not_the_models() -> None:
    episode = forced()
    assert response_tokens(episode) == len(episode.token_ids) - len(PROMPT)
    documents = sum(s.end - s.start for s in episode.segments if s.source == Source.DOCUMENT)
    assert own_tokens(episode) == sum(episode.loss_mask) == response_tokens(episode) - documents - 2


def test_searches_of_one_turn_are_one_step_with_the_documents_of_both() -> None:
    episode = parallel()
    [step] = steps(QUESTION, episode, NO_FINDINGS)
    assert [document.id for document in step.new] == ["d1", "d2"]
    assert [document.id for document in step.concerning] == ["d1", "d2"], "each is on the subject of its own query"
    assert search_count(QUESTION, episode, NO_FINDINGS, free=1, cost=0.5).turns == {0: -0.5}
    assert repeated_search(QUESTION, episode, NO_FINDINGS).value == 0.0
    assert [document.id for document in cited(episode)] == ["d2"]
    case = triples_verdict(QUESTION, episode).case
    assert "dose || lomab" in case and '["dose", "lomab"]' in case


def test_the_judges_words_on_the_searches_of_one_turn_are_averaged() -> None:
    class Verdicts:
        async def ask(self, ask: object) -> float:
            return 1.0 if '"query": "dose"' in ask.case else 0.5

    [found] = asyncio.run(gather(QUESTION, [parallel()], frozenset({"relevance"}), Tools(judge=Verdicts())))
    assert found.relevance == {0: 0.75}
    [found] = asyncio.run(gather(QUESTION, [called()], frozenset({"relevance"}), Tools(judge=Verdicts())))
    assert found.relevance.keys() == {0, 2}, "a calculation is no retrieval"


def test_calls_end_turns_and_are_no_thinking() -> None:
    episode = called()
    assert is_well_formed(episode)
    assert [text.strip() for text in thinking_by_turn(episode)] == ["drug", "lomab", "42", "42"]
    assert own_thinking(episode.text).split() == ["drug", "lomab", "42", "42"]
    assert [step.turn for step in steps(QUESTION, episode, NO_FINDINGS)] == [0, 2], "a calculation is no step of retrieval"
    assert [document.id for document in cited(episode)] == ["d7"]


def test_a_loop_of_words_is_no_repeated_search() -> None:
    rambling = as_row(play("<think> " + "dose lomab " * 20, budget=EpisodeBudget()))
    again = as_row(play("<think> <search> dose </search>", "<search> dose </search>", budget=EpisodeBudget()))
    called_again = as_row(
        play("<think> <call> read 42 </call>", "<call> read 42 </call>", budget=EpisodeBudget(tools=("read",)))
    )
    assert [episode.finish for episode in (rambling, again, called_again)] == ["loop"] * 3
    assert [repeated_search(QUESTION, episode, NO_FINDINGS).value for episode in (rambling, again, called_again)] == [
        0.0,
        -0.5,
        -0.5,
    ]


@pytest.mark.parametrize("episode", [forced(), parallel(), called()])
def test_every_turn_that_is_rewarded_has_tokens(episode: Episode) -> None:
    """Or the learner would refuse the whole batch."""
    recipe = RewardRecipe.model_validate(
        {
            "terms": [
                {"name": name} for name in ("correct", "search_count", "repeated_search", "search_efficiency", "step_validity")
            ]
        }
    )
    earned = score(QUESTION, episode, recipe, NO_FINDINGS)
    rewarded = replace(
        episode, turn_rewards=[*earned.turn_rewards, TurnReward(last_turn(episode), "x", 1.0)], reward=earned.total
    )
    assert read_batch([to_table([rewarded])]).process_t.any()


def test_the_page_names_what_each_block_is() -> None:
    view = episode_view(to_table([called()]).to_pylist()[0], lambda row: None)
    shown = [block for turn in view["turns"] for block in turn["blocks"]]
    assert [block["kind"] for block in shown].count("call") == 2
    documents = [block["document"] for block in shown if block["kind"] == "document"]
    assert documents == ["d1", "", "d7"], "what a tool calculated is no document of the corpus"
