"""One number, with its unit, or one date: what an answer says, or that it says no such thing."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, date, datetime
from decimal import Decimal, DecimalException

# Longer than any honest number with its unit; it bounds the work on hostile answers.
MAX_CHARACTERS = 80
# Exponents beyond it are no measurement, and would make decimal arithmetic overflow.
MAX_EXPONENT = 300
# What Med-U1 allows where the data give no limits.
TOLERANCE = Decimal("0.05")

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_POWER = re.compile(r"(?<=10)[⁺⁻]?[⁰¹²³⁴-⁹]+")
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\s?"
    r"(?P<mantissa>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:[.,][0-9]*)?|\.[0-9]+)"
    r"(?:e(?P<e>[+-]?[0-9]{1,4})|\s?[x*·]\s?10\s?(?:\^|\*\*)\s?\(?(?P<power>[+-]?[0-9]{1,4})\)?)?"
    r"(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_BARE_POWER = re.compile(r"(?P<sign>[+-]?)10\s?(?:\^|\*\*)\s?\(?(?P<power>[+-]?[0-9]{1,4})\)?(?P<rest>.*)", re.DOTALL)
# A unit is at most four short words without digits; whatever joins, bounds or scales numbers is none.
_UNIT = re.compile(r"[^\W\d]+(?:[/·*^ .-]{1,3}[^\W\d]+){0,3}|%")
_NO_UNIT = frozenset(
    {"to", "or", "and", "plus", "minus", "between", "hundred", "thousand", "million", "billion", "trillion", "dozen", "not"}
)
_DATE_FORMATS = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d %B %Y", "%d %b %Y", "%B %d %Y", "%b %d %Y")


def parse_number(text: str, unit: str = "") -> Decimal | None:
    """The one number that a text states, or None: a range, two numbers, a bound or another unit than `unit` state none.

    A comma before exactly three digits groups thousands, any other comma is a decimal one.

    Example:
        >>> parse_number("1,234.5 mg", "mg"), parse_number("1.2 × 10⁻³"), parse_number("5-10"), parse_number("5 g", "mg")
        (Decimal('1234.5'), Decimal('0.0012'), None, None)
    """
    text = _plain(text)
    match = _BARE_POWER.fullmatch(text) or _NUMBER.fullmatch(text)
    if match is None or not _is_unit(match["rest"], unit):
        return None
    parts = match.groupdict()
    exponent = int(parts.get("e") or parts.get("power") or 0)
    if abs(exponent) > MAX_EXPONENT:
        return None
    try:
        return Decimal(f"{parts['sign']}{_decimal_point(parts.get('mantissa') or '1')}e{exponent}")
    except DecimalException:
        return None


def parse_date(text: str) -> date | None:
    """The day that a text names, year first or with the month as a word; "3/5/2021" names none, for it names two.

    Example:
        >>> parse_date("March 5th, 2021") == parse_date("2021-03-05")
        True
    """
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", _plain(text), flags=re.IGNORECASE)
    text = " ".join(text.replace(",", " ").removesuffix(".").split())
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
    if len(text) > MAX_CHARACTERS:
        return ""
    text = _POWER.sub(lambda power: "^" + power[0].translate(_SUPERSCRIPTS), text)
    text = unicodedata.normalize("NFKC", text).replace("×", "x")
    text = re.sub("[‐‑‒–—−]", "-", text)
    return " ".join(text.split())


def _decimal_point(mantissa: str) -> str:
    mantissa = mantissa.replace(" ", "")
    grouped = re.fullmatch(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]*)?", mantissa)
    return mantissa.replace(",", "") if grouped else mantissa.replace(",", ".")


def _is_unit(rest: str, unit: str) -> bool:
    said, wanted = _unit_words(rest), _unit_words(unit)
    if not said:
        return True
    if wanted:
        return said in (wanted, wanted + "s") or said + "s" == wanted
    return _UNIT.fullmatch(said) is not None and not _NO_UNIT & set(re.split(r"[^a-z]+", said))


def _unit_words(unit: str) -> str:
    words = " ".join(unicodedata.normalize("NFKC", unit).casefold().split()).removesuffix(".").strip()
    return re.sub(r"\s*/\s*", "/", words).replace("percent", "%").replace("per cent", "%")
