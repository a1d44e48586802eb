"""What a judge is asked and how strictly its replies are read; which findings are gathered, and whose failure is whose."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.findings import Findings, JudgeFailed, Triple
from rewards.gathering import Tools, gather
from rewards.judge import Judge
from rewards.judge_prompts import MAX_CASE_CHARACTERS, MAX_JUDGED_TRIPLES, read_reply, step_relevance_verdict, triples_verdict
from tasks.questions import Question
from tests.judge_server import TEXT, Answer, JudgeServer, ask, episode, with_server

ALL = frozenset({"judge", "relevance", "graph", "embedding"})


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"relevance": 0.7, "contradicts": false}', 0.7),
        ('{"relevance": 1, "contradicts": false}', 1.0),
        ('{"relevance": 0.9, "contradicts": true}', 0.0),
        ('{"relevance": 1.1, "contradicts": false}', None),
        ('{"relevance": true, "contradicts": false}', None),
        ('{"relevance": 0.5, "contradicts": 0}', None),
        ('{"relevance": 0.5}', None),
    ],
)
def test_relevance_is_read_strictly(reply: str, expected: float | None) -> None:
    read = step_relevance_verdict(TEXT, episode().searches[0]).read
    if expected is None:
        with pytest.raises(ValueError):
            read(read_reply(reply))
    else:
        assert read(read_reply(reply)) == expected


@pytest.mark.parametrize(
    ("triples", "expected"),
    [
        ([["a", "r", "b", None], ["b", "r", "c", 1]], (Triple("a", "r", "b"), Triple("b", "r", "c", 1))),
        ([], ()),
        ([["a", "r", "b"]], None),
        ([["a", "r", "b", 7]], None),  # no search in that turn
        ([["a", "r", "b", True]], None),
        ([["a", "r", 3, None]], None),
        ([["a" * 1000, "r", "b", None]], None),
        ([["a", "r", "b\ud800", None]], (Triple("a", "r", "b?"),)),  # what UTF-8 cannot carry would fail later
        ([["first", "r", "b", None]] * 1000 + [["a", "r", "b", None]] * 64, (Triple("a", "r", "b"),) * 64),
        ("a r b", None),
    ],
)
def test_triples_are_read_strictly(triples: Any, expected: Any) -> None:
    read = triples_verdict(TEXT, episode(searches=2)).read
    if expected is None:
        with pytest.raises(ValueError):
            read({"triples": triples})
    else:
        assert read({"triples": triples}) == expected


@given(st.text(), st.text())
def test_every_case_is_one_bounded_json_object_of_our_keys(thought: str, answer: str) -> None:
    of = episode(answer, thought)
    for each in (ask(answer), step_relevance_verdict(TEXT, of.searches[0]), triples_verdict(TEXT, of)):
        assert isinstance(json.loads(each.case.encode()), dict)
    assert set(json.loads(ask(answer).case)) == {"question", "options", "accepted", "broader", "answer"}


@pytest.mark.parametrize("sign", ["x", "\x00", "\u2028", "\ud800", '"', "心"], ids=ascii)
def test_the_whole_case_is_bounded_and_cut_in_its_longest_texts(sign: str) -> None:
    of = episode("x", "iron is low " + sign * 10**6 + " so anaemia", searches=30)
    of.searches[:] = [replace(search, documents=[sign * 10**4] * 5) for search in of.searches]
    asked = triples_verdict(TEXT, of)
    assert len(asked.case) < 2 * MAX_CASE_CHARACTERS + 10_000, "at most an escape before every character, and the keys"
    last = json.loads(asked.case)["turns"][-1]["text"]
    assert last.strip().startswith("iron is low") and "[…]" in last and last.strip().endswith("so anaemia")
    assert json.loads(asked.case)["question"] == TEXT.text, "what is short stays whole"
    assert f"At most {MAX_JUDGED_TRIPLES} triples, those stated last" in asked.instructions


def test_a_fault_in_one_episode_is_its_samples_loss() -> None:
    broken = episode("other")
    broken.answer = None  # type: ignore[assignment]

    async def then(judge: Judge, server: JudgeServer) -> list[Findings | JudgeFailed]:
        return await gather(TEXT, [episode(), broken], frozenset({"judge"}), Tools(judge))

    found = with_server(replies, then)
    assert found[0] == Findings(judged=1)
    assert isinstance(found[1], JudgeFailed) and "Error" in str(found[1])


def replies(number: int, payload: dict[str, Any]) -> Answer:
    """A judge that answers all three kinds of question, and none about an answer that is called cursed."""
    case = json.loads(payload["messages"][1]["content"])
    if "documents" in case:
        return Answer(content='{"relevance": 0.8, "contradicts": false}')
    if "turns" in case:
        return Answer(content='{"triples": [["iron deficiency", "causes", "anaemia", 0]]}')
    return Answer(content="?" if case["answer"] == "cursed" else '{"verdict": 1}')


def test_what_is_gathered_and_whose_failure_it_is() -> None:
    async def then(judge: Judge, server: JudgeServer) -> tuple[list[Findings | JudgeFailed], JudgeServer, int]:
        episodes = [episode(), episode("cursed"), episode("Sideropenia."), episode(searches=0)]
        return await gather(TEXT, episodes, ALL, Tools(judge)), server, judge.counts["failed"]

    found, server, failed = with_server(replies, then, attempts=2)
    graph = (Triple("iron deficiency", "causes", "anaemia", 0),)
    assert found[0] == Findings(judged=1, relevance={0: 0.8}, graph=graph)
    assert isinstance(found[1], JudgeFailed) and failed == 2, "the first episode is not dropped for the others"
    assert isinstance(found[2], Findings) and found[2].judged == 2, "an accepted phrase needs no judge"
    assert all(case.get("answer") != "Sideropenia." for case in server.cases)
    assert isinstance(found[3], JudgeFailed), "without a search no triple can be from turn 0"


def test_only_what_is_needed_is_asked_and_of_the_fictional_world_nothing() -> None:
    world = TEXT.model_copy(update={"source": "world/joint"})
    choice = Question.model_validate({"id": "c", "text": "?", "kind": "choice", "gold": "A", "options": {"A": "x", "B": "y"}})
    malformed = episode()
    malformed.finish = "malformed"

    async def then(judge: Judge, server: JudgeServer) -> tuple[list[Any], int]:
        found = [
            *await gather(world, [episode()], ALL, Tools(judge)),
            *await gather(choice, [episode("A")], frozenset({"judge"}), Tools(judge)),
            *await gather(TEXT, [malformed], frozenset({"judge"}), Tools(judge)),
            *await gather(TEXT, [episode()], frozenset(), Tools(judge)),
            *await gather(TEXT, [episode(thought="", searches=0)], frozenset({"graph", "relevance"}), Tools(judge)),
        ]
        return found, len(server.requests)

    found, requests = with_server(replies, then)
    assert found == [Findings()] * 4 + [Findings(graph=())] and requests == 0


def test_a_missing_judge_is_said_and_not_guessed_around() -> None:
    with pytest.raises(ValueError, match=r"needs a judge \(graph, judge, relevance\) for questions of 'medqa'"):
        asyncio.run(gather(TEXT, [episode()], ALL, Tools()))
    assert asyncio.run(gather(TEXT, [episode()], frozenset({"embedding"}), Tools())) == [Findings()]


def test_the_rare_disease_rubric_goes_by_the_source() -> None:
    async def then(judge: Judge, server: JudgeServer) -> list[str]:
        for source in ("rarearena/rds", "medqa"):
            await gather(TEXT.model_copy(update={"source": source}), [episode()], frozenset({"judge"}), Tools(judge))
        return [request["messages"][0]["content"] for request in server.requests]

    rare, plain = with_server(replies, then)
    assert "broader category" in rare and "broader category" not in plain


def test_similarity_is_the_cosine_of_the_embeddings_and_nan_is_none() -> None:
    async def embed(texts: Any) -> Any:
        return np.array([[3.0, 0.0], [2.0, 2.0], [0.0, 0.0], [np.nan, 1.0]][: len(texts)])

    found = asyncio.run(gather(TEXT, [episode()] * 3, frozenset({"embedding"}), Tools(embed=embed)))
    first, second, third = found
    assert isinstance(first, Findings) and first.similarity == pytest.approx((0.5**0.5,))
    assert isinstance(second, Findings) and second.similarity == (0.0,)
    assert isinstance(third, JudgeFailed)
