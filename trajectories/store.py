"""The record of how groups ended: Parquet files, one for each learner step, and in time one for many steps.

```
 step-000007-generation-1.parquet             one step
 step-000001-000032-generation-1.parquet      many, each in a row group of its own; its footer names them
```

A large file counts from the moment that it has its name: the small ones that it repeats are passed over, and then removed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from trajectories.durable import sync
from trajectories.schema import EPISODE_SCHEMA, STORED_SCHEMA, WeightVersion

COMPACTED = 32  # steps of a large file: a run of 10,000 steps leaves some 300 files, and one step at a time is in memory
LARGE_BYTES = 64 * 2**20  # a step's file of this size is worth a file of its own, and not worth being written twice

_NAME = re.compile(r"step-(\d{6,})(?:-(\d{6,}))?-generation-(\d+)\.parquet")
UNFINISHED = ".unfinished"
SHOWN_CHARACTERS = 300  # of what Arrow says about a file
_STEPS = b"medr3.steps"  # in the footer of a large file: the step of each row group


class StoredStep(NamedTuple):
    """One step in the store. A step that was rolled back and done again exists once per generation."""

    step: int
    generation: int
    path: Path
    row_group: int | None = None  # None: all of the file

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The step's rows, also where a compaction has moved them since they were listed."""
        try:
            return self._read(columns)
        except FileNotFoundError:
            for stored in stored_steps(self.path.parent):
                if stored[:2] == self[:2]:
                    return stored._read(columns)
            raise

    def _read(self, columns: Sequence[str] | None) -> pa.Table:
        groups = None if self.row_group is None else [self.row_group]
        try:
            fragment = ds.ParquetFileFormat().make_fragment(str(self.path.resolve()), LocalFileSystem(), row_groups=groups)
            rows = fragment.to_table(schema=STORED_SCHEMA, columns=None if columns is None else list(columns))
            rows.validate(full=True)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{self.path}: cannot be read: {' '.join(str(error).split())[:SHOWN_CHARACTERS]}") from None
        if missing := _without_values(rows):
            raise ValueError(f"{self.path}: column {missing} lacks values: no run has written it so")
        return rows


def _without_values(rows: pa.Table) -> str:
    """The first column with a null in it. What a search says of itself is left out: earlier versions of the schema said less."""
    for name in rows.schema.names:
        column = rows[name]
        inner = []
        if name in ("segments", "versions") and not column.null_count:
            spans = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
            inner = [spans, *spans.flatten()]
        elif name in ("token_ids", "loss_mask", "logprobs") and not column.null_count:
            inner = [pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)]
        if any(each.null_count for each in (column, *inner)):
            return name
    return ""


def with_ending(episodes: pa.Table, outcome: str, reason: str, trained_step: int, learner: WeightVersion) -> pa.Table:
    """A group's rows with how it ended: `learner` is the version that the step started from; step -1 if it was not trained."""
    if not episodes.schema.equals(EPISODE_SCHEMA):
        raise ValueError(f"store: rows have columns {episodes.schema.names}, not those of EPISODE_SCHEMA in order and type")
    n = episodes.num_rows
    endings = [
        pa.array([value] * n, STORED_SCHEMA.field(name).type)
        for name, value in {
            "outcome": outcome,
            "reason": reason,
            "trained_step": trained_step,
            "learner_generation": learner.generation,
            "learner_number": learner.number,
        }.items()
    ]
    return pa.Table.from_arrays([*episodes.columns, *endings], schema=STORED_SCHEMA)


