"""What costs more as something grows: a series of sizes for each quantity, and the slope of log cost over log size.

::

    each size in a process of its own ─▶ all sizes take turns ─▶ processor time, clock, peak memory ─▶ slope ─▶ linear or better?

A slope of 1 is linear, of 0 flat. What is judged is the steeper of two slopes: of the fit over all sizes, and of the line through the
two largest, for at small sizes a constant part hides what grows.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import growth_points as points
from bench.driver_costs import Costs, measure
from bench.growth_stored import stored
from bench.harness import Children, Result, figure, ratio, result
from bench.simulation import MEAN_S, SEATS

# Sorting, n log n, has a slope of 1.1 between ten and a hundred thousand; and data that leaves the processor's caches costs up to a
# third more, which over a factor of sixteen is 0.1 as well. What is worse grows by itself.
LINEAR = 1.1
LEAST_MIB = 1.0  # below it, allocators decide what a process takes
BEGINS = 0.1  # attention is seen where it adds a tenth to a token's cost

EXACT, GRAPH = "Flat", "HNSW32,SQ8"  # the kinds of index that the retrieval service takes up to ten million documents
PLANNED = (1_000_000, 10_000_000)
# Width, layers, heads, heads of keys, width between, vocabulary: attention and matrices as in models of a billion parameters, four
# times narrower, so that attention shows four times earlier.
MODEL = (512, 4, 8, 2, 1408, 4096)
# Qwen2.5-1.5B, of which only the shape is known here: width, and weights of one layer's matrices.
LARGE_WIDTH, LARGE_LAYER = 1536, 46_792_704
GROUP_TOKENS = 16_384
# Imported once, by a process that every size is a fork of: two dozen processes would take longer to import than to measure.
PRELOADED = [
    "bench.growth_points", "bench.growth_stored", "bench.retrieval", "bench.simulation", "bench.trajectories", "bench.workload",
    "learner.trainer", "medr3.observe.report", "medr3.run.recovery", "medr3.run.resuming", "retrieval_service.building",
    "retrieval_service.index", "retrieval_service.lexical",
]  # fmt: skip
NO_ENGINES = (
    "real engines: not here; on one machine a second one takes the cores of the first, and a slope would be the machine's"
)


class Sizes(NamedTuple):
    documents: tuple[int, ...]
    lengths: tuple[int, ...]
    members: tuple[int, ...]
    steps: tuple[int, ...]  # from the first large file of a store on
    engines: tuple[int, ...]
    rounds: int
    driver_groups: int  # of which the driver's costs are measured, with Ray


SHORT = Sizes((2_000, 8_000, 32_000), (256, 1024, 4096), (4, 16, 64), (32, 128, 512), (1, 8, 64, 512), 2, 100)
FULL = Sizes(
    (10_000, 40_000, 160_000), (256, 512, 1024, 2048, 4096), (4, 8, 16, 32, 64), (32, 128, 512, 2048), (1, 4, 16, 64, 256, 512), 4, 400
)  # fmt: skip


class Slope(NamedTuple):
    """Of log cost over log size."""

    fitted: float
    error: float  # standard error of the fit: of scatter between rounds, and of a curve that is no line
    last: float  # between the two largest sizes

    @property
    def steepest(self) -> float:
        return max(self.fitted, self.last)


@dataclass(frozen=True)
class Series:
    """What one deed costs at each size, round by round."""

    quantity: str  # corpus
    name: str  # Flat, a query
    of: str  # documents
    costs: Mapping[int, Sequence[float]]
    unit: str = "ms"
    clock: Mapping[int, float] | None = None  # medians by the clock, of the same deed
    judged: bool = True
    planned: tuple[int, ...] = ()  # sizes that are not measured but foretold by the slope

    @property
    def slope(self) -> Slope:
        return slope_of(self.costs)

    def figures(self) -> list[Result]:
        made = []
        for size, costs in self.costs.items():
            row = figure(f"{self.quantity}: {self.name}, {size:,} {self.of}", statistics.median(costs), self.unit)
            if len(costs) > 1:
                row |= {"lowest": min(costs), "highest": max(costs)}
            if self.clock is not None:
                row["clock"] = self.clock[size]
            made.append(row)
        slope = self.slope
        for size in self.planned:
            low, high = foretold(self.costs, size)
            row = figure(f"{self.quantity}: {self.name}, {size:,} {self.of}, extrapolated", high, self.unit)
            made.append(row | {"lowest": low, "highest": high})
        spread = {"lowest": slope.fitted - slope.error, "highest": slope.fitted + slope.error}
        return [*made, figure(f"{self.quantity}: {self.name}, slope", slope.fitted, "") | spread]

    def verdicts(self) -> list[Result]:
        if not self.judged:
            return []
        return [ratio(f"{self.quantity}: slope of {self.name}", self.slope.steepest, LINEAR, at_most=True)]


def slope_of(costs: Mapping[int, Sequence[float]]) -> Slope:
    """Least squares over every round of every size.

    Example: what costs 2 ms and another one for every ten.
        >>> slope = slope_of({10: [3.0], 100: [12.0], 1000: [102.0]})
        >>> round(slope.fitted, 2), round(slope.last, 2), slope_of({2: [4.0], 4: [16.0], 8: [64.0]}).steepest.__round__(6)
        (0.77, 0.93, 2.0)
    """
    measured = [(math.log(size), math.log(cost)) for size, found in costs.items() for cost in found]
    x, y = np.array(measured).T
    away = x - x.mean()
    fitted = float(away @ y / (away @ away))
    left = y - y.mean() - fitted * away
    error = math.sqrt(float(left @ left) / max(1, len(x) - 2) / float(away @ away))
    (before, low), (largest, high) = sorted((size, statistics.median(found)) for size, found in costs.items())[-2:]
    return Slope(fitted, error, math.log(high / low) / math.log(largest / before))


def foretold(costs: Mapping[int, Sequence[float]], size: int) -> tuple[float, float]:
    """A size that was not measured, from the two largest that were: by the steeper slope, and by a straight line; the lower first.

    A power alone would forget that a constant part at the measured sizes stays one: an index of ten million vectors that takes
    little more than an empty process. A line alone would make of what hardly grows something linear.

    Example: memory of 20 MiB and one for every thousand documents, at ten times as many.
        >>> tuple(round(each) for each in foretold({1_000: [21.0], 4_000: [24.0], 10_000: [30.0]}, 100_000))
        (53, 120)
    """
    middle = {each: statistics.median(found) for each, found in costs.items()}
    before, largest = sorted(middle)[-2:]
    power = middle[largest] * (size / largest) ** slope_of(costs).steepest
    line = middle[largest] + (middle[largest] - middle[before]) / (largest - before) * (size - largest)
    return min(power, line), max(power, line)


def run(short: bool = False) -> Result:
    """Sizes are chosen for at most three minutes with `short`, twelve without, on two cores that nobody else uses."""
    return grown(SHORT if short else FULL)


def grown(sizes: Sizes) -> Result:
    prepare_forks()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        context = lengths(sizes)
        costs = measure(sizes.driver_groups)
        series = [*corpus(sizes, folder), *context, *groups(sizes), *trajectories(sizes, folder), *engines(sizes, costs)]
    figures = [row for each in series for row in each.figures()]
    if math.isfinite(begins := where_attention_shows(context[0].costs)):  # JSON has no infinity
        figures.append(figure("context: attention adds a tenth to a token from, this model", begins, "tokens"))
    figures += [
        figure("context: the same by arithmetic, 1.5B parameters", BEGINS * LARGE_LAYER / LARGE_WIDTH, "tokens"),
        figure("engines: that one driver feeds", MEAN_S / SEATS / costs.group, "engines"),
    ]
    notes = [
        f"judged is the steeper of the fit over all sizes and the line through the two largest; at most {LINEAR:g} is linear or better",
        "costs are processor time of the process that does it; --json has the clock beside each; memory is its peak above its start",
        "extrapolated, not measured: by the steeper slope, and by the line through the two largest sizes; the figure is the larger",
        NO_ENGINES,
    ]
    return result(figures, [verdict for each in series for verdict in each.verdicts()], notes, threads=1)


# The quantities


def corpus(sizes: Sizes, folder: Path) -> list[Series]:
    """Building and asking an exact index and a graph; the words are asked of one of them, for both hold the same."""
    made: list[Series] = []
    places = {factory: folder / factory.partition(",")[0] for factory in (EXACT, GRAPH)}
    for factory, place in places.items():
        readings = {
            size: once(points.indexed, size, place / str(size), factory) for size in sizes.documents
        }  # one after the other: a build is long enough to be told from one round
        made += series_of("corpus", "documents", readings, memory=f"memory of building, {factory}", planned=PLANNED)
    for factory, modes in ((EXACT, ("dense", "lexical")), (GRAPH, ("dense",))):
        opened = {
            size: partial(child_of, points.searched, size, places[factory] / str(size), factory, modes)
            for size in sizes.documents
        }
        readings = in_turns(opened, sizes.rounds)
        made += series_of("corpus", "documents", readings, memory=f"memory of searching, {factory}", planned=PLANNED)
    return made


def lengths(sizes: Sizes) -> list[Series]:
    """A learner step of as many tokens, whatever the length of its episodes."""
    opened = {
        length: partial(child_of, points.learned, length, MODEL, max(points.LEARNED_TOKENS, 2 * length))
        for length in sizes.lengths
    }
    made = series_of("context", "tokens", in_turns(opened, sizes.rounds), memory="memory of a step")
    return [replace(each, judged=each.name != "an episode") for each in made]


def groups(sizes: Sizes) -> list[Series]:
    opened = {members: partial(child_of, points.accounted, members, GROUP_TOKENS) for members in sizes.members}
    return series_of("group", "episodes", in_turns(opened, sizes.rounds), memory="memory of its accounts")


def trajectories(sizes: Sizes, folder: Path) -> list[Series]:
    opened = {steps: partial(child_of, stored, steps, folder / f"run-{steps}") for steps in sizes.steps}
    return series_of("stored", "steps", in_turns(opened, sizes.rounds), memory="memory of reading")


def engines(sizes: Sizes, costs: Costs) -> list[Series]:
    opened = {count: partial(child_of, points.simulated, count, costs) for count in sizes.engines}
    return series_of("engines", "engines", in_turns(opened, sizes.rounds), memory="memory of the accounts")


# Measuring


def prepare_forks() -> None:
    """For the processes that are started from here on, which are to take one thread each."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)


