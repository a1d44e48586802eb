"""What an evaluation keeps of an episode, in vocabularies where a tag is one token and in those where it is several."""

from __future__ import annotations

import math

import pytest

from actors.config import EpisodeBudget
from actors.examining import agreement, answer_logprobs, examined
from actors.protocol import EpisodeProtocol
from actors.rollout import EXAMINATION
from actors.tokens import TagIds, TagReader, TagStrings
from rewards.composition import score
from tasks.prompting import TAGS
from tasks.questions import Question
from trajectories.schema import Episode, Search, VersionSpan

QUESTION = Question(id="q", text="?", kind="number", gold="42", lower=42, upper=42)
WORDS = ["<eos>", *TAGS, "4", "2", "drug-dose lomab rct 6 .", "?", "dose", ">\n", "</answer", "<ans", "wer> 4", " "]
IDS = {word: i for i, word in enumerate(WORDS)}


def decode(ids: list[int]) -> str:
    return "".join(WORDS[token] for token in ids)


ONE_TOKEN = TagIds({IDS[tag]: tag for tag in TAGS}, end_of_text=0, decode=decode)
SEVERAL = TagStrings(end_of_text=0, decode=decode)


def episode(tags: TagReader, *turns: list[str], logprob: float = -0.25) -> Episode:
    """Played by the protocol itself; every token's log-probability tells its place in its turn."""
    protocol = EpisodeProtocol(tags, [IDS["?"]], EpisodeBudget())
    for number, words in enumerate(turns):
        ids = [IDS[word] for word in words]
        protocol.on_tokens(ids, [logprob * i for i in range(len(ids))], [VersionSpan(1, number, 0, len(ids))])
        if number < len(turns) - 1:
            found = Search(number, "dose", ["d1"], ["drug-dose lomab rct 6 ."], [1.0], [2], "h", 1.0)
            protocol.on_documents([IDS["<document>"], IDS["drug-dose lomab rct 6 ."], IDS["</document>"]], found)
    return protocol.to_episode(QUESTION, run_id="r", group_id="g", episode_id="e", attempt=0, phase="p")


SEARCH = ["<think>", "<search>", "dose", "</search>"]
ANSWER = ["drug-dose lomab rct 6 .", "</think>", "<answer>", "4", "2", "</answer>"]


@pytest.mark.parametrize(
    ("tags", "answer", "expected"),
    [
        (ONE_TOKEN, ANSWER, [-0.75, -1.0]),
        (SEVERAL, ANSWER, [-0.75, -1.0]),
        # The opening tag ends inside the token that begins the answer, and the closing one is two tokens.
        (SEVERAL, ["drug-dose lomab rct 6 .", "</think>", "<ans", "wer> 4", "2", "</answer", ">\n"], [-0.75, -1.0]),
        (
            SEVERAL,
            ["drug-dose lomab rct 6 .", "</think>", " ", "<answer>", " ", "4", "2", " ", "</answer>"],
            [-1.25, -1.5],
        ),
    ],
)
def test_confidence_is_that_of_the_tokens_which_spell_the_answer(
    tags: TagReader, answer: list[str], expected: list[float]
) -> None:
    played = episode(tags, SEARCH, answer)
    assert played.answer == "42"
    assert answer_logprobs(played, tags) == expected
    record = examined(QUESTION, played, score(QUESTION, played, EXAMINATION), 3, tags)
    assert record.confidence == pytest.approx(sum(expected) / len(expected))
    assert (record.correct, record.exact, record.f1, record.sample, record.searches) == (True, True, 1.0, 3, 1)
    assert record.retrieved == record.cited == ("d1",) and record.cited_levels == record.retrieved_levels == (2,)
    assert record.model_tokens == len(SEARCH) + len(answer) and record.document_tokens == 3
    assert record.version == "1.1"


@pytest.mark.parametrize("tags", [ONE_TOKEN, SEVERAL])
def test_without_an_answer_there_is_no_confidence(tags: TagReader) -> None:
    played = episode(tags, ["<think>", "4", "</answer>"])
    record = examined(QUESTION, played, score(QUESTION, played, EXAMINATION), 0, tags)
    assert (record.finish, record.confidence, record.exact, record.f1) == ("malformed", None, False, 0.0)


def test_log_probabilities_that_nobody_told_are_no_confidence() -> None:
    assert answer_logprobs(episode(SEVERAL, SEARCH, ANSWER, logprob=math.nan), SEVERAL) == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", (True, 1.0)),
        ("(B) beta blocker", (True, 1.0)),
        ("beta blocker", (True, 1.0)),
        ("A", (False, 0.0)),
        ("", (False, 0.0)),
    ],
)
def test_a_letter_and_its_option_agree_with_the_gold_letter(answer: str, expected: tuple[bool, float]) -> None:
    question = Question(id="q", text="?", kind="choice", gold="B", options={"A": "statin", "B": "beta blocker"})
    assert agreement(question, answer) == expected
