"""The orders against their plain definitions."""

from __future__ import annotations

import hypothesis.extra.numpy as npst
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval_service.ranking import NOTHING, RRF_K, Ranking, best_positive, fuse

few_different_scores = npst.arrays(
    np.float64, npst.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0.0, 0.25, 0.5, 3.0])
)
rows_found = st.lists(st.integers(0, 15), unique=True, max_size=8)


@given(few_different_scores, st.integers(1, 20))
def test_best_is_a_sort_by_score_then_column(scores: np.ndarray, places: int) -> None:
    ranking = best_positive(scores, places)
    for line, rows, found in zip(scores, ranking.rows, ranking.scores, strict=True):
        expected = sorted((column for column, score in enumerate(line) if score > 0), key=lambda c: (-line[c], c))[:places]
        assert [row for row in rows if row != NOTHING] == expected
        assert rows.tolist()[: len(expected)] == expected  # empty places are last
        assert found[: len(expected)].tolist() == [line[column] for column in expected]


@given(rows_found, rows_found, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.5, 1.0]), st.integers(1, 16))
def test_fusion_is_the_sum_of_reciprocal_ranks(
    a: list[int], b: list[int], weight_a: float, weight_b: float, places: int
) -> None:
    width = 8
    halves = [
        (Ranking(np.array([rows + [NOTHING] * (width - len(rows))]), np.ones((1, width))), w)
        for rows, w in ((a, weight_a), (b, weight_b))
    ]
    expected: dict[int, float] = {}
    for rows, weight in ((a, weight_a), (b, weight_b)):
        for rank, row in enumerate(rows, start=1):
            expected[row] = expected.get(row, 0.0) + weight / (RRF_K + rank)
    ordered = sorted((row for row, score in expected.items() if score > 0), key=lambda row: (-np.float32(expected[row]), row))[
        :places
    ]
    fused = fuse(halves, places)
    assert [row for row in fused.rows[0].tolist() if row != NOTHING] == ordered
    np.testing.assert_allclose(fused.scores[0, : len(ordered)], [expected[row] for row in ordered])
