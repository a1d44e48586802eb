"""Encoded documents on disk: one file per batch, written by any process, complete once it has its name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from retrieval_service.ranking import Rows

DENSE_FILE = "dense.faiss"
FILE = "vectors.npy"  # in an index whose factory does not keep the vectors as they were

Floats = npt.NDArray[np.float32]


def reserved(path: Path, kind: Any, shape: tuple[int, ...]) -> Any:
    """An array that is written on disk. Its room is taken at once: a disk that is full later would kill the process that writes."""
    if not all(shape):
        np.save(path, np.empty(shape, dtype=kind))
        return np.empty(shape, dtype=kind)  # an empty file cannot be mapped
    array = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def exact_vectors(folder: Path) -> Floats | None:
    """The vectors as they were encoded, memory-mapped, of an index whose FAISS file does not keep them so."""
    return np.load(folder / FILE, mmap_mode="r", allow_pickle=False) if (folder / FILE).exists() else None


@cache
def stored(folder: Path) -> Floats:
    """The vectors of a built index, memory-mapped: of their own file, or out of an exact FAISS index."""
    kept = exact_vectors(folder)
    if kept is not None:
        return kept
    import faiss

    index: Any = faiss.read_index(str(folder / DENSE_FILE))
    flat: Floats = index.reconstruct_n(0, index.ntotal)
    return flat


class VectorShards(NamedTuple):
    """The vectors of a corpus in the order of its rows, a memory-mapped part at a time."""

    parts: Sequence[Floats]

    @classmethod
    def open(cls, paths: Sequence[Path]) -> VectorShards:
        return cls([np.load(path, mmap_mode="r", allow_pickle=False) for path in paths])

    @property
    def rows(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def dimensions(self) -> int:
        return int(self.parts[0].shape[1])

    def __iter__(self) -> Iterator[Floats]:  # type: ignore[override]
        return iter(self.parts)

    def sample(self, count: int, seed: int) -> Floats:
        """Vectors of `count` different rows, or all of them."""
        if count >= self.rows:
            return np.concatenate(self.parts)
        chosen = np.sort(np.random.default_rng(seed).choice(self.rows, count, replace=False))
        return np.concatenate(
            [part[chosen[(chosen >= first) & (chosen < first + len(part))] - first] for first, part in self._numbered()]
        )

    def nearest(self, queries: Floats, places: int) -> Rows:
        """The exact nearest rows by inner product, best first; equal ones by row."""
        scores = np.full((len(queries), 0), 0, dtype=np.float32)
        rows = np.zeros((len(queries), 0), dtype=np.int64)
        for first, part in self._numbered():
            scores = np.concatenate([scores, queries @ part.T], axis=1)
            rows = np.concatenate(
                [rows, np.broadcast_to(np.arange(first, first + len(part)), (len(queries), len(part)))], axis=1
            )
            best = np.argsort(-scores, axis=1, kind="stable")[:, :places]
            scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
        return rows

    def save(self, path: Path) -> None:
        """All of them as one file."""
        whole = reserved(path, np.float32, (self.rows, self.dimensions))
        for first, part in self._numbered():
            whole[first : first + len(part)] = part

    def _numbered(self) -> Iterator[tuple[int, Floats]]:
        first = 0
        for part in self.parts:
            yield first, part
            first += len(part)
