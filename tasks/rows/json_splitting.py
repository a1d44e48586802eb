"""One large JSON array or object, taken apart into its rows without being read whole.

A parser would stop at the first fault. This looks at quotes and brackets alone, so a row that is no JSON costs that row::

    [ {row}, {row} ]      {"id": {row}, …}      {"questions": [ {row} ]}      {"set": {"id": {row}, …}, …}
      depth 1               depth 1               depth 2                       depth 2
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

import orjson

from tasks.rows.json_values import NoJSON, value_of
from tasks.rows.opening import Damaged
from tasks.rows.row import LONGEST_ROW, Row

CHUNK = 1 << 20
# A whole text, or one character: a quote that stands alone opens a text that goes on beyond the chunk.
# Nothing is tried twice (`*+`): of a text without an end every byte would be.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]]', re.DOTALL)
# Where a row without lists of objects may end: what follows is the next row, by its name or without, or the end of all.
_ROW_END = re.compile(rb'\}(?=\s*(?:,\s*(?:"[^"\\]*+"\s*:\s*)?\{|[\]}]))')
ATTEMPTS = 3  # an object within the row may be its last field, and one within that
_BLANK = b" \t\r\n"
_CLOSES = {b"{": b"}", b"[": b"]"}


def elements(file: BinaryIO, depth: int) -> Iterator[Row]:
    """The rows of a file that stand `depth` brackets deep, with the names under which they stand.

    Example:
        >>> import io
        >>> [(row.keys, row.fields or row.refused) for row in elements(io.BytesIO(b'{"a": {"x": 1}, "b": {,}}'), 1)]
        [(('a',), {'x': 1}), (('b',), 'is no JSON: Expecting property name enclosed in double quotes at character 2')]
    """
    return _Splitter(file, depth).rows()


class _Splitter:
    """State of one pass: a window on the file that begins where a row or a gap between rows does."""

    def __init__(self, file: BinaryIO, depth: int) -> None:
        self._file, self._depth = file, depth
        self._window, self._line, self._counted = b"", 1, 0  # the line at `_counted`, an offset in the window
        self._open: list[bytes] = []  # brackets above the rows
        self._keys: list[str] = []  # the name that is on, for each of them
        self._named = False  # a name was read whose value is still to come
        self._flat = True  # so far, every row was found at once
        self._ends = True  # there may be the end of a row in what is left of the window

    def rows(self) -> Iterator[Row]:
        at = 0  # where to look for the next token
        inside = 0  # how deep within a row
        start = 0  # of the row, or of the gap behind the last token
        while True:
            while (match := _TOKEN.search(self._window, at)) is not None and match[0] != b'"':
                token, at = match[0], match.end()
                if inside:
                    inside += (token in b"{[") - (token in b"}]")
                    if not inside:
                        yield self._row(start, at)
                        start = at
                    continue
                gap = self._window[start : match.start()].strip(_BLANK)
                if gap not in (b"", b",", b":"):
                    yield self._refused(start, f"holds {gap[:40].decode('utf-8', 'replace')!r} where a row is expected", gap)
                    self._named = False
                start = at
                if token in b"{[" and len(self._open) == self._depth:
                    start = match.start()
                    if token == b"{" and (row := self._at_once(start)) is not None:
                        yield row
                        start = at = start + len(row.raw)
                    else:
                        inside = 1
                elif (fault := self._step(token)) is not None:
                    yield self._refused(match.start(), fault, token)
                    if not self._open:
                        return
                elif not self._open:
                    yield from self._rest(at)
                    return
            # A row is kept from its first character; else only what stands behind the last token.
            at, start = self._forget(start, at), 0
            if len(self._window) > LONGEST_ROW:
                self._window = self._window[:1000]
                yield self._refused(
                    0, f"is longer than {LONGEST_ROW >> 20} MiB: the rest of the file is not read", self._window
                )
                return
            try:
                more = self._file.read(max(CHUNK, len(self._window)))
            except Damaged as damage:
                yield self._refused(0, str(damage), self._window)
                return
            if not more:
                where = "inside this row" if inside else "before its last bracket closes"
                yield self._refused(0, f"the file ends {where}: it was cut short", self._window)
                return
            self._window += more
            self._ends = True

    def _at_once(self, start: int) -> Row | None:
        """The row that begins here, if it ends where it may: an object that parses is whole, for none is the beginning of another."""
        end = start
        if not self._ends:
            return None
        for _ in range(ATTEMPTS if self._flat else 0):
            found = _ROW_END.search(self._window, end)
            if found is None:  # behind this window, or nowhere
                self._ends = False
                return None
            end = found.end()
            raw = self._window[start:end]
            try:
                fields = orjson.loads(raw)
            except orjson.JSONDecodeError:
                continue
            self._named = False
            return Row(self._number(start), fields, raw, self._names())
        self._flat = False  # rows of this file have lists of objects: looking ahead costs more than it saves
        return None

    def _step(self, token: bytes) -> str | None:
        """Takes a token above the rows; what is wrong with it, if anything."""
        if token in b"{[":
            self._open.append(token)
            self._keys.append("")
            self._named = False
        elif token in b"}]":
            if not self._open or _CLOSES[self._open[-1]] != token:
                self._open.clear()
                return f"a bracket {token.decode()!r} closes what it did not open: the rest of the file is not read"
            self._open.pop()
            self._keys.pop()
            self._named = False
        elif not self._open or self._open[-1] == b"[" or self._named:
            self._named = False
            return "is a text, not an object"
        else:
            try:
                self._keys[-1] = value_of(token)
            except NoJSON as error:
                return str(error)
            self._named = True
        return None

    def _row(self, start: int, end: int) -> Row:
        self._named = False
        raw = self._window[start:end]
        number, keys = self._number(start), self._names()
        try:
            return Row(number, value_of(raw), raw, keys)
        except NoJSON as error:
            return Row(number, None, raw, keys, str(error))

    def _refused(self, start: int, reason: str, raw: bytes) -> Row:
        return Row(self._number(start), None, raw[:1000], self._names(), reason)

    def _names(self) -> tuple[str, ...]:
        return tuple([key for key in self._keys if key])

    def _rest(self, at: int) -> Iterator[Row]:
        try:
            rest = self._window[at:] + self._file.read(CHUNK)
        except Damaged as damage:
            yield self._refused(at, str(damage), b"")
            return
        if rest.strip(_BLANK):
            yield self._refused(at, "stands behind the end of the file's one value", rest.strip(_BLANK))

    def _number(self, offset: int) -> int:
        if offset >= self._counted:
            self._line += self._window.count(b"\n", self._counted, offset)
            self._counted = offset
        return self._line

    def _forget(self, start: int, at: int) -> int:
        """Drops what is done from the window; where `at` is in the new one."""
        self._number(start)
        self._window, self._counted = self._window[start:], 0
        return at - start
