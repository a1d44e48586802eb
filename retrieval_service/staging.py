"""A corpus on its way into an index: read once, put into the order of the rows, kept on disk until the index stands.

documents ─▶ pieces.arrow (as they come) ─▶ order by (collection, hash of the id) ─▶ index/documents.arrow ─▶ corpus.json, written last
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retrieval_service import documents as store
from retrieval_service.documents import BATCH_ROWS, Digests, Documents
from tasks.questions import Document

Tell = Callable[[str, int, int], None]  # stage, done, total; a total of 0 is not known
Rows = npt.NDArray[np.int64]

INDEX, PIECES, DONE, KNOWN = "index", "pieces.arrow", "corpus.json", "known.npy"


class CorpusRefused(ValueError):
    """The documents cannot make an index; the text says which and why."""


class Staged(NamedTuple):
    """A corpus in the order of its rows, in `folder`/index/documents.arrow."""

    folder: Path
    corpus_hash: str
    collections: tuple[tuple[str, int], ...]  # (name, documents), in the order of the rows

    @property
    def rows(self) -> int:
        return sum(count for _, count in self.collections)

    def batch_rows(self, batch: int) -> slice:
        return slice(batch * BATCH_ROWS, min((batch + 1) * BATCH_ROWS, self.rows))

    @property
    def batches(self) -> int:
        return -(-self.rows // BATCH_ROWS)

    def documents(self) -> Documents:
        return Documents.open(self.folder / INDEX / store.FILE)

    @classmethod
    def found(cls, folder: Path) -> Self | None:
        """What an earlier build that was ended has staged, if it came so far."""
        try:
            done = json.loads((folder / DONE).read_bytes())
        except OSError:
            return None
        return cls(folder, done["corpus_hash"], tuple((name, count) for name, count in done["collections"]))


def stage(documents: Iterable[Document], folder: Path, tell: Tell, kept_rows: Rows | None = None) -> Staged:
    """Reads all documents, a batch at a time. `kept_rows` says which rows of an older version the first documents are."""
    digests = _Digested()
    pieces = folder / PIECES
    try:
        store.write(digests.read(documents, tell), pieces)
        order = digests.row_order()
        reader = pa.ipc.open_file(pa.memory_map(str(pieces)))
        _write_rows([reader.get_batch(i) for i in range(reader.num_record_batches)], order, digests, folder, tell)
    finally:
        pieces.unlink(missing_ok=True)
    if kept_rows is not None:
        kept = order < len(kept_rows)
        known = np.full(len(order), -1, dtype=np.int64)
        known[kept] = kept_rows[order[kept]]
        np.save(folder / KNOWN, known)
    staged = Staged(folder, digests.corpus_hash(order), digests.collections())
    write_whole(folder / DONE, json.dumps({"corpus_hash": staged.corpus_hash, "collections": staged.collections}).encode())
    return staged


def _write_rows(pieces: list[pa.RecordBatch], order: Rows, digests: _Digested, folder: Path, tell: Tell) -> None:
    """The documents again, in the order of the rows, unless two have one id."""
    duplicate = digests.repeated()
    if duplicate is not None:
        twice, example = duplicate
        name = store.gather(pieces, np.array([example]), BATCH_ROWS)["id"][0].as_py()
        raise CorpusRefused(f"{twice} document ids occur more than once, for instance {name!r}; ids must be unique")

    tell("ordering", 0, len(order))

    def ordered() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(order), BATCH_ROWS):
            yield store.gather(pieces, order[start : start + BATCH_ROWS], BATCH_ROWS)
            tell("ordering", min(start + BATCH_ROWS, len(order)), len(order))

    store.write(ordered(), folder / INDEX / store.FILE)


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there is complete, even where a build is killed at any moment."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


class _Digested:
    """What is remembered of every document while the corpus goes by: 36 bytes."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._keys: list[bytes] = []
        self._contents: list[bytes] = []
        self._collections: list[npt.NDArray[np.int32]] = []

    def read(self, documents: Iterable[Document], tell: Tell) -> Iterator[pa.RecordBatch]:
        count = 0
        coming = iter(documents)
        while batch := list(islice(coming, BATCH_ROWS)):
            digests = [self._digests(document) for document in batch]
            self._keys.append(b"".join(digest.key for digest in digests))
            self._contents.append(b"".join(digest.content for digest in digests))
            codes = [self._names.setdefault(document.collection, len(self._names)) for document in batch]
            self._collections.append(np.array(codes, dtype=np.int32))
            count += len(batch)
            tell("reading", count, 0)
            try:
                yield store.as_batch(batch)
            except (pa.ArrowInvalid, OverflowError) as error:
                raise CorpusRefused(f"documents {batch[0].id!r} to {batch[-1].id!r}: {error}") from error
        if not count:
            raise CorpusRefused("an index needs at least one document")

    @staticmethod
    def _digests(document: Document) -> Digests:
        try:
            return Digests.of(document)
        except ValueError as error:  # UnicodeEncodeError, or pydantic's own for the same
            raise CorpusRefused(f"document {document.id!r} holds half a surrogate pair, which is no text") from error

    def _codes(self) -> npt.NDArray[np.int64]:
        """The place of each document's collection among the sorted names."""
        rank = {name: place for place, name in enumerate(sorted(self._names))}
        return np.array([rank[name] for name in self._names], dtype=np.int64)[np.concatenate(self._collections)]

    def _halves(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """The keys as two integers each, which sort as the bytes do."""
        numbers = np.frombuffer(b"".join(self._keys), dtype=">u8").reshape(-1, 2).astype(np.uint64)
        return numbers[:, 0], numbers[:, 1]

    def row_order(self) -> Rows:
        high, low = self._halves()
        return np.lexsort((low, high, self._codes()))

    def repeated(self) -> tuple[int, int] | None:
        """How many ids occur more than once, and one document that has such an id."""
        high, low = self._halves()
        order = np.lexsort((low, high))
        same = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
        if not same.any():
            return None
        begins = same & ~np.concatenate([[False], same[:-1]])
        first_of_id = order[:-1][begins]
        return len(first_of_id), int(first_of_id.min())

    def collections(self) -> tuple[tuple[str, int], ...]:
        counts = np.bincount(self._codes())
        return tuple(zip(sorted(self._names), counts.tolist(), strict=True))

    def corpus_hash(self, order: Rows) -> str:
        contents = np.frombuffer(b"".join(self._contents), dtype=np.uint8).reshape(-1, 16)
        digest = hashlib.sha256()
        for start, stop in pairwise([*range(0, len(order), BATCH_ROWS), len(order)]):
            digest.update(contents[order[start:stop]].tobytes())
        return digest.hexdigest()
