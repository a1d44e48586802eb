"""One row of a file, and what is wrong with a file or a row."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

LONGEST_ROW = 16 << 20  # bytes; a row beyond it is no question but a file of another kind, and would fill the memory


class FileRefused(ValueError):
    """A file that cannot be used, or its first bad row where none is allowed; the text names file, place and reason."""

    def __init__(self, text: str) -> None:
        super().__init__(in_one_line(text))


class Row(NamedTuple):
    """What stands at one place of a file: its fields, or why there are none."""

    number: int  # the line on which it begins, of Parquet and Arrow the row; both count from 1
    fields: Any = None
    raw: bytes = b""  # as it stands in the file; tables have none
    keys: tuple[str, ...] = ()  # the names under which it stands, outermost first, where the file is an object of rows
    refused: str = ""

    def text(self) -> str:
        """The row for a person, as it stands in the file where that is known."""
        if self.raw or self.fields is None:
            return self.raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
        return json.dumps(self.fields, ensure_ascii=False, default=str)


def in_one_line(said: object) -> str:
    """A text without line breaks, and without characters that would move a terminal's cursor: files put names into messages.

    Example:
        >>> in_one_line("two" + chr(10) + "lines" + chr(27) + "[2J")
        'two lines\\\\x1b[2J'
    """
    text = " ".join(str(said).splitlines())
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
