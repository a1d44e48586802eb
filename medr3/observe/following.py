"""A run folder that is read as it grows: only new lines are parsed, so a run of 5,000 steps is followed for next to nothing."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from medr3.errors import UserError
from medr3.observe.metrics_file import parse_metrics
from medr3.observe.record import EVENTS_FILE, METRICS_FILE, STATUS_FILE, SUMMARY_FILE, record_of
from medr3.observe.report import is_alive
from medr3.observe.view import view_of
from trajectories.events import Event, parse_event
from trajectories.lineage import Lineage, surviving

LONGEST_COUNT = 16  # digits: more rows than any run has


class Tail:
    """The whole lines that a file got since the last look. `again` says that the file was replaced: all of it is new.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log"
        >>> tail = Tail(path)
        >>> _ = path.write_text("one\\ntwo\\nthr")
        >>> tail.new()
        (False, [b'one', b'two'])
        >>> _ = path.write_text("one\\ntwo\\nthree\\n")
        >>> tail.new()
        (False, [b'three'])
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at, self._inode = 0, 0

    def new(self) -> tuple[bool, list[bytes]]:
        try:
            with self._path.open("rb") as file:
                inode, again = self._identity(file.fileno())
                file.seek(self._at)
                content = file.read()
        except FileNotFoundError:
            again, self._at, self._inode = self._at > 0, 0, 0
            return again, []
        self._inode = inode
        end = content.rfind(b"\n") + 1  # an unfinished line is read once it is finished
        self._at += end
        return again, content[:end].split(b"\n")[:-1]

    def _identity(self, handle: int) -> tuple[int, bool]:
        """A resume writes its metrics anew into a file of its own; a run that begins anew makes shorter ones."""
        found = os.fstat(handle)
        again = self._at > 0 and (found.st_ino != self._inode or found.st_size < self._at)
        if again:
            self._at = 0
        return found.st_ino, again


class Revision(NamedTuple):
    """What a reader has: the whole of an era up to a row. As text it travels with each update.

    Example:
        >>> Revision.parse(str(Revision("a1", 117, 3)))
        Revision(era='a1', rows=117, number=3)
        >>> Revision.parse("nonsense") is None
        True
    """

    era: str
    rows: int
    number: int

    def __str__(self) -> str:
        return f"{self.era}.{self.rows}.{self.number}"

    @classmethod
    def parse(cls, text: str) -> Revision | None:
        era, _, rest = text.partition(".")
        rows, _, number = rest.partition(".")
        return cls(era, int(rows), int(number)) if _is_count(rows) and _is_count(number) else None


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < LONGEST_COUNT


class Follower:
    """What the page shows, kept up to date by `look`; readers in other threads wait for what is new."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder
        self._lineage: Lineage = surviving([])
        self.view: dict[str, Any] = {}
        self.revision = Revision(uuid.uuid4().hex, 0, 0)
        self._metrics, self._events = Tail(run_folder / METRICS_FILE), Tail(run_folder / EVENTS_FILE)
        self._rows: list[dict[str, Any]] = []
        self._written: list[Event] = []
        self._small: tuple[Any, ...] = ()
        self._changed = threading.Condition()

    def look(self) -> bool:
        """Reads what is new and tells whether there was anything; a damaged file is one clear line."""
        try:
            changed = self._read()
        except ValueError as error:
            raise UserError(f"{self.folder}: {error}") from None
        alive = is_alive(self.folder)
        small = (_stamp(self.folder / SUMMARY_FILE), _stamp(self.folder / STATUS_FILE), alive)
        if not changed and small == self._small and self.view:
            return False
        self._small = small
        self._lineage = surviving(self._written)
        view = view_of(record_of(self.folder, self._rows, self._written), alive=alive)
        with self._changed:
            self.revision = Revision(self.revision.era, len(self._rows), self.revision.number + 1)
            self.view = view | {"revision": str(self.revision)}
            self._changed.notify_all()
        return True

    def survives(self, generation: int, step: int) -> bool:
        """Whether what this generation stored for this step was not rolled back."""
        return self._lineage.survives(generation, step)

    def _read(self) -> bool:
        replaced, lines = self._metrics.new()
        again, events = self._events.new()
        if replaced or again:
            self.revision = Revision(uuid.uuid4().hex, 0, self.revision.number)
        if replaced:
            self._rows = []
        if again:
            self._written = []
        self._rows += [parse_metrics(line, METRICS_FILE) for line in lines]
        self._written += [parse_event(line, EVENTS_FILE) for line in events]
        return bool(replaced or again or lines or events)

    def wake(self) -> None:
        """Lets every reader who waits look up."""
        with self._changed:
            self._changed.notify_all()

    def newer(self, than: Revision | None, timeout_s: float) -> tuple[Revision, dict[str, Any]] | None:
        """The next update for a reader who has `than`, as soon as there is one; None where there is none in time."""
        with self._changed:
            if than is not None and than == self.revision:
                self._changed.wait(timeout_s)
            if than == self.revision:
                return None
            return self.revision, update(self.view, than.rows if than and than.era == self.revision.era else 0)


def update(view: dict[str, Any], known: int) -> dict[str, Any]:
    """The view without the rows that a reader has."""
    return view | {"from": known, "columns": {name: values[known:] for name, values in view["columns"].items()}}


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino
