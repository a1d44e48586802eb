"""Builds the lexical half: BM25 scores from counted words, some thousand documents at a time.

Each batch of documents is counted by itself (`count`), in any process; `write_lexical` then lays the postings of all batches into
memory-mapped files, so the corpus never stands in memory. The scores are Lucene's variant of BM25:

    score(t, d) = ln(1 + (N − df + ½) / (df + ½)) · tf / (tf + k1 · (1 − b + b · |d| / mean |d|))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from retrieval_service.lexical import ROWS_FILE, SCORES_FILE, STARTS_FILE, VOCABULARY_FILE, Scope
from retrieval_service.spelling import write_spelling
from retrieval_service.vectors import reserved

# Anserini's values for passages. With Lucene's 1.2 and 0.75, a text that repeats a name beats one that says what was asked of it:
# nDCG@10 .915 instead of 1.000 on plainly worded queries of the large world.
K1, B = 0.9, 0.4

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class Counted(NamedTuple):
    """Postings of one batch, ordered by token and row; tokens are places in the batch's own `vocabulary`."""

    vocabulary: list[str]
    tokens: Ints
    rows: Ints
    counts: Ints
    lengths: Ints

    @classmethod
    def of(cls, documents: Sequence[list[str]]) -> Self:
        """From the tokens of each document.

        Example:
            >>> counted = Counted.of([["b", "a", "b"], ["b"]])
            >>> counted.vocabulary, counted.tokens.tolist(), counted.rows.tolist(), counted.counts.tolist()
            (['b', 'a'], [0, 0, 1], [0, 1, 0], [2, 1, 1])
        """
        numbers: dict[str, int] = {}
        flat = np.array([numbers.setdefault(t, len(numbers)) for tokens in documents for t in tokens], dtype=np.int64)
        lengths = np.array([len(tokens) for tokens in documents], dtype=np.int32)
        owners = np.repeat(np.arange(len(documents)), lengths)
        keys, counts = np.unique(flat * len(documents) + owners, return_counts=True)
        tokens, rows = np.divmod(keys, max(len(documents), 1))
        return cls(list(numbers), tokens.astype(np.int32), rows.astype(np.int32), counts.astype(np.int32), lengths)

    def save(self, path: Path) -> None:
        words = np.frombuffer(json.dumps(self.vocabulary).encode(), dtype=np.uint8)
        arrays: dict[str, Any] = {**self._asdict(), "vocabulary": words}
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path, allow_pickle=False) as arrays:
            words = json.loads(arrays["vocabulary"].tobytes())
            return cls(words, *(arrays[name] for name in cls._fields[1:]))


def write_lexical(
    batches: Sequence[Path], batch_rows: int, scopes: Sequence[Scope], folder: Path, tell: Callable[[int], None]
) -> int:
    """Writes the files of the lexical half from saved batches, and returns the size of the vocabulary."""
    vocabulary = sorted({token for path in batches for token in Counted.load(path).vocabulary})
    numbers = {token: i for i, token in enumerate(vocabulary)}
    totals = np.zeros((len(scopes), len(vocabulary)), dtype=np.int64)  # documents of the scope that have the token
    lengths = np.zeros(len(scopes), dtype=np.int64)
    for first, batch in _numbered(batches, batch_rows):
        tokens = _global(batch, numbers)
        for place, scope in enumerate(scopes):
            inside, within = _inside(batch, first, scope)
            totals[place] += np.bincount(tokens[inside], minlength=len(vocabulary))
            lengths[place] += batch.lengths[within].sum()

    starts = np.zeros((len(scopes), len(vocabulary) + 1), dtype=np.int64)
    np.cumsum(totals, axis=1, out=starts[:, 1:])
    starts += np.concatenate([[0], np.cumsum(totals.sum(axis=1))[:-1]])[:, None]
    filled = int(totals.sum())
    rows = reserved(folder / ROWS_FILE, np.int32, (filled,))
    scores = reserved(folder / SCORES_FILE, np.float32, (filled,))
    free = starts[:, :-1].copy()  # where the next posting of each token goes
    for number, (first, batch) in enumerate(_numbered(batches, batch_rows)):
        tokens = _global(batch, numbers)
        order = np.argsort(tokens, kind="stable")  # the batch's own order of tokens is another one than the vocabulary's
        for place, scope in enumerate(scopes):
            inside, _ = _inside(batch, first, scope)
            chosen = order[inside[order]]
            if not len(chosen):
                continue
            token, row, count = tokens[chosen], batch.rows[chosen], batch.counts[chosen]
            target = free[place, token] + _places_in_runs(token)
            rows[target] = first + row - scope.start
            share = batch.lengths[row] / (lengths[place] / (scope.stop - scope.start))
            frequency = totals[place, token]
            rarity = np.log1p((scope.stop - scope.start - frequency + 0.5) / (frequency + 0.5))
            scores[target] = rarity * count / (count + K1 * (1 - B + B * share))
            free[place] += np.bincount(token, minlength=len(vocabulary))
        tell(number + 1)
    np.save(folder / STARTS_FILE, starts)
    (folder / VOCABULARY_FILE).write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    write_spelling(vocabulary, folder)
    return len(vocabulary)


def _numbered(batches: Sequence[Path], batch_rows: int) -> Iterator[tuple[int, Counted]]:
    """Each batch with the number of its first row."""
    return ((number * batch_rows, Counted.load(path)) for number, path in enumerate(batches))


def _global(batch: Counted, numbers: dict[str, int]) -> Longs:
    return np.array([numbers[token] for token in batch.vocabulary], dtype=np.int64)[batch.tokens]


def _inside(batch: Counted, first: int, scope: Scope) -> tuple[npt.NDArray[np.bool_], slice]:
    """Which postings, and which rows of the batch, belong to the scope."""
    start, stop = max(scope.start - first, 0), max(scope.stop - first, 0)
    return (batch.rows >= start) & (batch.rows < stop), slice(start, stop)


def _places_in_runs(sorted_values: Longs) -> Longs:
    """0, 1, 2, … within each run of equal values."""
    begins = np.flatnonzero(np.diff(sorted_values, prepend=-1))
    lengths = np.diff(np.append(begins, len(sorted_values)))
    return np.arange(len(sorted_values)) - np.repeat(begins, lengths)
