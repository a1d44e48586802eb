"""The table of hand-checked answers: every line of answers.jsonl is one case with its reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rewards.answers import is_correct, verdict_by_rule
from rewards.findings import NO_FINDINGS
from rewards.format import format_graded, well_formed
from tasks.questions import Question
from trajectories.schema import Episode, Search

CASES: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data/answers.jsonl").read_text("utf-8").splitlines()
]
# How the table's kinds of case are asked: a date is a number's gold, a level of outcome and a form are those of a question.
ASKED_AS = {"choice": "choice", "number": "number", "date": "number", "text": "text", "format": "text"}
QUESTION_FIELDS = ("gold", "aliases", "broader", "options", "lower", "upper", "unit")


def question_of(case: dict[str, Any]) -> Question:
    kind = ASKED_AS.get(case["kind"]) or ("choice" if "options" in case else "number" if "unit" in case else "text")
    fields = {name: case[name] for name in QUESTION_FIELDS if name in case}
    return Question.model_validate({"id": "q", "text": "?", "kind": kind, **fields})


def grades_of_form(text: str, documents: int) -> list[float]:
    """Strict and graded, for an episode that the protocol ended with an answer and whose one search found so many documents."""
    found = Search(0, "q", ["d"] * documents, ["found"] * documents, [1.0] * documents, [1] * documents, "hash", 1.0)
    episode = Episode("", "", "", "", 0, "", "", "", [], [], [], [], [], [found], answer="42", finish="answer", text=text)
    question = Question(id="q", text="?", kind="text", gold="42")
    return [grade(question, episode, NO_FINDINGS).value for grade in (well_formed, format_graded)]


def name_of(case: dict[str, Any]) -> str:
    return f"{case['kind']}-{case['gold']}-{case['answer'][:40]!r}-{case['why']}".encode("ascii", "backslashreplace").decode()


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_table(case: dict[str, Any]) -> None:
    answer = case["answer"] * case.get("times", 1)
    if case["kind"] == "format":
        assert grades_of_form(answer, case.get("documents", 0)) == case["expected"], case["why"]
    elif case["kind"] == "outcome":
        assert verdict_by_rule(question_of(case), answer) == case["expected"], case["why"]
    else:
        assert is_correct(question_of(case), answer) is case["expected"], case["why"]


def test_the_table_covers_what_it_promises() -> None:
    kinds = Counter(case["kind"] for case in CASES)
    assert kinds.total() >= 300 and sum(case.get("adversarial", False) for case in CASES) >= 60
    assert all(kinds[kind] >= 20 for kind in (*ASKED_AS, "outcome"))
    for kind in ("choice", "number", "date", "text"):
        assert {case["expected"] for case in CASES if case["kind"] == kind} == {True, False}
