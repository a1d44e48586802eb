"""The plateau rule, by hand and on synthetic curves with the noise of real probes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.config import PlateauConfig
from curriculum.plateau import PlateauDetector, Probe, Verdict, standard_error, theil_sen

QUESTIONS, PROBE_EVERY, SEEDS = 200, 3, 100


def judge(scores: Sequence[float], **config: float) -> Verdict:
    detector = PlateauDetector(PlateauConfig.model_validate(config))
    for i, score in enumerate(scores):
        verdict = detector.observe(Probe(PROBE_EVERY * i, score, QUESTIONS))
    return verdict


@pytest.mark.parametrize(
    ("scores", "flat"),
    [
        ([0.5], False),
        ([0.5, 0.5, 0.5], False),  # patience 3: nothing before the last three
        ([0.5, 0.5, 0.5, 0.5], True),
        ([0.5, 0.4, 0.4, 0.509], True),
        ([0.8, 0.4, 0.4, 0.81], False),  # exactly min_improvement is an improvement, in floats too
        ([0.5, 0.6, 0.55, 0.55], False),
        ([0.5, 0.6, 0.55, 0.55, 0.55], True),
        ([0.9, 0.1, 0.2, 0.3], True),  # better than lately is not better than ever
        ([0.0, 0.0, 0.0, 0.0], True),
    ],
)
def test_the_rule(scores: list[float], flat: bool) -> None:
    verdict = judge(scores)
    assert verdict.flat is flat
    assert verdict.words.startswith("flat" if flat else "rising")


def test_the_words_carry_the_numbers() -> None:
    verdict = judge([0.5, 0.9, 0.895, 0.905, 0.9])
    assert verdict.words == (
        "flat: the best of the last 3 probes, 0.905, is not 0.010 above the best before, 0.900 (slope +0.0008 a step, one probe ± 0.021)"
    )
    assert verdict.evidence["gain"] == pytest.approx(0.005)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_named_and_leaves_no_trace(score: float) -> None:
    detector = PlateauDetector(PlateauConfig())
    with pytest.raises(ValueError, match=f"step 7: the score is {score}"):
        detector.observe(Probe(7, score, QUESTIONS))
    assert detector.probes == []


def test_probes_come_in_order_and_ask_something() -> None:
    detector = PlateauDetector(PlateauConfig(), [Probe(3, 0.5, 10)])
    with pytest.raises(ValueError, match="last one was at step 3"):
        detector.observe(Probe(3, 0.6, 10))
    with pytest.raises(ValueError, match="0 questions"):
        detector.observe(Probe(4, 0.6, 0))


def left_at(curve: Callable[[int], float], seed: int, until: int = 90) -> int:
    """The step at which a phase with this true accuracy is left, or one step beyond the last."""
    noise = random.Random(seed)
    detector = PlateauDetector(PlateauConfig())
    for step in range(0, until + 1, PROBE_EVERY):
        right = sum(noise.random() < curve(step) for _ in range(QUESTIONS))
        if detector.observe(Probe(step, right / QUESTIONS, QUESTIONS)).flat:
            return step
    return until + 1


def share(curve: Callable[[int], float], holds: Callable[[int], bool]) -> float:
    return sum(holds(left_at(curve, seed)) for seed in range(SEEDS)) / SEEDS


def rising(step: int) -> float:
    return min(0.95, 0.3 + 0.02 * step)


def saturating(step: int) -> float:
    return 0.95 - 0.40 * math.exp(-step / 6)


def test_a_rise_is_not_left_while_it_lasts() -> None:
    assert share(rising, lambda step: rising(step) < 0.95) == 0


def test_saturation_is_left_near_its_end_and_in_bounded_time() -> None:
    assert share(saturating, lambda step: saturating(step) >= 0.93) >= 0.95
    assert share(saturating, lambda step: step <= 51) >= 0.95


def test_a_curve_that_never_rises_is_left_soon() -> None:
    assert share(lambda _: 0.5, lambda step: step <= 30) >= 0.95


def test_a_drift_below_the_noise_is_left_early_as_documented() -> None:
    assert 12 <= sorted(left_at(lambda step: 0.5 + 0.004 * step, seed) for seed in range(SEEDS))[SEEDS // 2] <= 27


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(-5, 5), st.lists(st.integers(0, 1000), min_size=3, max_size=12, unique=True), st.data())
def test_theil_sen_finds_a_line_despite_one_wild_probe(
    offset: float, slope: float, steps: list[int], data: st.DataObject
) -> None:
    probes = [Probe(step, offset + slope * step, 1) for step in sorted(steps)]
    assert theil_sen(probes) == pytest.approx(slope, abs=1e-6)
    if len(probes) >= 5:  # with fewer, one probe has a part in half of all pairs
        wild = data.draw(st.integers(0, len(probes) - 1))
        probes[wild] = Probe(probes[wild].step, 1e6, 1)
        assert theil_sen(probes) == pytest.approx(slope, abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 5), st.floats(0, 0.1))
def test_flat_means_what_it_says(scores: list[float], patience: int, min_improvement: float) -> None:
    verdict = judge(scores, patience=patience, min_improvement=min_improvement)
    recent, before = scores[-patience:], scores[:-patience]
    if verdict.flat:
        assert before
        assert max(recent) < max(before) + min_improvement
    elif before:
        assert max(recent) >= max(before) + min_improvement - 1e-8


def test_the_standard_error_of_a_share() -> None:
    assert standard_error(Probe(0, 0.5, 200)) == pytest.approx(0.0354, abs=1e-4)
    assert standard_error(Probe(0, 1.3, 200)) == 0
    assert theil_sen([]) == theil_sen([Probe(0, 1, 1)]) == 0
