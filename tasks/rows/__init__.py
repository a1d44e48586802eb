"""Rows of files as they are published: JSON in four shapes, CSV, Parquet and Arrow, one at a time, whatever their size."""

from tasks.rows.finding import COLUMNAR, TABLES, Found, Shape, files_of, rows_of, shape_of
from tasks.rows.row import LONGEST_ROW, FileRefused, Row, in_one_line

__all__ = [
    "COLUMNAR",
    "LONGEST_ROW",
    "TABLES",
    "FileRefused",
    "Found",
    "Row",
    "Shape",
    "files_of",
    "in_one_line",
    "rows_of",
    "shape_of",
]
