"""The dense half: FAISS, always with the inner product, restricted to a collection by a range of rows and by filters."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval_service.exact import ExactSearch
from retrieval_service.manifest import IndexRefused
from retrieval_service.ranking import NOTHING, Ranking
from retrieval_service.types import LARGEST_K
from retrieval_service.vectors import DENSE_FILE, Floats, VectorShards, exact_vectors

_faiss: Any = faiss  # its type stubs leave out what its Python layer adds: keyword arguments, HNSW

FILE = DENSE_FILE
METRIC = "inner_product"
RECALL_AT = (10, 32)
# Equal texts have equal vectors, but FAISS sums in another order for another batch: what differs below this is equal.
_DECIMALS = 5
_SAMPLE_SEED = 0
# Vectors that a factory is trained on: FAISS asks for 39 per list and warns below; more than 64 change nothing that can be measured.
_TRAINED_PER_LIST, _TRAINED_AT_LEAST = 64, 100_000
# That every vector of a graph is compared with before it gets its neighbours. FAISS's 40 left 3.6 % of the nearest 32 of the embedded
# encoder's vectors out of reach at any effort, 200 half of that, for three times the time of building.
_GRAPH_CANDIDATES = 200
_WHERE = re.compile(r"^Error in .* at \S+:\d+: ")
_REFINE_FACTOR = 4.0  # candidates that are scored again exactly, per place


class DenseIndex:
    """One FAISS index of any factory string; how hard it searches is part of the build, so that its recall is a fact.

    Where the vectors are at hand as they were encoded, what an approximate index finds is scored again, exactly.
    """

    def __init__(self, index: faiss.Index, nprobe: int, ef_search: int, vectors: Floats | None = None) -> None:
        self._index, self._nprobe, self._ef_search, self._vectors = index, nprobe, ef_search, vectors
        self._exact = _exact_search(index)

    @staticmethod
    def empty(dimensions: int, factory: str) -> faiss.Index:
        """An index without vectors; a ValueError where FAISS does not know the string, or not for so many dimensions."""
        try:
            return faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(f"FAISS cannot build {factory!r} for {dimensions} dimensions: {_reason(error)}") from error

    @classmethod
    def build(
        cls, shards: VectorShards, factory: str, nprobe: int, ef_search: int, tell: Callable[[int], None] = lambda done: None
    ) -> DenseIndex:
        """Trains on a sample where the factory asks for it. A string that FAISS does not know, or too few vectors, is a ValueError."""
        index = cls.empty(shards.dimensions, factory)
        try:
            if graph := _graph(index):
                graph.efConstruction = _GRAPH_CANDIDATES
            if not index.is_trained:
                index.train(shards.sample(max(_TRAINED_AT_LEAST, _TRAINED_PER_LIST * _lists(index)), _SAMPLE_SEED))
            for number, part in enumerate(shards, start=1):
                index.add(np.ascontiguousarray(part))
                tell(number)
        except RuntimeError as error:
            raise ValueError(f"FAISS cannot build {factory!r} over {shards.rows} vectors: {_reason(error)}") from error
        return cls(index, nprobe, ef_search)

    @classmethod
    def load(cls, folder: Path, rows: int, dimensions: int, nprobe: int, ef_search: int) -> DenseIndex:
        """The saved index; a ValueError where it is not what its manifest says."""
        try:
            # Memory-mapped: replicas of a machine share the pages, and what no search looks at is never read.
            index = faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP_IFC)
        except MemoryError as error:  # a length in the file, whatever its writer wrote
            raise ValueError("FAISS cannot read it: it claims more than memory holds") from error
        except RuntimeError as error:
            raise ValueError(f"FAISS cannot read it: {_reason(error)}") from error
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"its metric is number {index.metric_type} of FAISS, not the inner product")
        if (index.ntotal, index.d) != (rows, dimensions):
            raise ValueError(f"it holds {index.ntotal} vectors of {index.d} dimensions, not {rows} of {dimensions}")
        return cls(index, nprobe, ef_search, exact_vectors(folder))

    def searching(self, nprobe: int, ef_search: int, vectors: Floats | None = None) -> DenseIndex:
        """The same index, searched with another effort, and what it finds scored by these vectors."""
        return DenseIndex(self._index, nprobe, ef_search, vectors)

    def save(self, folder: Path) -> None:
        """An OSError where the disk does not take it."""
        try:
            faiss.write_index(self._index, str(folder / FILE))
        except RuntimeError as error:
            raise OSError(errno.EIO, f"FAISS cannot write {FILE}: {_reason(error)}") from error

    def search(
        self,
        vectors: npt.NDArray[np.float32],
        start: int,
        stop: int,
        places: int,
        admitted: npt.NDArray[np.bool_] | None = None,
    ) -> Ranking:
        """The nearest of rows [start, stop) that are admitted, best first, equal ones by row."""
        if self._exact is not None and admitted is None:
            raw, rows = self._exact.nearest(vectors, start, stop, places)
        else:
            raw, rows = self._by_faiss(vectors, start, stop, places, admitted)
        scores = np.where(rows == NOTHING, -np.inf, raw.astype(np.float64).round(_DECIMALS))
        order = np.lexsort((rows, -scores), axis=1)[:, :places]
        return Ranking(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def _by_faiss(
        self, vectors: Floats, start: int, stop: int, places: int, admitted: npt.NDArray[np.bool_] | None
    ) -> tuple[Floats, npt.NDArray[np.int64]]:
        selector, bits = self._selector(start, stop, admitted)
        parameters = self._parameters(self._index, selector)
        raw, rows = self._index.search(vectors, min(places, stop - start), params=parameters)
        del bits  # FAISS reads them through a pointer: they must live until here
        if rows.size and (
            rows.max() >= self._index.ntotal or rows.min() < NOTHING
        ):  # ids stand in the file as its writer chose
            raise IndexRefused(f"{FILE} names rows that the index does not have; build the index again")
        if self._vectors is not None:
            for query, found in enumerate(rows):  # one by one: a hundred vectors of each lie far apart on the disk
                raw[query] = self._vectors[found] @ vectors[query]
        return raw, rows

    def recall(self, queries: npt.NDArray[np.float32], shards: VectorShards) -> dict[str, float]:
        """For each k the share of the exact k nearest that this index finds, asked for as many as a search asks for."""
        wanted = shards.nearest(queries, min(max(RECALL_AT), shards.rows))
        found = self.search(queries, 0, shards.rows, LARGEST_K).rows
        return {str(k): overlap(wanted[:, :k], found[:, :k]) for k in RECALL_AT}

    def _selector(self, start: int, stop: int, admitted: npt.NDArray[np.bool_] | None) -> tuple[Any, Any]:
        everything = (start, stop) == (0, self._index.ntotal)
        if admitted is None:
            return (None if everything else faiss.IDSelectorRange(start, stop)), None
        inside = np.zeros(len(admitted), dtype=bool)
        inside[start:stop] = admitted[start:stop]
        bits = np.packbits(inside, bitorder="little")
        return _faiss.IDSelectorBitmap(bits), bits

    def _parameters(self, index: Any, selector: faiss.IDSelector | None) -> Any:
        """What FAISS wants to be told depends on the kind of index, and wrapped indexes pass it on."""
        index = _faiss.downcast_index(index)
        if isinstance(index, faiss.IndexRefine):
            return _faiss.IndexRefineSearchParameters(
                base_index_params=self._parameters(index.base_index, selector), k_factor=_REFINE_FACTOR
            )
        if isinstance(index, faiss.IndexPreTransform):
            return _faiss.SearchParametersPreTransform(index_params=self._parameters(index.index, selector))
        if isinstance(index, faiss.IndexIVF):
            return _faiss.SearchParametersIVF(sel=selector, nprobe=self._nprobe)
        if isinstance(index, faiss.IndexHNSW):
            return _faiss.SearchParametersHNSW(sel=selector, efSearch=self._ef_search)
        return _faiss.SearchParameters(sel=selector)


def _exact_search(index: faiss.Index) -> ExactSearch | None:
    """Over the vectors of an index that keeps them as they are, where they lie."""
    flat = _faiss.downcast_index(index)
    if not isinstance(flat, faiss.IndexFlat) or not flat.ntotal:
        return None
    vectors = _faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return ExactSearch(vectors, _faiss.omp_get_max_threads())


def _reason(error: RuntimeError) -> str:
    """The last line of FAISS's message says what failed; what stands before it says where in its source."""
    return _WHERE.sub("", str(error).strip().splitlines()[-1])


def overlap(wanted: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> float:
    """The mean share of each line of `wanted` that stands in the same line of `found`.

    Example:
        >>> overlap(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 9]]))
        0.75
    """
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(wanted.tolist(), found.tolist(), strict=True)]))


def _graph(index: Any) -> Any:
    found = _faiss.downcast_index(index)
    return found.hnsw if isinstance(found, faiss.IndexHNSW) else None


def _lists(index: Any) -> int:
    inverted = _faiss.try_extract_index_ivf(index)
    return int(inverted.nlist) if inverted is not None else 0
