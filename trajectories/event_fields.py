"""Of which type the fields of events are. Who reads a run may rely on it: a line that keeps to it in none but its JSON is damaged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

LARGEST = 2**53  # a float holds every integer below it, and no run counts so far
VERSION = re.compile(r"\d{1,15}\.\d{1,15}", re.ASCII)

TYPES: Mapping[str, str] = {
    **dict.fromkeys(
        ("attempt", "engines", "episodes", "generation", "max_staleness", "n", "position", "step", "target", "to_step"),
        "integer",
    ),
    **dict.fromkeys(("engine_id", "group_id", "left_by", "phase", "question_id", "reason", "run_id"), "text"),
    "score": "number",
    "ok": "true or false",
    "version": "version",
}


def wrong_field(fields: Mapping[str, Any]) -> str:
    """What is wrong with the first field that is of another type; empty where none is.

    Example:
        >>> wrong_field({"step": 3, "reason": "stale"}), wrong_field({"step": "3"})
        ('', "step is '3', no integer")
    """
    for name, value in fields.items():
        if name in TYPES and not _is(TYPES[name], value):
            return f"{name} is {repr(value)[:80]}, no {TYPES[name]}"
    return ""


def is_number(value: Any) -> bool:
    """A finite number, and no integer that a float cannot hold; true and false are none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)


def _is(kind: str, value: Any) -> bool:
    if kind == "integer":
        return is_integer(value)
    if kind == "number":
        return is_number(value)
    if kind == "true or false":
        return isinstance(value, bool)
    return isinstance(value, str) and (kind == "text" or VERSION.fullmatch(value) is not None)
