"""The lexical half: BM25 whose scores are computed when the index is built (`postings.py`), one matrix for each scope.

A scope is the whole corpus or one collection. Each has its own document frequencies and mean length, as if indexed alone. A word of
a query that its scope does not know is taken for the known words that are one slip of the pen away, if there are any.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from retrieval_service.ranking import Ranking, Rows, Scores
from retrieval_service.spelling import Spelling, within_one_slip

VOCABULARY_FILE = "vocabulary.json"
STARTS_FILE, ROWS_FILE, SCORES_FILE = "lexical-starts.npy", "lexical-rows.npy", "lexical-scores.npy"

Mask = npt.NDArray[np.bool_]

_ROUNDING = 1e-6  # scores that differ by less are equal where documents are ordered: none of them is left out


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
        inside = admitted[scope.start : scope.stop] if admitted is not None else None
        for number, query in enumerate(queries):
            rows, scores = self._scored(query, place, width, ranking.rows.shape[1], inside)
            ranking.put_best(number, rows + scope.start, scores)
        return ranking

    def _scored(self, query: Sequence[str], place: int, width: int, places: int, inside: Mask | None) -> tuple[Rows, Scores]:
        """The documents that can be among the best `places`, with their BM25 scores; the others are left out early (MaxScore).

        Tokens are taken from the rarest on. A document that has none of the ones so far cannot score more than what the others may
        add together. Where `places` documents are above that, the others' long lists are looked into for those at hand only.
        """
        terms = self._terms(query, place, width)
        left = np.cumsum([term.most for term in terms][::-1])[::-1]  # what terms from here on may add together
        scores, touched, summed = np.zeros(width), [np.empty(0, dtype=np.int64)], 0
        for number, term in enumerate(terms):
            if term.stop - term.start > summed >= places:  # to look whether it is enough costs about as much as what was summed
                found = _admitted(touched, inside)
                if (reaching := _reaching(scores[found], places, left[number])) is not None:
                    return self._looked_up(found[reaching], scores[found[reaching]], terms[number:])
            rows = self.rows[term.start : term.stop]
            before = scores[rows]
            touched.append(rows[before == 0])  # every document once
            scores[rows] = before + term.weight * self.scores[term.start : term.stop]
            summed += len(rows)
        found = _admitted(touched, inside)
        return found, scores[found]

    def _terms(self, query: Sequence[str], place: int, width: int) -> list[_Term]:
        terms = []
        for token, weight in self.meant(query, place):
            start, stop = int(self.starts[place, token]), int(self.starts[place, token + 1])
            rarity = math.log1p((width - (stop - start) + 0.5) / (stop - start + 0.5))
            terms.append(_Term(start, stop, weight, weight * rarity))
        return sorted(terms, key=lambda term: (term.stop - term.start, term.start))

    def _looked_up(self, found: Rows, scores: Scores, terms: Sequence[_Term]) -> tuple[Rows, Scores]:
        """Adds to the scores of some documents what further terms give them."""
        order = np.argsort(found)
        found, scores = found[order], scores[order]
        for term in terms:
            rows = self.rows[term.start : term.stop]
            at = np.searchsorted(rows, found.astype(rows.dtype))  # of another type, all of `rows` would be copied
            there = np.flatnonzero(at < len(rows))
            there = there[rows[at[there]] == found[there]]
            scores[there] += term.weight * self.scores[term.start + at[there]]
        return found, scores

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


class _Term(NamedTuple):
    """A token of a query: where its postings stand, how much it counts, and more than it adds to any document."""

    start: int
    stop: int
    weight: float
    most: float


def _admitted(touched: list[Rows], inside: Mask | None) -> Rows:
    found = np.concatenate(touched)
    return found if inside is None else found[inside[found]]


def _reaching(scores: Scores, places: int, left: float) -> npt.NDArray[np.bool_] | None:
    """Which of these documents can still be among the best, if no other one can: all others score at most `left`.

    Example:
        >>> _reaching(np.array([5.0, 1.0, 3.0]), 1, 2.5).tolist(), _reaching(np.array([5.0, 1.0, 3.0]), 2, 3.5)
        ([True, False, True], None)
    """
    if len(scores) < places:
        return None
    enough = np.partition(scores, len(scores) - places)[len(scores) - places] * (1 - _ROUNDING)
    return scores + left >= enough if enough > left else None
