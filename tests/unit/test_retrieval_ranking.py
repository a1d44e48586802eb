"""The orders against their plain definitions."""

from __future__ import annotations

import hypothesis.extra.numpy as npst
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval_service.ranking import NOTHING, RRF_K, Half, Ranking, best_positive, fuse, with_authority

few_different_scores = npst.arrays(
    np.float64, npst.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0.0, 0.25, 0.5, 3.0])
)
halves_found = st.lists(
    st.tuples(st.integers(0, 15), st.sampled_from([-1.0, 0.5, 2.0, 8.0])), unique_by=lambda pair: pair[0], max_size=8
)


@given(few_different_scores, st.integers(1, 20))
def test_best_is_a_sort_by_score_then_column(scores: np.ndarray, places: int) -> None:
    ranking = best_positive(scores, places)
    for line, rows, found in zip(scores, ranking.rows, ranking.scores, strict=True):
        expected = sorted((column for column, score in enumerate(line) if score > 0), key=lambda c: (-line[c], c))[:places]
        assert [row for row in rows if row != NOTHING] == expected
        assert rows.tolist()[: len(expected)] == expected  # empty places are last
        assert found[: len(expected)].tolist() == [line[column] for column in expected]


@given(halves_found, halves_found, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([1.0, 4.0]), st.integers(1, 16))
def test_fusion_is_the_sum_of_reciprocal_ranks_by_how_near_the_scores_are(
    a: list[tuple[int, float]], b: list[tuple[int, float]], weight: float, sharpness: float, places: int
) -> None:
    width = 8
    halves, expected = [], dict[int, float]()
    for found, half_weight, half_sharpness in ((a, weight, 1.0), (b, 1.0, sharpness)):
        found = sorted(found, key=lambda pair: -pair[1])
        rows = [row for row, _ in found] + [NOTHING] * (width - len(found))
        scores = [score for _, score in found] + [-np.inf] * (width - len(found))
        halves.append(Half(Ranking(np.array([rows]), np.array([scores])), half_weight, half_sharpness))
        for rank, (row, score) in enumerate(found, start=1):
            near = max(score / found[0][1], 0.01) ** half_sharpness if found[0][1] > 0 else 1.0
            expected[row] = expected.get(row, 0.0) + half_weight * near / (RRF_K + rank)
    ordered = sorted((row for row, score in expected.items() if score > 0), key=lambda row: (-np.float32(expected[row]), row))[
        :places
    ]
    fused = fuse(halves, places)
    assert [row for row in fused.rows[0].tolist() if row != NOTHING] == ordered
    np.testing.assert_allclose(fused.scores[0, : len(ordered)], [expected[row] for row in ordered])


def test_authority_takes_its_share_and_leaves_empty_places_empty() -> None:
    ranking = Ranking(
        np.array([[4, 2, 0, NOTHING], [1, NOTHING, NOTHING, NOTHING]]), np.array([[3.0, 2, 1, 0], [5.0, 0, 0, 0]])
    )
    authority = np.array([1.0, 0.0, 0.5, 0.0, 0.0], dtype=np.float32)
    blended = with_authority(ranking, authority, 0.6)
    assert blended.rows.tolist() == [[0, 2, 4, NOTHING], [1, NOTHING, NOTHING, NOTHING]]
    np.testing.assert_allclose(blended.scores, [[0.6, 0.5, 0.4, 0], [0.4, 0, 0, 0]], atol=1e-7)
    assert with_authority(ranking, authority, 0.0).rows.tolist() == ranking.rows.tolist()
