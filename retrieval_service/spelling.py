"""Finds the words of a vocabulary that are one slip of the pen away from a word that nobody wrote.

Two words within one insertion, deletion, substitution or swap of neighbours share a string that either of them gives by leaving out
at most one letter (symmetric deletion). The hashes of all such strings lie sorted in a memory-mapped file, so that a lookup is a few
binary searches. Words with digits are left alone: IL-6 is no misspelled IL-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

KEYS_FILE, WORDS_FILE = "spelling-keys.npy", "spelling-words.npy"
SHORTEST = 5  # letters: of shorter words nearly every slip is a word of its own
LONGEST = 32
_PRIME = np.uint64(0x100000001B3)

Keys = npt.NDArray[np.uint64]


class Spelling(NamedTuple):
    """The sorted hashes, and the place in the vocabulary of the word that each was made from."""

    keys: Keys
    words: npt.NDArray[np.int32]

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(*(np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (KEYS_FILE, WORDS_FILE)))

    def candidates(self, word: str) -> list[int]:
        """Places of words that share such a string; `within_one_slip` says which of them are meant."""
        if not correctable(word):
            return []
        wanted = _variants(np.array([[ord(letter) for letter in word]], dtype=np.uint64)).ravel()
        starts, stops = np.searchsorted(self.keys, wanted, "left"), np.searchsorted(self.keys, wanted, "right")
        return sorted({int(place) for a, b in zip(starts, stops, strict=True) for place in self.words[a:b]})


def correctable(word: str) -> bool:
    return SHORTEST <= len(word) <= LONGEST and word.isalpha()


def within_one_slip(first: str, second: str) -> bool:
    """One insertion, deletion, substitution or swap of two neighbours, or none.

    Example:
        >>> [within_one_slip("metformin", other) for other in ("metfromin", "metformine", "metforman", "methotrexate")]
        [True, True, True, False]
    """
    if abs(len(first) - len(second)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    a, b = first[start:], second[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def write_spelling(vocabulary: Sequence[str], folder: Path) -> None:
    """Writes the files for a vocabulary."""
    by_length: dict[int, list[int]] = {}
    for place, word in enumerate(vocabulary):
        if correctable(word):
            by_length.setdefault(len(word), []).append(place)
    keys, words = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
    for length, places in by_length.items():
        letters = np.frombuffer("".join(vocabulary[p] for p in places).encode("utf-32-le"), np.uint32).reshape(-1, length)
        variants = _variants(letters.astype(np.uint64))
        keys.append(variants.ravel())
        words.append(np.repeat(np.array(places, dtype=np.int32), variants.shape[1]))
    key = np.concatenate(keys)
    order = np.argsort(key, kind="stable")
    np.save(folder / KEYS_FILE, key[order])
    np.save(folder / WORDS_FILE, np.concatenate(words)[order])


def _variants(letters: Keys) -> Keys:
    """For each line of letters the hashes of the whole word and of it without its first, second, … letter."""
    length = letters.shape[1]
    hashes = [_rolled(letters)]
    hashes += [_rolled(np.delete(letters, place, axis=1)) for place in range(length)]
    return np.stack(hashes, axis=1)


def _rolled(letters: Keys) -> Keys:
    rolled = np.full(len(letters), letters.shape[1], dtype=np.uint64)
    for column in letters.T:
        rolled = (rolled ^ column) * _PRIME
        rolled ^= rolled >> np.uint64(29)
    return rolled
