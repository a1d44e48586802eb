"""Errors that a person can mend: one line each, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_LINE = 2_000  # characters: a list of all settings is shorter, a file that was taken for a name is not


class UserError(Exception):
    """What is wrong, where, and what to do, in one line. The command line prints it without a traceback and exits with 2."""

    def lines(self) -> list[str]:
        """As they are printed, one per problem: what a file or an argument holds can neither steer a terminal nor fill it.

        Example:
            >>> UserError("run.name: no name, got a" + chr(27) + "[2J").lines() == ["run.name: no name, got a" + chr(92) + "x1b[2J"]
            True
        """
        lines = ["".join(map(_printable, line)) for line in str(self).split("\n") if line.strip()]
        return [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in lines] or ["something is wrong"]


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing remark that names the nearest known word, or nothing where none is near.

    Example:
        >>> did_you_mean("num_engine", ["num_engines", "group_size"])
        ': did you mean num_engines?'
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""
