"""Questions from files, read strictly and one line at a time: whatever is no question is refused with its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.questions import Question

LONGEST_LINE = 16 << 20  # bytes; a line beyond it is no question but a file of another kind, and would fill the memory


class QuestionsRefused(ValueError):
    """A file of questions that cannot be used; the text names file, line and reason."""


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of a JSON lines file, one object of `Question`'s fields per line, as they come.

    Unknown fields, empty lines, repeated ids and an empty file are refused: what is skipped in silence changes a score.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "q.jsonl")
        ...     _ = path.write_text('{"id": "q1", "text": "?", "kind": "text", "gold": "fever"}\\n')
        ...     [question.gold for question in read_questions(path)]
        ['fever']
    """
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        question = question_of(_object(path, number, line), f"{path}, line {number}")
        if question.id in lines:
            raise QuestionsRefused(f"{path}, line {number}: id {question.id!r} stands in line {lines[question.id]} already")
        lines[question.id] = number
        yield question
    if not lines:
        raise QuestionsRefused(f"{path}: is empty: write one question per line, as JSON")


def question_of(fields: Any, where: str) -> Question:
    """The question that an object describes; `where` opens the refusal of one that describes none."""
    try:
        return Question.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        reason = first["msg"].removeprefix("Value error, ")
        raise QuestionsRefused(f"{where}: {f'{name}: ' if name else ''}{reason}{more}") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise QuestionsRefused(f"{path}, line {number}: is longer than {LONGEST_LINE >> 20} MiB")
                yield number, line
    except OSError as error:
        raise QuestionsRefused(f"{path}: {error.strerror}: name a file of questions") from None


def _object(path: Path, number: int, line: bytes) -> Any:
    if not line.strip():
        raise QuestionsRefused(f"{path}, line {number}: is empty: remove it")
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise QuestionsRefused(f"{path}, line {number}: is no UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise QuestionsRefused(f"{path}, line {number}: is no JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise QuestionsRefused(f"{path}, line {number}: is nested too deep for a question") from None
