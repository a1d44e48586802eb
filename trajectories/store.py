"""The record of what was trained and what was dropped: one Parquet file per learner step, never changed once written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from trajectories.schema import EPISODE_SCHEMA, STORED_SCHEMA, WeightVersion

_NAME = re.compile(r"step-(\d{6,})-generation-(\d+)\.parquet")


class StoredStep(NamedTuple):
    """One file of the store. A step that was rolled back and done again exists once per generation."""

    step: int
    generation: int
    path: Path


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
    """Writes the episodes of ended groups into a folder.

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

    def write(self, step: int, generation: int, groups: Iterable[pa.Table]) -> Path:
        """Writes the groups that ended with this step, as `with_ending` made them. A crash leaves the whole file or none."""
        path = self.folder / f"step-{step:06d}-generation-{generation}.parquet"
        if path.exists():
            raise FileExistsError(f"store: {path} exists; a step is stored once per generation")
        # An empty table first: a step without any group is a file without rows, not an error.
        table = pa.concat_tables([STORED_SCHEMA.empty_table(), *groups])
        unfinished = path.with_suffix(".unfinished")
        pq.write_table(table, unfinished, compression="zstd")
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        return path


def stored_steps(folder: Path | str) -> list[StoredStep]:
    """The files of a store in order of generation, then step."""
    found = [(_NAME.fullmatch(path.name), path) for path in Path(folder).glob("step-*.parquet")]
    steps = [StoredStep(int(match[1]), int(match[2]), path) for match, path in found if match]
    return sorted(steps, key=lambda stored: (stored.generation, stored.step))


def iterate(folder: Path | str) -> Iterator[tuple[StoredStep, pa.Table]]:
    """One table at a time, so that a long run fits into memory."""
    for stored in stored_steps(folder):
        yield stored, pq.read_table(stored.path, schema=STORED_SCHEMA)


def read(folder: Path | str) -> pa.Table:
    """All rows of a store, those of rolled-back steps included."""
    return pa.concat_tables([STORED_SCHEMA.empty_table(), *(table for _, table in iterate(folder))])
