"""Units of measurement: which are the same, and by which exact factor one becomes another."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from itertools import product

_PREFIXES = {"": 0, "k": 3, "d": -1, "c": -2, "m": -3, "µ": -6, "n": -9, "p": -12, "f": -15}
_PREFIX_NAMES = {"": "", "kilo": "k", "deci": "d", "centi": "c", "milli": "m", "micro": "µ", "nano": "n", "pico": "p"}
# What medicine measures with these prefixes. Units of activity are none of each other: "U" never becomes "IU".
_METRIC = ("g", "l", "mol", "m", "u", "iu", "eq", "osm")
_METRIC_NAMES = {"gram": "g", "gramme": "g", "litre": "l", "liter": "l", "mole": "mol", "metre": "m", "meter": "m"}
_OTHERS = {
    "time": {"s": Fraction(1), "min": Fraction(60), "h": Fraction(3600), "day": Fraction(86_400), "week": Fraction(604_800)},
    "calendar": {"month": Fraction(1), "year": Fraction(12)},  # a month is no fixed number of days
    "pressure": {"kpa": Fraction(1), "mmhg": Fraction("0.133322387415")},  # the conventional millimetre of mercury
}

_KNOWN = {
    **{prefix + base: (base, Fraction(10) ** power) for base in _METRIC for prefix, power in _PREFIXES.items()},
    **{name: (dimension, size) for dimension, sizes in _OTHERS.items() for name, size in sizes.items()},
}
_SYNONYMS = {
    **{f"{long}{name}": short + base for (long, short), (name, base) in product(_PREFIX_NAMES.items(), _METRIC_NAMES.items())},
    "mcg": "µg", "ug": "µg", "ul": "µl", "umol": "µmol", "um": "µm", "micron": "µm", "cc": "ml", "unit": "u",
    "sec": "s", "second": "s", "minute": "min", "hr": "h", "hour": "h", "d": "day", "wk": "week", "mo": "month",
    "y": "year", "yr": "year", "percent": "%",
}  # fmt: skip
# Only the case tells a mega-unit of penicillin from a milli-unit, and molar from metre.
_MEGA = re.compile(r"\bMI?U\b")
_MOLAR = re.compile(r"\b([mμunp]?)M\b")  # with the mu that compatibility normalisation leaves


def conversion(said: str, wanted: str) -> Fraction | None:
    """The factor from one unit to another, or None where there is no exact one.

    Metric prefixes, fixed spans of time and mmHg with kPa convert, also below a fraction bar. Mass never becomes an amount of
    substance, which takes a molar mass, nor activity anything else.

    Example:
        >>> conversion("g", "mg"), conversion("mg/L", "mg/dL"), conversion("mg/dL", "mmol/L"), conversion("mm Hg", "mmHg")
        (Fraction(1000, 1), Fraction(1, 10), None, Fraction(1, 1))
    """
    if bool(_MEGA.search(said)) != bool(_MEGA.search(wanted)):
        return None
    said_parts, wanted_parts = _parts(said), _parts(wanted)
    if said_parts == wanted_parts:
        return Fraction(1)
    if len(said_parts) != len(wanted_parts):
        return None
    factor = Fraction(1)
    for place, (one, other) in enumerate(zip(said_parts, wanted_parts, strict=True)):
        if one == other:
            continue
        if one not in _KNOWN or other not in _KNOWN or _KNOWN[one][0] != _KNOWN[other][0]:
            return None
        ratio = _KNOWN[one][1] / _KNOWN[other][1]
        factor = factor * ratio if place == 0 else factor / ratio
    return factor


def _parts(unit: str) -> list[str]:
    """The unit's words between its fraction bars, each under its one name."""
    text = " ".join(_MOLAR.sub(r"\1mol/L", unicodedata.normalize("NFKC", unit)).casefold().replace("μ", "µ").split()).rstrip(
        ". "
    )
    text = re.sub(r"\bper cent\b", "%", text)
    text = re.sub(r" (?:daily|a day)$", "/day", text)
    return [_one_name(part.replace(" ", "")) for part in re.split(r"\s*/\s*|\s+per\s+", text)]


def _one_name(word: str) -> str:
    singular = word.removesuffix("s") if len(word) > 2 else word
    if word in _KNOWN or word in _SYNONYMS:
        return _SYNONYMS.get(word, word)
    return _SYNONYMS.get(singular, singular)
