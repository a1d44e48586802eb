"""Text to vectors for the dense half. The embedded default needs no weights and no download; models stand in `towers.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from retrieval_service import analyzer
from retrieval_service.config import RetrievalConfig
from retrieval_service.manifest import EncoderPart

Floats = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

Side = Literal["query", "document"]

_TEXTS_AT_ONCE = 4096  # about 100 MB of hashes for abstracts of 250 words
_NGRAMS = (3, 4)  # shorter ones are in every text, longer ones break on the first misspelling
WEIGHTS_FILE = "encoder.npy"
# Features are weighed by how rare they are, in a table wide enough that the words and n-grams of a language seldom share a cell.
SLOTS = 1 << 20
# Between ½, which suits names that are spelled as they should be, and 1, which suits misspelled ones; measured on the large world.
_RARITY_POWER = 0.75
_SLOT_SHIFT = np.uint64(20)  # other bits of the hash than the bucket's, so that sharing a bucket is not sharing a weight
_PRIME = np.uint64(0x100000001B3)
_MIX_A, _MIX_B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Encoder(Protocol):
    """Texts to vectors of which the inner product says how near they are. `part` goes into the manifest, and must agree later."""

    part: EncoderPart
    dimensions: int

    def encode(self, texts: Sequence[str], side: Side, pairs: Sequence[tuple[str, str]] | None = None) -> Floats:
        """One row per text. Some models encode queries and documents differently, so the side is told.

        `pairs` are (title, text) of documents, for models that were trained to tell them apart.
        """
        ...


class HashedNgrams:
    """Words, word pairs and character n-grams, hashed into signed buckets (feature hashing) and normalised to length 1.

    A feature counts once per text, however often it stands there, by how rare it is: ln(1 + N / df)^¾. One that no document has
    counts nothing, which is what makes a misspelled name look like the right one. The frequencies are those of the corpus (`fit`);
    without them all features count the same. A text without any known feature becomes the zero vector, which is equally far from
    everything. The hashes are plain integer arithmetic, so every process and machine gives the same vectors.

    Example:
        >>> encoder = HashedNgrams(64)
        >>> a, b, c = encoder.encode(["Renal failure", "renal  FAILURE", "asthma"], "document")
        >>> bool((a == b).all()), bool(a @ b > a @ c)
        (True, True)
    """

    name = "hashed-ngrams"

    def __init__(self, dimensions: int, weights: Floats | None = None) -> None:
        self.dimensions = dimensions
        self.part = EncoderPart(name=self.name, version=f"2-analyzer-{analyzer.VERSION}")
        self._weights = weights

    def fit(self, frequencies: Indices, documents: int) -> Self:
        """This encoder with weights from the document frequency of every slot."""
        weights, seen = np.zeros(len(frequencies), dtype=np.float32), np.flatnonzero(frequencies)
        weights[seen] = np.log1p(documents / frequencies[seen]) ** _RARITY_POWER
        return type(self)(self.dimensions, weights)

    def save(self, folder: Path) -> None:
        """Whole or not at all: a build that goes on takes a file that is there for a complete one."""
        if self._weights is not None:
            part = folder / f"{WEIGHTS_FILE}.part"
            with part.open("wb") as file:
                np.save(file, self._weights)
            part.replace(folder / WEIGHTS_FILE)

    def load(self, folder: Path) -> Self:
        """This encoder with the weights of an index."""
        weights = np.load(folder / WEIGHTS_FILE, allow_pickle=False)
        if weights.shape != (SLOTS,) or weights.dtype != np.float32:
            raise ValueError(f"it holds {weights.dtype} {weights.shape}, not {SLOTS} float32 weights")
        return type(self)(self.dimensions, weights)

    @staticmethod
    def frequencies(texts: Sequence[str]) -> Indices:
        """In how many of the texts the features of each slot occur; two features of one text seldom share one."""
        found = np.zeros(SLOTS, dtype=np.int64)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            hashes, _ = _features(texts[start : start + _TEXTS_AT_ONCE])
            found += np.bincount(_slots(hashes), minlength=SLOTS)
        return found

    def encode(self, texts: Sequence[str], side: Side, pairs: Sequence[tuple[str, str]] | None = None) -> Floats:
        """Both sides alike. Texts are taken some at a time, so that memory stays bounded on a large corpus."""
        parts = [self._encode(texts[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(texts), _TEXTS_AT_ONCE)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimensions), dtype=np.float32)

    def _encode(self, texts: Sequence[str]) -> Floats:
        hashes, owners = _features(texts)
        sign = np.where(hashes >> np.uint64(63), 1.0, -1.0)
        weights = sign if self._weights is None else sign * self._weights[_slots(hashes)]
        cells = owners * self.dimensions + (hashes % np.uint64(self.dimensions)).astype(np.int64)
        summed = np.bincount(cells, weights=weights, minlength=len(texts) * self.dimensions)
        vectors = summed.reshape(len(texts), self.dimensions)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Floats = (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
        return unit


def load_encoder(config: RetrievalConfig) -> Encoder:
    """The encoder that the configuration names; what cannot be one fails here, before anything is built or served."""
    if config.encoder == HashedNgrams.name:
        return HashedNgrams(config.dimensions)
    from retrieval_service.towers import ModelEncoder

    return ModelEncoder.open(Path(config.encoder), config.encoder_pooling, config.query_prefix, config.document_prefix)


def _features(texts: Sequence[str]) -> tuple[Hashes, Indices]:
    """The hash of every feature of every text, and the number of its text."""
    characters, text_of, word_of, word_text = _characters(texts)
    words = _hash_words(characters, word_of, len(word_text))
    pairs = word_text[1:] == word_text[:-1]
    hashes = [words, _mix(words[:-1] * _PRIME + words[1:])[pairs]]  # the pair tells "a of b" from "b of a"
    owners = [word_text, word_text[1:][pairs]]
    for n in _NGRAMS:
        windows = len(characters) - n + 1
        if windows <= 0:
            continue
        rolled = np.full(windows, n, dtype=np.uint64)
        for offset in range(n):
            rolled = rolled * _PRIME + characters[offset : offset + windows]
        whole = text_of[:windows] == text_of[n - 1 :]
        hashes.append(_mix(rolled)[whole])
        owners.append(text_of[:windows][whole])
    return _once(np.concatenate(hashes), np.concatenate(owners))


def _once(hashes: Hashes, owners: Indices) -> tuple[Hashes, Indices]:
    """Each feature of a text once: a name that is repeated is not more of that name."""
    keys = hashes ^ _mix(owners.astype(np.uint64) + np.uint64(1))
    first = np.unique(keys, return_index=True)[1]
    return hashes[first], owners[first]


def _slots(hashes: Hashes) -> Indices:
    return ((hashes >> _SLOT_SHIFT) % np.uint64(SLOTS)).astype(np.int64)


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
