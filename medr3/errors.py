"""Errors that a person can mend: one line each, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where, and what to do, in one line. The command line prints it without a traceback and exits with 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing remark that names the nearest known word, or nothing where none is near.

    Example:
        >>> did_you_mean("num_engine", ["num_engines", "group_size"])
        ': did you mean num_engines?'
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""
