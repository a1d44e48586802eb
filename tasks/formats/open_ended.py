"""Numbers and texts: MedCalc-Bench, HuatuoGPT-o1's verifiable problems and RareArena."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from tasks.formats.format import Fields, Format, NotAsked, RowRefused, Source, filled, needs
from tasks.rows import Row, Shape

_US_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")
_WEEKS_AND_DAYS = re.compile(r"\(?['\"]?(\d+)\s*(?:weeks?)?['\"]?,\s*['\"]?(\d+)\s*(?:days?)?['\"]?\)?")
_TABLE_SHAPES = frozenset({Shape.CSV, Shape.PARQUET, Shape.ARROW, Shape.LINES, Shape.ARRAY})


def _medcalc(row: Row, _: Source) -> Fields:
    """``Row Number,…,Patient Note,Question,Relevant Entities,Ground Truth Answer,Lower Limit,Upper Limit,Ground Truth Explanation``

    Answers are numbers, dates as 12/02/2000, month first, or ``('34 weeks', '3 days')``. Row numbers begin anew in every file, so the
    content gives the id.
    """
    fields = row.fields
    return {
        "text": f"{filled(fields, 'Patient Note')} {filled(fields, 'Question')}",
        "specialty": fields.get("Category") or "",
        **_calculated(str(filled(fields, "Ground Truth Answer")).strip(), fields),
    }


def _calculated(answer: str, fields: Fields) -> Fields:
    if day := _US_DATE.fullmatch(answer):
        month, day_of_month, year = map(int, day.groups())
        try:
            return {"kind": "number", "gold": date(year, month, day_of_month).isoformat()}
        except ValueError as error:
            raise RowRefused(f"Ground Truth Answer: {answer} is no date: {error}") from None
    if span := _WEEKS_AND_DAYS.fullmatch(answer):
        weeks, days = span.groups()
        said = f"{weeks} weeks {days} days"
        others = (f"{weeks} weeks, {days} days", f"{weeks} weeks and {days} days", f"({weeks}, {days})", answer)
        return {"kind": "text", "gold": said, "aliases": others}
    value = _number("Ground Truth Answer", answer)
    lower, upper = (_limit(fields, name) for name in ("Lower Limit", "Upper Limit"))
    if lower is not None and upper is not None:
        if lower > upper:
            raise RowRefused(f"Lower Limit {lower:g} is above Upper Limit {upper:g}")
        if not lower <= value <= upper:
            raise RowRefused(f"Ground Truth Answer {answer} is not within its limits {lower:g} and {upper:g}")
    return {"kind": "number", "gold": answer, "lower": lower, "upper": upper}


def _limit(fields: Fields, name: str) -> float | None:
    value = fields.get(name)
    return None if value in (None, "") else _number(name, value)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise RowRefused(f"{name}: must be a number, a date or weeks and days, not {str(value)[:80]!r}") from None


def _medical_o1(row: Row, _: Source) -> Fields:
    """``{"Open-ended Verifiable Question", "Ground-True Answer"}``: FreedomIntelligence's medical-o1-verifiable-problem."""
    return {
        "text": filled(row.fields, "Open-ended Verifiable Question"),
        "kind": "text",
        "gold": filled(row.fields, "Ground-True Answer"),
    }


def _medical_o1_sft(row: Row, _: Source) -> Fields:
    """``{"Question", "Complex_CoT", "Response"}``: medical-o1-reasoning-SFT, whose responses are paragraphs and no gold answers."""
    raise NotAsked("has a Response to imitate, and no answer that a rule can check")


def _rarearena(row: Row, _: Source) -> Fields:
    """``{"_id", "case_report", "diagnosis", "Orpha_name", "Orpha_id", …}``; of the confirmation task (RDC) also "test_results"."""
    fields = row.fields
    gold, name, tests = filled(fields, "diagnosis"), fields.get("Orpha_name"), fields.get("test_results")
    case = filled(fields, "case_report")
    return {
        "id": f"{'rdc' if tests else 'rds'}/{fields['_id']}",
        "text": f"{case}{f' {tests}' if tests else ''} Which rare disease is the most likely diagnosis?",
        "kind": "text",
        "gold": gold,
        "aliases": [name] if name and name != gold else [],
        "specialty": "rare disease",
    }


OPEN_ENDED = (
    Format(
        "medcalc", "MedCalc-Bench", needs("Patient Note", "Question", "Ground Truth Answer"), _medcalc, _TABLE_SHAPES,
        "Ground Truth Answer",
    ),
    Format(
        "medical-o1", "HuatuoGPT-o1 verifiable problems", needs("Open-ended Verifiable Question", "Ground-True Answer"), _medical_o1,
        gold="Ground-True Answer",
    ),
    Format("medical-o1-sft", "HuatuoGPT-o1 SFT data", needs("Question", "Complex_CoT", "Response"), _medical_o1_sft),
    Format("rarearena", "RareArena", needs("_id", "case_report", "diagnosis"), _rarearena, gold="diagnosis"),
)  # fmt: skip
