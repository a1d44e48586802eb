"""Encodes a staged corpus batch by batch, in as many processes as are wanted. A batch that is finished is never encoded again.

index/documents.arrow ─▶ [frequencies/00000.npy ─▶ index/encoder.npy]   only where the encoder learns from the corpus
                      ─▶ vectors/00000.npy, words/00000.npz             one pair per batch
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retrieval_service import vectors as store
from retrieval_service.analyzer import analyze
from retrieval_service.config import RetrievalConfig
from retrieval_service.documents import Documents
from retrieval_service.encoders import WEIGHTS_FILE, Encoder, HashedNgrams, load_encoder
from retrieval_service.postings import Counted
from retrieval_service.staging import INDEX, KNOWN, CorpusRefused, Staged, Tell
from retrieval_service.vectors import VectorShards

_COUNT = np.uint16  # a batch has fewer documents than this can count


class Work(NamedTuple):
    """What every process must know. `parent` is an index whose vectors are taken over where `known.npy` names their rows."""

    staged: Staged
    config: str  # as JSON: it travels to other processes
    parent: Path | None = None

    def vectors(self, batch: int) -> Path:
        return self.staged.folder / "vectors" / f"{batch:05d}.npy"

    def words(self, batch: int) -> Path:
        return self.staged.folder / "words" / f"{batch:05d}.npz"

    def frequencies(self, batch: int) -> Path:
        return self.staged.folder / "frequencies" / f"{batch:05d}.npy"


Task = Callable[[Work, int], None]


def encode(work: Work, workers: int, tell: Tell) -> VectorShards:
    """All vectors and all counted words of the corpus, on disk."""
    for path in (work.vectors(0), work.words(0), work.frequencies(0)):
        path.parent.mkdir(exist_ok=True)
    batches = range(work.staged.batches)
    encoder = load_encoder(RetrievalConfig.model_validate_json(work.config))
    if isinstance(encoder, HashedNgrams) and not (work.staged.folder / INDEX / WEIGHTS_FILE).exists():
        _run(
            _count_features,
            work,
            [batch for batch in batches if not work.frequencies(batch).exists()],
            workers,
            "weighing",
            tell,
        )
        total = np.zeros(np.load(work.frequencies(0), allow_pickle=False).shape, dtype=np.int64)
        for batch in batches:
            total += np.load(work.frequencies(batch), allow_pickle=False)
        encoder.fit(total, work.staged.rows).save(work.staged.folder / INDEX)
    missing = [batch for batch in batches if not (work.vectors(batch).exists() and work.words(batch).exists())]
    _run(_encode, work, missing, workers, "encoding", tell)
    return VectorShards.open([work.vectors(batch) for batch in batches])


def _run(task: Task, work: Work, missing: Sequence[int], workers: int, stage: str, tell: Tell) -> None:
    total = work.staged.batches
    tell(stage, total - len(missing), total)
    if workers == 1 or len(missing) < 2:
        for done, batch in enumerate(missing, start=1):
            task(work, batch)
            tell(stage, total - len(missing) + done, total)
        return
    # Spawned, because FAISS and torch keep threads that a fork would leave behind.
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=get_context("spawn")) as pool:
        running = [pool.submit(task, work, batch) for batch in missing]
        try:
            for done, finished in enumerate(as_completed(running), start=1):
                finished.result()
                tell(stage, total - len(missing) + done, total)
        except BrokenProcessPool as error:
            raise OSError("a process that encodes was killed, perhaps for memory") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _count_features(work: Work, batch: int) -> None:
    counts = HashedNgrams.frequencies([contents(*pair) for pair in _texts(_open(work.staged), batch)])
    _save(work.frequencies(batch), counts.astype(_COUNT))


def _encode(work: Work, batch: int) -> None:
    documents = _open(work.staged)
    pairs = _texts(documents, batch)
    texts = [contents(*pair) for pair in pairs]
    encoder = _encoder(work)
    known = _known(work, batch)
    vectors = np.empty((len(texts), encoder.dimensions), dtype=np.float32)
    new = np.flatnonzero(known < 0)
    vectors[new] = encoder.encode([texts[i] for i in new], "document", pairs=[pairs[i] for i in new])
    if len(new) < len(texts):
        old = known >= 0
        assert work.parent is not None
        vectors[old] = store.stored(work.parent)[known[old]]
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise CorpusRefused(
            f"document {documents.batch(batch)['id'][row].as_py()!r}: the encoder gives a vector that is not finite;"
            " the model's weights are damaged, or its number format is too small"
        )
    _save(work.vectors(batch), vectors)
    part = work.words(batch).with_suffix(".part")
    Counted.of([analyze(text) for text in texts]).save(part)
    os.replace(part, work.words(batch))


def contents(title: str, text: str) -> str:
    """What is searched: the title, unless the text begins with it, and the text."""
    return text if text.startswith(title) else f"{title} {text}"


@cache
def _open(staged: Staged) -> Documents:
    return staged.documents()


@cache
def _encoder(work: Work) -> Encoder:
    encoder = load_encoder(RetrievalConfig.model_validate_json(work.config))
    return encoder.load(work.staged.folder / INDEX) if isinstance(encoder, HashedNgrams) else encoder


def _texts(documents: Documents, batch: int) -> list[tuple[str, str]]:
    found: pa.RecordBatch = documents.batch(batch)
    return list(zip(found["title"].to_pylist(), found["text"].to_pylist(), strict=True))


def _known(work: Work, batch: int) -> npt.NDArray[np.int64]:
    """The rows of the parent that hold this batch's documents already, and −1 where none does."""
    rows = work.staged.batch_rows(batch)
    if work.parent is None:
        return np.full(rows.stop - rows.start, -1, dtype=np.int64)
    known: npt.NDArray[np.int64] = np.load(work.staged.folder / KNOWN, mmap_mode="r", allow_pickle=False)[rows]
    return known


def _save(path: Path, array: npt.NDArray) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, array)
    os.replace(part, path)
