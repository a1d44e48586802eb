"""The simulated controller keeps the ledger's promises, and its limits are where its costs put them."""

from __future__ import annotations

import pickle

import pytest

from bench import simulation
from bench.driver_costs import Costs
from bench.ledger import lifetime, waiting_take
from bench.simulation import MEAN_S, SEATS, Setting, Simulation, balanced, policies, saturating
from bench.trajectories import as_bytes, episodes, from_pickles, opened, require_equal
from learner.batch import read_batch
from trajectories.groups import Rules
from trajectories.schema import to_table

FREE = Costs(0.0, 0.0, 0.0, 0.0)
SLOW = Costs(0.01, 0.04, 0.04, 0.01)  # ten groups a second


def test_arrow_and_pickles_make_the_same_batch() -> None:
    groups = [episodes(number, 60) for number in range(3)]
    require_equal(
        read_batch([opened(as_bytes(to_table(group))) for group in groups]), from_pickles([pickle.dumps(g) for g in groups])
    )


def test_a_driver_that_costs_nothing_keeps_its_engines_busy() -> None:
    seen = Simulation(saturating(4, FREE)).run()
    assert seen.driver_busy == 0
    assert seen.engines_busy > 0.85
    assert seen.groups_per_s <= 1.1 * 4 * SEATS / MEAN_S


def test_a_slow_driver_is_the_limit() -> None:
    seen = Simulation(saturating(32, SLOW)).run()
    assert seen.driver_busy > 0.95
    assert seen.groups_per_s <= 1.05 / SLOW.group


@pytest.mark.parametrize("name", policies(2))
def test_every_policy_keeps_its_bound(name: str) -> None:
    rules = policies(2)[name]
    seen = Simulation(balanced(2, rules, SLOW)).run()
    assert seen.max_age <= rules.max_staleness
    if rules.wait_for_slow and rules.oversample == 1:
        assert seen.dropped_share == 0
        assert seen.length_bias == pytest.approx(1, abs=0.15), "long episodes are trained as often as they are made"
    else:
        assert seen.dropped_share > 0 and seen.length_bias < 0.95, "what is dropped is what is long"


def test_one_engine_and_groups_of_one_length_take_that_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "SIGMA", 0.0)
    seen = Simulation(Setting(1, Rules(groups_per_step=SEATS, max_staleness=0), FREE, learner_s=5.0)).run()
    assert seen.groups_per_s == pytest.approx(SEATS / (MEAN_S + 5.0))
    assert (seen.mean_age, seen.dropped_share) == (0, 0)


def test_the_ledger_s_cost_is_positive_and_small() -> None:
    assert 0 < lifetime(64) < 0.01
    assert 0 < waiting_take(64) < 0.01
