"""Mismatch between engine and learner: measured on the learner's own version, told from drift, said aloud before it ends a run."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from learner.config import AlgorithmConfig
from learner.mismatch import EngineMismatch, measure_mismatch, refuse_mismatch
from tests.learner_batches import Turn, batch_of
from trajectories.schema import WeightVersion

CONFIG = AlgorithmConfig(max_mismatch=0.01, mismatch_warn=0.003)
CURRENT = WeightVersion(1, 3)


@pytest.fixture
def batch():
    """Two episodes of 100 tokens: one of the current version, one two versions old; documents in between."""
    batch = batch_of([[Turn(60, 5), Turn(40)], [Turn(100)]], [1, 0], [0, 0])
    number_t = batch.per_token(np.array([3, 1], np.int32))
    return dataclasses.replace(batch, number_t=number_t)


def learner_view(batch, own, older):
    """The learner's log-probabilities: apart from the engine's by `own` on its own version, by `older` elsewhere."""
    apart = batch.per_token(np.array([own, older], np.float32))
    return np.where(batch.loss_mask_t, batch.behaviour_t + apart, 77).astype(np.float32)


def test_mismatch_is_told_from_drift_and_ages_are_counted(batch):
    learner_t = learner_view(batch, 0.0, -0.5)
    learner_t[np.flatnonzero(batch.loss_mask_t)[:2]] += np.float32([0.3, -0.1])
    found = measure_mismatch(batch, learner_t, CURRENT, cap=1.2)
    assert found["mismatch_tokens"] == 100
    assert found["mismatch_mean"] == pytest.approx(0.004)
    assert found["mismatch_max"] == pytest.approx(0.3)
    assert found["mismatch_p99"] == pytest.approx(0.1 + 0.01 * 0.2, abs=1e-6)  # between the two largest of 100
    assert found["drift_mean"] == pytest.approx(0.5)
    assert (found["age_mean"], found["age_max"]) == (1, 2)
    assert (found["tokens_of_age_0"], found["tokens_of_age_2"]) == (100, 100)
    assert found["importance_capped"] == pytest.approx(1 / 200)
    assert found["importance_mean"] == pytest.approx((98 + math.exp(0.3) + math.exp(-0.1) + 100 * math.exp(-0.5)) / 200)
    assert found["kl_engine_learner"] > 0
    assert 0 < found["effective_samples"] < 1


def test_the_same_version_number_of_an_earlier_generation_is_another_version(batch):
    found = measure_mismatch(batch, learner_view(batch, 0.2, 0.2), WeightVersion(2, 3), cap=2.0)
    assert found["mismatch_tokens"] == 0
    assert "mismatch_mean" not in found, "nothing was measured, and a zero would claim otherwise"
    assert refuse_mismatch(found, CONFIG) == {"mismatch_warned": 0.0}


@pytest.mark.parametrize(("apart", "warned"), [(0.0029, 0.0), (0.0031, 1.0), (0.0099, 1.0)])
def test_a_growing_mismatch_is_flagged_before_it_ends_the_run(batch, apart, warned):
    found = measure_mismatch(batch, learner_view(batch, apart, -0.7), CURRENT, cap=2.0)
    assert refuse_mismatch(found, CONFIG) == {"mismatch_warned": warned}


def test_a_learner_that_computes_no_numbers_ends_the_run_too():
    with pytest.raises(EngineMismatch, match="differ by nan"):
        refuse_mismatch({"mismatch_mean": float("nan"), "mismatch_max": float("nan"), "mismatch_tokens": 1.0}, CONFIG)


def test_above_the_limit_the_run_ends_in_one_line(batch):
    found = measure_mismatch(batch, learner_view(batch, 0.5, 0.0), CURRENT, cap=2.0)
    with pytest.raises(EngineMismatch, match=r"differ by 0\.5 .* over 100 tokens .* above learner.max_mismatch = 0\.01: check"):
        refuse_mismatch(found, CONFIG)


def test_without_trained_tokens_nothing_is_claimed(batch):
    batch.loss_mask_t[:] = False
    assert measure_mismatch(batch, learner_view(batch, 0, 0), CURRENT, cap=2.0) == {"mismatch_tokens": 0.0}
