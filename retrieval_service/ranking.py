"""Orders candidates, and fuses two orders into one. Rows of the index are ordered by a hash of the document id, so wherever
scores are equal the smaller row wins: a fixed order that says nothing about year, publication type or evidence level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

NOTHING = -1  # the row of a place that no document fills; such places are always last
# The customary 60 suits many systems of like quality: there, place 60 of both halves beats the first place of one. Of two halves that
# fail on different queries the better one must be able to lead; measured on the large world, 3 is best and 1 to 10 are near it.
RRF_K = 3
_FAR = 0.01  # what was found is never worth nothing, so that there are as many hits as were asked for


@dataclass(frozen=True, slots=True)
class Ranking:
    """For each query of a batch the found rows, best first, and their scores: two arrays (queries, places)."""

    rows: Rows
    scores: Scores

    @classmethod
    def empty(cls, queries: int, places: int) -> Ranking:
        return cls(np.full((queries, places), NOTHING, dtype=np.int64), np.zeros((queries, places)))

    def put(self, queries: Rows, part: Ranking) -> None:
        """Writes the ranking of some of the queries into this one."""
        self.rows[queries, : part.rows.shape[1]] = part.rows
        self.scores[queries, : part.scores.shape[1]] = part.scores

    def of(self, queries: Rows | npt.NDArray[np.bool_]) -> Ranking:
        """The ranking of some of the queries, as a copy."""
        return Ranking(self.rows[queries], self.scores[queries])

    def reorder(self, query: int, rows: Rows, scores: Scores) -> None:
        """One query gets these rows by these scores, best first and equal ones by row, and no others."""
        order = np.lexsort((rows, -scores))
        self.rows[query], self.scores[query] = NOTHING, 0.0
        self.rows[query, : len(rows)], self.scores[query, : len(rows)] = rows[order], scores[order]

    def put_best(self, query: int, rows: Rows, scores: Scores) -> None:
        """One query gets the best of these rows, as many as there are places; scores that differ in their last bits are equal."""
        places, rounded = self.rows.shape[1], scores.astype(np.float32)
        if len(rows) > places:  # few are sorted
            kept = rounded >= np.partition(rounded, len(rows) - places)[len(rows) - places]
            rows, scores, rounded = rows[kept], scores[kept], rounded[kept]
        order = np.lexsort((rows, -rounded))[:places]
        self.rows[query, : len(order)], self.scores[query, : len(order)] = rows[order], scores[order]


class Half(NamedTuple):
    """One half of a hybrid search. `sharpness` says how fast a place loses weight with its score."""

    ranking: Ranking
    weight: float
    sharpness: float = 1.0


def best_positive(scores_bn: Scores, places: int) -> Ranking:
    """The highest scores of each line, columns as rows; zero is no score at all. Equal scores: the smaller column first.

    Example:
        >>> best_positive(np.array([[0.5, 0.0, 2.0, 0.5]]), 4).rows.tolist()
        [[2, 0, 3, -1]]
    """
    queries, columns = scores_bn.shape
    ranking = Ranking.empty(queries, min(places, columns))
    for query, line in enumerate(scores_bn):
        found = np.flatnonzero(line > 0)
        ranking.put_best(query, found, line[found])
    return ranking


def fuse(halves: Sequence[Half], places: int) -> Ranking:
    """Reciprocal-rank fusion in which a place counts as much as its score is near the best one of its half:

    score(d) = Σ over the halves of weight · (score of d there / best score there)^sharpness / (3 + rank of d there), ranks from 1

    Plain ranks say nothing of how sure a half is: of a misspelled or second name, one half often finds a single document, and then
    ninety-nine that share common words only.

    Example:
        >>> a = Half(Ranking(np.array([[7, 3]]), np.ones((1, 2))), 1.0)
        >>> b = Half(Ranking(np.array([[3, 9]]), np.ones((1, 2))), 1.0)
        >>> fuse([a, b], 2).rows.tolist()
        [[3, 7]]
    """
    rows = np.concatenate([half.ranking.rows for half in halves], axis=1)
    shares = np.concatenate([_shares(half) for half in halves], axis=1)
    order = np.argsort(rows, axis=1, kind="stable")
    rows, shares = np.take_along_axis(rows, order, axis=1), np.take_along_axis(shares, order, axis=1)
    # A row stands at most once in each half: its shares are neighbours now, and are summed into the first of them.
    queries, columns = rows.shape
    first = np.ones_like(rows, dtype=bool)
    first[:, 1:] = rows[:, 1:] != rows[:, :-1]
    cells = np.cumsum(first, axis=1) - 1 + np.arange(queries)[:, None] * columns
    summed = np.bincount(cells.ravel(), weights=shares.ravel(), minlength=queries * columns).astype(np.float64, copy=False)
    distinct = np.full(queries * columns, NOTHING, dtype=np.int64)
    distinct[cells[first]] = rows[first]
    best = best_positive(summed.reshape(queries, columns), places)
    return Ranking(
        np.where(best.rows == NOTHING, NOTHING, np.take_along_axis(distinct.reshape(queries, columns), best.rows, axis=1)),
        best.scores,
    )


def _shares(half: Half) -> Scores:
    rows, scores = half.ranking.rows, half.ranking.scores
    there = rows != NOTHING
    best = np.where(there, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    # Where nothing is near (all inner products negative), the ranks alone count.
    near = np.where(best > 0, (np.where(there, scores, 0.0) / np.where(best > 0, best, 1.0)).clip(_FAR), 1.0)
    return np.where(there, half.weight * near**half.sharpness / (RRF_K + 1 + np.arange(rows.shape[1])), 0.0)


def with_authority(ranking: Ranking, authority: npt.NDArray[np.float32], weight: float) -> Ranking:
    """score(d) = (1 − weight) · relevance(d) + weight · authority(d), relevance running from 1 for the best to 0 for the last found.

    Example:
        >>> ranking = Ranking(np.array([[5, 3, 0]]), np.array([[0.9, 0.8, 0.1]]))
        >>> with_authority(ranking, np.array([1, 0, 0, 1, 0, 0], np.float32), 0.6).rows.tolist()
        [[3, 0, 5]]
    """
    there = ranking.rows != NOTHING
    highest = np.where(there, ranking.scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    lowest = np.where(there, ranking.scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    span = highest - lowest
    relevance = np.where(there & (span > 0), (ranking.scores - lowest) / np.where(span > 0, span, 1), 1.0)
    blended = np.where(there, (1 - weight) * relevance + weight * authority[ranking.rows], -np.inf)
    order = np.lexsort((ranking.rows, -blended), axis=1)
    scores = np.take_along_axis(blended, order, axis=1)
    return Ranking(np.take_along_axis(ranking.rows, order, axis=1), np.where(np.isfinite(scores), scores, 0.0))
