"""Finished groups that have no ending in the store yet: Arrow IPC streams, appended to as each group arrives.

```
 group finishes ─append─▶ spool-generation-1-000004.arrows ─ended─▶ its rows are in Parquet: a segment without open groups goes
```

One batch is one group, and carries beside its rows a note of whoever appended it. A crash of the process loses no group that was
appended; one that tears the last batch loses that alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from trajectories.durable import sync
from trajectories.schema import EPISODE_SCHEMA
from trajectories.store import stored_steps

_NAME = re.compile(r"spool-generation-(\d+)-(\d{6,})\.arrows")
_NOTE = b"medr3.note"  # in a batch's metadata


class Spool:
    """Appends groups to the segment of the moment, and begins another whenever groups ended, so that old segments can go.

    Its owner says when a group has ended: groups end within max_staleness + 1 steps, and those that a resume could still use are
    held until the next manifest, so a segment stays that long at most.

    Example:
        >>> import tempfile
        >>> from trajectories.schema import Episode, to_table
        >>> rows = to_table([Episode("run", "g1", "g1-0", "q1", 0, "joint", "world", "text", [1], [False], [0.0], [], [], [])])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     spool = Spool(folder, generation=1)
        ...     spool.append(rows)
        ...     [group.group_id for group in read_spool(folder).groups]
        ...     spool.ended(["g1"])
        ...     read_spool(folder).groups, list(Path(folder).iterdir())
        ['g1']
        ([], [])
    """

    def __init__(self, folder: Path | str, generation: int) -> None:
        self.folder, self.generation = Path(folder), generation
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[Path, set[str]] = {}  # by segment: the groups that have not ended
        self._unsynced: set[Path] = set()
        self._segment: Path | None = None
        self._file: pa.OSFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None
        self._made = max((number for _, at, number in _segments(self.folder) if at == generation), default=0)

    def append(self, rows: pa.Table, note: bytes = b"") -> None:
        """One finished group, given to the operating system before this returns; `note` comes back with its rows."""
        if not rows.schema.equals(EPISODE_SCHEMA):
            raise ValueError(f"spool: rows have columns {rows.schema.names}, not those of EPISODE_SCHEMA in order and type")
        if not rows.num_rows:
            return
        if self._stream is None:
            self._begin()
        assert self._stream is not None and self._file is not None and self._segment is not None
        for batch in rows.combine_chunks().to_batches():  # one, so that a group is there whole or not at all
            self._stream.write_batch(batch, custom_metadata={_NOTE: note})
        self._file.flush()
        self._unsynced.add(self._segment)
        self._open[self._segment].add(rows["group_id"][0].as_py())

    def sync(self) -> None:
        """Everything that was appended is on the disk when this returns, and so are the names of the segments."""
        unsynced, self._unsynced = self._unsynced, set()
        for path in (*(segment for segment in unsynced if segment.exists()), self.folder):
            sync(path)

    def ended(self, group_ids: Iterable[str]) -> None:
        """These groups are in the store, or had no rows: what they have here is superseded."""
        gone = set(group_ids)
        for groups in self._open.values():
            groups -= gone
        self.close()
        for segment in [path for path, groups in self._open.items() if not groups]:
            segment.unlink(missing_ok=True)
            del self._open[segment]

    def close(self) -> None:
        """Ends the segment of the moment; another begins with the next group."""
        if self._stream is not None and self._file is not None:
            self._stream.close()
            self._file.close()
        self._stream = self._file = self._segment = None

    def _begin(self) -> None:
        self._made += 1
        self._segment = self.folder / f"spool-generation-{self.generation}-{self._made:06d}.arrows"
        self._open[self._segment] = set()
        self._file = pa.OSFile(str(self._segment), "wb")
        self._stream = pa.ipc.new_stream(self._file, EPISODE_SCHEMA)


class SpooledGroup(NamedTuple):
    """The rows of a group that finished, as its last attempt left them."""

    generation: int
    group_id: str
    rows: pa.Table
    note: bytes = b""


class SpoolFile(NamedTuple):
    """What a spool holds; `torn` where something behind a last whole batch could not be read."""

    groups: list[SpooledGroup]
    torn: bool


def read_spool(folder: Path | str) -> SpoolFile:
    """The groups that are in no Parquet file of their generation; call it at any time, also while the run goes on."""
    found, torn = _read_all(Path(folder))
    if found:
        generations = {generation for generation, _ in found}
        for stored in stored_steps(folder):  # read last: what left the spool meanwhile is there
            if stored.generation not in generations:
                continue
            for group_id in stored.read(["group_id"])["group_id"].unique().to_pylist():
                found.pop((stored.generation, group_id), None)
    return SpoolFile([found[key] for key in sorted(found)], torn)


def read_whole_spool(folder: Path | str) -> list[SpooledGroup]:
    """Every group of every segment, whether it has ended or not; of several attempts in one generation the last."""
    found, _ = _read_all(Path(folder))
    return [found[key] for key in sorted(found)]


def clear_superseded(folder: Path | str, generation: int) -> None:
    """Removes the segments of earlier generations: a manifest of this one says what became of their groups."""
    for path, at, _ in _segments(Path(folder)):
        if at < generation:
            path.unlink(missing_ok=True)


def _read_all(folder: Path) -> tuple[dict[tuple[int, str], SpooledGroup], bool]:
    found: dict[tuple[int, str], SpooledGroup] = {}
    torn = False
    for path, generation, _ in _segments(folder):
        try:
            groups, cut = _read_segment(path)
        except FileNotFoundError:  # superseded since it was listed
            continue
        torn |= cut
        for rows, note in groups:
            group_id = rows["group_id"][0].as_py()
            found[generation, group_id] = SpooledGroup(generation, group_id, rows, note)  # a later attempt takes the place
    return found, torn


def _read_segment(path: Path) -> tuple[list[tuple[pa.Table, bytes]], bool]:
    """Every whole batch with its note, and whether something else follows. The bytes are checked: a crash may have left anything."""
    groups: list[tuple[pa.Table, bytes]] = []
    if not path.stat().st_size:
        return groups, False
    with pa.memory_map(str(path)) as source:
        try:
            stream = pa.ipc.open_stream(source)
            for batch, metadata in stream.iter_batches_with_custom_metadata():
                batch.validate(full=True)
                note = (metadata or {}).get(_NOTE, b"")
                groups.append((_conformed(pa.Table.from_batches([batch])), note))
        except (pa.ArrowException, OSError, ValueError):  # ValueError: of names that are no text
            return groups, True
        return groups, False


def _conformed(rows: pa.Table) -> pa.Table:
    """Rows of an earlier version of the schema get its later columns, empty."""
    if not rows.schema.equals(EPISODE_SCHEMA):
        rows = pa.Table.from_pylist(rows.to_pylist(), schema=EPISODE_SCHEMA)
    if not rows.num_rows or rows["group_id"].null_count:
        raise ValueError("spool: rows of no group")
    return rows


def _segments(folder: Path) -> list[tuple[Path, int, int]]:
    """Path, generation and number, in order."""
    found = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("spool-*.arrows")]
    return sorted(((path, int(match[1]), int(match[2])) for path, match in found if match), key=lambda each: each[1:])
