"""What a published format is: how its rows are recognised, and how a row becomes a question."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from tasks.rows import Row, Shape

Fields = dict[str, Any]


class RowRefused(ValueError):
    """A row that is no question of its format; says why."""


class NotAsked(RowRefused):
    """A row as it should be that holds no question which text can answer and a rule can check; it is left out, and no fault."""


class Source(NamedTuple):
    """The file that a row comes from."""

    path: Path
    shape: Shape
    columnar: bool  # Parquet or Arrow, as datasets are converted to: classes are numbered from 0


class Format(NamedTuple):
    """One format. `question` gives the fields of a `Question`, its id without the format's name; no id: it follows from the content.

    The first format whose `needs` the first row has is the file's, so the more particular ones stand first in `FORMATS`.
    """

    name: str
    title: str
    needs: frozenset[str]
    question: Callable[[Row, Source], Fields]
    shapes: frozenset[Shape] = frozenset({Shape.LINES, Shape.ARRAY, Shape.CSV, Shape.PARQUET, Shape.ARROW})
    gold: str = ""  # the field that must not be named twice
    shows_context: bool = False  # its context belongs to the question: it cannot be looked up


def needs(*names: str) -> frozenset[str]:
    return frozenset(names)


def lettered(options: Iterable[Any]) -> dict[str, Any]:
    """Options in their order, by letters.

    Example:
        >>> lettered(["yes", "no"])
        {'A': 'yes', 'B': 'no'}
    """
    return dict(zip("ABCDEFGHIJKLMN", options, strict=False))


def by_number(options: dict[str, Any], number: Any, first: int, name: str) -> str:
    """The letter of an option that is named by its number."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise RowRefused(f"{name}: must be one number, not {number!r}")
    if not first <= number < first + len(options):
        hint = " (a test split without its answers?)" if number == -1 else ""
        if number == 0:
            hint = " (a table, which counts from 0, saved as JSON? Then every other row is wrong as well)"
        raise RowRefused(f"{name}: must be {first} to {first + len(options) - 1}, not {number}{hint}")
    return "ABCDEFGHIJKLMN"[number - first]


def gold_letter(letter: Any, options: dict[str, Any], text: Any = None) -> str:
    """The one gold letter; where the row says the answer's text as well, both must speak of the same option."""
    if isinstance(letter, list):
        if len(letter) != 1:
            raise RowRefused(f"names {len(letter)} right answers: {', '.join(map(str, letter))}")
        letter = letter[0]
    if not isinstance(letter, str) or letter.strip() not in options:
        raise RowRefused(f"gold {letter!r} is not one of the letters {', '.join(map(str, options))}")
    letter = letter.strip()
    if text is not None and text != options[letter] and _plain(text) != _plain(options[letter]):
        raise RowRefused(f"has two answers: letter {letter} is {options[letter]!r}, but the answer is said to be {text!r}")
    return letter


def _plain(text: Any) -> str:
    return " ".join(str(text).casefold().split())


def filled(fields: Fields, name: str) -> Any:
    """A field that must be there and not empty."""
    value = fields.get(name)
    if value is None or value == "" or value == [] or value == {}:
        raise RowRefused(f"has no {name}")
    return value


def only_filled(options: dict[str, Any]) -> dict[str, Any]:
    """Options without those that Arrow fills up with null where other rows have more."""
    return {letter: text for letter, text in options.items() if text is not None}


def content_id(fields: Fields) -> str:
    """An id that follows from question, options and answer, for rows that have none: stable in whatever order they come.

    Example:
        >>> content_id({"text": "?", "gold": "A"})
        '6c622ec4581eb824'
    """
    said = (fields["text"], fields["gold"], *sorted((fields.get("options") or {}).items()))
    return xxhash.xxh3_64_hexdigest(repr(said).encode("utf-8", "surrogatepass"))
