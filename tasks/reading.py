"""Questions from files in the formats in which they are published, one at a time; what is none is said with its place.

::

    path ─▶ files ─▶ rows ─▶ format, by the first row ─▶ Question, or Malformed(file, place, reason, row)
            (tasks.rows)     (tasks.formats)

`read` hands out both, for those who count and keep what is malformed; `read_questions` allows none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from tasks.formats import FORMATS, NAMES, OWN, Fields, Format, NotAsked, RowRefused, Source, content_id
from tasks.questions import Question
from tasks.rows import COLUMNAR, FileRefused, Found, Row, files_of, in_one_line, rows_of, shape_of
from tasks.rows.json_values import repeated_field

FEWEST_READABLE = 1_000  # of so many rows at the beginning one must be readable, or the file is of another kind
SHOWN_CHARACTERS = 300  # of the names of a row's fields
_ROW_FIELDS = frozenset().union(*(each.needs for each in FORMATS))


class Malformed(NamedTuple):
    """A row that is no question, or no document."""

    path: Path
    place: str  # "line 7", of Parquet and Arrow "row 7", with the names under which it stands
    reason: str
    row: str
    left_out: bool = False  # a row as it should be that asks nothing which a rule can check; counted, and no fault

    def __str__(self) -> str:
        return f"{self.path}, {self.place}: {self.reason}"


class Dataset(NamedTuple):
    """What `--dataset` and a configuration name: a file or folder, and where they must be said, its format and its split."""

    path: Path
    format: str = ""
    split: str = ""

    @classmethod
    def parse(cls, name: str) -> Dataset:
        """From ``[FORMAT:]PATH[@SPLIT]``.

        Example:
            >>> Dataset.parse("mirage:data/benchmark.json")
            Dataset(path=PosixPath('data/benchmark.json'), format='mirage', split='')
            >>> Dataset.parse("data/medqa@train").split
            'train'
        """
        format_, between, rest = name.partition(":")
        if not between or format_ not in NAMES:
            format_, rest = "", name
        path, at, split = rest.rpartition("@")
        if not at or "/" in split or os.path.exists(rest):  # noqa: PTH110 (Path raises where a name is too long)
            path, split = rest, ""
        return cls(Path(path), format_, split)

    def read(self, *, with_context: bool = False) -> Iterator[Question | Malformed]:
        """Every row of every file, as `read`; an id stands once in all of them."""
        seen: dict[str, str] = {}
        for file in files_of(self.path, self.split):
            yield from _read(file, self.format, with_context, seen)

    def read_strictly(self, *, with_context: bool = False) -> Iterator[Question]:
        """The questions; the first malformed row is refused. What is left out is counted by `medr3 data check`."""
        return _strictly(self.read(with_context=with_context))


def read(path: Path, format_: str = "", *, with_context: bool = False) -> Iterator[Question | Malformed]:
    """The questions of a file and its malformed rows, in their order; the format is recognised by the first row unless it is named.

    Paragraphs, notes and abstracts that a data set hands out with a question are kept with it only where `with_context` says so, or
    where they cannot be looked up.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "train.json")
        ...     row = '{"id": "1", "question": "?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": %s}'
        ...     _ = path.write_text(row % 2 + chr(10) + row % 5)
        ...     good, bad = read(path)
        >>> good.id, good.gold, bad.place, bad.reason
        ('medmcqa/1', 'B', 'line 2', 'cop: must be 1 to 4, not 5')
    """
    return _read(path, format_, with_context, {})


def read_questions(path: Path, format_: str = "", *, with_context: bool = False) -> Iterator[Question]:
    """The questions of a file, of which every row must be one: what is skipped in silence changes a score.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "q.jsonl")
        ...     _ = path.write_text('{"id": "q1", "text": "?", "kind": "text", "gold": "fever"}\\n')
        ...     [question.gold for question in read_questions(path)]
        ['fever']
    """
    return _strictly(read(path, format_, with_context=with_context))


def _read(path: Path, format_: str, with_context: bool, seen: dict[str, str]) -> Iterator[Question | Malformed]:
    """`seen` has, for every id so far, where it stands."""
    if format_ and format_ not in NAMES:
        raise FileRefused(f"{format_}: no such format; there are {', '.join(NAMES)}")
    shape = shape_of(path, _ROW_FIELDS)
    source = Source(path, shape, shape in COLUMNAR)
    rows = rows_of(Found(path, shape))
    known, rows = _recognised(rows, source, format_)
    if known is None:  # no row could be read at all
        yield from (_malformed(source, row, row.refused or "is no object") for row in rows)
        return
    yield from _questions(rows, source, known, with_context or known.shows_context, seen)


def _strictly(found: Iterator[Question | Malformed]) -> Iterator[Question]:
    for each in found:
        if isinstance(each, Question):
            yield each
        elif not each.left_out:
            raise FileRefused(str(each))


def _recognised(rows: Iterator[Row], source: Source, format_: str) -> tuple[Format | None, Iterator[Row]]:
    """The format that the first readable row has, and all rows again; None where no row can be read."""
    before: list[Row] = []
    for row in rows:
        before.append(row)
        if isinstance(row.fields, dict):
            return _format_of(row, source, format_), chain(before, rows)
        if len(before) == FEWEST_READABLE:
            first = _malformed(source, before[0], before[0].refused or "is no object")
            raise FileRefused(f"{first}; nor can any of the {FEWEST_READABLE:,} rows from there be read")
    if not before:
        raise FileRefused(f"{source.path}: is empty: write one question per line, as JSON")
    return None, iter(before)


def _format_of(row: Row, source: Source, format_: str) -> Format:
    named = [each for each in FORMATS if each.name == format_] if format_ else list(FORMATS)
    fitting = [each for each in named if source.shape in each.shapes]
    for each in fitting:
        if each.needs <= row.fields.keys():
            return each
    if format_ and fitting:
        return fitting[0]  # its rows will say what they lack
    if format_:
        shapes = sorted({shape.value for each in named for shape in each.shapes})
        raise FileRefused(f"{source.path}: is {source.shape.value}, but {format_} is {' or '.join(shapes)}")
    if OWN.needs & row.fields.keys() >= {"id", "text"}:
        return OWN
    fields = in_one_line(", ".join(list(row.fields)[:12]))[:SHOWN_CHARACTERS]
    found = f"{source.shape.value}; its first row has the fields {fields}"
    raise FileRefused(f"{source.path}: is of no known format ({found}): name one of {', '.join(NAMES)}")


def _questions(
    rows: Iterator[Row], source: Source, known: Format, with_context: bool, seen: dict[str, str]
) -> Iterator[Question | Malformed]:
    question, gold, own = known.question, known.gold, known is OWN
    validate = Question.__pydantic_validator__.validate_python
    unit, name = "row" if source.columnar else "line", source.path.name
    needle = b'"%s"' % gold.encode() if gold else b""
    for row in rows:
        if not isinstance(row.fields, dict):
            yield _malformed(source, row, row.refused or f"must be an object, not {type(row.fields).__name__}")
            continue
        try:
            if gold and row.raw.count(needle) > 1 and repeated_field(row.raw, gold):
                raise RowRefused(f"names {gold} twice")
            fields = question(row, source)
            origin = f"{name}, {unit} {row.number}"
            if not own:
                fields = _completed(fields, known, origin, with_context, seen)
            made: Question = validate(fields)
        except NotAsked as reason:
            yield _malformed(source, row, str(reason))._replace(left_out=True)
        except RowRefused as refused:
            yield _malformed(source, row, str(refused))
        except ValidationError as error:
            yield _malformed(source, row, _first_fault(error))
        except KeyError as missing:
            yield _malformed(source, row, f"has no {missing.args[0]}")
        except (TypeError, ValueError, AttributeError, IndexError, RecursionError):
            yield _malformed(source, row, f"its fields are not those of {known.title}")
        else:
            if made.id in seen:
                yield _malformed(source, row, f"id {made.id!r} stands in {seen[made.id]} already")
                continue
            seen[made.id] = origin
            yield made


def _completed(fields: Fields, known: Format, origin: str, with_context: bool, seen: dict[str, str]) -> Fields:
    """What every published row gets: an id of its own, where it comes from, and a context where it is asked for."""
    if (given := fields.get("id")) is not None:
        if not isinstance(given, str) or not given:
            raise RowRefused(f"id: must be a text, not {given!r}")
        fields["id"] = f"{known.name}/{given}"
    else:
        fields["id"] = f"{known.name}/{content_id(fields)}"
        if fields["id"] in seen:  # the very same question again: `data check` counts it, but it is no fault of the file
            fields["id"] = f"{fields['id']}~{len(seen)}"
    if not with_context:
        fields.pop("context", None)
    fields.setdefault("source", known.name)
    fields["provenance"] = ({"origin": origin},)
    text = fields["text"]
    if not isinstance(text, str) or not text.strip():
        raise RowRefused("has no question" if not text else f"the question must be a text, not {type(text).__name__}")
    return fields


def _malformed(source: Source, row: Row, reason: str) -> Malformed:
    unit = "row" if source.columnar else "line"
    place = f"{unit} {row.number}" + (f" ({'/'.join(row.keys)})" if row.keys else "")
    return Malformed(source.path, in_one_line(place), in_one_line(reason), row.text())


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(map(str, first["loc"]))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    reason = first["msg"].removeprefix("Value error, ")
    return f"{f'{name}: ' if name else ''}{reason}{more}"
