"""Statistics against values known from elsewhere, and against what must hold of any sample."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr3.evaluation.statistics import (
    Bin,
    bootstrap,
    brier,
    calibration,
    expected_calibration_error,
    mcnemar,
    paired_bootstrap,
)

shares = st.lists(st.floats(0, 1), min_size=1, max_size=40)
outcomes = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    # Binomial tails by hand: 2 · (1 + 12 + 66) / 4096; 2 · 1 / 2^5; Agresti's approval ratings of 150 and 86 changes.
    [(10, 2, 158 / 4096), (0, 5, 0.0625), (0, 0, 1.0), (1, 1, 1.0), (3, 4, 1.0), (86, 150, 3.716e-05)],
)
def test_mcnemar_known_values(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-3)


def test_mcnemar_stays_exact_where_floats_end() -> None:
    for k, n in ((480, 1_000), (499, 999), (1_180, 2_500)):
        tail = Fraction(2 * sum(comb(n, i) for i in range(k + 1)), 2**n)
        assert mcnemar(k, n - k) == pytest.approx(float(tail), rel=1e-12)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_a_symmetric_probability(a: int, b: int) -> None:
    assert 0 < mcnemar(a, b) <= 1
    assert mcnemar(a, b) == mcnemar(b, a)


def test_an_interval_of_a_share_is_the_binomial_one() -> None:
    """The percentile interval of 140 of 200 lies where the normal approximation puts it: 0.7 ± 1.96 · 0.0324."""
    found = bootstrap([1.0] * 140 + [0.0] * 60, resamples=20_000)
    assert found.mean == 0.7
    assert found.low == pytest.approx(0.7 - 1.96 * 0.0324, abs=0.006)
    assert found.high == pytest.approx(0.7 + 1.96 * 0.0324, abs=0.006)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for seed in range(300):
        found = bootstrap((rng.random(100) < 0.6).astype(float), seed=seed, resamples=400)
        covered += found.low <= 0.6 <= found.high
    assert 0.90 <= covered / 300 <= 0.99


@given(shares, st.integers(0, 5))
def test_an_interval_holds_its_mean_and_repeats(values: list[float], seed: int) -> None:
    found = bootstrap(values, seed, resamples=200)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found == bootstrap(values, seed, resamples=200)


def test_large_samples_are_drawn_in_parts_and_give_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (np.arange(500) % 3 == 0).astype(float)
    whole = bootstrap(values, resamples=4_000)
    monkeypatch.setattr("medr3.evaluation.statistics.CHUNK", 7_000)
    parts = bootstrap(values, resamples=4_000)
    assert parts.mean == whole.mean
    assert parts.low == pytest.approx(whole.low, abs=0.01) and parts.high == pytest.approx(whole.high, abs=0.01)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_a_paired_difference_turns_around_with_its_sides(pairs: list[tuple[bool, bool]]) -> None:
    a, b = ([float(side) for side in sides] for sides in zip(*pairs, strict=True))
    there, back = paired_bootstrap(a, b, resamples=200), paired_bootstrap(b, a, resamples=200)
    assert there.difference.mean == pytest.approx(-back.difference.mean)
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.p == back.p
    assert 0 < there.p <= 1


def test_pairing_sees_what_two_intervals_do_not() -> None:
    first = [1.0] * 100 + [0.0] * 100
    second = [1.0] * 110 + [0.0] * 90
    found = paired_bootstrap(first, second)
    assert found.difference.low > 0 and found.p < 0.01
    assert bootstrap(first).high > bootstrap(second).low
    with pytest.raises(ValueError, match="as many"):
        paired_bootstrap(first, second[:-1])


def test_calibration_known_values() -> None:
    bins = calibration([0.9, 0.9, 0.9, 0.9, 0.3, 0.3], [True, True, False, False, False, True])
    assert bins == [Bin(0.3, 0.5, 2), Bin(pytest.approx(0.9), 0.5, 4)]
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.2 + 4 * 0.4) / 6)
    assert brier([1.0, 0.0, 0.5], [True, True, False]) == pytest.approx(1.25 / 3)
    assert calibration([1.0, 0.0], [True, False]) == [Bin(0.0, 0.0, 1), Bin(1.0, 1.0, 1)]


@given(outcomes)
def test_bins_lose_no_answer_and_errors_stay_shares(found: list[tuple[float, bool]]) -> None:
    sure, right = [c for c, _ in found], [r for _, r in found]
    bins = calibration(sure, right)
    assert sum(each.n for each in bins) == len(found)
    assert sum(each.n * each.accuracy for each in bins) == pytest.approx(sum(right))
    assert 0 <= expected_calibration_error(bins) <= 1
    # The mean error over bins can never be less than that of all answers together.
    assert expected_calibration_error(bins) >= abs(np.mean(sure) - np.mean(right)) - 1e-9
    assert 0 <= brier(sure, right) <= 1


@pytest.mark.parametrize("values", [[], [float("nan")], [float("inf")]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError):
        bootstrap(values)
