"""A run's episodes a page at a time, newest first, read from the store when somebody asks: 300,000 of them never meet in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from medr3.observe.episodes import SHOWN_COLUMNS, AskedOf, brief, episode_view
from trajectories.reading import ROLLED_BACK
from trajectories.store import StoredStep, stored_steps

PAGE = 25  # episodes: a few screens of a phone
LOOKED_AT = 200  # steps for one page: about a second; a rare kind of episode is found by asking for more
FILTER_COLUMNS = [
    "phase", "source", "kind", "group_id", "episode_id", "question_id", "finish", "outcome", "correct", "reward",
]  # fmt: skip

Survives = Callable[[int, int], bool]  # whether what this generation stored for this step was not rolled back
_PLACE = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class Wanted(NamedTuple):
    """Which episodes; an empty field wants all."""

    phase: str = ""
    verdict: str = ""  # right | wrong
    outcome: str = ""
    words: str = ""  # a part of a group's, an episode's or a question's id
    step: int | None = None


class Place(NamedTuple):
    """Where a row lies. As text it names an episode, or where a page ended.

    Example:
        >>> str(Place.parse("1.117.5")), Place.parse("../etc") is None
        ('1.117.5', True)
    """

    generation: int
    step: int
    row: int

    def __str__(self) -> str:
        return f"{self.generation}.{self.step}.{self.row}"

    @classmethod
    def parse(cls, text: str) -> Place | None:
        match = _PLACE.fullmatch(text)
        return cls(*map(int, match.groups())) if match else None


class EpisodeShelf:
    """Reads one step at a time. Threads may share it."""

    def __init__(self, run_folder: Path, asked: AskedOf, survives: Survives) -> None:
        self._folder = run_folder / "trajectories"
        self._asked, self._survives = asked, survives
        self._listed: tuple[int, list[StoredStep]] = (-1, [])
        self._lock = Lock()

    def page(self, wanted: Wanted, after: Place | None = None) -> dict[str, Any]:
        """Up to PAGE episodes behind a place; `next` is where to go on, or null where there is no more."""
        found: list[dict[str, Any]] = []
        for looked, stored in enumerate(self._from(wanted, after), start=1):
            start = after.row + 1 if after and (stored.generation, stored.step) == after[:2] else 0
            for index, row in self._rows(stored, wanted, start):
                if len(found) == PAGE:
                    return {"episodes": found, "next": found[-1]["place"]}
                found.append(row | {"place": str(Place(stored.generation, stored.step, index))})
            if looked >= LOOKED_AT:
                return {"episodes": found, "next": str(Place(stored.generation, stored.step, 10**9))}
        return {"episodes": found, "next": None}

    def one(self, place: Place) -> dict[str, Any] | None:
        """The whole episode at a place."""
        for stored in self._steps():
            if (stored.generation, stored.step) == place[:2]:
                rows = stored.read(SHOWN_COLUMNS)
                return episode_view(rows.slice(place.row, 1).to_pylist()[0], self._asked) if place.row < rows.num_rows else None
        return None

    def _steps(self) -> list[StoredStep]:
        """Listed anew only after the folder changed: each large file's footer is read for it."""
        if not self._folder.is_dir():
            return []
        with self._lock:
            changed = self._folder.stat().st_mtime_ns
            if changed != self._listed[0]:
                self._listed = (changed, stored_steps(self._folder))
            return self._listed[1]

    def _from(self, wanted: Wanted, after: Place | None) -> Iterator[StoredStep]:
        for stored in reversed(self._steps()):
            if after is not None and (stored.generation, stored.step) > after[:2]:
                continue
            if wanted.step is None or stored.step == wanted.step:
                yield stored

    def _rows(self, stored: StoredStep, wanted: Wanted, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = stored.read(FILTER_COLUMNS)
        if not self._survives(stored.generation, stored.step):
            rows = rows.set_column(
                FILTER_COLUMNS.index("outcome"), "outcome", pa.array([ROLLED_BACK] * rows.num_rows, pa.string())
            )
        chosen = [i for i in pc.indices_nonzero(_mask(rows, wanted)).to_pylist() if i >= start]
        if not chosen:
            return
        chosen = chosen[: PAGE + 1]
        searches = pc.list_value_length(stored.read(["searches"])["searches"]).take(pa.array(chosen)).to_pylist()
        for index, row, count in zip(chosen, rows.take(pa.array(chosen)).to_pylist(), searches, strict=True):
            yield index, brief(stored.step, row, count)


def _mask(rows: pa.Table, wanted: Wanted) -> pa.ChunkedArray:
    keep = pa.chunked_array([pa.array([True] * rows.num_rows, pa.bool_())])
    for name, value in (("phase", wanted.phase), ("outcome", wanted.outcome)):
        if value:
            keep = pc.and_(keep, pc.equal(rows[name], value))
    if wanted.verdict:
        keep = pc.and_(keep, pc.equal(rows["correct"], wanted.verdict == "right"))
    if wanted.words:
        named = [pc.match_substring(rows[name], wanted.words) for name in ("group_id", "episode_id", "question_id")]
        keep = pc.and_(keep, pc.or_(pc.or_(named[0], named[1]), named[2]))
    return keep
