"""One number, with its unit, or one date: what an answer says, or that it says no such thing."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, date, datetime
from decimal import Decimal, DecimalException
from typing import NamedTuple

from rewards.units import conversion

# Longer than any honest number with its unit; it bounds the work on hostile answers.
MAX_CHARACTERS = 80
# Exponents beyond it are no measurement, and would make decimal arithmetic overflow.
MAX_EXPONENT = 300
# What Med-U1 (arXiv 2506.12307) allows where the data give no limits.
TOLERANCE = Decimal("0.05")

_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉"
_POWER = re.compile(r"(?<=10)[⁺⁻]?[⁰¹²³⁴-⁹]+")
# 4² is 16, but compatibility normalisation would make it 42.
_OTHER_POWER = re.compile(rf"(?<=\d)[{_RAISED}{_LOWERED}]")
_ARABIC_SIGNS = str.maketrans("٫٬٪", ".,%")
_GROUPED = r"[0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?![0-9])(?:\.[0-9]*)?"
_TIMES_TEN_TO = r"e(?P<e>[+-]?[0-9]{1,4})|\s?[x*·]\s?10\s?(?:\^|\*\*)\s?\(?(?P<power>[+-]?[0-9]{1,4})\)?"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s?(?P<mantissa>{_GROUPED}|[0-9]+(?:[.,][0-9]*)?|\.[0-9]+)(?:{_TIMES_TEN_TO})?(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_BARE_POWER = re.compile(r"(?P<sign>[+-]?)10\s?(?:\^|\*\*)\s?\(?(?P<power>[+-]?[0-9]{1,4})\)?(?P<rest>.*)", re.DOTALL)
# Where no unit is asked for: at most four short words without digits; whatever joins, bounds, scales, doubts or denies numbers is none.
_UNIT = re.compile(r"[^\W\d]+(?:[/·*^ .-]{1,3}[^\W\d]+){0,3}|%")
_NO_UNIT = frozenset({
    "to", "or", "and", "plus", "minus", "between", "but", "not", "no", "is", "are", "was", "were", "isnt", "wasnt",
    "maybe", "perhaps", "possibly", "probably", "likely", "unlikely", "roughly", "approximately", "about", "around",
    "wrong", "incorrect", "false", "unsure", "guess", "one", "two", "three", "four", "five", "six", "seven", "eight",
    "nine", "ten", "eleven", "twelve", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    "half", "dozen", "hundred", "thousand", "million", "billion", "trillion", "bn", "mn", "mio",
})  # fmt: skip
_THOUSANDS = "k"  # as a capital it is the kelvin
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b(?: of\b)?", re.IGNORECASE)
_AFTER_ABBREVIATION = re.compile(r"(?<=[A-Za-z])\.")
_DATE_FORMATS = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d %B %Y", "%d %b %Y", "%B %d %Y", "%b %d %Y")
_YEAR = re.compile(r"[0-9]{4}")
_DAY_OR_MONTH_FIRST = re.compile(r"([0-9]{1,2})([/.-])([0-9]{1,2})\2([0-9]{4})")


class Quantity(NamedTuple):
    """A number and the unit that was written behind it, if any."""

    value: Decimal
    unit: str


def parse_quantity(text: str) -> Quantity | None:
    """The one number at the beginning of a text, and all that follows it as its unit.

    A comma before exactly three digits groups thousands, any other comma is a decimal one. Nothing is computed: a fraction, a sum and
    a number in words are no quantity.

    Example:
        >>> parse_quantity("1,234.5 mg"), parse_quantity("1.2 × 10⁻³").value, parse_quantity("forty")
        (Quantity(value=Decimal('1234.5'), unit='mg'), Decimal('0.0012'), None)
    """
    text = _plain(text)
    match = _BARE_POWER.fullmatch(text) or _NUMBER.fullmatch(text)
    if match is None:
        return None
    parts = match.groupdict()
    exponent = int(parts.get("e") or parts.get("power") or 0)
    if abs(exponent) > MAX_EXPONENT:
        return None
    try:
        value = Decimal(f"{parts['sign']}{_decimal_point(parts.get('mantissa') or '1')}e{exponent}")
    except DecimalException:
        return None
    return Quantity(value, parts["rest"].strip().removesuffix(".").strip())


def parse_number(text: str, unit: str = "") -> Decimal | None:
    """The one number that a text states in `unit`, or None: a range, two numbers or a bound state none.

    A number without a unit is taken to be in the unit that was asked for; another unit converts exactly or not at all.

    Example:
        >>> parse_number("1,234.5 mg", "mg"), parse_number("5 g", "mg"), parse_number("5-10"), parse_number("5 mmol/L", "mg/dL")
        (Decimal('1234.5'), Decimal('5000'), None, None)
    """
    quantity = parse_quantity(text)
    if quantity is None:
        return None
    if not quantity.unit:
        return quantity.value
    if not unit.strip():
        return quantity.value if _could_be_unit(quantity.unit) else None
    factor = conversion(quantity.unit, unit)
    return None if factor is None else quantity.value * factor.numerator / factor.denominator


def unit_of(text: str) -> str:
    """The unit behind a number, or "" where there is none."""
    quantity = parse_quantity(text)
    return quantity.unit if quantity is not None and _could_be_unit(quantity.unit) else ""


def parse_date(text: str) -> date | None:
    """The day that a text names; "3/5/2021" names none, for it names two.

    Example:
        >>> parse_date("March 5th, 2021") == parse_date("2021-03-05"), parse_date("25/12/2021"), parse_date("3/5/2021")
        (True, datetime.date(2021, 12, 25), None)
    """
    text = _AFTER_ABBREVIATION.sub("", _ORDINAL.sub("", _plain(text)))
    text = " ".join(text.replace(",", " ").removesuffix(".").split())
    if match := _DAY_OR_MONTH_FIRST.fullmatch(text):
        one, _, other, year = match.groups()
        days = {day for day in (_day(year, one, other), _day(year, other, one)) if day is not None}
        return days.pop() if len(days) == 1 else None
    if not _YEAR.search(text):
        return None
    for form in _DATE_FORMATS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).date()
        except ValueError:
            continue
    return None


def within(value: Decimal, gold: Decimal | None, lower: float | None, upper: float | None) -> bool:
    """Whether the value lies within the limits, inclusive; a missing limit is 5 % away from the gold value."""
    if gold is None and (lower is None or upper is None):
        return False
    margin = abs(gold) * TOLERANCE if gold is not None else Decimal(0)
    low = Decimal(repr(lower)) if lower is not None else (gold or Decimal(0)) - margin
    high = Decimal(repr(upper)) if upper is not None else (gold or Decimal(0)) + margin
    return low <= value <= high


def _plain(text: str) -> str:
    """The text with every sign and digit in its plain form; "" where it is too long or holds a power that would be misread."""
    if len(text) > MAX_CHARACTERS:
        return ""
    text = _POWER.sub(lambda power: "^" + unicodedata.normalize("NFKC", power[0]), text)
    if _OTHER_POWER.search(text):
        return ""
    text = unicodedata.normalize("NFKC", text).replace("×", "x").translate(_ARABIC_SIGNS)
    text = re.sub("[‐‑‒–—−]", "-", text)
    return " ".join("".join(str(unicodedata.decimal(sign, sign)) for sign in text).split())


def _decimal_point(mantissa: str) -> str:
    mantissa = mantissa.replace(" ", "")
    grouped = re.fullmatch(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]*)?", mantissa)
    return mantissa.replace(",", "") if grouped else mantissa.replace(",", ".")


def _could_be_unit(text: str) -> bool:
    words = set(re.split(r"[^A-Za-z]+", text))
    return _UNIT.fullmatch(text) is not None and _THOUSANDS not in words and not _NO_UNIT & {word.lower() for word in words}


def _day(year: str, month: str, day: str) -> date | None:
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None
