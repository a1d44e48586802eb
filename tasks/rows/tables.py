"""Tables: CSV with or without a header, Parquet and Arrow, a batch of rows in memory at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tasks.rows.opening import FREE_EXPANSION, MOST_EXPANSION, Damaged
from tasks.rows.row import LONGEST_ROW, FileRefused, Row, in_one_line

MMLU_COLUMNS = 6  # question, four options, letter
BATCH = 1024  # rows; patient notes of some ten kilobytes make it ten megabytes
HEADLESS = "column "  # with its number from 1, the name of a column that has none


def csv_rows(file: BinaryIO, header: bool, delimiter: str = ",") -> Iterator[Row]:
    """Rows of a CSV file by the names of its header, or as "column 1" and so on.

    Example:
        >>> import io
        >>> [row.fields or row.refused for row in csv_rows(io.BytesIO(b'a,b\\r\\n1,2\\r\\n3\\r\\n'), header=True)]
        [{'a': '1', 'b': '2'}, 'has 1 columns, not the 2 of the header']
    """
    csv.field_size_limit(LONGEST_ROW)
    # A byte that is no UTF-8 becomes a lone surrogate, so that its row is refused and not the file.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True, delimiter=delimiter)
    names: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(number, refused=f"is no CSV: {in_one_line(error)}")
            continue
        except Damaged as damage:
            yield Row(number, refused=str(damage))
            return
        if header and not names:
            names = [name.strip() for name in cells]
            if len(set(names)) < len(names):
                yield Row(number, refused=f"the header names a column twice: {', '.join(names)[:200]}")
                return
            continue
        yield _csv_row(number, cells, names)


def _csv_row(number: int, cells: list[str], names: list[str]) -> Row:
    if not cells:
        return Row(number, refused="is empty: remove it")
    fields = (
        dict(zip(names, cells, strict=False)) if names else {f"{HEADLESS}{i}": cell for i, cell in enumerate(cells, start=1)}
    )
    try:
        raw = ",".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return Row(number, raw=",".join(cells).encode("utf-8", "surrogateescape"), refused="is no UTF-8")
    if names and len(cells) != len(names):
        return Row(number, raw=raw, refused=f"has {len(cells)} columns, not the {len(names)} of the header")
    return Row(number, fields)


def has_header(first_line: bytes) -> bool:
    """Whether the first line of a CSV file gives names. MMLU's has none, and six columns of which the last is a letter.

    Example:
        >>> has_header(b'id,question,answer'), has_header(b'"Which nerve?",a,b,c,d,A')
        (True, False)
    """
    try:
        cells = next(csv.reader([first_line.decode("utf-8", "replace")]), [])
    except csv.Error:
        return True
    return not (len(cells) == MMLU_COLUMNS and cells[-1].strip() in "ABCD")


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file."""
    import pyarrow.parquet as pq

    file = _opened(path, lambda: pq.ParquetFile(path))
    unpacked = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
    if unpacked > max(FREE_EXPANSION, MOST_EXPANSION * path.stat().st_size):
        file.close()
        raise FileRefused(f"{path}: unpacks to more than {MOST_EXPANSION} times its size: it is refused as a bomb")
    try:
        yield from _of_batches(path, file.iter_batches(batch_size=BATCH))
    finally:
        file.close()


def arrow_rows(path: Path) -> Iterator[Row]:
    """The rows of an Arrow file, as a stream (so `datasets` saves it) or with a footer."""
    import pyarrow as pa

    def batches() -> Iterable[Any]:
        with pa.memory_map(str(path)) as mapped:
            try:
                yield from map(_sound, pa.ipc.open_stream(mapped))
            except pa.ArrowInvalid:
                mapped.seek(0)
                file = pa.ipc.open_file(mapped)
                for number in range(file.num_record_batches):
                    yield _sound(file.get_batch(number))

    yield from _of_batches(path, batches())


def _sound(batch: Any) -> Any:
    """Offsets that point outside of their column would end the process when they are followed."""
    batch.validate(full=True)
    return batch


def _opened(path: Path, how: Any) -> Any:
    try:
        return how()
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own errors are of these
        raise FileRefused(f"{path}: cannot be read as a table: {in_one_line(error)[:200]}") from None


def _of_batches(path: Path, batches: Iterable[Any]) -> Iterator[Row]:
    number, stream = 0, iter(batches)
    while True:
        try:
            batch = next(stream, None)
            rows = [] if batch is None else batch.to_pylist()
        except (OSError, ValueError, TypeError, NotImplementedError) as error:
            if not number:
                raise FileRefused(f"{path}: cannot be read as a table: {in_one_line(error)[:200]}") from None
            yield Row(number + 1, refused=f"the table is damaged from here: {in_one_line(error)[:200]}")
            return
        if batch is None:
            return
        for fields in rows:
            number += 1
            yield Row(number, fields)
