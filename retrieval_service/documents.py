"""The documents of an index as one memory-mapped Arrow file: replicas of a machine share its pages, and nothing is parsed at start.

Rows come in batches of equal size, so that where a row stands is a division and no search.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval_service.types import Filters
from tasks.questions import Document

FILE = "documents.arrow"
BATCH_ROWS = 8192  # also the unit of encoding: what a killed build encodes again at most, per process
# Large strings, because a batch of whole books is over the 2 GB that 32-bit offsets reach.
SCHEMA = pa.schema(
    {
        "id": pa.string(), "text": pa.large_string(), "title": pa.string(), "collection": pa.string(),
        "publication_type": pa.string(), "evidence_level": pa.int8(), "year": pa.int16(), "retracted": pa.bool_(),
    }
)  # fmt: skip
WEAKEST_LEVEL = 6

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Digests(NamedTuple):
    """Sixteen bytes each: `key` of the id, which orders rows and tells ids apart; `content` of the whole document."""

    key: bytes
    content: bytes

    @classmethod
    def of(cls, document: Document) -> Digests:
        """A UnicodeEncodeError where a text has half a surrogate pair, which no file and no answer can hold."""
        key = hashlib.blake2b(document.id.encode()).digest()[:16]
        return cls(key, hashlib.blake2b(document.model_dump_json().encode(), digest_size=16).digest())


def as_batch(documents: Sequence[Document]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([document.model_dump() for document in documents], schema=SCHEMA)


def write(batches: Iterable[pa.RecordBatch], path: Path) -> None:
    """All but the last batch must have the same number of rows."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def gather(
    batches: Sequence[pa.RecordBatch], rows: Rows, batch_rows: int, names: Sequence[str] = SCHEMA.names
) -> pa.RecordBatch:
    """The given rows in the given order. Batch by batch, because Arrow's own `take` joins all chunks of a text column first."""
    wanted = list(names)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    numbers, local = ordered // batch_rows, ordered % batch_rows
    edges = np.flatnonzero(np.diff(numbers, prepend=-1, append=-1))
    parts = [
        batches[numbers[start]].select(wanted).take(pa.array(local[start:stop])) for start, stop in pairwise(edges.tolist())
    ]
    if not parts:
        return batches[0].select(wanted).slice(0, 0)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_batches(parts).take(pa.array(back))


class Documents:
    """The opened file. Reading is thread-safe.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write([as_batch([Document(id="a", text="one", year=1999), Document(id="b", text="two")])], Path(folder, FILE))
        ...     documents = Documents.open(Path(folder, FILE))
        ...     documents.fields(np.array([1, 0]), ["text"])["text"], documents.row_of("b", 0, 2)
        (['two', 'one'], 1)
    """

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self._batches = batches
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])

    @classmethod
    def open(cls, path: Path) -> Documents:
        """A ValueError where the file is no such file."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except pa.ArrowInvalid as error:
            raise ValueError(f"Arrow cannot read it: {error}") from error
        if reader.schema != SCHEMA:
            raise ValueError(f"its columns are {', '.join(reader.schema.names)}, not {', '.join(SCHEMA.names)}")
        return cls([reader.get_batch(i) for i in range(reader.num_record_batches)])

    def check(self) -> None:
        """A ValueError where a text does not lie where its column says: a file may have been made to be read beyond its end."""
        for batch in self._batches:
            batch.validate(full=True)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, number: int) -> pa.RecordBatch:
        return self._batches[number]

    def ids(self) -> Iterator[str]:
        for batch in self._batches:
            yield from batch["id"].to_pylist()

    def read(self) -> Iterator[Document]:
        """All documents, in the order of the rows."""
        for batch in self._batches:
            for fields in batch.to_pylist():
                yield Document.model_validate(fields)

    def fields(self, rows: Rows, names: Sequence[str]) -> dict[str, list[Any]]:
        """The values of some columns, in the order of `rows`."""
        return gather(self._batches, np.asarray(rows, dtype=np.int64), self._batch_rows, names).to_pydict()

    @property
    def _batch_rows(self) -> int:
        return max(1, self._batches[0].num_rows)

    def row_of(self, document_id: str, start: int, stop: int) -> int | None:
        """Looked for row by row, about a millisecond per million: a map of all ids would take more memory than the index."""
        for batch, first in zip(self._batches, self._starts.tolist(), strict=False):
            begin, end = max(start - first, 0), min(stop - first, batch.num_rows)
            if begin < end and (place := pc.index(batch["id"].slice(begin, end - begin), document_id).as_py()) >= 0:
                return int(first + begin + place)
        return None

    def admitted(self, filters: Filters) -> Mask:
        """Which rows a filter lets through. What a document does not say of itself passes no bound on it."""
        return np.concatenate([_admitted(batch, filters) for batch in self._batches])

    def authority(self) -> npt.NDArray[np.float32]:
        """Per row, from 1 for level I down to 0 for level VI: 1 − (level − 1)/5; unknown levels and retracted papers are 0."""
        levels = np.concatenate([pc.fill_null(batch["evidence_level"], WEAKEST_LEVEL).to_numpy() for batch in self._batches])
        retracted = np.concatenate([batch["retracted"].to_numpy(zero_copy_only=False) for batch in self._batches])
        authority = 1.0 - (levels.astype(np.float32) - 1.0) / (WEAKEST_LEVEL - 1.0)
        return np.where(retracted, np.float32(0), authority).astype(np.float32)


def _admitted(batch: pa.RecordBatch, filters: Filters) -> Mask:
    conditions = []
    if filters.year_from is not None:
        conditions.append(pc.greater_equal(batch["year"], filters.year_from))
    if filters.year_to is not None:
        conditions.append(pc.less_equal(batch["year"], filters.year_to))
    if filters.publication_types:
        conditions.append(pc.is_in(batch["publication_type"], pa.array(filters.publication_types, pa.string())))
    if filters.evidence_level is not None:
        conditions.append(pc.less_equal(batch["evidence_level"], filters.evidence_level))
    if filters.exclude_retracted:
        conditions.append(pc.invert(batch["retracted"]))
    mask = np.ones(batch.num_rows, dtype=bool)
    for condition in conditions:
        mask &= pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
    return mask
