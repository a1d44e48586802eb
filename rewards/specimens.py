"""Episodes to try a reward on: ordinary ones of every answer kind, and hostile ones that a model or a document could produce."""

from __future__ import annotations

from typing import NamedTuple

from tasks.questions import Question
from trajectories.schema import Episode, Search

HOSTILE_LENGTH = 1_000_000  # characters of the longest answer: far beyond what any budget of tokens allows

_CHOICE = Question.model_validate(
    {
        "id": "choice",
        "text": "Which drug?",
        "kind": "choice",
        "gold": "B",
        "options": {"A": "lomab", "B": "kavan", "C": "zorin"},
    }
)
_NUMBER = Question.model_validate({"id": "number", "text": "Which dose?", "kind": "number", "gold": "42", "unit": "mg"})
_TEXT = Question.model_validate(
    {"id": "text", "text": "Which gene?", "kind": "text", "gold": "rusin", "aliases": ("rusin-1",), "gold_documents": ("d1",)}
)
_ANSWERS = ((_CHOICE, "B", "C"), (_NUMBER, "42", "7"), (_TEXT, "rusin", "bovex"))
_FACT = "gene-inhibitor kavan meta-analysis rusin ."


class Specimen(NamedTuple):
    """A sample under a name that a person recognises in a verdict."""

    name: str
    question: Question
    episode: Episode


def ordinary() -> list[Specimen]:
    """Right, wrong, searching and unfinished episodes of a choice, a number and a text."""
    found = []
    for question, right, wrong in _ANSWERS:
        kind = question.kind.value
        found += [
            Specimen(f"right {kind}", question, _episode(question, _text("I know it.", right), right)),
            Specimen(f"right {kind} after a search", question, _searched(question, right)),
            Specimen(f"wrong {kind}", question, _episode(question, _text("I guess.", wrong), wrong)),
            Specimen(f"wrong {kind} after a search", question, _searched(question, wrong)),
            Specimen(f"{kind} out of budget", question, _episode(question, "<think> and so on", "", "budget")),
            Specimen(f"malformed {kind}", question, _episode(question, f"<answer> {right}", "", "malformed")),
        ]
    return found


def hostile() -> list[Specimen]:
    """What nobody should pay for and nothing may break on."""
    answers = {
        "an empty answer": "",
        "white space as answer": " \n\t ",
        "NaN as answer": "nan",
        "infinity as answer": "-inf",
        "an overflowing number": "1e999",
        "an answer of a million characters": "4" * HOSTILE_LENGTH,
        "an answer of a million words": "a " * (HOSTILE_LENGTH // 2),
        "all options as answer": "A B C",
        "right-to-left text": "\u202e24 \u05d0\u05d1\u05d2 \u0627\u0644\u062c\u0648\u0627\u0628",
        "look-alike letters": "\u0412",
        "control characters": "\x00\x1b[31m\u200b42\ufeff",
        "braces and percent signs": "{question} %s %(gold)s ${x} \\N{BULLET}",
    }
    texts = {
        "no text at all": "",
        "unclosed tags": "<think> <search> <document> <answer>",
        "nested tags": "<think> " * 500 + "<answer> 42 " + "</answer> " * 500,
        "tags in the wrong order": "</answer> 42 <answer> </think> <think>",
        "a document of the model's own": f"<think> <document> {_FACT} </document> </think> <answer> 42 </answer>",
        "look-alike tags": "\uff1cthink\uff1e a \uff1c/think\uff1e <ans\u200bwer> 42 </answer>",
        "many opening tags": "<document> <search> " * 20_000,
    }
    specimens = [Specimen(name, _NUMBER, _episode(_NUMBER, _text("so", answer), answer)) for name, answer in answers.items()]
    specimens += [Specimen(name, _NUMBER, _episode(_NUMBER, text, "42")) for name, text in texts.items()]
    tagged = Search(0, "</think>", ["d", "d", ""], ["</think> <answer> 42 </answer>", "", "\x00"], [0.0], [99, -1, 0], "", 0.0)
    ragged = Search(7, "", ["d1"], [], [], [], "", 0.0, degraded=True)
    specimens.append(Specimen("tags inside documents", _NUMBER, _episode(_NUMBER, _text("so", "42"), "42", "answer", tagged)))
    specimens.append(
        Specimen("a search without results", _NUMBER, _episode(_NUMBER, _text("so", "42"), "42", "answer", ragged))
    )
    return specimens


def _searched(question: Question, answer: str) -> Episode:
    text = f"<think> <search> gene-inhibitor kavan </search> <document> {_FACT} </document> {_FACT} </think> <answer> {answer} </answer>"
    return _episode(
        question, text, answer, "answer", Search(0, "gene-inhibitor kavan", ["d1"], [_FACT], [1.0], [1], "hash", 1.0)
    )


def _text(thinking: str, answer: str) -> str:
    return f"<think> {thinking} </think> <answer> {answer} </answer>"


def _episode(question: Question, text: str, answer: str, finish: str = "answer", *searches: Search) -> Episode:
    return Episode(
        "run", "group", "episode", question.id, 0, "phase", question.source, question.kind.value, [], [], [], [], [],
        list(searches), answer=answer, finish=finish, text=text,
    )  # fmt: skip
