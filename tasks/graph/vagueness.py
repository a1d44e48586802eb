"""Numbers and dates said roughly: what they hide is what has to be looked up."""

from __future__ import annotations

import math
import re
from datetime import date

_YEAR = re.compile(r"1[5-9]\d\d|20\d\d")
SMALLEST = 1e-300  # below it, powers of ten lose their digits
_STEPS = (1, 2, 5, 10)  # of every power of ten


def vague(value: str) -> str:
    """The decade's third of a year or date, the round numbers around any other number; what is neither stays as it is.

    Example:
        >>> vague("1987"), vague("2012-06-01"), vague("35"), vague("0.03"), vague("GLA")
        ('the late 1980s', 'the early 2010s', 'between 20 and 50', 'between 0.02 and 0.05', 'GLA')
    """
    if _YEAR.fullmatch(value):
        return _decade(int(value))
    try:
        number = float(value)
    except ValueError:
        try:
            return _decade(date.fromisoformat(value).year)
        except ValueError:
            return value
    if not math.isfinite(number) or abs(number) < SMALLEST:
        return value
    size = 10.0 ** math.floor(math.log10(abs(number)))
    low = max(step for step in _STEPS if step * size <= abs(number) * (1 + 1e-12))  # what is exact may be a hair below
    bounds = [low * size, _STEPS[_STEPS.index(low) + 1] * size] if low < _STEPS[-1] else [10 * size, 20 * size]
    low_, high = sorted(math.copysign(bound, number) for bound in bounds)
    return f"between {low_:g} and {high:g}"


def _decade(year: int) -> str:
    third = ("early", "early", "early", "early", "mid", "mid", "mid", "late", "late", "late")[year % 10]
    return f"the {third} {year // 10 * 10}s"
