"""A run's episodes in one file, for other programs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medr3.errors import UserError
from medr3.redaction import for_export
from trajectories.reading import Record
from trajectories.schema import STORED_SCHEMA

FORMATS = (".parquet", ".jsonl", ".arrow")


def check_target(out: Path) -> None:
    """Refuses what could not be written, before anything is read."""
    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: its ending says the format: {', '.join(FORMATS)}")
    if out.exists():
        raise UserError(f"--out {out} exists: name a new file")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: {out.parent} is no folder: make it first")


def export_rows(
    record: Record, out: Path, phase: str = "", outcome: str = "", step: int | None = None, *, redacted: bool = False
) -> int:
    """Writes the rows that match, in the order of their steps, and returns how many; `out` appears when it is whole.

    `redacted`: without what a person could be found by, and without the tokens that would say it.
    """
    unfinished = out.with_name(out.name + ".unfinished")
    count = 0
    try:
        with _writer(unfinished) as write:
            for recorded in record.read():
                if step is not None and recorded.step != step:
                    continue
                rows = recorded.rows
                for column, wanted in (("phase", phase), ("outcome", outcome)):
                    rows = rows.filter(pc.equal(rows[column], wanted)) if wanted else rows
                if rows.num_rows:
                    write(for_export(rows) if redacted else rows)
                    count += rows.num_rows
        if count:
            os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


@contextmanager
def _writer(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    kind = path.name.removesuffix(".unfinished")
    if kind.endswith(".parquet"):
        with pq.ParquetWriter(path, STORED_SCHEMA, compression="zstd") as parquet:
            yield parquet.write_table
    elif kind.endswith(".arrow"):
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, STORED_SCHEMA) as arrow:
            yield arrow.write_table
    else:
        with path.open("w", encoding="utf-8") as lines:
            yield lambda rows: lines.writelines(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows.to_pylist())


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
