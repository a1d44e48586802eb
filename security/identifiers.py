"""What a person could be found by in a clinical text: dates, record and telephone numbers, mail addresses, names by title or label.

Patterns know forms and not people: a name without a title, a label or a degree beside it stays. docs/security.md says how much
they find, measured on tests/data/phi.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Found(NamedTuple):
    """Characters [start, end) of a text, and what they are."""

    start: int
    end: int
    kind: str


_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?"
    r"|Dec(?:ember)?)\b\.?"
)
_MONTH_NUMBER, _DAY, _YEAR = r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])", r"(?:19|20)\d\d"
_NTH = rf"{_DAY}(?:st|nd|rd|th)?"
_WEEKDAY = r"(?:\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day,? )?"
_MEASURED = r" ?(?:mg|g|kg|mcg|µg|ng|mL|ml|L|IU|U|units|mmol|mmHg|%|h|hours|days|weeks|months|years)\b"
_COUNTED = r" (?:patients|cases|women|men|children|infants|participants|subjects|people|studies|trials|units)\b"
# A day with its month. A year, or a month with its year, finds nobody; 10/20 is a dose, 3/4 a share and 10/20/40 three doses.
_DATES = (
    rf"(?<![\d/.-]){_YEAR}([-/.]){_MONTH_NUMBER}\1{_DAY}(?![\d/])",
    rf"(?<![\d/.-])(?:{_DAY}([-/.]){_MONTH_NUMBER}|{_MONTH_NUMBER}([-/]){_DAY})[-/.]{_YEAR}(?![\d/])",
    rf"(?<![\d/.-])(?:{_DAY}/{_MONTH_NUMBER}|{_MONTH_NUMBER}/{_DAY})/\d\d(?![\d/]|{_MEASURED})",
    rf"(?<![\d/.-]){_DAY}-(?i:{_MONTH})-(?:{_YEAR}|\d\d)\b",
    rf"{_WEEKDAY}(?<![\d/.-])\b{_NTH}(?: of)? {_MONTH}(?:,? {_YEAR}\b)?",
    rf"{_WEEKDAY}\b{_MONTH} {_NTH}(?:,? {_YEAR}\b|(?!\w|[.,/]\d|{_MEASURED}|{_COUNTED}))",
)
_MAIL = r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}\b"
_EXTENSION = r"(?: ?(?:ext\.?|x) ?\d{1,5})?"
_PHONES = (
    rf"(?i:\b(?:phone|telephone|tel|fax|mobile|pager)\b\.?(?: (?:no\b\.?|number))?:? ?)(?P<it>\+?\(?\d[\d ()./-]{{5,20}}\d{_EXTENSION})",
    rf"(?<![\d.])\+\d{{1,3}}[ .-]?(?:\(\d{{1,4}}\)[ .-]?)?\d{{2,4}}(?:[ .-]?\d{{2,4}}){{1,4}}(?!\d){_EXTENSION}",
    rf"(?<![\d.])(?:\(\d{{3}}\) ?|\d{{3}}([ .-]))\d{{3}}[ .-]\d{{4}}(?![\d-]){_EXTENSION}",
    r"(?<![\d./-])0\d{2,4}[ /-]\d{3}[ -]?\d{3,5}(?!\d)",
)
_RECORD = (
    r"(?i:\b(?:(?:MRN|SSN)\b|(?:record|hospital|patient|account|case|chart|policy|insurance|member|subscriber|claim|medicaid|medicare|NHS"
    r"|accession|pathology|specimen|serial|encounter|passport|licen[cs]e|job)[ -]?(?:ID\b|no\b\.?|nr\b\.?|number|\#))"
    r"(?: (?:no\b\.?|number))?[:#]{0,2} ?)"
)
_CODE = r"[A-Z0-9]{1,12}(?:[-/][A-Z0-9]{1,12}| (?=[A-Z]{0,11}\d)[A-Z0-9]{1,12}){0,5}"
_SOCIAL = r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"
_SHORTEST_CODE = 4  # "case no. 2" finds nobody

_WORD = r"(?:[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ’']{1,20}(?:-?[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ]{1,20}){0,2}|[A-Z]\.)"
_NEXT = rf" (?:(?:van|von|de|der|den|del|da|di|la|le|al|bin|ibn|ten|ter) ){{0,2}}{_WORD}"
_TITLE = (
    r"\b(?:(?:Drs?|Mrs?|Ms|Mx|Prof|Mme|Mlle|Rev)\b\.?|Miss|Nurse|Sister|Brother|Professor|Doctor|Herr|Frau|Madame|Monsieur|Señora?|Sir"
    r"|Dame|Reverend|Father|Captain|Sergeant) "
)
_DEGREE = r", ?(?:MD|DO|RN|NP|PA(?:-C)?|PhD|DDS|DMD|FRCP|MBBS|MBChB|LCSW|PharmD)\b"
_LABEL = (
    r"(?i:\b(?:name|patient|attending|resident|provider|surgeon|physician|consultant|nurse|contact|next of kin|guardian|daughter|son|wife"
    r"|husband|mother|father|brother|sister|spouse|(?:signed|dictated|seen|examined|referred|accompanied) by|spoke with|labell?ed)"
    r"(?: ?:|,)? )"
)
_NAMES = (
    rf"(?:{_TITLE}){{1,3}}(?:(?:med|phil|rer|nat)\. ){{0,3}}{_WORD}(?:{_NEXT}){{0,3}}",
    rf"\b{_WORD}(?:{_NEXT}){{1,3}}{_DEGREE}",
    rf"{_LABEL}(?P<it>{_WORD}(?:{_NEXT}){{1,3}})",
)

# The first that matches keeps its place where two overlap. Where a pattern has the group `it`, that alone is meant.
_PATTERNS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("EMAIL", _MAIL),
        ("ID", _SOCIAL),
        ("ID", rf"{_RECORD}(?P<it>{_CODE})(?![\w/])"),
        *(("DATE", pattern) for pattern in _DATES),
        *(("PHONE", pattern) for pattern in _PHONES),
        *(("NAME", pattern) for pattern in _NAMES),
    )
)
KINDS = ("DATE", "EMAIL", "ID", "NAME", "PHONE")


def find(text: str) -> list[Found]:
    """What a person could be found by, in the order of the text, none overlapping another.

    Example:
        >>> [(each.kind, "Dr. Ebbe Kolt, MRN 0098123"[each.start : each.end]) for each in find("Dr. Ebbe Kolt, MRN 0098123")]
        [('NAME', 'Dr. Ebbe Kolt'), ('ID', '0098123')]
    """
    found: list[Found] = []
    taken = bytearray(len(text))
    for kind, pattern in _PATTERNS:
        group = "it" if "it" in pattern.groupindex else 0
        for match in pattern.finditer(text):
            start, end = match.span(group)
            if kind == "ID" and not _is_code(match[group]):
                continue
            if not any(taken[start:end]):
                found.append(Found(start, end, kind))
                taken[start:end] = b"\x01" * (end - start)
    return sorted(found)


def redact(text: str) -> str:
    """The text with each of them replaced by what it is. Twice is the same as once.

    Example:
        >>> redact("Seen by Dr. Ebbe Kolt on 4 May 2031; metformin 10/20 mg, BP 120/80.")
        'Seen by [NAME] on [DATE]; metformin 10/20 mg, BP 120/80.'
    """
    while found := find(text):  # again, because what stood between two of them may have hidden one
        pieces, position = [], 0
        for start, end, kind in found:
            pieces += [text[position:start], f"[{kind}]"]
            position = end
        text = "".join([*pieces, text[position:]])
    return text


def _is_code(text: str) -> bool:
    return any(map(str.isdigit, text)) and sum(map(str.isalnum, text)) >= _SHORTEST_CODE
