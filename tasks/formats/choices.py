"""Multiple choice: MedQA, MedMCQA, MMLU, MedXpertQA, MediQ, EHRNoteQA and MIRAGE."""

from __future__ import annotations

import re

from tasks.formats.format import (
    Fields,
    Format,
    NotAsked,
    RowRefused,
    Source,
    by_number,
    filled,
    gold_letter,
    lettered,
    needs,
    only_filled,
)  # fmt: skip
from tasks.rows import COLUMNAR, Row, Shape

MIRAGE_SETS = ("mmlu", "medqa", "medmcqa", "pubmedqa", "bioasq")
# MedXpertQA repeats its options behind the question.
_REPEATED_OPTIONS = re.compile(r"Answer Choices:\s*+\(A\).*\Z", re.DOTALL)
_NOTES = ("note_1", "note_2", "note_3")


def _medqa(row: Row, _: Source) -> Fields:
    """``{"question", "answer": text, "options": {"A": …}, "meta_info": "step1", "answer_idx": letter}``; four or five options."""
    fields = row.fields
    options = only_filled(filled(fields, "options"))
    return {
        "text": fields["question"],
        "kind": "choice",
        "gold": gold_letter(filled(fields, "answer_idx"), options, fields.get("answer")),
        "options": options,
    }


def _medmcqa(row: Row, source: Source) -> Fields:
    """``{"id", "question", "opa" … "opd", "cop": 1 to 4, "subject_name", …}``; in Parquet and Arrow `cop` counts from 0."""
    fields = row.fields
    options = {"A": fields["opa"], "B": fields["opb"], "C": fields["opc"], "D": fields["opd"]}
    return {
        "id": fields["id"],
        "text": fields["question"],
        "kind": "choice",
        "gold": by_number(options, fields.get("cop", -1), 0 if source.columnar else 1, "cop"),
        "options": options,
        "specialty": fields.get("subject_name") or "",
    }


def _mmlu(row: Row, source: Source) -> Fields:
    """``question,a,b,c,d,letter`` without a header, one file per subject: anatomy_test.csv."""
    question, *options, letter = row.fields.values()
    if len(options) != 4:
        raise RowRefused(f"has {len(options) + 2} columns, not question, four options and a letter")
    by_letter = lettered(options)
    return {
        "text": question,
        "kind": "choice",
        "gold": gold_letter(letter, by_letter),
        "options": by_letter,
        "specialty": re.sub(r"_(test|dev|val|train)$", "", source.path.name.split(".")[0]),
    }


def _mmlu_table(row: Row, _: Source) -> Fields:
    """``{"question", "subject", "choices": [four], "answer": 0 to 3}``"""
    options = lettered(filled(row.fields, "choices"))
    return {
        "text": row.fields["question"],
        "kind": "choice",
        "gold": by_number(options, row.fields.get("answer"), 0, "answer"),
        "options": options,
        "specialty": row.fields.get("subject") or "",
    }


def _medxpertqa(row: Row, _: Source) -> Fields:
    """``{"id", "question", "options": {"A": …} or [{"letter", "content"}], "label", "medical_task", "body_system"}``"""
    fields = row.fields
    options = filled(fields, "options")
    if isinstance(options, list):
        options = {option["letter"]: option["content"] for option in options}
    if fields.get("images"):
        raise NotAsked("shows images")
    options = only_filled(options)
    return {
        "id": fields["id"],
        "text": _REPEATED_OPTIONS.sub("", fields["question"]).rstrip(),
        "kind": "choice",
        "gold": gold_letter(filled(fields, "label"), options),
        "options": options,
        "specialty": fields.get("body_system") or "",
    }


def _mediq(row: Row, _: Source) -> Fields:
    """``{"id", "context": [sentences of the case], "question", "options", "answer": text, "answer_idx", "facts", "patient"}``

    Its ids are numbers that begin anew in every file, so the content gives the id.
    """
    fields = row.fields
    case = fields["context"]
    patient = fields.get("patient") or {}
    return {
        "text": " ".join([*([case] if isinstance(case, str) else case), fields["question"]]),
        "kind": "choice",
        "gold": gold_letter(filled(fields, "answer_idx"), fields["options"], fields.get("answer")),
        "options": fields["options"],
        "specialty": patient.get("gpt_specialty") or "",
    }


def _ehrnoteqa(row: Row, _: Source) -> Fields:
    """``{"patient_id", "category", "question", "choice_A" … "choice_E", "answer": letter}``; notes once they are linked to it."""
    fields = row.fields
    options = {letter: fields[f"choice_{letter}"] for letter in "ABCDE" if fields.get(f"choice_{letter}")}
    notes = [fields[name] for name in _NOTES if fields.get(name)]
    return {
        "id": f"{fields['patient_id']}",
        "text": fields["question"],
        "kind": "choice",
        "gold": gold_letter(filled(fields, "answer"), options),
        "options": options,
        "specialty": fields.get("category") or "",
        "context": [{"id": f"{fields['patient_id']}/{i}", "text": text} for i, text in enumerate(notes, start=1)],
    }


def _mirage(row: Row, _: Source) -> Fields:
    """``{"medqa": {"0000": {"question", "options", "answer": letter}}}``: Xiong et al., Findings of ACL 2024; five sets.

    Its setting: no examples in the prompt, one letter as the answer, and retrieval by the question alone, never by its options. The
    score is the accuracy of each set, and the plain mean of the five.
    """
    if len(row.keys) != 2 or row.keys[0] not in MIRAGE_SETS:
        raise RowRefused(f"stands in {'/'.join(row.keys) or 'no set'}, but MIRAGE's sets are {', '.join(MIRAGE_SETS)}")
    dataset, name = row.keys
    options = filled(row.fields, "options")
    return {
        "id": f"{dataset}/{name}",
        "text": filled(row.fields, "question"),
        "kind": "choice",
        "gold": gold_letter(filled(row.fields, "answer"), options),
        "options": options,
        "source": f"mirage/{dataset}",
        # MMLU's ids open with the subject: anatomy-000.
        "specialty": name.rpartition("-")[0] if dataset == "mmlu" else "",
    }


_NAMED = frozenset({Shape.LINES, Shape.ARRAY, Shape.CSV, *COLUMNAR})
CHOICES = (
    Format("mirage", "MIRAGE", needs("question", "options", "answer"), _mirage, frozenset({Shape.BY_SET}), "answer"),
    Format("mmlu", "MMLU, one subject", needs("column 1", "column 6"), _mmlu, frozenset({Shape.HEADLESS})),
    Format("mmlu", "MMLU as a table", needs("question", "subject", "choices", "answer"), _mmlu_table, _NAMED, "answer"),
    Format("medmcqa", "MedMCQA", needs("id", "question", "opa", "opb", "opc", "opd"), _medmcqa, _NAMED, "cop"),
    Format("mediq", "MediQ", needs("id", "context", "question", "options", "answer_idx"), _mediq, _NAMED, "answer_idx"),
    Format("medqa", "MedQA-USMLE", needs("question", "options", "answer_idx"), _medqa, _NAMED, "answer_idx"),
    Format("medxpertqa", "MedXpertQA", needs("id", "question", "options", "label"), _medxpertqa, _NAMED, "label"),
    Format(
        "ehrnoteqa", "EHRNoteQA", needs("patient_id", "question", "choice_A", "answer"), _ehrnoteqa, _NAMED, "answer", shows_context=True
    ),
)  # fmt: skip
