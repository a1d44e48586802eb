"""Finished groups that have no ending in the store yet: Arrow IPC streams, appended to as each group arrives.

```
 group finishes ─append─▶ spool-generation-1-000004.arrows ─ended─▶ its rows are in Parquet: a segment without open groups goes
```

One batch is one group. A crash of the process loses no group that was appended; one that tears the last batch loses that alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from trajectories.schema import EPISODE_SCHEMA
from trajectories.store import stored_steps

_NAME = re.compile(r"spool-generation-(\d+)-(\d{6,})\.arrows")


class Spool:
    """Appends groups to the segment of the moment, and begins another whenever groups ended, so that old segments can go.

    Groups end within max_staleness + 1 steps, so no more segments than that are on the disk at a time.

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
        self._segment: Path | None = None
        self._file: pa.OSFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None
        self._made = max((number for _, at, number in _segments(self.folder) if at == generation), default=0)

    def append(self, rows: pa.Table) -> None:
        """One finished group, given to the operating system before this returns."""
        if not rows.schema.equals(EPISODE_SCHEMA):
            raise ValueError(f"spool: rows have columns {rows.schema.names}, not those of EPISODE_SCHEMA in order and type")
        if not rows.num_rows:
            return
        if self._stream is None:
            self._begin()
        assert self._stream is not None and self._file is not None and self._segment is not None
        for batch in rows.combine_chunks().to_batches():  # one, so that a group is there whole or not at all
            self._stream.write_batch(batch)
        self._file.flush()
        self._open[self._segment].add(rows["group_id"][0].as_py())

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
    return SpoolFile([SpooledGroup(*key, rows) for key, rows in sorted(found.items(), key=lambda item: item[0])], torn)


def clear_superseded(folder: Path | str) -> None:
    """Removes the segments of a crashed process that hold nothing but groups with an ending; called before a Spool is made."""
    kept = {(group.generation, group.group_id) for group in read_spool(folder).groups}
    for path, generation, _ in _segments(Path(folder)):
        groups, torn = _read_segment(path)
        if not torn and not any((generation, _group_id(rows)) in kept for rows in groups):
            path.unlink(missing_ok=True)


def _read_all(folder: Path) -> tuple[dict[tuple[int, str], pa.Table], bool]:
    found: dict[tuple[int, str], pa.Table] = {}
    torn = False
    for path, generation, _ in _segments(folder):
        try:
            groups, cut = _read_segment(path)
        except FileNotFoundError:  # superseded since it was listed
            continue
        torn |= cut
        for rows in groups:
            found[generation, _group_id(rows)] = rows  # a later attempt takes the place of an earlier one
    return found, torn


def _read_segment(path: Path) -> tuple[list[pa.Table], bool]:
    """Every whole batch, and whether something else follows. The bytes are checked: a crash may have left anything there."""
    groups: list[pa.Table] = []
    if not path.stat().st_size:
        return groups, False
    with pa.memory_map(str(path)) as source:
        try:
            stream = pa.ipc.open_stream(source)
            for batch in stream:
                batch.validate(full=True)
                groups.append(_conformed(pa.Table.from_batches([batch])))
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


def _group_id(rows: pa.Table) -> str:
    name: str = rows["group_id"][0].as_py()
    return name


def _segments(folder: Path) -> list[tuple[Path, int, int]]:
    """Path, generation and number, in order."""
    found = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("spool-*.arrows")]
    return sorted(((path, int(match[1]), int(match[2])) for path, match in found if match), key=lambda each: each[1:])
