"""Exact search in parts, against all inner products; and that its threads do not wait for each other."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_service.dense import DenseIndex
from retrieval_service.exact import ExactSearch

NUMBERS = np.random.default_rng(0)
VECTORS = NUMBERS.standard_normal((20_000, 16)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
VECTORS[5_000:5_040] = VECTORS[17_000]  # equal ones, in different parts
QUERIES = np.concatenate([VECTORS[[17_000]], NUMBERS.standard_normal((8, 16)).astype(np.float32)])


@pytest.fixture(scope="module")
def index() -> DenseIndex:
    flat = DenseIndex.empty(16, "Flat")
    flat.add(VECTORS)
    return DenseIndex(flat, 1, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 19_999), st.integers(1, 20_000), st.integers(1, 9), st.integers(1, 120))
def test_the_nearest_of_any_rows_are_found_in_order(
    index: DenseIndex, start: int, count: int, queries: int, places: int
) -> None:
    stop = min(start + count, len(VECTORS))
    found = index.search(QUERIES[:queries], start, stop, places)
    scores = (QUERIES[:queries].astype(np.float64) @ VECTORS[start:stop].T.astype(np.float64)).round(5)
    wanted = np.sort(-scores, axis=1)[:, : min(places, stop - start)]
    assert found.rows.shape == wanted.shape
    np.testing.assert_allclose(-found.scores, wanted, atol=2e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, found.rows - start, axis=1), -wanted, atol=2e-5)
    assert all(len(set(rows)) == len(rows) for rows in found.rows.tolist())


def test_equal_vectors_come_in_the_order_of_their_rows(index: DenseIndex) -> None:
    assert index.search(QUERIES[:1], 0, 20_000, 41).rows[0].tolist() == [*range(5_000, 5_040), 17_000]


def test_every_part_is_searched_by_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS's own threads meet after every thousand vectors and wait busily: with two of them on a busy machine, all stands still."""
    seen: list[tuple[int, int]] = []
    knn: Any = faiss.knn

    def watched(*asked: Any) -> Any:
        seen.append((len(asked[1]), faiss.omp_get_max_threads()))
        return knn(*asked)

    monkeypatch.setattr(faiss, "knn", watched)
    ExactSearch(VECTORS, threads=2).nearest(QUERIES, 0, 20_000, 3)
    assert seen == [(5_000, 1)] * 4
