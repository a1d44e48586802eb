"""The lexical half: BM25 whose scores bm25s computes when the index is built, one matrix for each scope.

A scope is the whole corpus or one collection. Each has its own document frequencies and mean length, as if indexed alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from retrieval_service.ranking import Ranking, best_positive

ARRAYS_FILE, VOCABULARY_FILE = "lexical.safetensors", "vocabulary.json"

# Queries are scored some at a time, so that the dense score matrix of one step stays under 64 MB.
_CELLS_AT_ONCE = 8_000_000


@dataclass(frozen=True, slots=True)
class Scope:
    """Rows [start, stop) of the index: the whole corpus (name ""), or one collection."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LexicalIndex:
    """Postings: token t of scope s has those at [indptr[s, t], indptr[s, t + 1]) of `rows` (within the scope) and `scores`."""

    vocabulary: dict[str, int]
    indptr: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    @classmethod
    def build(cls, tokens: Sequence[list[str]], scopes: Sequence[Scope]) -> LexicalIndex:
        """From the tokens of all documents, in the order of their rows."""
        import bm25s  # here, because it brings numba along: seconds that a replica, which only searches, starts earlier

        vocabulary = {token: i for i, token in enumerate(sorted({token for found in tokens for token in found}))}
        ids = [[vocabulary[token] for token in found] for found in tokens]
        indptr, rows, scores, filled = [], [], [], 0
        for scope in scopes:
            part = ids[scope.start : scope.stop]
            if not any(part):
                indptr.append(np.full(len(vocabulary) + 1, filled, dtype=np.int64))
                continue
            matrix = bm25s.BM25(method="lucene", backend="numpy")
            matrix.index((part, vocabulary), create_empty_token=False, show_progress=False)
            indptr.append(matrix.scores["indptr"] + filled)
            rows.append(matrix.scores["indices"])
            scores.append(matrix.scores["data"])
            filled += len(matrix.scores["data"])
        return cls(
            vocabulary,
            np.stack(indptr).astype(np.int64),
            np.concatenate([np.empty(0, np.int32), *rows]),
            np.concatenate([np.empty(0, np.float32), *scores]),
        )

    def search(self, queries: Sequence[list[str]], place: int, scope: Scope, places: int) -> Ranking:
        """Documents of a scope (at `place` among the scopes) that share a token with the query, best first."""
        width = scope.stop - scope.start
        step = max(1, _CELLS_AT_ONCE // width)
        ranking = Ranking.empty(len(queries), min(places, width))
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            best = best_positive(self._score(some, place, width), places)
            best.rows[best.rows >= 0] += scope.start
            ranking.put(np.arange(start, start + len(some)), best)
        return ranking

    def _score(self, queries: Sequence[list[str]], place: int, width: int) -> npt.NDArray[np.float64]:
        """BM25 of every document of the scope for every query: the postings of all their tokens, gathered and summed."""
        known = [[self.vocabulary[token] for token in query if token in self.vocabulary] for query in queries]
        tokens = np.array([token for query in known for token in query], dtype=np.int64)
        owners = np.repeat(np.arange(len(queries)), [len(query) for query in known])
        starts = self.indptr[place, tokens]
        lengths = self.indptr[place, tokens + 1] - starts
        postings = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        cells = np.repeat(owners * width, lengths) + self.rows[postings]
        summed = np.bincount(cells, weights=self.scores[postings], minlength=len(queries) * width)
        return summed.astype(np.float64, copy=False).reshape(len(queries), width)

    def save(self, folder: Path) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {"indptr": self.indptr, "rows": self.rows, "scores": self.scores}
        save_file(arrays, folder / ARRAYS_FILE)
        (folder / VOCABULARY_FILE).write_text(json.dumps(list(self.vocabulary), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> LexicalIndex:
        arrays = load_file(folder / ARRAYS_FILE)
        tokens = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
        return cls({token: i for i, token in enumerate(tokens)}, arrays["indptr"], arrays["rows"], arrays["scores"])
