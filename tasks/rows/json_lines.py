"""JSON lines: one row per line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from tasks.rows.json_values import NoJSON, value_of
from tasks.rows.opening import Damaged
from tasks.rows.row import LONGEST_ROW, Row


def lines(file: BinaryIO) -> Iterator[Row]:
    """Every line as a row: an empty one, and one that is too long, as a refused row; a damaged file ends with one.

    Example:
        >>> import io
        >>> [row.fields or row.refused for row in lines(io.BytesIO(b'{"id": 1}\\r\\n\\n'))]
        [{'id': 1}, 'is empty: remove it']
    """
    number = 0
    try:
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            if len(line) > LONGEST_ROW:
                yield Row(number, raw=line[:1000], refused=f"is longer than {LONGEST_ROW >> 20} MiB")
                _skip_to_next(file, line)
                continue
            try:
                yield Row(number, value_of(line), line)
            except NoJSON as error:
                yield Row(number, raw=line, refused=str(error) if line.strip() else "is empty: remove it")
    except Damaged as damage:
        yield Row(number + 1, refused=str(damage))


def _skip_to_next(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(LONGEST_ROW)
