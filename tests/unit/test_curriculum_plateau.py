"""The plateau rule, by hand and on synthetic curves with the noise of real probes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from statistics import stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.curves import RISING, RULES, TUNING, Noise, measure, together
from curriculum.plateau import PlateauDetector, Probe, Verdict, noise_of, paired_noise, slope_error, theil_sen
from curriculum.rules_config import PlateauConfig

QUESTIONS, PROBE_EVERY = 200, 3


def probes(scores: Sequence[float], n: int = QUESTIONS) -> list[Probe]:
    return [Probe(PROBE_EVERY * i, score, n) for i, score in enumerate(scores)]


def judge(scores: Sequence[float], n: int = QUESTIONS, **config: float | str) -> Verdict:
    return PlateauDetector(PlateauConfig.model_validate(config), probes(scores, n)).verdict()


@pytest.mark.parametrize(
    ("scores", "state", "flat"),
    [
        ([0.5], "early", False),
        ([0.9] * 5, "early", False),
        ([0.9] * 6, "flat", False),  # once is not confirmed
        ([0.9] * 7, "flat", True),
        ([0.5, 0.56, 0.62, 0.68, 0.74, 0.8, 0.86], "rising", False),
        ([0.3, 0.5, 0.7, *[0.9] * 7], "flat", True),
        ([0.9, 0.84, 0.78, 0.72, 0.66, 0.6, 0.54, 0.48], "falling", False),
        ([0.90, 0.91, 0.2, 0.92, 0.91, 0.92, 0.91, 0.90], "flat", True),  # one wild probe turns nothing
        ([0.0] * 7, "flat", True),
    ],
)
def test_the_rule(scores: list[float], state: str, flat: bool) -> None:
    verdict = judge(scores)
    assert (verdict.state, verdict.flat) == (state, flat)
    assert verdict.words.startswith(state)


def test_what_lies_within_the_noise_is_unsure_and_keeps_what_was_confirmed() -> None:
    detector = PlateauDetector(PlateauConfig())
    seen = []
    for probe in probes([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.94, 0.96, 0.95, 0.95, 0.95, 0.95, 0.95]):
        verdict = detector.observe(probe)
        seen.append((verdict.state, verdict.evidence["confirmed"]))
    assert ("unsure", 2) in seen
    assert seen[-1] == ("flat", 5)


def test_a_rise_makes_confirmations_start_anew() -> None:
    detector = PlateauDetector(PlateauConfig(patience=9), probes([0.5] * 8, n=1000))
    assert detector.verdict().evidence["confirmed"] == 3
    for i, score in enumerate([0.6, 0.7, 0.8]):
        detector.observe(Probe(24 + 3 * i, score, 1000))
    assert (detector.verdict().state, detector.verdict().evidence["confirmed"]) == ("rising", 0)


def test_flat_below_the_least_level_is_stuck_and_held_unless_told_otherwise() -> None:
    held = judge([0.2] * 9, min_level=0.4)
    assert (held.state, held.flat) == ("stuck", False)
    assert held.words.endswith("confirmed by 4 of 2 probes; at 0.200 it is below min_level 0.4")
    left = judge([0.2] * 9, min_level=0.4, when_stuck="leave")
    assert (left.state, left.flat) == ("stuck", True)


def test_the_words_carry_the_numbers() -> None:
    verdict = judge([0.9, 0.9, 0.91, 0.9, 0.905, 0.9, 0.9], n=400)
    assert verdict.words == (
        "flat: the next 18 steps would gain +0.000, at most +0.038 (95% sure); 0.1 matters; confirmed by 2 of 2 probes"
    )
    assert verdict.evidence["gain_at_most"] == pytest.approx(0.0378, abs=1e-4)


def test_too_few_questions_are_named() -> None:
    assert "one probe is ± 0.071: more questions would decide sooner" in judge([0.5] * 7, n=50).words


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_named_and_leaves_no_trace(score: float) -> None:
    detector = PlateauDetector(PlateauConfig())
    with pytest.raises(ValueError, match=f"step 7: the score is {score}"):
        detector.observe(Probe(7, score, QUESTIONS))
    assert detector.probes == []


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (Probe(3, 0.6, 10), "last one was at step 3"),
        (Probe(4, 0.6, 0), "0 questions"),
        (Probe(4, 1.2, 10), "the score is 1.2; a share of right answers lies between 0 and 1"),
        (Probe(4, 0.6, 10, noise=0.0), "its noise is 0.0"),
        (Probe(4, 0.6, 10, noise=math.nan), "its noise is nan"),
    ],
)
def test_a_probe_that_says_nothing_is_refused(probe: Probe, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PlateauDetector(PlateauConfig(), [Probe(3, 0.5, 10)]).observe(probe)


def test_a_mean_with_its_own_noise_may_be_any_number() -> None:
    detector = PlateauDetector(PlateauConfig(window=4, patience=1))
    for step in range(4):
        verdict = detector.observe(Probe(3 * step, -2.5, 10, noise=0.01))
    assert verdict.flat


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), st.integers(3, 8), st.integers(1, 4))
def test_flat_means_what_it_says_and_a_snapshot_forgets_nothing(right: list[int], window: int, patience: int) -> None:
    config = PlateauConfig(window=window, patience=patience)
    detector = PlateauDetector(config)
    states = []
    for probe in probes([count / 200 for count in right]):
        verdict = detector.observe(probe)
        states.append((verdict.state, verdict.evidence["confirmed"]))
        if verdict.flat:
            assert len(states) >= window + patience - 1
            assert verdict.evidence["gain_at_most"] < config.min_improvement
            since = max((i for i, (state, _) in enumerate(states) if state in ("rising", "falling")), default=-1)
            assert sum(state == "flat" for state, _ in states[since + 1 :]) >= patience
    restored = PlateauDetector(config, [Probe(**probe) for probe in json.loads(json.dumps(detector.snapshot()))])
    assert restored.verdict() == detector.verdict()


@settings(deadline=None, max_examples=50)
@given(st.floats(-1, 1), st.floats(-5, 5), st.lists(st.integers(0, 1000), min_size=3, max_size=12, unique=True), st.data())
def test_theil_sen_finds_a_line_despite_one_wild_probe(
    offset: float, slope: float, steps: list[int], data: st.DataObject
) -> None:
    line = [Probe(step, offset + slope * step, 1) for step in sorted(steps)]
    assert theil_sen(line) == pytest.approx(slope, abs=1e-6)
    if len(line) >= 5:  # with fewer, one probe has a part in half of all pairs
        wild = data.draw(st.integers(0, len(line) - 1))
        line[wild] = Probe(line[wild].step, 1e6, 1)
        assert theil_sen(line) == pytest.approx(slope, abs=1e-6)


def test_the_slope_is_as_uncertain_as_it_says() -> None:
    noise = random.Random(5)
    slopes = [theil_sen([Probe(3 * i, noise.gauss(0.5, 0.03), 1) for i in range(6)]) for _ in range(3000)]
    assert stdev(slopes) == pytest.approx(slope_error(probes([0.5] * 6), 0.03), rel=0.05)


def test_the_noise_is_binomial_unless_it_was_measured() -> None:
    assert noise_of(probes([0.5] * 3)) == pytest.approx(0.0354, abs=1e-4)
    assert 0 < noise_of(probes([1.0] * 6)) < 0.005
    assert noise_of([Probe(0, 0.5, 200, noise=0.01), Probe(3, 0.5, 200, noise=0.01)]) == pytest.approx(0.01)
    assert theil_sen([]) == theil_sen([Probe(0, 1, 1)]) == 0


def test_paired_probes_are_less_noisy_than_their_questions() -> None:
    """Of 200 questions 160 are always answered alike: only the others flip, and the difference of two probes shows how much."""
    noise = random.Random(3)

    def ask() -> list[bool]:
        return [True] * 100 + [False] * 60 + [noise.random() < 0.5 for _ in range(40)]

    scores = [sum(ask()) / 200 for _ in range(2000)]
    estimates = [paired_noise(ask(), ask()) for _ in range(300)]
    assert sum(estimates) / 300 == pytest.approx(stdev(scores), rel=0.05)
    assert stdev(scores) < 0.5 * noise_of([Probe(0, 0.6, 200)])
    with pytest.raises(ValueError, match="3 and 2 answers are no pair"):
        paired_noise([True] * 3, [True] * 2)


@pytest.mark.parametrize("questions", [100, 200, 400])
def test_rising_curves_are_not_left_and_ended_ones_are(questions: int) -> None:
    """A small part of `medr3 bench curves`, on the curves that the defaults were chosen on."""
    found = together([measure(RULES["slope"], family, Noise(questions), TUNING, 40) for family in RISING])
    assert found.false <= 0.02
    assert found.delay(0.5) <= 1.5
    assert max(found.delays) < 90, "what ended is left, however long it takes"


def test_patience_over_the_best_leaves_more_often_while_a_curve_rises() -> None:
    best, slope = (
        together([measure(RULES[rule], family, Noise(200), TUNING, 40) for family in RISING]) for rule in ("patience", "slope")
    )
    assert best.false > 0.03 > slope.false
