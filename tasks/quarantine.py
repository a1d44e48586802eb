"""Where malformed rows go: a file of their own, each with its place and reason, as it stood."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tasks.questions import Question
from tasks.reading import Malformed

SHOWN = 20  # malformed rows that a person reads before looking into the file


class Quarantine:
    """Counts malformed rows and writes each of them down; the file appears with the first, whole, when this is closed.

    ::

        {"file": "train.json", "place": "line 7", "reason": "cop: must be 1 to 4, not 5", "row": "{…}"}
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.malformed = 0
        self.left_out: dict[str, int] = {}  # rows as they should be that ask nothing, by reason
        self.first: list[Malformed] = []
        self._file: IO[str] | None = None

    def questions(self, found: Iterator[Question | Malformed]) -> Iterator[Question]:
        """What is found without what goes into quarantine."""
        for each in found:
            if isinstance(each, Malformed):
                self.take(each)
            else:
                yield each

    def take(self, each: Malformed) -> None:
        if each.left_out:
            self.left_out[each.reason] = self.left_out.get(each.reason, 0) + 1
            return
        self.malformed += 1
        if len(self.first) < SHOWN:
            self.first.append(each._replace(row=""))
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._unfinished.open("w", encoding="utf-8", errors="backslashreplace")
        row = {"file": str(each.path), "place": each.place, "reason": each.reason, "row": each.row}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            os.replace(self._unfinished, self.path)

    @property
    def _unfinished(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{os.getpid()}")
