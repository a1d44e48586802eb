"""Triples from files, one row at a time: what is none is told by file and row, and the good ones go on.

::

    CSV, TSV (also .gz) with a header · Parquet · UMLS MRREL.RRF ─▶ Triple | BadRow

A header may be anyone's: PrimeKG's (x_name, display_relation, y_name, x_type, y_type), UMLS' (cui1, rela, cui2), or plain
(subject, relation, object). A document column names where the triple is written down.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.rows import FileRefused
from tasks.rows.opening import Damaged, open_bytes

LONGEST_LINE = 1 << 20  # bytes; a longer one is no row but a file of another kind
LONGEST_NAME = 300  # characters of an entity or relation: UMLS' longest preferred names are below it
PARQUET_ROWS = 65_536  # at a time in memory

# What a column may be called, in the order in which they are tried: names go before codes, since questions are made of them.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "subject": ("subject", "x_name", "head", "head_name", "subject_name", "str1", "cui1"),
    "relation": ("display_relation", "relation", "predicate", "rela", "rel", "edge", "edge_type"),
    "object": ("object", "y_name", "tail", "tail_name", "object_name", "str2", "cui2"),
    "subject_type": ("subject_type", "x_type", "head_type", "sty1"),
    "object_type": ("object_type", "y_type", "tail_type", "sty2"),
    "document": ("document", "document_id", "pmid", "source_document", "provenance"),
    "specialty": ("specialty", "speciality"),
}
REQUIRED = ("subject", "relation", "object")
# MRREL.RRF has no header: CUI1|AUI1|STYPE1|REL|CUI2|AUI2|STYPE2|RELA|…, and its relation is the one that CUI2 has to CUI1.
MRREL = {"subject": 4, "object": 0, "relation": 7}
MRREL_REL = 3  # the broad relation, where RELA is empty


@dataclass(frozen=True, slots=True)
class Triple:
    """One statement, with the row that it comes from."""

    subject: str
    relation: str
    object: str
    subject_type: str = ""
    object_type: str = ""
    document: str = ""
    specialty: str = ""
    file: str = ""
    row: int = 0


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no usable triple."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"


class TriplesRefused(ValueError):
    """A file that holds no triples at all; the text names it and what is wrong."""


def read_triples(path: Path) -> Iterator[Triple | BadRow]:
    """The rows of a file in order; a bad one is named, and reading goes on.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "graph.csv")
        ...     _ = path.write_text("x_name,relation,y_name\\nFabry disease,caused by,GLA\\n,caused by,GLA\\n")
        ...     [getattr(row, "object", None) or row.reason for row in read_triples(path)]
        ['GLA', 'the subject is blank']
    """
    if not path.is_file():
        raise TriplesRefused(f"{path}: is no file: name a CSV, TSV or Parquet file of triples, or UMLS' MRREL.RRF")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _text_rows(path)
    for number, fields in rows:
        yield fields if isinstance(fields, BadRow) else _triple(path, number, fields)


def _triple(path: Path, number: int, fields: dict[str, str]) -> Triple | BadRow:
    for name in REQUIRED:
        if not fields[name]:
            return BadRow(str(path), number, f"the {name} is blank")
        if len(fields[name]) > LONGEST_NAME:
            return BadRow(str(path), number, f"the {name} is longer than {LONGEST_NAME} characters")
    return Triple(**fields, file=str(path), row=number)


def _text_rows(path: Path) -> Iterator[tuple[int, dict[str, str] | BadRow]]:
    lines = _lines(path)
    is_rrf = path.name.removesuffix(".gz").upper().endswith(".RRF")
    delimiter = "|" if is_rrf else "\t" if ".tsv" in path.suffixes else ","
    chosen: dict[str, int] = {}
    width, unread = 0, "is empty: its first row must name the columns, such as subject,relation,object"
    for number, line in lines:
        if isinstance(line, BadRow):
            unread = f"row {number}: {line.reason}"
            yield number, line
            continue
        cells = _cells(line, delimiter)
        if not chosen and not is_rrf:
            chosen, width = _chosen(path, cells), len(cells)
            continue
        if is_rrf:
            yield number, _mrrel(path, number, cells)
        elif len(cells) != width:
            yield number, BadRow(str(path), number, f"has {len(cells)} columns where the header has {width}")
        else:
            yield number, {name: cells[place].strip() for name, place in chosen.items()}
    if not chosen and not is_rrf:
        raise TriplesRefused(f"{path}: {unread}")


def _mrrel(path: Path, number: int, cells: list[str]) -> dict[str, str] | BadRow:
    if len(cells) <= max(MRREL.values()):
        return BadRow(str(path), number, f"has {len(cells)} columns, MRREL.RRF has 16")
    fields = {name: cells[place].strip() for name, place in MRREL.items()}
    return fields | {"relation": fields["relation"] or cells[MRREL_REL].strip()}


def _cells(line: str, delimiter: str) -> list[str]:
    if '"' not in line or delimiter == "|":
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration):
        return []  # whatever the quotes mean, it is not a row of the header's width


def _chosen(path: Path, header: Sequence[str]) -> dict[str, int]:
    names = [name.strip().casefold() for name in header]
    chosen = {
        field: next(names.index(known) for known in options if known in names)
        for field, options in COLUMNS.items()
        if any(known in names for known in options)
    }
    if missing := [name for name in REQUIRED if name not in chosen]:
        raise TriplesRefused(
            f"{path}, row 1: no column for the {missing[0]}, which may be called {', '.join(COLUMNS[missing[0]])};"
            f" the header is {', '.join(names)[:200]}"
        )
    return chosen


def _lines(path: Path) -> Iterator[tuple[int, str | BadRow]]:
    """Lines with their numbers; one that is no UTF-8 is a bad row, and a compressed file that breaks off ends with one."""
    number = 0
    try:
        with open_bytes(path) as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise TriplesRefused(f"{path}, row {number}: is longer than {LONGEST_LINE >> 20} MiB: this is no table")
                if not line.strip():
                    continue
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    yield number, BadRow(str(path), number, f"is no UTF-8 at byte {error.start + 1}")
    except Damaged as damage:
        yield number + 1, BadRow(str(path), number + 1, f"the compressed file breaks off here: {damage}")
    except FileRefused as error:
        raise TriplesRefused(str(error)) from None
    except OSError as error:
        raise TriplesRefused(f"{path}: {error.strerror or error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str] | BadRow]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise TriplesRefused(f"{path}: is no Parquet file: {' '.join(str(error).split())[:200]}") from None
    chosen = {field: names[place] for field, place in _chosen(path, names).items()}
    number = 0
    batches = iter(file.iter_batches(batch_size=PARQUET_ROWS, columns=list(chosen.values())))
    while True:
        try:
            if (batch := next(batches, None)) is None:
                return
            columns: dict[str, list[Any]] = {field: batch.column(name).to_pylist() for field, name in chosen.items()}
        except (OSError, ValueError, TypeError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            yield number + 1, BadRow(str(path), number + 1, f"the table is damaged from here: {reason}")
            return
        for place in range(batch.num_rows):
            number += 1
            yield number, {field: _text(values[place]) for field, values in columns.items()}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
