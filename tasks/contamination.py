"""Which evaluation questions a training set has seen: word for word, nearly, or in a passage of thirteen words.

====== ======================================================================================================================
same    the words of question and options (or answer) are the same, whatever their case and punctuation
near    the sets of their words and word pairs are alike by at least `NEAR` (Jaccard); candidates by MinHash, then counted exactly
passage so many words in a row of the question stand in a training question; passages that more than `COMMON` of them have are
        phrases of the trade ("which of the following is the most likely cause of …") and do not count, as in Brown et al. 2020
====== ======================================================================================================================

Evaluation questions are kept, training questions pass by in blocks, so a training set may be of any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.questions import AnswerKind, Question

PASSAGE = 13  # words: Brown et al. 2020 (arXiv 2005.14165), appendix C
COMMON = 10  # of the same
NEAR = 0.7  # of twelve words one may differ, and of two choices of words none
# 32 bands of 4 find a pair that is alike by 0.7 with 0.9998, and one by 0.5 with 0.87; those are then sorted out by counting.
BANDS, ROWS = 32, 4
NEAR_BY_SIGNATURE = NEAR - 0.1  # 128 values estimate a Jaccard index of 0.7 with a deviation of 0.04
MOST_ALIKE = 32  # evaluation questions of one bucket that are compared; more are made from one template, and share most buckets
COUNTED = 8  # evaluated questions for each training question whose likeness is counted exactly
COMPARED = 1 << 15  # pairs at a time: sixteen megabytes of signatures
BLOCK = 2048  # questions: some 200,000 features, which stay in a core's cache

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
# A word, or a single character of a script that writes no spaces.
_WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")


class Seen(NamedTuple):
    """One evaluation question that the training set has, and one of the training questions that it has it from."""

    evaluated: str
    trained: str
    how: str  # "same", "near" or "passage"
    share: float  # same: 1; near: the Jaccard index; passage: of its passages, how many stand in the training set


class _Vocabulary(dict[str, int]):
    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class _Block(NamedTuple):
    """Some questions as numbers: the features of question i are `features[starts[i] : starts[i + 1]]`, each once."""

    ids: list[str]
    exact: Hashes
    passages: Hashes
    passage_of: Indices  # the question of each passage
    features: Hashes
    starts: Indices


class Contamination:
    """Collects which of the evaluation questions the training questions contain.

    Example:
        >>> asked = Question(id="e", text="Which drug lowers glucose?", kind="text", gold="metformin")
        >>> check = Contamination([asked])
        >>> check.train([asked.model_copy(update={"id": "t", "text": "which drug lowers GLUCOSE"})])
        >>> check.seen()
        [Seen(evaluated='e', trained='t', how='same', share=1.0)]
    """

    def __init__(self, evaluated: Iterable[Question]) -> None:
        self._vocabulary = _Vocabulary()
        blocks = list(self._blocks(evaluated))
        self._ids = [each for block in blocks for each in block.ids]
        self._found: dict[int, Seen] = {}
        self._exact = _Index(_joined([block.exact for block in blocks]))
        offsets = np.cumsum([0, *(len(block.ids) for block in blocks)])
        passages = _joined([block.passages for block in blocks])
        of = np.concatenate(
            [block.passage_of + at for block, at in zip(blocks, offsets, strict=False)] or [np.zeros(0, np.int64)]
        )
        self._passages, self._passage = np.unique(passages, return_inverse=True)
        self._passage_of = of
        self._passage_count = np.zeros(len(self._passages), np.int64)
        self._passage_in: dict[int, list[str]] = {}  # the first `COMMON` training questions that have a passage
        self._giving_away: set[str] = set()
        self._features = [
            block.features[block.starts[i] : block.starts[i + 1]] for block in blocks for i in range(len(block.ids))
        ]
        self._signatures = np.concatenate([_signatures(block) for block in blocks] or [np.zeros((0, BANDS * ROWS), np.uint32)])
        keys = _bands(self._signatures)
        self._bands = [_Index(keys[:, band]) for band in range(BANDS)]

    def train(self, questions: Iterable[Question]) -> None:
        """Looks at training questions; may be called again and again."""
        for block in self._blocks(questions):
            self._count_passages(block)
            for trained, evaluated in self._exact.pairs(block.exact, len(self._ids)).tolist():
                self._giving_away.add(block.ids[trained])
                if evaluated not in self._found or self._found[evaluated].how != "same":
                    self._found[evaluated] = Seen(self._ids[evaluated], block.ids[trained], "same", 1.0)
            self._look_for_near(block)

    def seen(self) -> list[Seen]:
        """Every evaluation question that was seen, once, by the strongest way in which it was."""
        found = dict(self._found)
        counted = (self._passage_count > 0) & (self._passage_count <= COMMON)
        hits = counted[self._passage]
        shares = np.bincount(self._passage_of, hits, len(self._ids)) / np.maximum(
            1, np.bincount(self._passage_of, minlength=len(self._ids))
        )
        first = {int(self._passage_of[at]): int(self._passage[at]) for at in np.flatnonzero(hits)[::-1]}
        for evaluated, passage in first.items():
            if evaluated not in found:
                trained = self._passage_in[passage][0]
                found[evaluated] = Seen(self._ids[evaluated], trained, "passage", float(shares[evaluated]))
        return [found[evaluated] for evaluated in sorted(found)]

    def giving_away(self) -> set[str]:
        """The ids of all training questions that an evaluation question was seen in: those to leave out."""
        passages = (ids for passage, ids in self._passage_in.items() if self._passage_count[passage] <= COMMON)
        return self._giving_away.union(*passages)

    def _count_passages(self, block: _Block) -> None:
        if not len(self._passages) or not len(block.passages):
            return
        at = np.searchsorted(self._passages, block.passages)
        at[at == len(self._passages)] = 0
        hits = np.flatnonzero(self._passages[at] == block.passages)
        # A training question counts once however often it says the same.
        for trained, passage in sorted({(int(block.passage_of[hit]), int(at[hit])) for hit in hits}):
            self._passage_count[passage] += 1
            if self._passage_count[passage] <= COMMON:
                self._passage_in.setdefault(passage, []).append(block.ids[trained])

    def _look_for_near(self, block: _Block) -> None:
        signatures = _signatures(block)
        keys = _bands(signatures)
        pairs = np.concatenate([self._bands[band].pairs(keys[:, band], MOST_ALIKE) for band in range(BANDS)])
        codes = np.unique(pairs[:, 0] * max(1, len(self._ids)) + pairs[:, 1])
        pairs = np.stack(np.divmod(codes, max(1, len(self._ids))), axis=1)
        for trained, evaluated in _most_alike(pairs, signatures, self._signatures).tolist():
            share = _jaccard(self._features[evaluated], block.features[block.starts[trained] : block.starts[trained + 1]])
            if share >= NEAR:
                self._giving_away.add(block.ids[trained])
                known = self._found.get(evaluated)
                if known is not None and known.share >= share:
                    continue
                self._found[evaluated] = Seen(self._ids[evaluated], block.ids[trained], "near", share)

    def _blocks(self, questions: Iterable[Question]) -> Iterator[_Block]:
        stream = iter(questions)
        while some := list(islice(stream, BLOCK)):
            yield self._block(some)

    def _block(self, questions: list[Question]) -> _Block:
        number = self._vocabulary.__getitem__
        asked = [list(map(number, _WORD.findall(each.text.casefold()))) for each in questions]
        answers = [list(map(number, _WORD.findall(answer_text(each).casefold()))) for each in questions]
        words = [q + a for q, a in zip(asked, answers, strict=True)]
        exact = _exactly(asked, answers)
        passages, passage_of = _passages([np.array(q, np.int64) for q in asked])
        features, starts = _features(words)
        return _Block([each.id for each in questions], exact, passages, passage_of, features, starts)


def answer_text(question: Question) -> str:
    """What distinguishes questions that are asked in the same words: their options, else their answer."""
    if question.kind is AnswerKind.CHOICE:
        return " ".join(question.options.values())
    return question.gold


def question_key(question: Question) -> bytes:
    """Equal for questions that are the same word for word, whatever case, punctuation and the order of options."""
    options = sorted(" ".join(_WORD.findall(option.casefold())) for option in question.options.values())
    said = options if options else [question.gold.casefold()]
    return "\n".join([" ".join(_WORD.findall(question.text.casefold())), *said]).encode("utf-8", "surrogatepass")


class _Index:
    """Where a value stands in an array, for many values at once."""

    def __init__(self, values: Hashes) -> None:
        self._order = np.argsort(values, kind="stable")
        self._sorted = values[self._order]

    def pairs(self, values: Hashes, most: int) -> Indices:
        """Rows of (position among the asked values, position in the array), one for every equal pair, of each asked one `most`."""
        left = np.searchsorted(self._sorted, values, "left")
        counts = np.minimum(np.searchsorted(self._sorted, values, "right") - left, most)
        asked = np.repeat(np.arange(len(values)), counts)
        nth = np.arange(len(asked)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack([asked, self._order[np.repeat(left, counts) + nth]], axis=1)


def _mixed(values: npt.NDArray[np.uint64]) -> Hashes:
    """Numbers spread evenly over 64 bits (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_RANDOM = np.random.default_rng(0)
_MULTIPLIERS = _RANDOM.integers(1, 2**63, BANDS * ROWS, np.uint64) * np.uint64(2) + np.uint64(1)
_ADDENDS = _RANDOM.integers(0, 2**63, BANDS * ROWS, np.uint64)


def _exactly(asked: list[list[int]], answers: list[list[int]]) -> Hashes:
    """One hash of each question's words in their order and its answers' words in any: options may be shuffled."""
    return np.array([hash((tuple(q), tuple(sorted(a)))) & (2**64 - 1) for q, a in zip(asked, answers, strict=True)], np.uint64)


def _passages(asked: list[Indices]) -> tuple[Hashes, Indices]:
    """A hash of every `PASSAGE` words in a row, and whose they are."""
    lengths = np.array([len(words) for words in asked], np.int64)
    flat = np.concatenate(asked) if asked else np.zeros(0, np.int64)
    if len(flat) < PASSAGE:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    words = _mixed(flat.astype(np.uint64))
    count = len(flat) - PASSAGE + 1
    hashes = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(PASSAGE):
            hashes = hashes * _FACTOR + words[offset : offset + count]
    of = np.repeat(np.arange(len(asked)), lengths)[:count]
    whole = np.arange(count) + PASSAGE <= np.cumsum(lengths)[of]
    return hashes[whole], of[whole]


def _features(words: list[list[int]]) -> tuple[Hashes, Indices]:
    """A hash of every word and every pair of words in a row, each once per question, sorted, and where each question's begin."""
    found: list[Hashes] = []
    for each in words:
        single = _mixed(np.array(each, np.uint64))
        with np.errstate(over="ignore"):
            pairs = _mixed(single[:-1] * _FACTOR + single[1:])
        found.append(np.unique(np.concatenate([single, pairs])) if each else np.zeros(1, np.uint64))
    return _joined(found), np.cumsum([0, *map(len, found)])


def _signatures(block: _Block) -> npt.NDArray[np.uint32]:
    """MinHash: of every question's features the least under 128 random orders (Broder 1997)."""
    starts = block.starts[:-1]
    signature = np.empty((len(block.ids), BANDS * ROWS), np.uint32)
    with np.errstate(over="ignore"):
        for order, (factor, addend) in enumerate(zip(_MULTIPLIERS, _ADDENDS, strict=True)):
            values = ((block.features * factor + addend) >> np.uint64(32)).astype(np.uint32)
            signature[:, order] = np.minimum.reduceat(values, starts)
    return signature


def _bands(signatures: npt.NDArray[np.uint32]) -> Hashes:
    """One hash for every band of a signature: two questions that share one are candidates."""
    rows = signatures.reshape(len(signatures), BANDS, ROWS).astype(np.uint64)
    keys = np.zeros((len(signatures), BANDS), np.uint64)
    with np.errstate(over="ignore"):
        for row in range(ROWS):
            keys = _mixed(keys * _FACTOR + rows[:, :, row])
    return keys


def _most_alike(pairs: Indices, ours: npt.NDArray[np.uint32], theirs: npt.NDArray[np.uint32]) -> Indices:
    """Of the pairs those whose signatures are alike enough to be counted exactly, of each first one the `COUNTED` most alike."""
    slices = [pairs[at : at + COMPARED] for at in range(0, len(pairs), COMPARED)]
    alike = np.concatenate([(ours[some[:, 0]] == theirs[some[:, 1]]).mean(axis=1) for some in slices] or [np.zeros(0)])
    order = np.lexsort((-alike, pairs[:, 0]))
    order = order[alike[order] >= NEAR_BY_SIGNATURE]
    first = pairs[order, 0]
    rank = np.arange(len(order)) - np.searchsorted(first, first, "left")
    kept: Indices = pairs[order[rank < COUNTED]]
    return kept


def _jaccard(one: Hashes, other: Hashes) -> float:
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def _joined(arrays: list[Hashes]) -> Hashes:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.uint64)
