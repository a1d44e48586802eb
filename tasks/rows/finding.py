"""Which rows a path holds: the shape of a file by its beginning, and the files of a dataset's folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from tasks.rows.json_lines import lines
from tasks.rows.json_splitting import elements
from tasks.rows.opening import open_bytes
from tasks.rows.row import FileRefused, Row
from tasks.rows.tables import arrow_rows, csv_rows, has_header, parquet_rows

PEEK = 64 << 10  # bytes; the names that tell shapes apart stand before the first text


class Shape(Enum):
    """How rows stand in a file."""

    LINES = "JSON lines"
    ARRAY = "JSON array"  # [ row, … ]
    BY_ID = "JSON by id"  # {"id": row, …}
    LISTED = "JSON list of questions"  # {"questions": [ row, … ]}
    BY_SET = "JSON by set"  # {"set": {"id": row, …}, …}
    CSV = "CSV"
    HEADLESS = "CSV without a header"
    PARQUET = "Parquet"
    ARROW = "Arrow"


TABLES = frozenset({Shape.CSV, Shape.HEADLESS, Shape.PARQUET, Shape.ARROW})
COLUMNAR = frozenset({Shape.PARQUET, Shape.ARROW})
# How many brackets stand around a row.
_DEPTHS = {Shape.ARRAY: 1, Shape.BY_ID: 1, Shape.LISTED: 2, Shape.BY_SET: 2}
_SUFFIXES = {".parquet": Shape.PARQUET, ".arrow": Shape.ARROW, ".csv": Shape.CSV, ".tsv": Shape.CSV}
_ROWS_IN = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
# What a dataset's folder says about itself.
_NO_ROWS = re.compile(r"dataset_infos?\.json|dataset_dict\.json|state\.json|config\.json|cache-.*\.arrow|\..*|_.*")
_SPLITS = {"training": "train", "valid": "validation", "dev": "validation", "val": "validation"}
_SPLIT = re.compile(r"(?:^|[-_./])(train|training|test|validation|valid|dev|val)(?=$|[-_.])")
_TEXT = rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_HEAD = re.compile(rb"\s*([\[{])\s*(?:" + _TEXT + rb"\s*:\s*([\[{]?)\s*(?:" + _TEXT + rb"\s*:\s*(\{)?)?)?", re.DOTALL)


class Found(NamedTuple):
    """One file, and how its rows stand in it."""

    path: Path
    shape: Shape


def shape_of(path: Path, row_fields: frozenset[str]) -> Shape:
    """How a file's rows stand in it; `row_fields` are names that a row may begin with."""
    stem = path.with_suffix("") if path.suffix == ".gz" else path
    if found := _SUFFIXES.get(stem.suffix):
        if found is Shape.CSV:
            with open_bytes(path) as file:
                return Shape.CSV if has_header(file.peek(PEEK)[:PEEK].partition(b"\n")[0]) else Shape.HEADLESS
        return found
    with open_bytes(path) as file:
        match = _HEAD.match(file.peek(PEEK)[:PEEK])
    if match is None:
        return Shape.LINES
    if match[1] == b"[":
        return Shape.ARRAY
    name, opens, second = (match[2] or b"").decode("utf-8", "replace"), match[3], match[5]
    if not opens or name in row_fields:
        return Shape.LINES
    if opens == b"[":
        return Shape.LISTED if name == "questions" else Shape.LINES
    return Shape.BY_SET if second else Shape.BY_ID


def rows_of(found: Found) -> Iterator[Row]:
    """The rows of a file, one at a time."""
    path, shape = found
    if shape is Shape.PARQUET:
        yield from parquet_rows(path)
    elif shape is Shape.ARROW:
        yield from arrow_rows(path)
    else:
        with open_bytes(path) as file:
            if shape is Shape.LINES:
                yield from lines(file)
            elif shape in TABLES:
                tabs = ".tsv" in path.suffixes
                yield from csv_rows(file, shape is Shape.CSV, "\t" if tabs else ",")
            else:
                yield from elements(file, _DEPTHS[shape])


def files_of(path: Path, split: str = "") -> list[Path]:
    """The files of rows below a folder, of one split; a file is its own list.

    A folder that holds several splits is refused where none is named: training on a test set by accident is worse than an error.
    """
    if path.is_file():
        if split:
            raise FileRefused(f"{path}@{split}: is one file: leave @{split} out")
        return [path]
    if not path.exists():
        raise FileRefused(f"{path}: No such file or directory: name a file of questions, or the folder of a data set")
    files = sorted(file for file in path.rglob("*") if file.is_file() and _may_hold_rows(file))
    if not files:
        raise FileRefused(f"{path}: holds no file of rows: they end with {', '.join(_ROWS_IN)}")
    splits = {file: split_of(file.relative_to(path)) for file in files}
    known = sorted(set(splits.values()) - {""})
    if split:
        wanted = _SPLITS.get(split, split)
        if chosen := [file for file in files if splits[file] == wanted]:
            return chosen
        raise FileRefused(f"{path}: has no split {split!r}; there are {', '.join(known) or 'none'}")
    if len(known) > 1:
        raise FileRefused(f"{path}: holds the splits {', '.join(known)}: name one, as {path}@{known[0]}")
    return files


def split_of(path: Path) -> str:
    """The split that a file's name, or else its folder's, speaks of.

    Example:
        >>> [split_of(Path(name)) for name in ("data/train-00000-of-00002.parquet", "dev/anatomy_dev.csv", "train/latest.arrow")]
        ['train', 'validation', 'train']
    """
    for part in reversed(path.parts):
        if found := _SPLIT.search(part.lower()):
            return _SPLITS.get(found[1], found[1])
    return ""


def _may_hold_rows(file: Path) -> bool:
    name = file.name.removesuffix(".gz")
    return name.endswith(_ROWS_IN) and not _NO_ROWS.fullmatch(file.name)
