"""Several steps to an answer: HotpotQA, 2WikiMultiHopQA and MuSiQue.

Their paragraphs are what is searched; the titles of those that are needed are the gold documents. They stand in the prompt only where
the reader is asked for the context.
"""

from __future__ import annotations

from typing import Any

from tasks.formats.format import Fields, Format, NotAsked, Source, filled, needs
from tasks.rows import COLUMNAR, Row, Shape


def _hotpotqa(row: Row, _: Source) -> Fields:
    """``{"_id", "question", "answer", "supporting_facts": [[title, n]], "context": [[title, [sentences]]], "type", "level"}``

    As a table: "id", and ``{"title": […], "sent_id": […]}`` and ``{"title": […], "sentences": [[…]]}``.
    """
    fields = row.fields
    facts, paragraphs = fields.get("supporting_facts") or (), fields.get("context") or ()
    titles = facts["title"] if isinstance(facts, dict) else [fact[0] for fact in facts]
    if isinstance(paragraphs, dict):
        paragraphs = list(zip(paragraphs["title"], paragraphs["sentences"], strict=True))
    return {
        "id": str(fields.get("_id") or filled(fields, "id")),
        "text": fields["question"],
        "kind": "text",
        "gold": filled(fields, "answer"),
        "hops": max(1, len(set(titles))),
        "gold_documents": list(dict.fromkeys(titles)),
        "context": [_paragraph(title, " ".join(sentence.strip() for sentence in sentences)) for title, sentences in paragraphs],
    }


def _two_wiki(row: Row, source: Source) -> Fields:
    """HotpotQA's fields, and ``"evidences": [[subject, relation, object]]``: the reference graph."""
    edges = tuple(tuple(edge) for edge in row.fields["evidences"] or ())
    asked = _hotpotqa(row, source)
    return asked | ({"reference_graphs": (edges,), "hops": len(edges)} if edges else {})


def _musique(row: Row, _: Source) -> Fields:
    """``{"id", "paragraphs": [{"title", "paragraph_text", "is_supporting"}], "question", "question_decomposition", "answer",
    "answer_aliases", "answerable"}``

    Every step of the decomposition is an edge: what it asks about, the question, its answer; "#1" is the answer of the first.
    """
    fields = row.fields
    if fields.get("answerable") is False:
        raise NotAsked("is not answerable")
    steps, paragraphs = fields.get("question_decomposition") or (), fields.get("paragraphs") or ()
    edges = _steps(steps)
    return {
        "id": fields["id"],
        "text": fields["question"],
        "kind": "text",
        "gold": filled(fields, "answer"),
        "aliases": fields.get("answer_aliases") or (),
        "hops": max(1, len(steps)),
        "reference_graphs": (edges,) if edges else (),
        "gold_documents": list(dict.fromkeys(each["title"] for each in paragraphs if each.get("is_supporting"))),
        "context": [_paragraph(each["title"], each["paragraph_text"]) for each in paragraphs],
    }


def _steps(steps: Any) -> tuple[tuple[str, str, str], ...]:
    """Steps of the form "subject >> relation" as edges; a step that is a whole question relates its answer to the step before."""
    answers: list[str] = []
    edges: list[tuple[str, str, str]] = []
    for step in steps:
        subject, between, relation = step["question"].partition(">>")
        if not between:
            subject, relation = (f"#{len(answers)}" if answers else "question"), step["question"]
        for number, answer in enumerate(answers, start=1):
            subject, relation = subject.replace(f"#{number}", answer), relation.replace(f"#{number}", answer)
        edges.append((subject.strip(), relation.strip(), step["answer"]))
        answers.append(step["answer"])
    return tuple(edges)


def _paragraph(title: Any, text: Any) -> Fields:
    return {"id": title, "title": title, "text": text}


_STORED = frozenset({Shape.ARRAY, Shape.LINES, *COLUMNAR})
MULTIHOP = (
    Format(
        "2wiki", "2WikiMultiHopQA", needs("question", "answer", "supporting_facts", "evidences"), _two_wiki, _STORED, "answer"
    ),
    Format("hotpotqa", "HotpotQA", needs("question", "answer", "supporting_facts", "context"), _hotpotqa, _STORED, "answer"),
    Format("musique", "MuSiQue", needs("id", "question", "paragraphs", "question_decomposition"), _musique, _STORED, "answer"),
)