class TrajectoryStore:
    """Writes the episodes of ended groups into a folder; one writer at a time, any number of readers.

    Example:
        >>> import tempfile
        >>> rows = with_ending(EPISODE_SCHEMA.empty_table(), "trained", "", 3, WeightVersion(1, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     TrajectoryStore(folder).write(step=3, generation=1, groups=[rows]).name
        'step-000003-generation-1.parquet'
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"step-*{UNFINISHED}"):  # by a writer that was killed; its step may never be written again
            left.unlink()

    def write(self, step: int, generation: int, groups: Iterable[pa.Table]) -> Path:
        """Writes the groups that ended with this step, as `with_ending` made them. A crash leaves the whole file or none."""
        path = self.folder / f"step-{step:06d}-generation-{generation}.parquet"
        for name in _names(self.folder):
            if name.generation == generation and name.first <= step <= name.last:
                raise FileExistsError(f"store: {name.path} has step {step}; a step is stored once per generation")
        # An empty table first: a step without any group is a file without rows, not an error.
        table = pa.concat_tables([STORED_SCHEMA.empty_table(), *groups])
        unfinished = path.with_suffix(UNFINISHED)
        pq.write_table(table, unfinished, compression="zstd")
        _commit(unfinished, path)
        return path

    def compact(self, steps: int = COMPACTED) -> list[Path]:
        """Joins consecutive small files of a generation, so many at a time, and returns the large ones.

        Killed at any moment, it leaves every row readable exactly once, and the next call removes what it left behind.
        """
        self._remove_superseded()
        names = [name for name in _names(self.folder) if not name.large and name.path.stat().st_size < LARGE_BYTES]
        small = [StoredStep(name.first, name.generation, name.path) for name in names]
        small.sort(key=lambda stored: (stored.generation, stored.step))
        made = []
        for _, each in groupby(small, key=lambda stored: stored.generation):
            of_generation = list(each)
            full = range(0, len(of_generation) - steps + 1, steps)
            made += [self._join(of_generation[start : start + steps]) for start in full]
        self._remove_superseded()
        return made

    def _join(self, small: list[StoredStep]) -> Path:
        first, last = small[0], small[-1]
        path = self.folder / f"step-{first.step:06d}-{last.step:06d}-generation-{first.generation}.parquet"
        unfinished = path.with_suffix(UNFINISHED)
        with pq.ParquetWriter(unfinished, STORED_SCHEMA, compression="zstd") as writer:
            for stored in small:
                rows = stored.read()
                writer.write_table(rows, row_group_size=max(1, rows.num_rows))  # exactly one row group, also without rows
            writer.add_key_value_metadata({_STEPS: json.dumps([stored.step for stored in small])})
        _commit(unfinished, path)
        return path

    def _remove_superseded(self) -> None:
        """Opens only large files in whose range a small one lies: this comes after every step, however many there were."""
        names = _names(self.folder)
        small = [name for name in names if not name.large]
        for large in (name for name in names if name.large):
            within = [each for each in small if each.generation == large.generation and large.first <= each.first <= large.last]
            repeated = set(large.steps()) if within else set()
            for each in within:
                if each.first in repeated:
                    each.path.unlink(missing_ok=True)


class _Name(NamedTuple):
    path: Path
    first: int
    last: int
    generation: int
    large: bool

    def steps(self) -> list[int]:
        """In the order of the row groups."""
        if not self.large:
            return [self.first]
        try:
            with pq.ParquetFile(self.path) as file:
                return [int(step) for step in json.loads(file.metadata.metadata[_STEPS])]
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
            raise ValueError(
                f"{self.path}: says nothing of its steps ({' '.join(str(error).split())[:SHOWN_CHARACTERS]})"
            ) from None


def _names(folder: Path) -> list[_Name]:
    """The store's files at one moment. A listing during a compaction may miss both the old names and the new; two alike do not."""
    before: list[Path] | None = None
    while (paths := sorted(folder.glob("step-*.parquet"))) != before:
        before = paths
    found = [(path, _NAME.fullmatch(path.name)) for path in paths]
    return [
        _Name(path, int(match[1]), int(match[2] or match[1]), int(match[3]), match[2] is not None)
        for path, match in found
        if match
    ]


def _commit(unfinished: Path, path: Path) -> None:
    """Gives a file its name once all of it is on the disk, and puts the name there too before anything relies on it."""
    sync(unfinished)
    os.replace(unfinished, path)
    sync(path.parent)


def stored_steps(folder: Path | str) -> list[StoredStep]:
    """The steps of a store in order of generation, then step."""
    found: dict[tuple[int, int], StoredStep] = {}
    for name in sorted(_names(Path(folder)), key=lambda name: not name.large):  # what a large file has, small ones only repeat
        for index, step in enumerate(name.steps()):
            stored = StoredStep(step, name.generation, name.path, index if name.large else None)
            found.setdefault((name.generation, step), stored)
    return [found[key] for key in sorted(found)]


def iterate(folder: Path | str) -> Iterator[tuple[StoredStep, pa.Table]]:
    """One table at a time, so that a long run fits into memory."""
    for stored in stored_steps(folder):
        yield stored, stored.read()


def read(folder: Path | str) -> pa.Table:
    """All rows of a store, those of rolled-back steps included."""
    return pa.concat_tables([STORED_SCHEMA.empty_table(), *(table for _, table in iterate(folder))])
