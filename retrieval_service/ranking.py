"""Orders candidates, and fuses two orders into one. Rows of the index are ordered by a hash of the document id, so wherever
scores are equal the smaller row wins: a fixed order that says nothing about year, publication type or evidence level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

NOTHING = -1  # the row of a place that no document fills; such places are always last
RRF_K = 60  # Cormack, Clarke, Büttcher 2009: large enough that one half alone cannot dictate the order


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


def best_positive(scores_bn: Scores, places: int) -> Ranking:
    """The highest scores of each line, columns as rows; zero is no score at all. Equal scores: the smaller column first.

    Example:
        >>> best_positive(np.array([[0.5, 0.0, 2.0, 0.5]]), 4).rows.tolist()
        [[2, 0, 3, -1]]
    """
    columns = scores_bn.shape[1]
    places = min(places, columns)
    # The bits of a positive float grow with it, so score and column make one integer that has no ties.
    bits = scores_bn.astype(np.float32).view(np.int32).astype(np.int64)
    keys = (bits << 32) | np.arange(columns - 1, -1, -1)
    chosen = np.argpartition(keys, columns - places, axis=1)[:, columns - places :]
    order = np.argsort(-np.take_along_axis(keys, chosen, axis=1), axis=1)
    found = np.take_along_axis(chosen, order, axis=1)
    scores = np.take_along_axis(scores_bn, found, axis=1)
    return Ranking(np.where(scores > 0, found, NOTHING), scores)


def fuse(halves: list[tuple[Ranking, float]], places: int) -> Ranking:
    """Reciprocal-rank fusion: score(d) = Σ over the halves of weight / (60 + rank of d there), ranks counted from 1.

    Example:
        >>> a = Ranking(np.array([[7, 3]]), np.ones((1, 2)))
        >>> b = Ranking(np.array([[3, 9]]), np.ones((1, 2)))
        >>> fuse([(a, 1.0), (b, 1.0)], 2).rows.tolist()
        [[3, 7]]
    """
    rows = np.concatenate([ranking.rows for ranking, _ in halves], axis=1)
    shares = np.concatenate(
        [np.where(r.rows == NOTHING, 0.0, weight / (RRF_K + 1 + np.arange(r.rows.shape[1]))) for r, weight in halves], axis=1
    )
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
