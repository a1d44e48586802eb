"""Questions about one article or several: PubMedQA and BioASQ, answered by yes, no and, of the first, maybe."""

from __future__ import annotations

from typing import Any

from tasks.formats.format import Fields, Format, NotAsked, RowRefused, Source, filled, needs
from tasks.rows import COLUMNAR, Row, Shape

YES_NO_MAYBE = {"A": "yes", "B": "no", "C": "maybe"}  # in the order that MIRAGE gives them
YES_NO = {"A": "yes", "B": "no"}


def _decision(answer: Any, options: dict[str, str]) -> str:
    for letter, word in options.items():
        if answer == word:
            return letter
    raise RowRefused(f"the answer must be one of {', '.join(options.values())}, not {answer!r}")


def _pubmedqa(row: Row, _: Source) -> Fields:
    """``{"21645374": {"QUESTION", "CONTEXTS": […], "LABELS", "MESHES", "YEAR", "final_decision": "yes", "LONG_ANSWER"}}``"""
    if not row.keys:
        raise RowRefused("stands under no PubMed id")
    fields, article = row.fields, row.keys[-1]
    return _about_article(
        article, fields["QUESTION"], filled(fields, "final_decision"), fields.get("CONTEXTS"), fields.get("LABELS")
    )


def _pubmedqa_table(row: Row, _: Source) -> Fields:
    """``{"pubid", "question", "context": {"contexts", "labels", "meshes"}, "long_answer", "final_decision"}``"""
    fields, context = row.fields, row.fields.get("context") or {}
    decision = filled(fields, "final_decision")
    return _about_article(str(fields["pubid"]), fields["question"], decision, context.get("contexts"), context.get("labels"))


def _about_article(article: str, question: Any, decision: Any, contexts: Any, labels: Any) -> Fields:
    headings = labels or [""] * len(contexts or ())
    return {
        "id": article,
        "text": question,
        "kind": "choice",
        "gold": _decision(decision, YES_NO_MAYBE),
        "options": YES_NO_MAYBE,
        "gold_documents": [f"PMID:{article}"],
        "context": [
            {"id": f"PMID:{article}/{i}", "text": text, "title": heading}
            for i, (text, heading) in enumerate(zip(contexts or (), headings, strict=False), start=1)
        ],
    }


def _bioasq(row: Row, _: Source) -> Fields:
    """``{"questions": [{"id", "body", "type": "yesno", "exact_answer": "yes", "documents": […/pubmed/123], "snippets", …}]}``

    Factoid and list questions become texts: the first exact answer with its synonyms. Summaries have no answer that a rule can check.
    """
    fields = row.fields
    asked: Fields = {
        "id": fields["id"],
        "text": fields["body"],
        "gold_documents": [f"PMID:{link.rstrip('/').rpartition('/')[2]}" for link in fields.get("documents") or ()],
        "context": [
            {"id": f"{fields['id']}/{i}", "text": snippet["text"]}
            for i, snippet in enumerate(fields.get("snippets") or (), start=1)
        ],
    }
    kind, answer = filled(fields, "type"), fields.get("exact_answer")
    if kind == "yesno":
        said = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
        return asked | {
            "kind": "choice",
            "options": YES_NO,
            "gold": _decision(said.lower() if isinstance(said, str) else said, YES_NO),
        }
    if kind == "factoid":
        names = [name for group in answer or () for name in ([group] if isinstance(group, str) else group)]
        if not names:
            raise RowRefused("has no exact_answer")
        return asked | {"kind": "text", "gold": names[0], "aliases": names[1:]}
    raise NotAsked(f"is of type {kind}")


LITERATURE = (
    Format("pubmedqa", "PubMedQA", needs("QUESTION", "CONTEXTS"), _pubmedqa, frozenset({Shape.BY_ID}), "final_decision"),
    Format(
        "pubmedqa", "PubMedQA as a table", needs("pubid", "question", "final_decision"), _pubmedqa_table,
        frozenset({Shape.LINES, Shape.ARRAY, *COLUMNAR}), "final_decision",
    ),
    Format(
        "bioasq", "BioASQ task b", needs("body", "type", "id"), _bioasq,
        frozenset({Shape.LISTED, Shape.LINES, Shape.ARRAY, *COLUMNAR}), "exact_answer",
    ),
)  # fmt: skip
