"""Exact search over vectors in memory: the rows are shared out among threads of one core each."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np

from retrieval_service.ranking import Rows
from retrieval_service.vectors import Floats

_faiss: Any = faiss  # its type stubs leave out what its Python layer adds

# Queries together from which matrices are multiplied; FAISS 1.15 itself begins at 128,000. On one core, over 50k × 768, it answers
# 155 queries a second of processor time without, however many there are; multiplying, 103 at 2 together, 219 at 4, 1,020 at 64.
_MULTIPLIED_FROM = 4
_PARTS_PER_THREAD = 2  # a thread that the machine holds up leaves some of its rows to the others
_FEWEST_ROWS = 4096  # of a part: a few milliseconds of one core, beside which handing it out is nothing


class ExactSearch:
    """The nearest by inner product among rows that lie together.

    FAISS's own threads wait for each other after every thousand vectors, and wait busily: beside any other program, eight queries
    took two of them twenty times as long as one alone. Here threads meet once, at the end, and a lone query has all of them.

    Example:
        >>> search = ExactSearch(np.eye(4, dtype=np.float32), threads=2)
        >>> scores, rows = search.nearest(np.array([[0, 1, 3, 2]], dtype=np.float32), 1, 4, 2)
        >>> rows.tolist(), scores.tolist()
        ([[2, 3]], [[3.0, 2.0]])
    """

    def __init__(self, vectors: Floats, threads: int) -> None:
        self._vectors, self._threads = vectors, threads
        _faiss.cvar.distance_compute_blas_threshold = _MULTIPLIED_FROM  # of the process: FAISS knows no other place for it
        self._pool = ThreadPoolExecutor(threads, "exact-search", initializer=_faiss.omp_set_num_threads, initargs=(1,))

    def nearest(self, queries: Floats, start: int, stop: int, places: int) -> tuple[Floats, Rows]:
        """Scores and rows of at least the best `places` of [start, stop) for each query: those of each part, so in no order."""
        step = max(_FEWEST_ROWS, math.ceil((stop - start) / (self._threads * _PARTS_PER_THREAD)))
        parts = [(first, min(first + step, stop)) for first in range(start, stop, step)]
        found = list(self._pool.map(lambda part: self._in_part(queries, part, places), parts))
        return np.concatenate([scores for scores, _ in found], axis=1), np.concatenate([rows for _, rows in found], axis=1)

    def _in_part(self, queries: Floats, part: tuple[int, int], places: int) -> tuple[Floats, Rows]:
        start, stop = part
        scores, rows = _faiss.knn(queries, self._vectors[start:stop], min(places, stop - start), faiss.METRIC_INNER_PRODUCT)
        return scores, rows + start
