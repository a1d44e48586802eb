"""The collapse rule: what healthy training does is no alarm, what falls apart is named, and nothing that is absent passes unseen."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.collapses import KINDS, STEPS, TUNING, collapsing, healthy, verdicts
from curriculum.collapse import CollapseDetector, Health
from curriculum.rules_config import SIGNALS, CollapseConfig

WELL = {"reward/mean": 0.8, "learner/entropy": 0.3, "rollout/response_tokens": 120.0, "finish/answer": 0.95}
ILL = {"reward/mean": 0.1, "learner/entropy": 0.02, "rollout/response_tokens": 40.0, "finish/answer": 0.2}


def noisy(metrics: dict[str, float], step: int) -> dict[str, float]:
    return {name: value * (1 + 0.02 * (-1) ** step) for name, value in metrics.items()}


def settled(config: CollapseConfig | None = None, steps: int = 15) -> CollapseDetector:
    detector = CollapseDetector(config or CollapseConfig())
    for step in range(steps):
        assert detector.observe(step, noisy(WELL, step)).health is Health.HEALTHY
    return detector


def test_a_collapse_is_called_within_few_steps_and_says_what_and_since_when() -> None:
    detector = settled()
    healths = []
    for step in range(15, 20):
        verdict = detector.observe(step, noisy(ILL, step))
        healths.append(verdict.health.value)
    assert healths == ["healthy", "warning", "warning", "collapsed", "collapsed"]
    assert verdict.since == 16
    assert verdict.words.startswith("collapsed: reward: reward/mean 0.098, 0.8 before")
    assert [name for name in SIGNALS if f"{name}: " in verdict.words] == list(SIGNALS)
    assert json.loads(json.dumps(verdict.evidence))["signals"]["length"]["reference"] == pytest.approx(120, rel=0.03)


@pytest.mark.parametrize("name", SIGNALS)
def test_one_signal_alone_is_a_warning(name: str) -> None:
    metric = SIGNALS[name].metric
    detector = settled()
    for step in range(15, 30):
        verdict = detector.observe(step, noisy(WELL | {metric: ILL[metric]}, step))
    assert verdict.health is Health.WARNING
    assert [found for found, reading in verdict.readings.items() if reading.problem] == [name]


def test_the_reference_does_not_get_used_to_the_trouble_and_recovery_is_seen() -> None:
    detector = settled()
    for step in range(15, 80):
        verdict = detector.observe(step, noisy(ILL, step))
    assert verdict.health is Health.COLLAPSED
    for step in range(80, 90):
        verdict = detector.observe(step, noisy(WELL, step))
    assert (verdict.health, verdict.since) == (Health.HEALTHY, None)


@pytest.mark.parametrize(("reward", "still_off"), [(0.62, True), (0.75, False)])
def test_a_signal_is_well_again_only_when_most_of_the_change_is_gone(reward: float, still_off: bool) -> None:
    """0.8 before: off from 0.56 down, well again above 0.68."""
    detector = settled()
    for step in range(15, 20):
        detector.observe(step, noisy(WELL | {"reward/mean": 0.4}, step))
    for step in range(20, 25):
        verdict = detector.observe(step, noisy(WELL | {"reward/mean": reward}, step))
    assert (verdict.health is Health.WARNING) is still_off


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({name: value for name, value in WELL.items() if name != "finish/answer"}, "answered: finish/answer is missing"),
        (WELL | {"learner/entropy": math.nan}, "entropy: learner/entropy is nan"),
        (WELL | {"rollout/response_tokens": math.inf}, "length: rollout/response_tokens is inf"),
    ],
)
def test_what_is_missing_or_no_number_is_named(metrics: dict[str, float], words: str) -> None:
    verdict = CollapseDetector(CollapseConfig()).observe(0, metrics)
    assert (verdict.health, verdict.words) == (Health.WARNING, f"warning: {words}")


def test_numbers_that_are_none_are_a_collapse_and_missing_ones_are_not() -> None:
    gone, broken = settled(), settled()
    for step in range(15, 25):
        absent = gone.observe(step, {})
        nan = broken.observe(step, dict.fromkeys(WELL, math.nan))
    assert (absent.health, nan.health) == (Health.WARNING, Health.COLLAPSED)
    json.dumps(nan.evidence, allow_nan=False)


def test_healthy_phases_raise_no_alarm_and_collapses_do() -> None:
    """A small part of `medr3 bench curves`."""
    rng = np.random.default_rng(4)
    for _ in range(25):
        assert Health.COLLAPSED not in verdicts(healthy(TUNING, rng))
    for kind in KINDS:
        called = []
        for _ in range(8):
            metrics, onset = collapsing(kind, TUNING, rng)
            called.append(next((i - onset for i, health in enumerate(verdicts(metrics)) if health is Health.COLLAPSED), STEPS))
        assert min(called) >= 0
        assert np.median(called) <= 10


VALUES = st.one_of(st.sampled_from([None, math.nan, math.inf, -math.inf]), st.floats(-1e6, 1e6), st.floats(0, 1))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(WELL, VALUES)), max_size=40), st.integers(0, 40))
def test_no_metrics_break_it_and_a_snapshot_forgets_nothing(rows: list[dict[str, float | None]], cut: int) -> None:
    steps = [{name: value for name, value in row.items() if value is not None} for row in rows]
    first = CollapseDetector(CollapseConfig())
    before = [first.observe(i, metrics) for i, metrics in enumerate(steps[:cut])]
    second = CollapseDetector(CollapseConfig())
    second.restore(json.loads(json.dumps(first.snapshot(), allow_nan=False)))
    after = [second.observe(i, metrics) for i, metrics in enumerate(steps[cut:], len(before))]
    whole = CollapseDetector(CollapseConfig())
    for i, (metrics, verdict) in enumerate(zip(steps, before + after, strict=True)):
        assert whole.observe(i, metrics) == verdict
        json.dumps(verdict.evidence, allow_nan=False)
        for name, signal in SIGNALS.items():
            if not math.isfinite(metrics.get(signal.metric, math.nan)):
                assert verdict.readings[name].problem
                assert verdict.health is not Health.HEALTHY


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"clear_at": 6}, "clear_at 6 is above warn_at 5"),
        ({"signals_to_collapse": 5}, "only 4 signals are watched"),
        ({"signals": {}}, "signals"),
        ({"signals": {"x": {"metric": "x", "min_change": 0}}}, "min_change"),
    ],
)
def test_a_wrong_setting_is_refused(settings_: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        CollapseConfig.model_validate(settings_)
