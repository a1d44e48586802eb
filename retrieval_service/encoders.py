"""Text to vectors for the dense half. The embedded default needs no weights and no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from retrieval_service import analyzer

Floats = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

Side = Literal["query", "document"]

_TEXTS_AT_ONCE = 4096  # about 100 MB of hashes for abstracts of 250 words
_NGRAMS = (3, 4)  # shorter ones are in every text, longer ones break on the first misspelling
# A word is worth about as much as all n-grams inside of it; the pair tells "a of b" from "b of a".
_WORD_WEIGHT, _PAIR_WEIGHT, _NGRAM_WEIGHT = 3.0, 3.0, 1.0
_PRIME = np.uint64(0x100000001B3)
_MIX_A, _MIX_B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Encoder(Protocol):
    """Unit vectors for texts, so that the inner product is the cosine. Name, revision and dimensions go into the manifest."""

    name: str
    revision: str
    dimensions: int

    def encode(self, texts: Sequence[str], side: Side) -> Floats:
        """One row per text. Some models encode queries and documents differently, so the side is told."""
        ...


class HashedNgrams:
    """Words, word pairs and character n-grams, hashed into signed buckets (feature hashing) and normalised to length 1.

    A text without any word becomes the zero vector, which is equally far from everything. The hashes are plain integer
    arithmetic, so every process and machine gives the same vectors.

    Example:
        >>> encoder = HashedNgrams(64)
        >>> a, b, c = encoder.encode(["Renal failure", "renal  FAILURE", "asthma"], "document")
        >>> bool((a == b).all()), bool(a @ b > a @ c)
        (True, True)
    """

    name = "hashed-ngrams"

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.revision = f"1-analyzer-{analyzer.VERSION}"

    def encode(self, texts: Sequence[str], side: Side) -> Floats:
        """Both sides alike. Texts are taken some at a time, so that memory stays bounded on a large corpus."""
        parts = [self._encode(texts[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(texts), _TEXTS_AT_ONCE)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimensions), dtype=np.float32)

    def _encode(self, texts: Sequence[str]) -> Floats:
        characters, text_of, word_of, word_text = _characters(texts)
        hashes, owners, weights = [], [], []

        def add(found: Hashes, owner: Indices, weight: float) -> None:
            hashes.append(found)
            owners.append(owner)
            weights.append(np.full(len(found), weight))

        word_hashes = _hash_words(characters, word_of, len(word_text))
        add(word_hashes, word_text, _WORD_WEIGHT)
        pairs = word_text[1:] == word_text[:-1]
        add(_mix(word_hashes[:-1] * _PRIME + word_hashes[1:])[pairs], word_text[1:][pairs], _PAIR_WEIGHT)
        for n in _NGRAMS:
            windows = len(characters) - n + 1
            if windows <= 0:
                continue
            rolled = np.full(windows, n, dtype=np.uint64)
            for offset in range(n):
                rolled = rolled * _PRIME + characters[offset : offset + windows]
            whole = text_of[:windows] == text_of[n - 1 :]
            add(_mix(rolled)[whole], text_of[:windows][whole], _NGRAM_WEIGHT)

        hashed, owner, weight = np.concatenate(hashes), np.concatenate(owners), np.concatenate(weights)
        sign = np.where(hashed >> np.uint64(63), 1.0, -1.0)
        cells = owner * self.dimensions + (hashed % np.uint64(self.dimensions)).astype(np.int64)
        summed = np.bincount(cells, weights=sign * weight, minlength=len(texts) * self.dimensions)
        vectors = summed.reshape(len(texts), self.dimensions)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Floats = (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
        return unit


def load_encoder(name: str, dimensions: int) -> Encoder:
    """The encoder of that name; unknown names fail here, before anything is built or served."""
    if name == HashedNgrams.name:
        return HashedNgrams(dimensions)
    raise ValueError(f"retrieval.encoder {name!r} is not known; set it to {HashedNgrams.name!r}")


def _mix(values: Hashes) -> Hashes:
    """splitmix64's finaliser: every input bit reaches the bucket and the sign. Unsigned arithmetic wraps, as it should."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_A
    values = (values ^ (values >> np.uint64(27))) * _MIX_B
    return values ^ (values >> np.uint64(31))


def _characters(texts: Sequence[str]) -> tuple[Hashes, Indices, Indices, Indices]:
    """All texts' words as one array of code points, each word between two spaces.

    Returns (code points, text of each code point, word of each code point or -1 for a space, text of each word).
    """
    words_of_texts = [analyzer.words(text) for text in texts]
    joined = [f" {' '.join(found)} " if found else "" for found in words_of_texts]
    code_points = np.frombuffer("".join(joined).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    text_of = np.repeat(np.arange(len(texts), dtype=np.int64), [len(text) for text in joined])
    word_text = np.repeat(np.arange(len(texts), dtype=np.int64), [len(found) for found in words_of_texts])
    space = code_points == ord(" ")
    starts = np.ones(len(code_points), dtype=bool)
    starts[1:] = space[:-1]
    word_of = np.where(space, -1, np.cumsum(starts & ~space) - 1)
    return code_points, text_of, word_of, word_text


def _hash_words(characters: Hashes, word_of: Indices, count: int) -> Hashes:
    """One hash per word: the sum of its characters, each mixed with its place in the word."""
    inside = word_of >= 0
    owner, letters = word_of[inside], characters[inside]
    if count == 0:
        return np.empty(0, dtype=np.uint64)
    starts = np.searchsorted(owner, np.arange(count))
    place = (np.arange(len(owner)) - starts[owner]).astype(np.uint64)
    return _mix(np.add.reduceat(_mix(letters * _PRIME + place), starts))
