"""A run goes on when nobody reads what it prints any more: `medr3 train … | head` ends its reader, not its training."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO, cast


class Unheard:
    """A stream whose reader may go away. From then on, what is written to it is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._to_nowhere()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._to_nowhere()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _to_nowhere(self) -> None:
        """What the stream still holds goes there too, so that the end of the process does not stumble over it."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def survive_readers() -> None:
    """Both streams of this process, once."""
    if not isinstance(sys.stdout, Unheard):
        sys.stdout = cast(TextIO, Unheard(sys.stdout))
    if not isinstance(sys.stderr, Unheard):
        sys.stderr = cast(TextIO, Unheard(sys.stderr))
