"""What an answer rests on, and whether better evidence speaks against it."""

from __future__ import annotations

import pytest

from rewards.findings import NO_FINDINGS
from rewards.grounding import contrary_evidence, grounding
from tasks.questions import Document, Question
from tasks.world import statement
from tests.rewarded import (
    CAUSE,
    CAUSE_TOO,
    CAUSE_WRONG,
    FIRST,
    HONEST,
    INHIBITOR,
    INHIBITOR_WRONG,
    QUESTION,
    SECOND,
    STRANGER,
    episode,
    search,
)  # fmt: skip
from trajectories.schema import Episode

FORGED = statement("gene-inhibitor", "kawib", 1, "nopox")


@pytest.mark.parametrize(
    ("of", "supported", "contrary"),
    [
        (HONEST, 1.0, 0.0),
        (episode(FIRST, SECOND), 0.0, 0.0),  # rests on no line
        (episode(FIRST, CAUSE, INHIBITOR), 0.5, 0.0),  # the second hop was never looked up
        (episode(INHIBITOR), 0.0, 0.0),
        (episode(FIRST, CAUSE, SECOND, INHIBITOR_WRONG, answer="nopox"), 1.0, -0.5),  # level VI against level I
        (episode(FIRST, CAUSE, SECOND, FORGED, answer="nopox"), 0.5, -0.5),  # an upgraded line stands nowhere
        (episode(FIRST, CAUSE, SECOND, INHIBITOR_WRONG, INHIBITOR), 1.0, 0.0),  # weighed, and the better one followed
        (episode(FIRST, CAUSE_WRONG, search(1, "gene-inhibitor duwib", STRANGER), STRANGER, answer="muzal"), 1.0, -0.5),
        (episode(FIRST, CAUSE, SECOND, INHIBITOR, answer="nopox"), 0.0, 0.0),
        (episode(FIRST, CAUSE, SECOND, INHIBITOR, answer=""), 0.0, 0.0),
        (episode(search(0, "q", CAUSE_TOO, CAUSE_WRONG), CAUSE_TOO, answer="kawib"), 1.0, -1.0),
        (episode(search(0, "q", CAUSE_TOO, CAUSE_WRONG, CAUSE), CAUSE_TOO, answer="kawib"), 1.0, 0.0),  # a better one agrees
    ],
)
def test_grounding_and_contrary_evidence(of: Episode, supported: float, contrary: float) -> None:
    assert grounding(QUESTION, of, NO_FINDINGS).value == supported
    assert contrary_evidence(QUESTION, of, NO_FINDINGS).value == contrary


def test_the_turn_that_wrote_a_claim_gets_its_share() -> None:
    assert grounding(QUESTION, HONEST, NO_FINDINGS).turns == {1: 0.5, 2: 0.5}
    ignored = episode(FIRST, CAUSE, SECOND, INHIBITOR_WRONG, answer="nopox")
    assert contrary_evidence(QUESTION, ignored, NO_FINDINGS).turns == {2: -0.5}


DOSE = statement("drug-dose", "muzel", 2, "7")


@pytest.mark.parametrize(
    ("kind", "text", "answer", "expected"),
    [
        ("number", "drug-dose muzel for 6 kg ?", "42", 1.0),
        ("number", "drug-dose muzel for 6 kg ?", "42 mg", 1.0),
        ("number", "drug-dose muzel for 6 kg ?", "7", 0.0),
        ("number", "drug-dose muzel ?", "7", 1.0),
        ("choice", "?", "(B)", 1.0),
        ("choice", "?", "B 7", 1.0),
        ("choice", "?", "A", 0.0),
        ("text", "?", "the 7", 1.0),
    ],
)
def test_an_answer_rests_on_a_line_as_its_kind_says(kind: str, text: str, answer: str, expected: float) -> None:
    fields = {
        "id": "q",
        "text": text,
        "kind": kind,
        "gold": "B" if kind == "choice" else "42",
        "unit": "mg",
        "source": "world/joint",
    }
    question = Question.model_validate(fields | ({"options": {"A": "6", "B": "7"}} if kind == "choice" else {}))
    assert grounding(question, episode(search(0, "q", DOSE), DOSE, answer=answer), NO_FINDINGS).value == expected


def test_documents_that_came_with_the_question_support_too() -> None:
    document = Document(id="d", text=CAUSE, evidence_level=3)
    question = QUESTION.model_copy(update={"context": (document,)})
    assert grounding(question, episode(CAUSE, answer="kawib"), NO_FINDINGS).value == 1.0
    assert contrary_evidence(question, episode(CAUSE_WRONG, answer="duwib"), NO_FINDINGS).value == -1.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Iron deficiency", 1.0),
        ("iron overload", 0.5),
        ("(A)", 1.0),
        ("copper", 0.0),
        ("the of and", 0.0),
        ("anaemia follows iron deficiency in rats", 3 / 5),
    ],
)
def test_elsewhere_grounding_is_lexical(answer: str, expected: float) -> None:
    question = QUESTION.model_copy(update={"source": "medqa", "options": {"A": "iron deficiency"}})
    of = episode(
        search(0, "q", "Anaemia: iron deficiency is its first cause.", "Copper"[:0], "rats"), "it is low", answer=answer
    )
    assert grounding(question, of, NO_FINDINGS).value == pytest.approx(expected)
    assert contrary_evidence(question, of, NO_FINDINGS).value == 0
