"""The dense half: FAISS over unit vectors, always with the inner product, restricted to a collection by a range of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval_service.ranking import NOTHING, Ranking

_faiss: Any = faiss  # its type stubs leave out what its Python layer adds: keyword arguments, HNSW

FILE = "dense.faiss"
METRIC = "inner_product"
RECALL_AT = 10
# Equal texts have equal vectors, but FAISS sums in another order for another batch: what differs below this is equal.
_DECIMALS = 5
_RECALL_SAMPLE = 256  # queries for the measured recall: ±0.02 at worst
_SAMPLE_SEED = 0
_REFINE_FACTOR = 4.0  # candidates that are scored again exactly, per place


class DenseIndex:
    """One FAISS index of any factory string; how hard it searches is part of the build, so that its recall is a fact."""

    def __init__(self, index: faiss.Index, nprobe: int, ef_search: int) -> None:
        self._index, self._nprobe, self._ef_search = index, nprobe, ef_search

    @classmethod
    def build(cls, vectors: npt.NDArray[np.float32], factory: str, nprobe: int, ef_search: int) -> DenseIndex:
        """Trains where the factory asks for it. A string that FAISS does not know, or too few vectors, is a ValueError."""
        try:
            index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(vectors)
            index.add(vectors)
        except RuntimeError as error:
            raise ValueError(f"FAISS cannot build {factory!r} over {len(vectors)} vectors: {_reason(error)}") from error
        return cls(index, nprobe, ef_search)

    @classmethod
    def load(cls, folder: Path, rows: int, dimensions: int, nprobe: int, ef_search: int) -> DenseIndex:
        """The saved index; a ValueError where it is not what its manifest says."""
        try:
            index = faiss.read_index(str(folder / FILE))
        except RuntimeError as error:
            raise ValueError(f"FAISS cannot read it: {_reason(error)}") from error
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"its metric is number {index.metric_type} of FAISS, not the inner product")
        if (index.ntotal, index.d) != (rows, dimensions):
            raise ValueError(f"it holds {index.ntotal} vectors of {index.d} dimensions, not {rows} of {dimensions}")
        return cls(index, nprobe, ef_search)

    def save(self, folder: Path) -> None:
        faiss.write_index(self._index, str(folder / FILE))

    def search(self, vectors: npt.NDArray[np.float32], start: int, stop: int, places: int) -> Ranking:
        """The nearest of rows [start, stop), best first, equal ones by row."""
        selector = None if (start, stop) == (0, self._index.ntotal) else faiss.IDSelectorRange(start, stop)
        parameters = self._parameters(self._index, selector)
        raw, rows = self._index.search(vectors, min(places, stop - start), params=parameters)
        scores = np.where(rows == NOTHING, -np.inf, raw.astype(np.float64).round(_DECIMALS))
        order = np.lexsort((rows, -scores), axis=1)
        return Ranking(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def recall(self, vectors: npt.NDArray[np.float32]) -> float:
        """The share of the exact ten nearest that this index finds, over a fixed sample of its own documents."""
        count = min(_RECALL_SAMPLE, len(vectors))
        sample = vectors[np.random.default_rng(_SAMPLE_SEED).choice(len(vectors), count, replace=False)]
        exact = faiss.IndexFlatIP(vectors.shape[1])
        exact.add(vectors)
        places = min(RECALL_AT, len(vectors))
        wanted = exact.search(sample, places)[1]
        found = self.search(sample, 0, len(vectors), places).rows
        return float(np.mean([len(set(a) & set(b)) / places for a, b in zip(wanted.tolist(), found.tolist(), strict=True)]))

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


def _reason(error: RuntimeError) -> str:
    """The last line of FAISS's message says what failed; the others say where in its source."""
    return str(error).strip().splitlines()[-1]
