"""Slopes, verdicts and what is foretold; then every point once, at a size that takes a moment, as the real thing."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bench import growth_points as points
from bench.driver_costs import Costs
from bench.growth import EXACT, LINEAR, Series, foretold, in_turns, series_of, slope_of, where_attention_shows
from bench.growth_stored import GROUPS, MEMBERS, resume, stored
from bench.harness import Children
from tests.bench_children import MIB, growing
from trajectories.audit import audit
from trajectories.store import read

SIZES = (10, 40, 160)


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """A meter freezes what is there, which is meant for a process of its own."""
    yield
    gc.unfreeze()


def test_a_power_has_its_exponent_as_slope_and_no_error() -> None:
    for power in (0.0, 0.5, 1.0, 2.0):
        slope = slope_of({size: [3.0 * size**power] * 2 for size in SIZES})
        assert slope == pytest.approx((power, 0.0, power), abs=1e-9)


def test_scatter_between_rounds_is_the_error() -> None:
    quiet = slope_of({size: [size * 0.99, size * 1.01] for size in SIZES})
    loud = slope_of({size: [size * 0.6, size * 1.4] for size in SIZES})
    assert quiet.fitted == pytest.approx(loud.fitted, abs=1e-9)
    assert 0 < quiet.error < 0.01 < loud.error


def test_what_grows_behind_a_constant_is_judged_where_it_shows() -> None:
    """4000 + n² over all sizes looks better than linear; between the two largest it is not."""
    hidden = Series("stored", "a step", "steps", {size: [4000.0 + size**2] for size in SIZES})
    assert hidden.slope.fitted < LINEAR < hidden.slope.last
    (verdict,) = hidden.verdicts()
    assert (verdict["name"], verdict["reached"]) == ("stored: slope of a step", False)
    assert Series("stored", "a step", "steps", {size: [1000.0 + size] for size in SIZES}).verdicts()[0]["reached"]
    assert not Series("context", "an episode", "tokens", {size: [float(size**2)] for size in SIZES}, judged=False).verdicts()


def test_planned_sizes_are_foretold_by_line_and_power_and_say_so() -> None:
    series = Series("corpus", "a query", "documents", {size: [size / 2.0] for size in SIZES}, planned=(1000,))
    found = {row["name"]: row["value"] for row in series.figures()}
    assert found["corpus: a query, 1,000 documents, extrapolated"] == pytest.approx(500)
    assert found["corpus: a query, slope"] == pytest.approx(1)
    assert found["corpus: a query, 160 documents"] == 80
    assert foretold({10: [120.0], 100: [300.0]}, 1000)[1] == pytest.approx(2100), "a constant part of 100 stays one"
    assert foretold({10: [1.0], 100: [100.0]}, 1000)[1] == pytest.approx(10_000), "a square is not taken for a line"


def test_attention_shows_nowhere_where_tokens_cost_the_same() -> None:
    assert where_attention_shows({length: [length * 2.0 - length**2 * 1e-4] for length in SIZES}) == math.inf
    assert where_attention_shows({length: [length * (2.0 + length / 50)] for length in SIZES}) == pytest.approx(10)


def test_sizes_take_turns_in_processes_of_their_own_and_the_first_round_does_not_count(tmp_path: Path) -> None:
    told = tmp_path / "told"
    found = in_turns({size: partial(Children, growing, size, told) for size in (64, 256)}, rounds=2)
    assert told.read_text().split() == ["64", "256"] * 3
    deed, memory = series_of("some", "MiB", found, memory="memory")
    assert {size: len(costs) for size, costs in deed.costs.items()} == {64: 2, 256: 2}
    assert deed.clock is not None and all(deed.clock[size] >= 10 for size in deed.costs), "half of 20 ms asleep, by the clock"
    assert {size: peak for size, (peak,) in memory.costs.items()} == pytest.approx({64: 64, 256: 256}, rel=0.1)
    assert memory.unit == "MiB" and all(reading.memory < 300 * MIB for each in found.values() for reading in each)


@pytest.mark.usefixtures("unfrozen")
def test_the_run_that_is_stored_is_a_whole_run(tmp_path: Path) -> None:
    reading = stored(0, 12, tmp_path)()
    assert list(reading.costs) == ["all written", "opened", "audited", "resumed", "reported"]
    assert all(cost.processor_s > 0 for cost in reading.costs.values())
    report = audit(tmp_path)
    assert (report.ok, report.rows, report.trained) == (True, 12 * GROUPS * MEMBERS, 12 * GROUPS)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert resume(tmp_path) == 2, "the generation behind the one that wrote it"


@pytest.mark.usefixtures("unfrozen")
def test_a_group_of_any_size_has_its_tokens_and_goes_through_a_step(tmp_path: Path) -> None:
    for members in (4, 12):
        group = points.sized_group(0, members, 1200)
        assert len({each.episode_id for each in group}) == members and {each.group_id for each in group} == {"g0"}
        assert sum(len(each.token_ids) for each in group) == pytest.approx(1200, rel=0.3)
    groups = [points.sized_group(number, 4, 200) for number in range(3)]
    meter = points.Meter()
    points.drive(tmp_path, groups, meter)
    assert meter.reading().costs["the driver"].processor_s > 0
    assert sorted(set(read(tmp_path)["group_id"].to_pylist())) == ["g0", "g1", "g2"]


@pytest.mark.usefixtures("unfrozen")
def test_engines_and_lengths_at_a_small_size() -> None:
    """Costs that are told are those of this setting: a driver is as busy as its groups a second."""
    seen = [points.simulated(0, engines, Costs(1e-4, 2e-4, 2e-4, 1e-4))().costs["the driver, a second"] for engines in (1, 4)]
    assert seen[1].processor_s == pytest.approx(4 * seen[0].processor_s, rel=0.2)
    costs = points.learned(0, 64, (32, 2, 2, 1, 64, 96), 256)().costs
    whole, rest = costs["an episode"], costs["an episode, without attention's arithmetic"]
    attention, matrices = 6 * 2 * 32 * 64**2, 6 * 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64) * 64
    output = 6 * 32 * 32 * 96  # at the tokens that the model wrote, half of them
    assert rest.processor_s / whole.processor_s == pytest.approx(1 - attention / (attention + matrices + output))


@pytest.mark.usefixtures("unfrozen")
def test_an_index_is_built_and_asked(tmp_path: Path) -> None:
    built = points.indexed(0, 300, tmp_path / "index", EXACT)()
    assert list(built.costs) == ["build, Flat"]
    asked = points.searched(0, 300, tmp_path / "index", EXACT, ("dense", "lexical"))()
    assert list(asked.costs) == ["Flat, a query", "words, a query"]