def child_of(target: Callable[..., Callable[[], points.Reading]], *arguments: object) -> Children:
    return Children(target, *arguments, preloaded=True)


def once(target: Callable[..., Callable[[], points.Reading]], *arguments: object) -> list[points.Reading]:
    """One step of one size."""
    child = child_of(target, *arguments)
    try:
        return list(child.answers())
    finally:
        child.close()


def in_turns(opened: Mapping[int, Callable[[], Children]], rounds: int) -> dict[int, list[points.Reading]]:
    """A step of every size in each round, so that whatever disturbs the machine disturbs all sizes; the first round warms up.

    Sizes are set up one after the other: what setting up costs is measured too.
    """
    children: dict[int, Children] = {}
    try:
        for size, open_ in opened.items():
            children[size] = open_()
        found = [{size: child.answers()[0] for size, child in children.items()} for _ in range(rounds + 1)]
    finally:
        for child in children.values():
            child.close()
    return {size: [each[size] for each in found[1:]] for size in children}


def series_of(
    quantity: str, of: str, readings: Mapping[int, Sequence[points.Reading]], memory: str, planned: tuple[int, ...] = ()
) -> list[Series]:
    """A series for each deed, and one of memory."""
    names = next(iter(readings.values()))[0].costs
    made = []
    for name in names:
        costs = {size: [1e3 * each.costs[name].processor_s for each in found] for size, found in readings.items()}
        clock = {size: statistics.median(1e3 * each.costs[name].clock_s for each in found) for size, found in readings.items()}
        single = {size: costs[size][:1] if len(set(costs[size])) == 1 else costs[size] for size in costs}  # what was done once
        made.append(Series(quantity, name, of, single, clock=clock, planned=planned))
    peaks = {size: [max(LEAST_MIB, found[-1].memory / 2**20)] for size, found in readings.items()}
    return [*made, Series(quantity, memory, of, peaks, unit="MiB", planned=planned)]


def where_attention_shows(episodes: Mapping[int, Sequence[float]]) -> float:
    """At which length a token costs a tenth more than without attention, by a line through what a token costs; infinite if it does not.

    Example: a token costs 1, and a thousandth more for each token before it; an episode of 1,000 costs 2,000.
        >>> round(where_attention_shows({length: [length * (1 + length / 1000)] for length in (100, 200, 1000)}))
        100
    """
    x = np.array(list(episodes), float)
    slope, rest = np.polyfit(x, np.array([statistics.median(found) for found in episodes.values()]) / x, 1)
    return float(BEGINS * rest / slope) if slope > 0 else math.inf
