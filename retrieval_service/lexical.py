"""The lexical half: BM25 whose scores are computed when the index is built (`postings.py`), one matrix for each scope.

A scope is the whole corpus or one collection. Each has its own document frequencies and mean length, as if indexed alone. A word of
a query that its scope does not know is taken for the known words that are one slip of the pen away, if there are any.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retrieval_service.ranking import Ranking, best_positive
from retrieval_service.spelling import Spelling, within_one_slip

VOCABULARY_FILE = "vocabulary.json"
STARTS_FILE, ROWS_FILE, SCORES_FILE = "lexical-starts.npy", "lexical-rows.npy", "lexical-scores.npy"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scope:
    """Rows [start, stop) of the index: the whole corpus (name ""), or one collection."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LexicalIndex:
    """Postings: token t of scope s has those at [starts[s, t], starts[s, t + 1]) of `rows` (within the scope) and `scores`."""

    vocabulary: dict[str, int]
    words: list[str]
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    spelling: Spelling

    @classmethod
    def load(cls, folder: Path) -> LexicalIndex:
        words = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
        starts = np.load(folder / STARTS_FILE, allow_pickle=False)
        rows, scores = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (ROWS_FILE, SCORES_FILE))
        return cls({token: i for i, token in enumerate(words)}, words, starts, rows, scores, Spelling.load(folder))

    def search(
        self, queries: Sequence[list[str]], place: int, scope: Scope, places: int, admitted: Mask | None = None
    ) -> Ranking:
        """Documents of a scope (at `place` among the scopes) that share a token with the query, best first."""
        width = scope.stop - scope.start
        ranking = Ranking.empty(len(queries), min(places, width))
        for number, query in enumerate(queries):
            scores = self._score(query, place, width)
            if admitted is not None:
                scores *= admitted[scope.start : scope.stop]
            best = best_positive(scores[None], places)
            best.rows[best.rows >= 0] += scope.start
            ranking.put(np.array([number]), best)
        return ranking

    def _score(self, query: Sequence[str], place: int, width: int) -> npt.NDArray[np.float64]:
        """BM25 of every document of the scope: the postings of the query's tokens, summed. A token has one for each document."""
        scores = np.zeros(width)
        for token, weight in self.meant(query, place):
            start, stop = self.starts[place, token], self.starts[place, token + 1]
            scores[self.rows[start:stop]] += weight * self.scores[start:stop]
        return scores

    def meant(self, query: Sequence[str], place: int) -> list[tuple[int, float]]:
        """The tokens of the scope that the words of a query stand for, with weights.

        A word that the scope knows is itself. Of another one, every known word within one slip gets an equal share: together they
        count as the one word that was meant.
        """
        found: list[tuple[int, float]] = []
        for word in query:
            token = self.vocabulary.get(word)
            if token is not None and self._known(token, place):
                found.append((token, 1.0))
                continue
            near = [
                other
                for other in self.spelling.candidates(word)
                if self._known(other, place) and within_one_slip(word, self.words[other])
            ]
            found.extend((other, 1 / len(near)) for other in near)
        return found

    def _known(self, token: int, place: int) -> bool:
        return bool(self.starts[place, token + 1] > self.starts[place, token])
